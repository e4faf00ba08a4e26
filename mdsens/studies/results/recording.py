"""From what the functions of `mdsens.studies` return to numbers by path and plain values, as files keep them."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from mdsens.common.errors import InputError
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.files.provenance import made_with
from mdsens.studies.methods.continuation import Continuation
from mdsens.studies.methods.fits import Calibration
from mdsens.studies.methods.global_indices import GlobalIndices
from mdsens.studies.methods.sensitivity_table import SensitivityTable
from mdsens.studies.methods.sweep import Point, Sweep
from mdsens.studies.methods.uncertainty import Uncertainty
from mdsens.studies.results.record import Record
from mdsens.studies.results.result import Result
from mdsens.studies.storage.collected_file import Collected
from mdsens.studies.storage.task_files import Outcome

Found = Sweep | SensitivityTable | Uncertainty | Calibration | Continuation
"""What the functions of `mdsens.studies` return."""


def record_of(found: Any) -> Record:
    """Numbers and plain values of a result, without the structures.

    Raises:
        InputError: it is none of them.
    """
    record = _record_of(found)
    return merged(record, Record({}, {"units": found.units})) if isinstance(found, Result) else record


@functools.singledispatch
def _record_of(found: Any) -> Record:
    wanted = "A study's result is wanted, an equilibrium (with its sensitivity behind it), or a file of one"
    raise InputError(f"{wanted}, not {type(found).__name__}.")


@_record_of.register
def _(found: SensitivityTable) -> Record:
    arrays = {"parameters": found.parameters, **_under("values", found.values), **_under("derivatives", found.derivatives)}
    return Record(arrays, {"names": list(found.names), "trusted": found.trusted, "reasons": list(found.reasons)})


@_record_of.register
def _(found: Uncertainty) -> Record:
    arrays = {
        **_under("values", found.values),
        **_under("std", found.std),
        **_under("shares", found.shares),
        "covariance": found.covariance,
    }
    facts = {
        "names": list(found.names),
        "numbers": list(found.labels),
        "nonlinearity": found.nonlinearity,
        "trusted": found.trusted,
        "reasons": list(found.reasons),
    }
    if (sampled := found.sampling) is not None:
        for what in ("mean", "std", "std_error"):
            arrays |= _under(f"sampling/{what}", getattr(sampled, what))
        facts["sampling"] = {"count": sampled.count, "failed": sampled.failed}
    return Record(arrays, facts)


@_record_of.register
def _(found: Calibration) -> Record:
    fields = ("start", "parameters", "std", "found", "wanted", "sigma", "singular_values", "directions", "history")
    facts = {name: getattr(found, name) for name in ("converged", "message", "cost", "relaxations", "evaluations", "missed")}
    facts |= {"names": list(found.names), "labels": list(found.labels)}
    return Record({name: np.asarray(getattr(found, name)) for name in fields}, facts)


@_record_of.register
def _(found: Continuation) -> Record:
    arrays = {"t": found.t, "lowest": found.lowest, "speed": found.speed, **_under("values", found.values)}
    return Record(arrays, {key: getattr(found, key) for key in ("complete", "end", "kind", "critical")})


@_record_of.register
def _(found: GlobalIndices) -> Record:
    arrays: dict[str, np.ndarray] = {}
    for index, by_observable in found.values.items():
        arrays |= _under(f"indices/{index}", by_observable)
    facts = {"method": found.method, "names": list(found.names), "count": found.count, "failed": found.failed}
    return Record(arrays, {"indices": facts})


@_record_of.register
def _(found: Point) -> Record:
    return Record({**_under("values", found.values), **_under("derivatives", found.derivatives)}, {})


def merged(one: Record, other: Record) -> Record:
    """What both hold."""
    return Record({**one.arrays, **other.arrays}, {**one.facts, **other.facts})


def with_structures(record: Record, states: Mapping[str, Equilibrium]) -> Record:
    """The same with where the atoms came to rest, and how."""
    arrays, facts = {}, {}
    for name, eq in states.items():
        arrays[f"structures/{name}/positions"] = np.asarray(eq.system.positions)
        arrays[f"structures/{name}/species"] = np.asarray(eq.system.species)
        if eq.system.cell is not None:
            arrays[f"structures/{name}/cell"] = np.asarray(eq.system.cell)
        facts[name] = {
            "energy": eq.energy,
            "fmax": eq.fmax,
            "steps": eq.steps,
            "lowest_curvature": None if eq.curvature is None else eq.curvature.lowest,
            "labels": list(eq.system.labels),
            "pbc": list(eq.system.pbc),
        }
    return merged(record, Record(arrays, {"states": facts}))


def collected_of(found: Found) -> Collected:
    """A result as if it had been read from a collected file.

    Raises:
        InputError: it is none of them.
    """
    if isinstance(found, Sweep):
        rows = [(_label(point), point.parameters, record_of(point), point.reason) for point in found.points]
        for _, _, record, _ in rows:
            record.facts.update({"names": list(found.names), "units": found.units})
        return Collected("sweep", "", tuple(_outcome(*row) for row in rows))
    record = record_of(found)
    if isinstance(found, Calibration):
        record = with_structures(record, found.states)
    elif isinstance(found, Continuation):
        record = with_structures(record, {"structure": found.states[-1]})
    kind = {
        SensitivityTable: "sensitivity",
        Uncertainty: "uncertainty",
        Calibration: "inverse" if getattr(found, "design", False) else "calibration",
        Continuation: "continuation",
    }[type(found)]
    return Collected(kind, "", (_outcome(kind, {}, record, ""),))


def _label(point: Point) -> str:
    return " ".join([point.structure, *(f"{name}={value:g}" for name, value in point.parameters.items())]).strip()


def _outcome(label: str, parameters: Mapping[str, float], record: Record, reason: str) -> Outcome:
    given: dict[str, Any] = {"parameters": dict(parameters), "observables": {}, "structures": {}}
    return Outcome(label, label, given, record, reason, made_with())


def _under(group: Any, values: Any) -> dict[str, np.ndarray]:
    return {f"{group}/{name}": np.asarray(value) for name, value in values.items()}
