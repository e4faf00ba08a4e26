"""A study's units merged into one HDF5 file.

/h5md               version, creator, as in all files of mdsens
/study              attributes: kind, toml (the file's text), units, failed
/study/units/00000  what the unit's file has, in the study's order
/table/<column>     labels, parameters and observables of all units, one row each, NaN where one failed
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mdsens.errors import StoreError
from mdsens.harmless import check_harmless, readable
from mdsens.store import check_writable, write_h5md, write_whole
from mdsens.studies.records import STUDY_FORMAT, Outcome, finished, outcome_of, read_unit, set_text, text_of, unit_path
from mdsens.studies.units import Study

TOML, PLAN = "study.toml", "study.json"
"""The study's text in its folder, and the names and labels of its units."""


def write_plan(folder: Path, study: Study) -> None:
    """Write what a study consists of, `study.toml` and `study.json`, unless they are there."""
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
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        toml = (folder / TOML).read_text(encoding="utf-8")
        kind, names = str(plan["kind"]), [(str(name), str(label)) for name, label in plan["units"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"{str(folder)!r} is no folder of a study: give the one that 'mdsens run' wrote into.") from None
    here = finished(folder)
    missing = [label for name, label in names if name not in here]
    if missing:
        raise StoreError(
            f"{len(missing)} of {len(names)} units are not there yet ({missing[0]!r}, for one): finish the study with "
            "'mdsens run' first; it does only what is missing."
        )
    outcomes = [read_unit(unit_path(folder, name)) for name, _ in names]
    failed = sum(outcome.failed for outcome in outcomes)
    with h5py.File(f"study-{id(outcomes)}", "w", driver="core", backing_store=False) as file:
        write_h5md(file)
        group = file.create_group("study")
        group.attrs.update({"kind": kind, "units": len(outcomes), "failed": failed})
        set_text(group, "toml", toml)
        for k, outcome in enumerate(outcomes):
            with h5py.File(unit_path(folder, outcome.name), "r") as unit:
                unit.copy(unit["/"], group.require_group("units"), f"{k:05d}")
        table = file.create_group("table")
        for name, column in _columns(outcomes).items():
            table[name] = column
        file.flush()
        image = file.id.get_file_image()
    write_whole(path, image, overwrite=overwrite)
    return len(outcomes), failed


def _columns(outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
    columns: dict[str, Any] = {"label": [outcome.label for outcome in outcomes]}
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.input["parameters"])
    for name in names:
        columns[f"parameters/{name}"] = np.array([outcome.input["parameters"].get(name, np.nan) for outcome in outcomes])
    paths = dict.fromkeys(path for outcome in outcomes for path in outcome.record.arrays if path.startswith(("values/", "std/")))
    for path in paths:
        # Those of another shape in other units have no column.
        found = [outcome.record.arrays.get(path) for outcome in outcomes]
        shapes = {value.shape for value in found if value is not None}
        if len(shapes) == 1:
            (shape,) = shapes
            columns[path] = np.stack([np.full(shape, np.nan) if value is None else value for value in found])
    return columns


@dataclasses.dataclass(frozen=True)
class Collected:
    """What a collected file holds."""

    kind: str
    toml: str
    outcomes: tuple[Outcome, ...]


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
    with readable(path, "collected study"), h5py.File(path, "r") as file:
        check_harmless(file, path.stat().st_size, path)
        group = file["study"]
        units = group["units"]
        return Collected(str(group.attrs["kind"]), text_of(group, "toml"), tuple(outcome_of(units[key]) for key in sorted(units)))
