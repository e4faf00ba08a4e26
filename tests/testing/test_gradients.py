"""Every parameter of every potential against structures relaxed again: some here, all by scripts/check_all_gradients.py."""

import pathlib
import subprocess
import sys

import pytest

from mdsens.testing.gradients import check_gradients

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "check_all_gradients.py"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "setting"), [("LennardJones", "cluster"), ("Reparameterised", "2-D")])
def test_sensitivities_are_those_of_structures_relaxed_again(name, setting):
    found = check_gradients(name, setting)
    assert found.is_fine and found.values >= 4, str(found)


def test_an_unknown_potential_is_refused():
    done = subprocess.run([sys.executable, str(SCRIPT), "Mores"], capture_output=True, text=True)
    assert done.returncode == 2 and "'Mores'" in done.stderr


@pytest.mark.slow
def test_all_of_them():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
