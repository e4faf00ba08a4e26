"""`mdsens potentials` lists what there is, and shows the page of one."""

import dataclasses
import subprocess
import sys

import pytest
from helpers import refused

import mdsens as ms
from mdsens.cli.potential_pages import listing, page
from mdsens.common.units import unit_text
from mdsens.potentials import SHIPPED


def test_all_potentials_are_listed_in_a_line():
    lines = list(listing())
    assert len(lines) == len(SHIPPED) and all(sum(line.split()[0] == name for line in lines) == 1 for name in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_has_a_page_with_its_parameters(name):
    cls, text = SHIPPED[name], "\n".join(page(name.lower()))
    assert text.startswith(name) and "Traceback" not in text
    for field in dataclasses.fields(cls):
        assert not field.init or f"\n  {field.name} " in text
    assert all(f"[{unit_text(unit)}]" in text for unit in cls.units.values() if unit)


def test_a_page_shows_formula_units_paper_and_files():
    text = "\n".join(page("TERSOFF"))
    for words in ("b_ij = ", "[1/Å]", "doi:10.1103/PhysRevB.39.5566", "Tersoff.from_file(path", "by default 3"):
        assert words in text
    refused(lambda: list(page("tersof")), "'tersof'", "Did you mean 'Tersoff'?")


@pytest.mark.slow
def test_the_command_prints_it_or_one_sentence():
    def run(*names):
        command = [sys.executable, "-m", "mdsens.cli.app", "potentials", *names]
        return subprocess.run(command, capture_output=True, text=True)

    assert "LennardJones" in run().stdout
    done = run("morsee")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_every_public_name_is_there():
    # A Reparameterised is made by ms.reparameterised.
    assert {"studies", "testing", *SHIPPED} - {"Reparameterised"} <= set(ms.__all__)
    assert all(getattr(ms, name) is not None for name in ms.__all__)
