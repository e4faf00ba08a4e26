"""The command line as a person uses it: in a process of its own, and with what goes wrong in one sentence."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import h5py
import jax
import numpy as np
import pytest

import mdsens as ms
from mdsens.cli import doctor
from mdsens.derivatives import verification


def run(*arguments, cwd=None, check=None):
    done = subprocess.run(
        [sys.executable, "-m", "mdsens.cli.app", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def test_the_version_is_said():
    assert run("--version", check=0).stdout == f"mdsens {ms.__version__}\n"


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = run("demo", cwd=folder, check=0)
    return folder / "mdsens-demo", done.stdout


def test_demo_prints_what_a_physicist_wants_and_says_what_it_wrote(demo_folder):
    folder, text = demo_folder
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["packing.h5", "packing.png", "silicon_influence.png", "silicon_vacancy.h5", "silicon_vacancy.png"]
    assert all(f"mdsens-demo/{name}" in text for name in written)
    for parameter in ("epsilon", "sigma", "a", "lam", "gamma", "costheta0", "A", "B"):
        assert re.search(rf"^  {parameter} ", text, re.MULTILINE)
    assert text.count("trusted: residual") == 2
    eq, S = ms.load(folder / "packing.h5")
    assert "LBFGS" in eq.solver and len(eq.system) == 128
    assert S.positions.diameter["B"].shape == (128, 2)
    eq, S = ms.load(folder / "silicon_vacancy.h5")
    assert len(eq.system) == 215 and S.certificate.trusted


def test_demo_takes_a_fresh_folder_and_never_replaces_by_itself(demo_folder):
    folder, _ = demo_folder
    done = run("demo", "-o", folder, check=1)
    assert "not empty" in done.stderr and "--overwrite" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_demo_replaces_when_told(demo_folder):
    folder, text = demo_folder
    assert run("demo", "-o", folder, "--overwrite", check=0).stdout.replace(str(folder), "mdsens-demo") == text


def test_show_prints_a_table(demo_folder):
    text = run("show", demo_folder[0] / "silicon_vacancy.h5", check=0).stdout
    assert "215 atoms in 3-D (215 Si)" in text and "StillingerWeber" in text and "trusted" in text
    assert re.search(r"^  sigma +2\.0951 ", text, re.MULTILINE)


@pytest.mark.slow
def test_plot_writes_pictures_and_asks_before_replacing(demo_folder, tmp_path):
    source = demo_folder[0] / "silicon_vacancy.h5"
    done = run("plot", source, "-o", tmp_path, "-p", "costheta0", check=0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"silicon_vacancy_{what}.png" for what in ("influence", "sensitivity", "slice")]
    assert all(name in done.stdout for name in names)
    assert "--overwrite" in run("plot", source, "-o", tmp_path, check=1).stderr
    wrong = run("plot", source, "-o", tmp_path, "-p", "sgma", check=1).stderr
    assert "Did you mean 'sigma'" in wrong


@pytest.mark.slow
def test_verify_agrees_with_what_demo_stored(demo_folder):
    done = run("verify", demo_folder[0] / "packing.h5", check=0)
    assert "diameter.B" in done.stdout and "agree" in done.stdout


def test_verify_disagrees_with_a_falsified_file(demo_folder, tmp_path):
    forged = tmp_path / "forged.h5"
    forged.write_bytes((demo_folder[0] / "packing.h5").read_bytes())
    with h5py.File(forged, "a") as file:
        data = file["sensitivity/positions/diameter/B"]
        data[...] = data[()] * 1.001
        del file["h5md/creator"].attrs["checksum"]  # by which it would be refused at once
    done = run("verify", forged, check=1)
    assert "DISAGREES" in done.stdout


@pytest.mark.slow
def test_verify_says_when_a_step_left_the_basin(soft_packing):
    S = ms.sensitivity(soft_packing, wrt=["diameter.B"])
    # A step of 20 % of the small diameter rearranges the packing.
    (check,) = verification.check_sensitivity(soft_packing, S, step=0.2)
    assert not check.agrees and ("basin" in check.note or "relax again" in check.note)


@pytest.mark.slow
def test_doctor_tries_what_it_says():
    rows = {what: (finding, fine) for what, finding, fine in doctor.report()}
    assert all(fine for _, fine in rows.values()), rows
    assert "float64" in rows["precision"][0] and "right" in rows["compiled products"][0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", "missing.h5"], "There is no file"),
        (["show", "text.h5"], "no readable HDF5 file"),
        (["plot", "text.h5"], "no readable HDF5 file"),
        (["verify", "missing.h5"], "There is no file"),
        (["demo", "-o", "text.h5"], "is a file"),
        (["demo", "-o", "text.h5/inside"], "cannot be made"),
    ],
)
def test_what_goes_wrong_is_one_sentence(tmp_path, arguments, sentence):
    (tmp_path / "text.h5").write_text("not HDF5")
    done = run(*arguments, cwd=tmp_path, check=1)
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_help_and_unknown_commands():
    assert "verify" in run("--help", check=0).stdout
    done = run("shw")
    assert done.returncode != 0 and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_leaves_no_half_file(tmp_path):
    # A suite started in the background hands down that Ctrl-C is ignored.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from mdsens.cli.app import main; main()"
    # Not a pipe, which would fill up while nobody reads it.
    with (tmp_path / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "demo"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=errors
        )
        # While modules are imported, some of which swallow it, there is nothing to be cut off yet; those that draw come later.
        while process.poll() is None and not list(tmp_path.rglob("*.h5")):
            time.sleep(0.01)
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=3)
                break
    said = (tmp_path / "errors.txt").read_text()
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert not list(tmp_path.rglob("*.part"))
    for file in tmp_path.rglob("*.h5"):
        ms.load(file)


DROPPED = """
import gc, os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from mdsens.cli import app as cli
def interrupted(phase, _):
    gc.callbacks.remove(interrupted)
    os.kill(os.getpid(), signal.SIGINT)
@cli.app.command()
def collecting():
    gc.callbacks.append(interrupted)
    gc.collect()
    time.sleep(10.0)
cli.main()
"""


@pytest.mark.slow
def test_an_interrupt_counts_in_a_callback_of_the_garbage_collector_too():
    done = subprocess.run([sys.executable, "-c", DROPPED, "collecting"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_pictures_return_their_axes(soft_packing, silicon_vacancy):
    import matplotlib.axes

    from mdsens import plot

    S = ms.sensitivity(silicon_vacancy)
    largest = {name: float(np.abs(leaf).max()) for name, leaf in zip("abcdefgh", jax.tree.leaves(S.positions), strict=True)}
    for ax in (
        plot.packing(soft_packing, ms.sensitivity(soft_packing, wrt=["diameter"]).positions.diameter["B"]),
        plot.crystal(silicon_vacancy, S.positions.costheta0),
        plot.influence(largest, label="x"),
    ):
        assert isinstance(ax, matplotlib.axes.Axes)
    with pytest.raises(ms.InputError, match=r"plot\.crystal"):
        plot.packing(silicon_vacancy)
