"""Collected studies as columns, datasets and structures."""

from typing import Any

import numpy as np

from mdsens.common.errors import InputError
from mdsens.common.units import unit_text
from mdsens.studies.export.states import choose_table, spatial_atoms
from mdsens.studies.results.record import STATES, Collected
from mdsens.studies.results.tables import Table, study_tables
from mdsens.studies.storage.trajectories import Frame


def study_columns(study: Collected, table: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a table's columns, and their units, by name."""
    tables = study_tables(study.kind, study.outcomes)
    if not tables:
        raise InputError("All tasks of this study failed: there is no table.")
    name = choose_table(table, dict.fromkeys(part.name for part in tables))
    columns: dict[str, list[Any]] = {}
    units: dict[str, str] = {}
    length, verdict = 0, study_verdict(study)
    for part in (part for part in tables if part.name == name):
        rows = {column.meaning or column.name: list(column.values) for column in part.columns}
        units |= {column.meaning or column.name: unit for column in part.columns if (unit := unit_text(column.unit))}
        if part.task:
            rows = {"task": [part.task] * len(part), **rows, **_verdict_columns(verdict, part)}
        for key in (key for key in rows if key not in columns):
            columns[key] = [np.nan] * length
        length += len(part)
        for key, column in columns.items():
            column += rows.get(key, [np.nan] * len(part))
    return columns, units


def study_verdict(study: Collected) -> dict[str, Any]:
    """Return what certificates say of a study's tasks, by task; nothing where none was asked for."""
    facts = {one.label: one.record.facts for one in study.outcomes if one.record.facts.get("trusted") is not None}
    if not facts:
        return {}
    reasons = {label: "; ".join(one.get("reasons", ())) for label, one in facts.items()}
    return {"trusted": {label: bool(one["trusted"]) for label, one in facts.items()}, "reasons": reasons}


def _verdict_columns(verdict: dict[str, Any], table: Table) -> dict[str, list[Any]]:
    if table.task not in verdict.get("trusted", ()):
        return {}
    trusted = {"trusted": [verdict["trusted"][table.task]] * len(table)}
    reasons = {"reasons": [verdict["reasons"][table.task]] * len(table)}
    return trusted if all(verdict["trusted"].values()) else trusted | reasons


def study_dataset(xarray: Any, study: Collected) -> Any:
    """Return the numbers of all tasks as a dataset, NaN where there are none; `xarray` is the module."""
    outcomes = study.outcomes
    dataset = xarray.Dataset(coords={"task": [outcome.label for outcome in outcomes]})
    paths = dict.fromkeys(path for outcome in outcomes for path in outcome.record.arrays if not path.startswith(f"{STATES}/"))
    for path in paths:
        records = [outcome.record for outcome in outcomes if path in outcome.record.arrays]
        largest = max(records, key=lambda record: record.arrays[path].size)
        shape = np.max([record.arrays[path].shape for record in records], axis=0).astype(int)
        stacked = np.full((len(outcomes), *shape), np.nan)
        for k, outcome in enumerate(outcomes):
            if path in outcome.record.arrays:
                value = outcome.record.arrays[path]
                corner: Any = (k, *map(slice, value.shape))
                stacked[corner] = value
        axes = largest.axes(path)
        for axis, size in zip(axes, shape, strict=True):
            labels = largest.labels(axis)
            if labels is not None and len(labels) == size:
                dataset.coords[axis] = list(labels)
        name = path.removeprefix("values/").replace("/", "_")
        unit = largest.unit(path, outcomes[0].input["observables"])
        several = largest.units_by_parameter(path, outcomes[0].input["observables"])
        attributes = {"units_by_parameter": several} if several else {"units": unit} if unit is not None else {}
        dataset[name] = (("task", *axes), stacked, attributes)
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.input["parameters"]):
        column = [outcome.input["parameters"].get(name, np.nan) for outcome in outcomes]
        unit = next((outcome.record.units_of_parameters().get(name) for outcome in outcomes if not outcome.failed), None)
        attributes = {} if unit is None else {"units": unit}
        dataset.coords[f"parameter_{name}" if name in dataset.variables else name] = ("task", column, attributes)
    if verdict := study_verdict(study):
        trusted = [float(verdict["trusted"].get(outcome.label, np.nan)) for outcome in outcomes]
        dataset["trusted"] = ("task", trusted, {"meaning": "1 trusted, 0 not, NaN without a certificate"})
        dataset["reasons"] = ("task", [verdict["reasons"].get(outcome.label, "") for outcome in outcomes])
    dataset["failed"] = ("task", [outcome.reason for outcome in outcomes])
    made = outcomes[0].provenance
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    dataset.attrs = {"kind": study.kind, "made with": versions, "created": made["created"], "study": study.toml}
    return dataset


def frame_atoms(frame: Frame) -> Any:
    """Return a relaxed structure, with its task, parameters and scalar observables in `info`."""
    atoms = spatial_atoms(frame.system)
    atoms.info = {"task": frame.outcome.label, "structure": frame.structure, **frame.outcome.input["parameters"]}
    if frame.outcome.record.facts.get("trusted") is not None:
        atoms.info["trusted"] = bool(frame.outcome.record.facts["trusted"])
    values = {path.removeprefix("values/"): value for path, value in frame.outcome.record.arrays.items()}
    for name in frame.outcome.input["observables"]:
        if name in values and values[name].ndim == 0:
            atoms.info.setdefault(name, float(values[name]))
    return atoms
