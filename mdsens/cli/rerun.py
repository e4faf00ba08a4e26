"""Repetition of stored results from their own files, and comparison with the numbers in these."""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import h5py
import jax
import numpy as np

from mdsens.common.errors import InputError, StoreError
from mdsens.common.text import count_text
from mdsens.derivatives.sensitivities import sensitivity as differentiate
from mdsens.derivatives.verification import remove_rigid_motion
from mdsens.files.atomic_write import write_whole
from mdsens.files.provenance import current_provenance
from mdsens.files.state_files import load_one, read_provenance
from mdsens.potentials.base import parameter_paths
from mdsens.studies.input import recipes
from mdsens.studies.input.tasks import Study, Task
from mdsens.studies.results.record import Collected, Outcome
from mdsens.studies.running import execution
from mdsens.studies.storage.collected_file import is_collected, read_collected
from mdsens.studies.storage.task_files import read_task, task_failures, task_paths

TOLERANCE = 1e-6
"""Largest difference relative to the largest number of its kind."""

LEAST_SCALE = 1e-6
"""Least scale of a comparison, in the numbers' own units: numbers that are zero by symmetry are noise."""

SKIPPED_ARRAYS = ("directions", "history")
"""Arrays that are not compared: defined up to a sign, or the course of an iteration."""

INPUTS = "inputs"
"""Folder of the files that a study was made from."""

STEP = 1e-5
"""Distance by which atoms are moved before a stored equilibrium is relaxed again [Å]: far more than forces of 1e-12 eV/Å leave
open, and so little that a cluster does not turn, which would turn its derivatives."""

FMAX = 1e-12

MAX_LINES = 10
"""Number of differences that are printed."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between stored numbers and those of the repetition.

    Attributes:
        task: name of a study's task, or empty.
        name: path or name of the numbers.
        error: largest difference, on the scale of the largest stored number of its kind; inf where there are no such numbers.
        note: the reason.
    """

    task: str
    name: str
    error: float
    note: str = ""


def changed_versions(stored: Mapping[str, str]) -> list[str]:
    """Return in words which versions are others now."""
    now = current_provenance()["versions"]
    return [f"{name} was {version}, is {now[name]}" for name, version in stored.items() if now.get(name, version) != version]


# Studies


def rerun_study(path: Path, folder: Path, *, workers: int = 1) -> tuple[Collected, list[Difference]]:
    """Write a collected study into a folder, do it there, and compare. Units that are there already are not done again.

    Raises:
        StoreError: the file is damaged, files that the study was made from are gone, or the folder cannot be written.
        InputError: the folder is the one that the study was collected from.
    """
    study = read_collected(path)
    if not study.outcomes:
        raise StoreError(f"{str(path)!r} holds no tasks: there is nothing to do again.")
    known = {outcome.name: outcome for outcome in study.outcomes}
    paths = task_paths(folder)
    for name in task_failures(folder).keys() & known.keys():
        if read_task(paths[name]).provenance == known[name].provenance:
            raise InputError(f"{str(folder)!r} holds the very tasks of {str(path)!r}: choose another folder (-o).")
    tasks = []
    for outcome, recipe in zip(study.outcomes, _with_inputs(path, study, folder), strict=True):
        task = Task(outcome.label, recipe)
        if task.name != outcome.name:
            raise StoreError(
                f"The input of {outcome.label!r} is not what its name says: {str(path)!r} is damaged or was changed."
            )
        tasks.append(task)
    execution.run(Study(study.kind, study.toml, folder / "study.toml", tuple(tasks)), folder, workers=workers)
    paths = task_paths(folder)
    return study, list(_differences(study.outcomes, {name: read_task(paths[name]) for name in known}))


def _differences(stored: Sequence[Outcome], repeated: Mapping[str, Outcome]) -> Iterator[Difference]:
    scales: dict[str, float] = {}
    for outcome in stored:
        for path, value in outcome.record.arrays.items():
            finite = np.abs(value[np.isfinite(value)])
            scales[path] = max(scales.get(path, LEAST_SCALE), float(finite.max(initial=0.0)))
    for outcome in stored:
        again = repeated[outcome.name]
        if outcome.failed != again.failed:
            reason = f"failed now: {again.reason}" if again.failed else f"failed then: {outcome.reason}"
            yield Difference(outcome.label, "", np.inf, reason.splitlines()[0])
        for path, value in outcome.record.arrays.items() if not again.failed else ():
            if path in SKIPPED_ARRAYS:
                continue
            other = again.record.arrays.get(path)
            if other is None or other.shape != value.shape:
                yield Difference(outcome.label, path, np.inf, "is not of the same shape")
            else:
                yield Difference(outcome.label, path, _largest(value, other) / scales[path])


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; it is infinite where only one number is infinite or undefined."""
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        differences = np.where(alike, 0.0, np.abs(np.asarray(a, dtype=float) - b))
    return float(np.where(np.isfinite(differences), differences, np.inf).max(initial=0.0))


def _with_inputs(path: Path, study: Collected, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the tasks' inputs, with the paths of their files on this machine."""
    execution.make_folder(folder)
    places = _unpack(path, folder)
    for outcome in study.outcomes:
        structures = {name: _placed(recipe, "file", places, path) for name, recipe in outcome.input["structures"].items()}
        potential = _placed(outcome.input["potential"], "files", places, path)
        yield {**outcome.input, "structures": structures, "potential": potential}


def _unpack(path: Path, folder: Path) -> dict[str, Path]:
    """Write the files that a collected study keeps into the folder, and nowhere else; return their paths by digest."""
    places = {}
    with h5py.File(path, "r") as file:
        for digest, item in file.get("study/inputs", {}).items():
            is_file = re.fullmatch("[0-9a-f]{64}", digest) and isinstance(item, h5py.Dataset) and item.dtype.kind == "V"
            content = item[()].tobytes() if is_file else b""
            if hashlib.sha256(content).hexdigest() != digest:
                continue
            name = str(item.attrs.get("name", ""))
            plain = name if re.fullmatch(r"\w[\w.+-]{0,200}", name) else "file"
            place = folder / INPUTS / digest / plain
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                write_whole(place, content, overwrite=True)
            places[digest] = place
    return places


def _placed(recipe: Mapping[str, Any], key: str, places: Mapping[str, Path], path: Path) -> dict[str, Any]:
    """Return a recipe with the paths of its files on this machine; raise StoreError where one is gone or changed."""
    if key not in recipe:
        return dict(recipe)
    several = not isinstance(recipe[key], str)
    digests, old = (recipe[key], recipe[recipes.PATH]) if several else ([recipe[key]], [recipe[recipes.PATH]])
    paths = []
    for digest, place in zip(digests, old, strict=True):
        here = places.get(digest, Path(place))
        if not here.is_file() or recipes.digest(here) != digest:
            raise StoreError(
                f"{str(path)!r} does not keep {place!r}, and it is not there any more as it was (SHA-256 {digest[:12]}...): "
                "put it back to do the study again."
            )
        paths.append(str(here))
    return {**recipe, recipes.PATH: paths if several else paths[0]}


# Equilibria


def rerun_result(path: Path) -> tuple[list[str], list[Difference]]:
    """Relax a stored equilibrium again, from atoms that were moved a little, and differentiate it again.

    Returns:
        The versions that are others now, and the differences: of energies in their own scale, of positions in Å, of derivatives
        on the scale of the largest |θ dX/dθ| or |θ dh/dθ|.

    Raises:
        StoreError: as `load`.
        ConvergenceError: it does not relax again.
    """
    eq, stored = load_one(path)
    system = eq.system
    still = np.asarray(system.frozen).copy()
    still[list(eq.spectrum.rattlers if eq.spectrum else ())] = True
    step = 0.0 if eq.index or eq.constraints is not None else STEP
    shift = np.random.default_rng(0).uniform(-step, step, system.positions.shape) * ~still[:, None]
    moved = eqx.tree_at(lambda state: state.system, eq, remove_rigid_motion(eq, system.with_positions(system.positions + shift)))
    again = moved.again(fmax=max(eq.fmax, FMAX), progress=False)
    there = remove_rigid_motion(eq, again.system)
    rows = [
        Difference("", "energy", abs(again.energy - eq.energy) / max(abs(eq.energy), LEAST_SCALE)),
        Difference("", "positions", float(np.abs(there.positions - system.positions).max())),
    ]
    if eq.reference.freedom is not None and system.cell is not None and there.cell is not None:
        rows.append(Difference("", "cell", float(np.abs(there.cell - system.cell).max())))
    if stored is not None:
        repeated = differentiate(again, wrt=parameter_paths(stored.positions), progress=False).scaled()
        for name, symbol in (("positions", "dX"), ("cell", "dh")):
            if (tree := getattr(stored.scaled(), name)) is not None:
                a, b = ([*map(np.asarray, jax.tree.leaves(leaves))] for leaves in (tree, getattr(repeated, name)))
                scale = max(LEAST_SCALE, *(float(np.abs(leaf).max(initial=0.0)) for leaf in a))
                errors = (_largest(*pair) / scale for pair in zip(a, b, strict=True))
                rows += [Difference("", f"{symbol}/d{path}", e) for path, e in zip(parameter_paths(tree), errors, strict=True)]
    return changed_versions(read_provenance(path)["versions"]), rows


# The command


def compare_again(path: Path, folder: Path | None, *, tolerance: float = TOLERANCE, workers: int = 1) -> tuple[list[str], bool]:
    """Repeat a study or a result; return a report, and whether all differences are within the tolerance.

    Raises:
        StoreError, InputError, ConvergenceError: as `rerun_study` and `rerun_result`.
    """
    if is_collected(path):
        folder = path.with_name(f"{path.stem}-rerun") if folder is None else folder
        study, rows = rerun_study(path, folder, workers=workers)
        versions = list(dict.fromkeys(v for o in study.outcomes for v in changed_versions(o.provenance.get("versions", {}))))
        lines = [f"{folder}: {count_text(len(study.outcomes), 'task')} done again."]
    else:
        if folder is not None:
            raise InputError("A stored result is done again without a folder: leave -o out.")
        versions, rows = rerun_result(path)
        lines = [f"{path}: relaxed and differentiated again." if len(rows) > 3 else f"{path}: relaxed again."]
    lines += [f"Other versions: {version}." for version in versions]
    rows = sorted(rows, key=lambda row: -row.error)
    off = [row for row in rows if not row.error <= tolerance]
    for row in off[:MAX_LINES]:
        lines.append(f"  {row.task} {row.name}: {row.note or f'differs by {row.error:.1e}'}".replace("   ", "  "))
    if len(off) > MAX_LINES:
        lines.append(f"  and {len(off) - MAX_LINES} more")
    if off:
        return [*lines, f"{len(off)} of {len(rows)} differ by more than {tolerance:g}."], False
    if not rows:
        return [*lines, "All tasks failed then, and do now."], True
    worst = rows[0]
    where = f" ({f'{worst.task}: ' if worst.task else ''}{worst.name})" if worst.error > 0.0 else ""
    return [*lines, f"The largest of {len(rows)} differences is {worst.error:.1e}{where}."], True
