"""Compiled programs are kept where they were asked to be, and found again by another process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdsens.common import compilation

PROGRAM = """
import sys
import jax
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event) if event.endswith("cache_hits") else None)
jax.jit(lambda x: x)(1.0)  # JAX has decided by now whether it keeps anything
import pytest
import mdsens as ms
if len(sys.argv) > 1:
    print(ms.keep_compiled(sys.argv[1]))
start = ms.System([[0.0, 0.0, 0.0], [1.3, 0.0, 0.0]])
eq = ms.relax(start, ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0))
print(len(found))
"""


def run(*arguments, **environment):
    return done(*arguments, **environment).stdout.split()


def said(**environment):
    return done(**environment).stderr


def done(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "MDSENS_"))}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_has_compiled(tmp_path):
    folder, hits = run(tmp_path / "kept")
    # Some programs are the same.
    # In a folder for this kind of processor and these versions.
    folder = Path(folder)
    assert folder.parent == tmp_path / "kept" and list(folder.parent.iterdir()) == [folder] and int(hits) < 10
    kept = len(list(folder.iterdir()))
    assert kept > 10
    assert int(run(tmp_path / "kept")[1]) > 10
    assert len(list(folder.iterdir())) == kept


def test_programs_of_another_processor_are_left_alone(tmp_path, monkeypatch):
    here = compilation._kind()
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu sse2 avx\n")
    monkeypatch.setattr(compilation, "CPU", tmp_path / "cpuinfo")
    older = compilation._kind()
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu sse2 avx avx512f\n")
    assert len({here, older, compilation._kind()}) == 3
    monkeypatch.setattr(compilation.jax, "__version__", "0.0.1")
    assert len({here, older, compilation._kind()}) == 3


@pytest.mark.slow
def test_programs_are_kept_unless_it_is_switched_off(tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "HOME": str(tmp_path)}
    run(**cache, MDSENS_KEEP_COMPILED="0")
    assert not list(tmp_path.rglob("compiled"))
    run(**cache)
    (folder,) = tmp_path.rglob("compiled/*-jax*")
    assert len(list(folder.iterdir())) > 10
    # The second session finds them, without a word.
    assert not said(**cache)
    # A folder that cannot be read or written to, or is full of what is no program, is no error and no word either.
    for path in folder.iterdir():
        path.write_bytes(b"no program")
    assert not said(**cache)


SETTINGS = "import jax; {before}; import mdsens; print(jax.config.jax_compilation_cache_dir)"


@pytest.mark.parametrize(
    ("before", "environment", "folder"),
    [
        ("None", {}, "mdsens"),
        ("None", {"MDSENS_KEEP_COMPILED": "0"}, "None"),
        ("None", {"JAX_COMPILATION_CACHE_DIR": "their_own"}, "their_own"),
        ("jax.config.update('jax_compilation_cache_dir', 'their_own')", {}, "their_own"),
        ("jax.config.update('jax_enable_compilation_cache', False)", {}, "None"),
        ("None", {"XDG_CACHE_HOME": "/dev/null"}, "None"),
    ],
)
def test_what_the_user_has_set_in_jax_counts(tmp_path, before, environment, folder):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "MDSENS_"))}
    environment = {**inherited, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), **environment}
    program = [sys.executable, "-c", SETTINGS.format(before=before)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    assert folder in done.stdout and not done.stderr


def test_programs_that_were_not_used_for_longest_go_first(tmp_path):
    for k in range(10):
        path = tmp_path / f"arch{k % 2}-jax0.10.1-0123" / f"program{k}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (1e9 + k, 1e9 + k))
    others = [tmp_path / "results" / "old.h5", tmp_path / "arch0-jax0.10.1-0123" / "notes.txt"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100_000))
        os.utime(path, (1e8, 1e8))
    compilation.prune(tmp_path, limit=10_000)
    assert compilation.kept_bytes(tmp_path) == 10_000
    compilation.prune(tmp_path, limit=9_999)
    assert {path.name for path in tmp_path.rglob("program*")} == {f"program{k}-cache" for k in range(3, 10)}
    assert all(path.exists() for path in others)
