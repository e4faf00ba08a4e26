"""What a release promises: the public names, no warnings of our own, versions that are known to work, types that hold."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from public_api import surface

import mdsens as ms

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KNOWN_BAD = {"0.10.2", "0.11.0", "0.11.1"}
"""Versions of jax that compute wrongly on the CPU."""


def test_the_public_surface_is_the_one_that_is_listed():
    listed, found = (ROOT / "tests" / "public_api.txt").read_text().splitlines(), list(surface())
    gone, new = sorted(set(listed) - set(found)), sorted(set(found) - set(listed))
    assert not gone and not new, (
        "the public surface changed; if on purpose, say so in CHANGELOG.md and run 'python tests/public_api.py > "
        "tests/public_api.txt'\n" + "\n".join([*(f"- {line}" for line in gone), *(f"+ {line}" for line in new)])
    )


WORK = """
import importlib, pkgutil
import mdsens as ms
for module in pkgutil.walk_packages(ms.__path__, "mdsens."):
    importlib.import_module(module.name)
system = ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [0.5, 1.0, 0.1]])
eq = ms.relax(system, ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=6.0, onset=5.0))
S = ms.sensitivity(eq)
ms.value_and_gradient(lambda system, potential: system.positions[0, 0] - system.positions[1, 0], eq)
ms.save("trimer.h5", eq, S)
ms.load("trimer.h5")
system.to_ase().write("trimer.xyz")
ms.read("trimer.xyz")
ms.plot.influence({"sigma": float(abs(S.positions.sigma).max())}, label="Å")
print(S.certificate.trusted)
"""


OTHERS = ("ignore:Setting the shape:DeprecationWarning:ase.atoms",)
"""ASE 3.29 under NumPy 2.5."""


@pytest.mark.slow
def test_nothing_warns_where_warnings_are_errors(tmp_path):
    """What others warn of is named above, by their module."""
    options = ["-W", "error", *(word for warning in OTHERS for word in ("-W", warning))]
    done = subprocess.run([sys.executable, *options, "-c", WORK], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # What warns while it is collected, as a file that was not closed, cannot raise.
    assert "Warning" not in done.stderr, done.stderr
    assert done.stdout.split() == ["True"]


def _requirements():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_versions_of_jax_that_compute_wrongly_are_excluded_everywhere():
    asked = [requirement for requirement in _requirements() if requirement.name == "jax"]
    assert len(asked) >= 2
    for requirement in asked:
        assert not [version for version in KNOWN_BAD if requirement.specifier.contains(version)]
        assert all(requirement.specifier.contains(version) for version in (oldest("jax"), "0.11.2", "0.12.0.1"))


def oldest(name):
    """The oldest version that pyproject.toml allows."""
    specifier = next(requirement.specifier for requirement in _requirements() if requirement.name == name)
    return next(part.version for part in specifier if part.operator == ">=")


def test_the_oldest_packages_that_are_tested_are_the_oldest_that_are_allowed():
    """`scripts/matrix.sh` installs those of `scripts/oldest.txt`."""
    lines = (ROOT / "scripts" / "oldest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    for text in PROJECT["dependencies"]:
        name = Requirement(text).name
        assert Version(tested[name]) == Version(oldest(name)), name


def test_what_is_installed_is_what_is_asked_for():
    import importlib.metadata

    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True), text


def test_versions_and_the_oldest_jax_are_told_the_same_everywhere():
    assert (
        PROJECT["version"] == ms.__version__ == re.search(r'^version: "?([^"\n]+)', (ROOT / "CITATION.cff").read_text(), re.M)[1]
    )
    assert f"## {Version(ms.__version__)}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"jax {oldest('jax')} or newer" in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_public_name_has_a_type_for_those_who_check():
    """`import mdsens` loads names when they are used; type checkers read where they are from the stub."""
    stub = (ROOT / "mdsens" / "__init__.pyi").read_text()
    told = {
        shown: f"{module}.{name}"
        for module, name, shown in re.findall(r"^from (\S+) import (\w+) as _?(\w+)$", stub, re.MULTILINE)
    }
    assert told == {name: f"{module}.{name}" for name, module in ms._PUBLIC.items()} | ms._MODULES
    assert (ROOT / "mdsens" / "py.typed").exists()


@pytest.mark.slow
def test_types_hold_in_what_the_documentation_shows(tmp_path):
    """As a user's checker sees it, that is not told where a cell is free and its derivative therefore not None."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        if code := re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            (tmp_path / f"{page.stem}_page.py").write_text("\n".join(code))
    pages = sorted(path.name for path in tmp_path.glob("*_page.py"))
    options = ["--no-strict-optional", "--ignore-missing-imports", "--follow-imports", "silent"]
    command = [sys.executable, "-m", "mypy", *options, *pages]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:]
