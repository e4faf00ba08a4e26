"""Constraints of a stored state: their kinds, references and multipliers in HDF5."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mdsens.common.errors import StoreError
from mdsens.equilibrium import constraints as constraint_kinds
from mdsens.files.hdf5_attributes import attribute, set_attribute
from mdsens.structures.system import System

MET = 1e-3
"""Violation up to which a stored structure meets the constraints it was relaxed under, loosely or not."""


def write_constraints(group: Any, constraints: Any, multipliers: Any) -> None:
    for name, value in (
        ("held", constraints.held),
        ("scale", constraints.scale),
        ("steepness", constraints.steepness),
        ("multipliers", multipliers),
    ):
        if value is not None:
            group.create_dataset(name, data=np.asarray(value))
    set_attribute(group, "active", np.array(constraints.active, dtype=np.int64))
    group.attrs["count"] = constraints.count
    for k, part in enumerate(constraints.parts):
        item = group.create_group(f"parts/{k}")
        item.attrs["class"] = type(part).__name__
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if callable(value):
                item.attrs["function"] = _function_name(part)
            elif isinstance(value, str):
                item.attrs[field.name] = value
            elif value is not None:
                item.create_dataset(field.name, data=np.asarray(value))


def _function_name(part: Any) -> str:
    return getattr(part.function, "__name__", type(part.function).__name__)


def read_constraints(group: Any, path: Path, given: Any, system: System) -> dict[Any, Any]:
    parts = []
    for k in range(len(group["parts"])):
        item = group[f"parts/{k}"]
        kind = getattr(constraint_kinds, str(item.attrs["class"]))
        if "function" not in item.attrs:
            fields = {name: jnp.asarray(data[()]) for name, data in item.items()}
            parts.append(kind(**fields, **{name: str(value) for name, value in item.attrs.items() if name != "class"}))
        elif k < len(given) and type(given[k]) is kind and _function_name(given[k]) == str(item.attrs["function"]):
            parts.append(given[k].bound(system))
        else:
            raise StoreError(
                f"{str(path)!r} was relaxed under an {kind.__name__} whose function {str(item.attrs['function'])!r} no file "
                "keeps: give load(path, constraints=[...]) as relax was given them."
            )
    held, scale = (jnp.asarray(group[name][()]) for name in ("held", "scale"))
    active = tuple(int(one) for one in attribute(group, "active"))
    steepness = jnp.asarray(group["steepness"][()]) if "steepness" in group else None
    bound = constraint_kinds.Constraints(tuple(parts), held, scale, active, int(group.attrs["count"]), steepness)
    values = np.asarray(bound.values(system)) / float(scale)
    if values.size != bound.count or (np.abs(values) > MET).any() or (np.asarray(bound.lengths(system)[1]) < -MET).any():
        raise StoreError(
            f"The constraints given are not those under which {str(path)!r} was relaxed: its structure does not meet them."
        )
    return {"constraints": bound, "multipliers": jnp.asarray(group["multipliers"][()]) if "multipliers" in group else None}
