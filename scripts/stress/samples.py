"""Good files of every kind that mdsens reads, and how each is read: what `fuzz.py` spoils."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

FORMATS = {
    "extxyz": "extxyz",
    "plain.xyz": "xyz",
    "cif": "cif",
    "poscar": "vasp",
    "json": "json",
    "traj": "traj",
    "xsf": "xsf",
    "pdb": "proteindatabank",
    "in": "aims",
    "gen": "gen",
    "cube": "cube",
    "res": "res",
    "dump": None,
    "lmp": "lammps-data",
    "pwi": "espresso-in",
}
"""Endings of structure files, and the formats of ASE that write them."""

STRUCTURES, POTENTIALS, STUDIES, RESULTS, TASKS, COLLECTED = (
    "structures",
    "potentials",
    "studies",
    "results",
    "tasks",
    "collected",
)

SILICON = "Si Si Si 2.1683 2.0951 1.80 21.0 1.20 -0.333333333333 7.049556277 0.6022245584 4.0 0.0 0.0\n"
TERSOFF = "Si Si Si 3.0 1.0 1.3258 4.8381 2.0417 0.0000 22.956 0.33675 1.3258 95.373 3.0 0.2 3.2394 3264.7\n"
SNAP = "rcutfac 4.7\ntwojmax 2\nrfac0 0.99363\nrmin0 0\nbzeroflag 1\nquadraticflag 0\n"

STUDY = """
[study]
kind = "{kind}"
{settings}
[structures.silicon]
{structure}
[potential]
name = "{potential}"
{how}
[relax]
fmax = 1e-8
[observables.energy]
[observables.distances]
arguments = {{ pairs = [[0, 1]] }}
"""

MADE = """
[study]
kind = "sweep"
joint = true
[study.parameters]
sigma = { start = 1.0, stop = 1.1, points = 3 }
epsilon = [1.0, 2.0]
[structures.packing]
packing = { n = 8, diameters = { A = 1.0, B = 0.6 }, packing_fraction = 0.5, dim = 3 }
seed = [1, 2]
rattle = 0.01
delete = [0]
frozen = [1]
[structures.surface]
builder = "fcc111"
arguments = { symbol = "Al", size = [2, 2, 3], vacuum = 5.0 }
repeat = 2
[structures.tube]
builder = "nanotube"
arguments = { n = 3, m = 3, length = 2 }
repeat = [1, 1, 2]
[potential]
name = "LennardJones"
parameters = { epsilon = 1.0, sigma = 1.0, cutoff = 2.5, onset = 2.0 }
[observables.distances]
arguments = { pairs = [[0, 1], [1, 2]] }
structure = "tube"
[observables.radial_distribution]
arguments = { r = [1.0, 1.5], width = 0.1 }
structure = "packing.1"
"""


def write_samples(folder: Path) -> dict[str, list[Path]]:
    """Good files by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = {STRUCTURES: [*_structures(folder)], POTENTIALS: [*_potentials(folder)], STUDIES: [*_studies(folder)]}
    return samples | _results(folder)


def _structures(folder) -> Iterator[Path]:
    import ase.io
    from ase.build import bulk

    atoms = bulk("Si", cubic=True)
    for ending, kind in FORMATS.items():
        path = folder / f"structure.{ending}"
        if kind is None:
            path.write_text(_dump(atoms))
        else:
            more = {"pseudopotentials": {"Si": "Si.upf"}} if kind == "espresso-in" else {}
            ase.io.write(path, atoms, format=kind, **more)
        yield path


def _dump(atoms) -> str:
    rows = "".join(f"{k + 1} Si {x} {y} {z}\n" for k, (x, y, z) in enumerate(atoms.positions))
    box = "0.0 5.43\n" * 3
    head = f"ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n{len(atoms)}\nITEM: BOX BOUNDS pp pp pp\n{box}"
    return f"{head}ITEM: ATOMS id element x y z\n{rows}"


def _potentials(folder) -> Iterator[Path]:
    rng, n = np.random.default_rng(0), 12

    def table(count):
        return "".join(f"{value:.8f}\n" for value in rng.uniform(0.0, 1.0, count))

    grids = f"{n} 0.1 {n} 0.3 3.3\n"
    head = f"a\nb\nc\n2 Al Cu\n{grids}"
    atom = "13 26.98 4.05 fcc\n"
    written = {
        "Si.sw": SILICON,
        "Si.tersoff": TERSOFF,
        "AlCu.eam.alloy": head + 2 * (atom + table(2 * n)) + table(3 * n),
        "AlCu.eam.fs": head + 2 * (atom + table(3 * n)) + table(3 * n),
        "Al.eam": f"a\n{atom}{grids}" + table(3 * n),
        "W.snapcoeff": "1 6\nW 0.5 1\n" + table(6),
        "W.snapparam": SNAP,
    }
    for name, text in written.items():
        (folder / name).write_text(text)
        yield folder / name


def _studies(folder) -> Iterator[Path]:
    from mdsens.studies.input.toml_schema import KINDS
    from mdsens.studies.templates import template

    for kind in KINDS:
        path = folder / f"{kind}.toml"
        path.write_text(template(kind))
        yield path
    (folder / "made.toml").write_text(MADE)
    yield folder / "made.toml"
    (folder / "file.toml").write_text(study_of(structure=folder / "structure.cif"))
    yield folder / "file.toml"


def study_of(*, structure: Path | None = None, potential: Path | None = None, kind="sweep", settings="") -> str:
    """A study of a structure's or a potential's file."""
    name, how = "StillingerWeber", 'constructor = "silicon"'
    if potential is not None:
        name, how = CLASSES[potential.suffix], f"files = {json.dumps([str(path) for path in _with_partner(potential)])}"
    built = 'builder = "bulk"\narguments = { name = "Si", cubic = true }'
    return STUDY.format(
        kind=kind,
        settings=settings,
        structure=built if structure is None else f'file = "{structure}"',
        potential=name,
        how=how,
    )


CLASSES = {
    ".sw": "StillingerWeber",
    ".tersoff": "Tersoff",
    ".alloy": "EAM",
    ".fs": "EAM",
    ".eam": "EAM",
    ".snapcoeff": "SNAP",
    ".snapparam": "SNAP",
}


def _with_partner(path: Path) -> list[Path]:
    """SNAP is in two files, the coefficients first."""
    return sorted(path.parent.glob("*.snap*")) if path.suffix.startswith(".snap") else [path]


def _results(folder) -> dict[str, list[Path]]:
    import mdsens as ms
    from mdsens.studies.input import tasks
    from mdsens.studies.running import execution
    from mdsens.studies.storage import collected_file

    dimer = ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]], species=["A", "B"])
    pair = ms.LennardJones(epsilon={"A-A": 1.0, "A-B": 1.5, "B-B": 0.5}, sigma=1.0, cutoff=6.0, onset=5.0)
    dimer = ms.relax(dimer, pair)
    crystal = ms.relax(ms.read(folder / "structure.cif"), ms.StillingerWeber.silicon(), cell="free")
    for name, eq in (("dimer", dimer), ("crystal", crystal)):
        ms.save(folder / f"{name}.h5", eq, ms.sensitivity(eq), overwrite=True)
    study = folder / "small.toml"
    study.write_text(study_of(settings="[study.parameters]\nepsilon = [2.17, 1e308]"))
    done = folder / "small"
    execution.run(tasks.read_study(study), done, progress=False)
    collected_file.collect(done, folder / "small.h5", overwrite=True)
    return {
        RESULTS: [folder / "dimer.h5", folder / "crystal.h5"],
        TASKS: sorted((done / "tasks").glob("*.h5")),
        COLLECTED: [folder / "small.h5"],
    }


def readers(kind: str, path: Path) -> list[Callable[[], object]]:
    """The public ways in which a file is read: the function, and the command line."""
    import mdsens as ms
    from mdsens.studies.input import tasks
    from mdsens.studies.storage import collected_file, task_files

    study = path.with_name("of.toml")
    if kind == STRUCTURES:
        species = {"species": ["Si"]} if path.suffix == ".lmp" else {}
        study.write_text(study_of(structure=path))
        return [lambda: ms.read(path, **species), lambda: command("run", "--check", study)]
    if kind == POTENTIALS:
        cls = getattr(ms, CLASSES[path.suffix])
        files = _with_partner(path)
        read = cls.from_files if len(files) > 1 else cls.from_file
        study.write_text(study_of(potential=path))
        return [lambda: read(*files), lambda: command("run", "--check", study)]
    if kind == STUDIES:
        return [lambda: tasks.read_study(path), lambda: command("run", "--check", path)]
    if kind == RESULTS:
        return [lambda: ms.load(path), lambda: command("show", path)]
    if kind == TASKS:
        out, kept = path.parent.parent, path.parent.parent.parent / "small.toml"
        return [
            lambda: task_files.read_task(path),
            lambda: command("collect", out, "-o", out / "all.h5"),
            lambda: command("run", kept, "-o", out),
        ]
    return [lambda: collected_file.read_collected(path), lambda: command("show", path)]


class Said(Exception):
    """The command line said what it never should."""


def command(*arguments) -> None:
    """Run the command line in this process.

    Raises:
        Said: a traceback, or an error that nobody expected.
    """
    from mdsens.cli import app

    before, sys.argv = sys.argv, ["mdsens", *map(str, arguments)]
    said = io.StringIO()
    os.environ.pop("MDSENS_DEBUG", None)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            app.main()
    finally:
        sys.argv = before
    if "Traceback" in said.getvalue() or "mdsens: an unexpected" in said.getvalue():
        raise Said(f"mdsens {' '.join(map(str, arguments))}: {said.getvalue().strip()[-300:]}")
