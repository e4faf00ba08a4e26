"""A study's units merged into one HDF5 file.

/h5md                   version, creator, as in all files of mdsens
/study                  attributes: kind, toml (the file's text), units, failed
/study/units/00000      what the unit's file has, in the study's order
/study/inputs/<digest>  the structures' and potentials' files, so that the study can be done again elsewhere
/table/<column>         labels, parameters and observables of all units, one row each, NaN where one failed
/particles/trajectory   the relaxed structures, a frame each (`trajectories`)

Axes and units have names everywhere (`labelling`): `xarray.open_dataset(path, group="/table/values")`.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mdsens.common.errors import MdsensError, StoreError
from mdsens.common.untrusted_hdf5 import check_harmless, opened
from mdsens.files.atomic_write import check_writable, write_whole
from mdsens.files.hdf5_attributes import attribute, set_attribute
from mdsens.files.hdf5_labels import name_axes, name_unit, name_units
from mdsens.files.state_files import write_h5md
from mdsens.potentials import Potential
from mdsens.studies.input import recipes
from mdsens.studies.input.tasks import Study
from mdsens.studies.input.toml_schema import KINDS
from mdsens.studies.results.record import Collected, Outcome
from mdsens.studies.storage.labels import name_all
from mdsens.studies.storage.task_files import STUDY_FORMAT, finished, outcome_of, read_unit, unit_path
from mdsens.studies.storage.trajectories import write_particles

TOML, PLAN = "study.toml", "study.json"
"""The study's text in its folder, and the names and labels of its units."""

LARGEST_INPUT = 50_000_000
"""Bytes of a file that is kept with a study's results."""

IN_TABLE = ("values/", "std/", "derivatives/", "shares/")
"""Groups that have columns in the table."""


def write_plan(folder: Path, study: Study) -> None:
    """Write what a study consists of, `study.toml` and `study.json`, unless they are there.

    Raises:
        StoreError: the folder is that of a study of another kind.
    """
    there = study.kind
    with contextlib.suppress(StoreError):  # none is there, or it is damaged
        there = _read_plan(folder)[0]
    if there != study.kind:
        raise StoreError(
            f"The folder {str(folder)!r} has results of a study of the kind {there}, not {study.kind}: choose another (-o DIR)."
        )
    units = [[unit.name, unit.label] for unit in study.units]
    plan = {"format": STUDY_FORMAT, "kind": study.kind, "units": units}
    for name, text in ((TOML, study.text), (PLAN, json.dumps(plan))):
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text.encode(), overwrite=True)


def collect(folder: Path, path: Path, *, overwrite: bool = False) -> tuple[int, int]:
    """Merge the units of a study into one file, whole or not at all; `(units, those that failed)`.

    Raises:
        StoreError: no study is in the folder, units are missing, or the file cannot be written.
    """
    check_writable(path, overwrite=overwrite)
    study, missing = read_folder(folder)
    if missing:
        raise StoreError(
            f"{len(missing)} of {len(missing) + len(study.outcomes)} units are not there yet ({missing[0]!r}, for one): finish "
            "the study with 'mdsens run' first; it does only what is missing."
        )
    outcomes = study.outcomes
    failed = sum(outcome.failed for outcome in outcomes)
    with h5py.File(f"study-{id(outcomes)}", "w", driver="core", backing_store=False) as file:
        write_h5md(file)
        group = file.create_group("study")
        group.attrs.update({"kind": study.kind, "units": len(outcomes), "failed": failed})
        set_attribute(group, "toml", study.toml)
        for k, outcome in enumerate(outcomes):
            with h5py.File(unit_path(folder, outcome.name), "r") as unit:
                unit.copy(unit["/"], group.require_group("units"), f"{k:05d}")
            name_all(group[f"units/{k:05d}"], outcome.record, outcome.input["observables"])
        inputs = group.create_group("inputs")
        for digest, place in _files(outcomes).items():
            _keep(inputs, digest, place)
        _write_table(file.create_group("table"), outcomes)
        write_particles(file, outcomes)
        file.flush()
        image = file.id.get_file_image()
    write_whole(path, image, overwrite=overwrite)
    return len(outcomes), failed


def _files(outcomes: Sequence[Outcome]) -> dict[str, Path]:
    """Places of the files that units were made from, by digest."""
    found: dict[str, Path] = {}
    for outcome in outcomes:
        for recipe in (*outcome.input["structures"].values(), outcome.input["potential"]):
            if recipes.PATH in recipe:
                places, digests = recipe[recipes.PATH], recipe.get("file", recipe.get("files"))
                pairs = [(digests, places)] if isinstance(places, str) else zip(digests, places, strict=True)
                found |= {digest: Path(place) for digest, place in pairs}
    return found


def _keep(group: Any, digest: str, place: Path) -> None:
    """Keep a file, unless it is gone or has changed or is large: it can be given again."""
    try:
        content = place.read_bytes() if place.stat().st_size <= LARGEST_INPUT else b""
    except OSError:
        return
    if content and hashlib.sha256(content).hexdigest() == digest:
        group[digest] = np.void(content)
        group[digest].attrs["name"] = place.name


def _write_table(table: Any, outcomes: Sequence[Outcome]) -> None:
    labels = [outcome.label for outcome in outcomes]
    name_axes(table.create_dataset("label", data=labels), ("unit",), table)
    first = next((outcome for outcome in outcomes if not outcome.failed), outcomes[0])
    potential = _potential(first)
    for name, column in _parameters(outcomes).items():
        dataset = table.create_dataset(f"parameters/{name}", data=column)
        name_axes(dataset, ("unit",), table)
        name_unit(dataset, None if potential is None else potential.unit_of(name))
    for path, column in _columns(outcomes).items():
        dataset = table.create_dataset(path, data=column)
        known = next(outcome.record for outcome in outcomes if path in outcome.record.arrays)
        axes = ("unit", *known.axes(path))
        name_axes(dataset, axes, table, {"parameter": known.labels("parameter")})
        name_unit(dataset, known.unit(path, first.input["observables"]))
        name_units(dataset, known.units_by_parameter(path, first.input["observables"]))


def _potential(outcome: Any) -> Potential | None:
    """None where its files are gone."""
    try:
        return recipes.potential_of(outcome.input["potential"])
    except MdsensError:
        return None


def _parameters(outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.input["parameters"])
    return {name: np.array([outcome.input["parameters"].get(name, np.nan) for outcome in outcomes]) for name in names}


def _columns(outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
    columns = {}
    for path in dict.fromkeys(path for outcome in outcomes for path in outcome.record.arrays if path.startswith(IN_TABLE)):
        # Those of another shape in other units have no column.
        found = [outcome.record.arrays.get(path) for outcome in outcomes]
        shapes = {value.shape for value in found if value is not None}
        if len(shapes) == 1:
            (shape,) = shapes
            columns[path] = np.stack([np.full(shape, np.nan) if value is None else value for value in found])
    return columns


def read_folder(folder: Path) -> tuple[Collected, list[str]]:
    """What is in the folder of a study, and the labels of the units that are not there yet.

    Raises:
        StoreError: no study is in the folder.
    """
    kind, toml, names = _read_plan(folder)
    here = finished(folder)
    outcomes = tuple(read_unit(unit_path(folder, name)) for name, _ in names if name in here)
    return Collected(kind, toml, outcomes), [label for name, label in names if name not in here]


def _read_plan(folder: Path) -> tuple[str, str, list[tuple[str, str]]]:
    """What `write_plan` wrote: `(kind, text, names and labels of the units)`."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        toml = (folder / TOML).read_text(encoding="utf-8")
        return str(plan["kind"]), toml, [(str(name), str(label)) for name, label in plan["units"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"{str(folder)!r} is no folder of a study: give the one that 'mdsens run' wrote into.") from None


def is_collected(path: Path) -> bool:
    """Whether a file is a collected study of mdsens."""
    try:
        with h5py.File(path, "r") as file:
            return "study" in file and "kind" in file["study"].attrs
    except (OSError, KeyError, RuntimeError):
        return False


def read_collected(path: Path) -> Collected:
    """Read what `collect` wrote.

    Raises:
        StoreError: not such a file.
    """
    with opened(path, "collected study") as file:
        check_harmless(file, path)
        group = file["study"]
        units = group["units"]
        if (kind := str(group.attrs["kind"])) not in KINDS:
            raise StoreError(f"{str(path)!r} holds a study of a kind {kind!r:.40} that this mdsens does not know.")
        return Collected(kind, str(attribute(group, "toml")), tuple(outcome_of(units[key]) for key in sorted(units)))
