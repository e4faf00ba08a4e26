"""Sensitivities held against what they predict: finite differences of structures relaxed again."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from mdsens.common.errors import ConvergenceError, InputError
from mdsens.derivatives.first_order import Sensitivity
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.mechanics.null_space import known_null_space
from mdsens.mechanics.scales import force_scale, typical_distance
from mdsens.potentials.base import parameter_paths
from mdsens.structures.system import System

STEP = 1e-4
"""Relative change of a parameter; differences are Richardson's, over one and two steps."""

FMAX = 1e-14
"""Force to which structures are relaxed again, as a share of the largest curvature times the distance of neighbours."""

NOISE = 1e-9
"""Displacement, as a share of the distance of neighbours, that such forces may leave open."""

TOLERANCE = 1e-6
"""Largest |θ Δ| relative to the largest |θ dX/dθ| or |θ dh/dθ| of all parameters."""

ENTRIES = 4
"""Values of an array-valued parameter that are looked at: those with the largest derivatives."""

CURVED = 0.1
"""Share of the displacement by a step that its second-order part may have; beyond it the step left the basin."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One parameter value: `error` is |θ Δ| / max |θ dX/dθ|; `note` says why there is none."""

    parameter: str
    error: float
    note: str

    @property
    def agrees(self) -> bool:
        return not self.note and self.error <= TOLERANCE


def check_sensitivity(eq: Equilibrium, sensitivity: Sensitivity, *, step: float = STEP) -> Iterator[Check]:
    """Check each parameter of a sensitivity, one at a time, by relaxing from the stored state.

    Raises:
        InputError: a sensitivity in 32 bits, which differences of 1e-12 cannot verify.
    """
    if eq.system.positions.dtype != jnp.float64:
        raise InputError(f"A sensitivity in {eq.system.positions.dtype} is too coarse to verify: compute it in float64.")
    scaled = sensitivity.scaled()
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves((scaled.positions, scaled.cell)))
    for position, entry, name in _entries(sensitivity):
        theta = float(np.asarray(jax.tree.leaves(eq.potential)[position])[entry])
        change = step * (abs(theta) or 1.0)
        column = _column(sensitivity, position, entry)
        try:
            difference, note = _difference(eq, position, entry, change)
        except ConvergenceError as failure:
            yield Check(name, np.nan, f"a structure did not relax again: {failure}")
            continue
        error = float(np.abs(difference - column).max()) * (abs(theta) or 1.0) / (scale or 1.0)
        yield Check(name, error, note)


def _difference(eq: Equilibrium, position: int, entry: Any, change: float) -> tuple[np.ndarray, str]:
    """dX/dθ by Richardson's central differences, and a note if a step left the basin."""
    moved = {k: _relaxed_at(eq, position, entry, k * change) for k in (-2, -1, 0, 1, 2)}
    linear, curved = moved[2] - moved[-2], moved[2] + moved[-2] - 2.0 * moved[0]
    noise = NOISE * typical_distance(eq.system, eq.potential)
    note = ""
    if np.abs(curved).max() > CURVED * np.abs(linear).max() + noise:
        note = "a step left the basin of the equilibrium, or changed a contact: the difference means nothing"
    return (8.0 * (moved[1] - moved[-1]) - linear) / (12.0 * change), note


def _column(sensitivity: Any, position: int, entry: Any) -> np.ndarray:
    """dX/dθ, with dh/dθ of a free cell below it."""
    trees = [tree for tree in (sensitivity.positions, sensitivity.cell) if tree is not None]
    return np.concatenate([np.asarray(_leaf(sensitivity, tree, position))[(..., *entry)] for tree in trees])


def _relaxed_at(eq: Equilibrium, position: int, entry: Any, change: float) -> np.ndarray:
    """Positions, and a free cell below them, of the structure relaxed again."""
    leaves, structure = jax.tree.flatten(eq.potential)
    leaves[position] = leaves[position].at[entry].add(change)
    hurried = {} if eq.index else {"check_minimum": False}
    again = eq.again(jax.tree.unflatten(structure, leaves), fmax=force_scale(eq, FMAX), progress=False, **hurried)
    there = remove_rigid_motion(eq, again.system)
    if eq.reference.freedom is None or there.cell is None:
        return np.asarray(there.positions)
    return np.asarray(jnp.concatenate([there.positions, there.cell]))


def remove_rigid_motion(eq: Equilibrium, system: System) -> System:
    """Another state of the equilibrium's atoms, without the rigid motion that lies between both [host]."""
    reference, start = eq.reference, eq.unknown
    null = known_null_space(start, reference, eq.spectrum.rattlers if eq.spectrum else ())
    flat, unravel = ravel_pytree(start)
    return reference.place(unravel(flat + null.project(ravel_pytree(reference.unknown_of(system))[0] - flat)))


def _leaf(sensitivity: Any, tree: Any, position: int) -> Any:
    """Of a parameter; None where its derivative was not asked for."""
    return jax.tree.structure(sensitivity.potential).flatten_up_to(tree)[position]  # type: ignore[attr-defined]


def _entries(sensitivity: Any) -> Iterator[Any]:
    """`(position of the leaf, index within it, name)` of every value that is looked at."""
    names = parameter_paths(sensitivity.potential)
    for position, (name, theta) in enumerate(zip(names, jax.tree.leaves(sensitivity.potential), strict=True)):
        derivative = _leaf(sensitivity, sensitivity.positions, position)
        if derivative is None:
            continue
        if theta.ndim == 0:
            yield position, (), name
            continue
        size = np.abs(np.asarray(derivative)).max(axis=(0, 1)).ravel()
        for flat in np.argsort(-size)[:ENTRIES]:
            entry = tuple(int(k) for k in np.unravel_index(flat, theta.shape))
            yield position, entry, f"{name}[{', '.join(map(str, entry))}]"
