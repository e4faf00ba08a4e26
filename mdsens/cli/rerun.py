"""Stored results done again from what their files say, and held against what they hold."""

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
from mdsens.common.text import counted
from mdsens.derivatives.first_order import sensitivity as differentiate
from mdsens.derivatives.verification import remove_rigid_motion
from mdsens.files.atomic_write import write_whole
from mdsens.files.provenance import made_with
from mdsens.files.state_files import load_one, provenance_of
from mdsens.potentials.base import parameter_paths
from mdsens.studies.input import recipes
from mdsens.studies.input.tasks import Study, Unit
from mdsens.studies.results.record import Collected, Outcome
from mdsens.studies.running import execution
from mdsens.studies.storage.collected_file import is_collected, read_collected
from mdsens.studies.storage.task_files import finished, read_unit, unit_path

TOLERANCE = 1e-6
"""Largest difference relative to the largest number of its kind."""

SMALLEST = 1e-6
"""Numbers are compared on this scale at least, in their own units: what is zero by symmetry is noise."""

ANY_SIGN = ("directions", "history")
"""What is defined up to a sign, or says how it went."""

INPUTS = "inputs"
"""Folder of the files that a study was made from."""

STEP = 1e-5
"""How far atoms are moved before a stored equilibrium is relaxed again [Å]: far more than what forces of 1e-12 eV/Å leave open,
and so little that a cluster does not turn, which would turn its derivatives."""

FMAX = 1e-12


@dataclasses.dataclass(frozen=True)
class Difference:
    """What was found again.

    Attributes:
        unit: of a study, or empty.
        what: path or name of the numbers.
        error: largest difference, on the scale of the largest stored number of its kind; inf where there are no such numbers.
        note: why.
    """

    unit: str
    what: str
    error: float
    note: str = ""


def changed_versions(stored: Mapping[str, str]) -> list[str]:
    """Which versions are others now, in words."""
    now = made_with()["versions"]
    return [f"{name} was {version}, is {now[name]}" for name, version in stored.items() if now.get(name, version) != version]


# Studies


def rerun_study(path: Path, folder: Path, *, workers: int = 1) -> tuple[Collected, list[Difference]]:
    """Write a collected study into a folder, do it there, and compare. What is there already is not done again.

    Raises:
        StoreError: the file is damaged, files that the study was made from are gone, or the folder cannot be written.
        InputError: the folder is the one that the study was collected from.
    """
    study = read_collected(path)
    if not study.outcomes:
        raise StoreError(f"{str(path)!r} holds no units: there is nothing to do again.")
    known = {outcome.name: outcome for outcome in study.outcomes}
    for name in finished(folder).keys() & known.keys():
        if read_unit(unit_path(folder, name)).provenance == known[name].provenance:
            raise InputError(f"{str(folder)!r} holds the very units of {str(path)!r}: choose another folder (-o).")
    units = []
    for outcome, given in zip(study.outcomes, _with_inputs(path, study, folder), strict=True):
        unit = Unit(outcome.label, given)
        if unit.name != outcome.name:
            raise StoreError(
                f"The input of {outcome.label!r} is not what its name says: {str(path)!r} is damaged or was changed."
            )
        units.append(unit)
    execution.run(Study(study.kind, study.toml, folder / "study.toml", tuple(units)), folder, workers=workers)
    found = {name: read_unit(unit_path(folder, name)) for name in known}
    return study, list(_compared(study.outcomes, found))


def _compared(stored: Sequence[Outcome], found: Mapping[str, Outcome]) -> Iterator[Difference]:
    scales: dict[str, float] = {}
    for outcome in stored:
        for path, value in outcome.record.arrays.items():
            finite = np.abs(value[np.isfinite(value)])
            scales[path] = max(scales.get(path, SMALLEST), float(finite.max(initial=0.0)))
    for outcome in stored:
        again = found[outcome.name]
        if outcome.failed != again.failed:
            which = f"failed now: {again.reason}" if again.failed else f"failed then: {outcome.reason}"
            yield Difference(outcome.label, "", np.inf, which.splitlines()[0])
        for path, value in outcome.record.arrays.items() if not again.failed else ():
            if path in ANY_SIGN:
                continue
            other = again.record.arrays.get(path)
            if other is None or other.shape != value.shape:
                yield Difference(outcome.label, path, np.inf, "is not of the same shape")
            else:
                yield Difference(outcome.label, path, _largest(value, other) / scales[path])


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference; infinite and undefined numbers differ from all but their like."""
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        differences = np.where(alike, 0.0, np.abs(np.asarray(a, dtype=float) - b))
    return float(np.where(np.isfinite(differences), differences, np.inf).max(initial=0.0))


def _with_inputs(path: Path, study: Collected, folder: Path) -> Iterator[dict[str, Any]]:
    """The units' inputs, with the files that they name where this machine has them."""
    execution.make_folder(folder)
    places = _unpacked(path, folder)
    for outcome in study.outcomes:
        structures = {name: _placed(recipe, "file", places, path) for name, recipe in outcome.input["structures"].items()}
        potential = _placed(outcome.input["potential"], "files", places, path)
        yield {**outcome.input, "structures": structures, "potential": potential}


def _unpacked(path: Path, folder: Path) -> dict[str, Path]:
    """Files kept in a collected study, written into the folder, by digest. Names from a file lead nowhere else."""
    places = {}
    with h5py.File(path, "r") as file:
        for digest, item in file.get("study/inputs", {}).items():
            kept = re.fullmatch("[0-9a-f]{64}", digest) and isinstance(item, h5py.Dataset) and item.dtype.kind == "V"
            content = item[()].tobytes() if kept else b""
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
    if key not in recipe:
        return dict(recipe)
    several = not isinstance(recipe[key], str)
    digests, old = (recipe[key], recipe[recipes.PATH]) if several else ([recipe[key]], [recipe[recipes.PATH]])
    found = []
    for digest, place in zip(digests, old, strict=True):
        here = places.get(digest, Path(place))
        if not here.is_file() or recipes.digest(here) != digest:
            raise StoreError(
                f"{str(path)!r} does not keep {place!r}, and it is not there any more as it was (SHA-256 {digest[:12]}...): "
                "put it back to do the study again."
            )
        found.append(str(here))
    return {**recipe, recipes.PATH: found if several else found[0]}


# Equilibria


def rerun_result(path: Path) -> tuple[list[str], list[Difference]]:
    """Relax a stored equilibrium again, from atoms that were moved a little, and differentiate it again.

    Returns:
        Which versions are others now, and the differences: of energies in their own scale, of places in Å, of derivatives on
        the scale of the largest |θ dX/dθ| or |θ dh/dθ|.

    Raises:
        StoreError: as for `load`.
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
        Difference("", "energy", abs(again.energy - eq.energy) / max(abs(eq.energy), SMALLEST)),
        Difference("", "positions", float(np.abs(there.positions - system.positions).max())),
    ]
    if eq.reference.freedom is not None and system.cell is not None and there.cell is not None:
        rows.append(Difference("", "cell", float(np.abs(there.cell - system.cell).max())))
    if stored is not None:
        found = differentiate(again, wrt=parameter_paths(stored.positions), progress=False)
        for name in ("positions", "cell"):
            if (tree := getattr(stored.scaled(), name)) is not None:
                pairs = zip(
                    parameter_paths(tree), jax.tree.leaves(tree), jax.tree.leaves(getattr(found.scaled(), name)), strict=True
                )
                scale = max(SMALLEST, *(float(np.abs(leaf).max(initial=0.0)) for leaf in jax.tree.leaves(tree)))
                what = {"positions": "dX", "cell": "dh"}[name]
                rows += [
                    Difference("", f"{what}/d{path}", _largest(np.asarray(a), np.asarray(b)) / scale) for path, a, b in pairs
                ]
    return changed_versions(provenance_of(path)["versions"]), rows


# What the command says

SHOWN = 10


def told(path: Path, folder: Path | None, *, tolerance: float = TOLERANCE, workers: int = 1) -> tuple[list[str], bool]:
    """`(what to say, whether all differences are within the tolerance)`.

    Raises:
        as `rerun_study` and `rerun_result`.
    """
    if is_collected(path):
        folder = path.with_name(f"{path.stem}-rerun") if folder is None else folder
        study, rows = rerun_study(path, folder, workers=workers)
        versions = list(dict.fromkeys(one for o in study.outcomes for one in changed_versions(o.provenance.get("versions", {}))))
        lines = [f"{folder}: {counted(len(study.outcomes), 'unit')} done again."]
    else:
        if folder is not None:
            raise InputError("A stored result is done again without a folder: leave -o out.")
        versions, rows = rerun_result(path)
        lines = [f"{path}: relaxed and differentiated again." if len(rows) > 3 else f"{path}: relaxed again."]
    lines += [f"Other versions: {one}." for one in versions]
    rows = sorted(rows, key=lambda row: -row.error)
    off = [row for row in rows if not row.error <= tolerance]
    lines += [f"  {row.unit} {row.what}: {row.note or f'differs by {row.error:.1e}'}".replace("   ", "  ") for row in off[:SHOWN]]
    if len(off) > SHOWN:
        lines.append(f"  and {len(off) - SHOWN} more")
    if off:
        return [*lines, f"{len(off)} of {len(rows)} differ by more than {tolerance:g}."], False
    if not rows:
        return [*lines, "All units failed then, and do now."], True
    worst = rows[0]
    where = f" ({f'{worst.unit}: ' if worst.unit else ''}{worst.what})" if worst.error > 0.0 else ""
    return [*lines, f"The largest of {len(rows)} differences is {worst.error:.1e}{where}."], True
