"""The scripts that draw figures do so, resume, and exit as they say."""

import pathlib
import subprocess
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"


def run(script, *options, cwd):
    command = [sys.executable, str(SCRIPTS / script), *map(str, options)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1200)


@pytest.mark.slow
def test_unrolled_vs_implicit_resumes_and_draws(tmp_path):
    picture = tmp_path / "picture.png"
    first = run("unrolled_vs_implicit.py", "--seeds", 2, "--output", tmp_path / "out", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.h5")}
    assert len(written) == 2
    second = run("unrolled_vs_implicit.py", "--seeds", 3, "--output", tmp_path / "out", "--picture", picture, cwd=tmp_path)
    assert second.returncode == 0 and picture.stat().st_size > 10_000, second.stderr
    assert "of 3" in second.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())


@pytest.mark.slow
def test_the_error_stays_under_its_bound(tmp_path):
    done = run("error_bound.py", "--picture", tmp_path / "picture.png", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.slow
def test_ranges_of_validity_hold(tmp_path):
    done = run("range_of_validity.py", "-n", 8, "--picture", tmp_path / "picture.png", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.mark.slow
def test_all_benches_write_one_page(tmp_path):
    done = run("bench/all.py", "--quick", "--output", tmp_path, cwd=tmp_path)
    page = (tmp_path / "benchmarks.md").read_text()
    assert done.returncode == 0, page + done.stderr
    assert (tmp_path / "benchmarks.png").stat().st_size > 10_000


def test_each_mutant_finds_its_place(tmp_path):
    done = run("stress/mutants.py", "--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 40
