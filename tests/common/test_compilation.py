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
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
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
    assert kept > 20
    assert int(run(tmp_path / "kept")[1]) > 20
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
def test_it_is_switched_on_by_the_environment_and_off_without(tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "HOME": str(tmp_path)}
    run(**cache)
    assert not list(tmp_path.rglob("compiled"))
    run(**cache, MDSENS_KEEP_COMPILED="1")
    (folder,) = tmp_path.rglob("compiled/*-jax*")
    assert len(list(folder.iterdir())) > 20
    # The second session finds them, without a word.
    assert not said(**cache, MDSENS_KEEP_COMPILED="1")


def test_a_folder_that_cannot_be_made_costs_a_warning_only(tmp_path):
    (tmp_path / "file").touch()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file"), "MDSENS_KEEP_COMPILED": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", "import mdsens"], env=environment, capture_output=True, text=True, check=True)
    assert "nothing is kept" in done.stderr and "Traceback" not in done.stderr
