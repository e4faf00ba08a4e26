"""The house stays as it is planned: every import points down, nothing goes in a circle, nothing lies beside the packages."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

FLOORS = (
    "common",
    "implicit",
    "solvers",
    "structures",
    "potentials",
    "mechanics",
    "equilibrium",
    "derivatives",
    "observables",
    "files",
    "plot",
    "testing",
    "studies",
    "cli",
)
"""From below; a package imports from those before it only, inside functions and for types too."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "mdsens").rglob("*.py")
    if "_data" not in path.parts
}


def imported(path):
    """The modules of mdsens that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mdsens":
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "mdsens")


IMPORTS = {module: set(imported(path)) - {module} for module, path in MODULES.items()}


def test_every_import_points_down():
    up = []
    for module, others in IMPORTS.items():
        for other in others if "." in module else ():
            here, there = (FLOORS.index([*name.split("."), FLOORS[-1]][1]) for name in (module, other))
            if there > here or other == "mdsens":
                up.append(f"{module} -> {other}")
    assert not up, up


def test_no_imports_go_in_a_circle():
    left = {module: set(others) for module, others in IMPORTS.items() if module != "mdsens"}
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert not left, sorted(left)


def test_nothing_lies_beside_the_packages():
    beside = {path.name for path in (ROOT / "mdsens").iterdir() if path.is_file() or any(path.rglob("*.py"))} - {"_data"}
    assert beside == {*FLOORS, "__init__.py", "__init__.pyi", "py.typed"}


def test_tests_mirror_the_packages():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= set(FLOORS)


def test_no_file_is_longer_than_500_lines():
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > 500} == {}
