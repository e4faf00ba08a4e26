"""Constraints of a stored state: their kinds, references and multipliers in HDF5."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common.errors import StoreError
from mdsens.equilibrium import constraints as constraint_kinds
from mdsens.files.hdf5_attributes import attribute, set_attribute
from mdsens.mechanics.bound_constraints import Constraint, Constraints
from mdsens.structures.system import System

VIOLATION = 1e-3
"""Violation up to which a stored structure meets the constraints it was relaxed under, loosely or not."""


def write_constraints(group: h5py.Group, constraints: Constraints, multipliers: Array | None) -> None:
    """Write the constraints of a state; a function that one of them has is only named."""
    for name in ("held", "scale", "steepness", "multipliers"):
        value = multipliers if name == "multipliers" else getattr(constraints, name)
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


def read_constraints(
    group: h5py.Group, path: Path, originals: Sequence[Constraint], system: System
) -> tuple[Constraints, Array | None]:
    """Read constraints, bound to the system, and their multipliers.

    Args:
        originals: the constraints of `relax`, in order, where some have functions.

    Raises:
        StoreError: a function is missing, or the system does not meet the constraints.
    """
    parts = []
    for k in range(len(group["parts"])):
        item = group[f"parts/{k}"]
        kind = getattr(constraint_kinds, str(item.attrs["class"]))
        if "function" not in item.attrs:
            fields = {name: jnp.asarray(data[()]) for name, data in item.items()}
            parts.append(kind(**fields, **{name: str(value) for name, value in item.attrs.items() if name != "class"}))
        elif k < len(originals) and type(originals[k]) is kind and _function_name(originals[k]) == str(item.attrs["function"]):
            parts.append(originals[k].bound(system))
        else:
            raise StoreError(
                f"{str(path)!r} was relaxed under an {kind.__name__} whose function {str(item.attrs['function'])!r} no file "
                "keeps: give load(path, constraints=[...]) those of relax."
            )
    held, scale = (jnp.asarray(group[name][()]) for name in ("held", "scale"))
    active = tuple(int(index) for index in attribute(group, "active"))
    steepness, multipliers = (jnp.asarray(group[name][()]) if name in group else None for name in ("steepness", "multipliers"))
    bound = Constraints(tuple(parts), held, scale, active, int(group.attrs["count"]), steepness)
    values, lengths = np.asarray(bound.values(system)) / float(scale), np.asarray(bound.lengths(system)[1])
    if values.size != bound.count or (np.abs(values) > VIOLATION).any() or (lengths < -VIOLATION).any():
        raise StoreError(
            f"The constraints given are not those under which {str(path)!r} was relaxed: its structure does not meet them."
        )
    return bound, multipliers
