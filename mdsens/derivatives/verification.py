"""Checks of sensitivities by finite differences of structures relaxed again."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from mdsens.common.differences import richardson_difference
from mdsens.common.errors import ConvergenceError, InputError
from mdsens.derivatives.sensitivities import Sensitivity
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.mechanics.null_space import known_null_space
from mdsens.mechanics.scales import force_scale, typical_distance
from mdsens.potentials.base import Potential, parameter_paths
from mdsens.structures.system import System

STEP = 1e-4
"""Relative change of a parameter; differences are Richardson's, over one and two steps."""

FMAX = 1e-14
"""Force to which structures are relaxed again, as a share of the largest curvature times the distance of neighbours."""

NOISE = 1e-9
"""Displacement, as a share of the distance of neighbours, that such forces may leave undetermined."""

TOLERANCE = 1e-6
"""Largest |θ Δ| relative to the largest |θ dX/dθ| or |θ dh/dθ| of all parameters."""

ENTRIES = 4
"""Values of an array-valued parameter that are checked: those with the largest derivatives."""

MAX_SECOND_ORDER = 0.1
"""Second-order part of the displacement by a step, as a share of it, beyond which the step left the basin."""


@dataclasses.dataclass(frozen=True)
class ParameterCheck:
    """The check of one parameter value: `error` is |θ Δ| / max |θ dX/dθ|; `note` says why there is none."""

    parameter: str
    error: float
    note: str

    @property
    def agrees(self) -> bool:
        """Whether the difference agrees with the derivative within `TOLERANCE`."""
        return not self.note and self.error <= TOLERANCE


class Entry(NamedTuple):
    """One value of a potential's parameters: the number of its leaf, its place in the leaf, and its name."""

    leaf: int
    place: tuple[int, ...]
    name: str


def check_sensitivity(eq: Equilibrium, sensitivity: Sensitivity, *, step: float = STEP) -> Iterator[ParameterCheck]:
    """Check each parameter of a sensitivity, one at a time, by relaxing from the stored state.

    Raises:
        InputError: a sensitivity in 32 bits, which differences of 1e-12 cannot verify.
    """
    if eq.system.positions.dtype != jnp.float64:
        raise InputError(f"A sensitivity in {eq.system.positions.dtype} is too coarse to verify: compute it in float64.")
    scaled = sensitivity.scaled()
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves((scaled.positions, scaled.cell)))
    for entry in _entries(sensitivity):
        theta = float(np.asarray(jax.tree.leaves(eq.potential)[entry.leaf])[entry.place])
        size = abs(theta) or 1.0
        try:
            difference, note = _difference(eq, entry, step * size)
        except ConvergenceError as failure:
            yield ParameterCheck(entry.name, np.nan, f"a structure did not relax again: {failure}")
            continue
        error = float(np.abs(difference - _column(sensitivity, entry)).max()) * size / (scale or 1.0)
        yield ParameterCheck(entry.name, error, note)


def _difference(eq: Equilibrium, entry: Entry, change: float) -> tuple[np.ndarray, str]:
    """Return dX/dθ by Richardson's central differences, and a note if a step left the basin."""
    moved = {k: _relax_at(eq, entry, k * change) for k in (-2, -1, 0, 1, 2)}
    linear, curved = moved[2] - moved[-2], moved[2] + moved[-2] - 2.0 * moved[0]
    noise = NOISE * typical_distance(eq.system, eq.potential)
    note = ""
    if np.abs(curved).max() > MAX_SECOND_ORDER * np.abs(linear).max() + noise:
        note = "a step left the basin of the equilibrium, or changed a contact: the difference means nothing"
    return richardson_difference(moved[1] - moved[-1], linear, change), note


def _column(sensitivity: Sensitivity, entry: Entry) -> np.ndarray:
    """Return dX/dθ, with dh/dθ of a free cell below it."""
    trees = [tree for tree in (sensitivity.positions, sensitivity.cell) if tree is not None]
    return np.concatenate([_leaf(sensitivity, tree, entry.leaf)[(..., *entry.place)] for tree in trees])


def _relax_at(eq: Equilibrium, entry: Entry, change: float) -> np.ndarray:
    """Return positions, and a free cell below them, of the structure relaxed with a changed parameter."""
    leaves, structure = jax.tree.flatten(eq.potential)
    leaves[entry.leaf] = leaves[entry.leaf].at[entry.place].add(change)
    options: dict[str, Any] = {"fmax": force_scale(eq, FMAX), **({} if eq.index else {"check_minimum": False})}
    system = relaxed_structure(eq, eq.system, jax.tree.unflatten(structure, leaves), **options)
    if eq.reference.freedom is None or system.cell is None:
        return np.asarray(system.positions)
    return np.asarray(jnp.concatenate([system.positions, system.cell]))


def relaxed_structure(eq: Equilibrium, start: System, potential: Potential, **options: Any) -> System:
    """Relax again as `relax_from`, and return the structure without the rigid motion away from the equilibrium [host]."""
    return remove_rigid_motion(eq, relax_from(eq, start, potential, progress=False, **options).system)


def relax_from(eq: Equilibrium, start: System, potential: Potential, **options: Any) -> Equilibrium:
    """Relax again from another structure, with another potential, under the equilibrium's conditions [host]."""
    return eqx.tree_at(lambda state: state.system, eq, start).again(potential, **options)


def remove_rigid_motion(eq: Equilibrium, system: System) -> System:
    """Return another state of the equilibrium's atoms, without the rigid motion that lies between both [host]."""
    reference, start = eq.reference, eq.unknown
    null = known_null_space(start, reference, eq.spectrum.rattlers if eq.spectrum else ())
    flat, unravel = ravel_pytree(start)
    return reference.place(unravel(flat + null.project(ravel_pytree(reference.unknown_of(system))[0] - flat)))


def _leaf(sensitivity: Sensitivity, tree: Potential, number: int) -> Any:
    """Return the derivative in one leaf of the parameters; None where it was not asked for."""
    leaf = jax.tree.structure(sensitivity.potential).flatten_up_to(tree)[number]  # type: ignore[attr-defined]
    return None if leaf is None else np.asarray(leaf)


def _entries(sensitivity: Sensitivity) -> Iterator[Entry]:
    """Yield every parameter value that is checked."""
    names = parameter_paths(sensitivity.potential)
    for leaf, (name, theta) in enumerate(zip(names, jax.tree.leaves(sensitivity.potential), strict=True)):
        derivative = _leaf(sensitivity, sensitivity.positions, leaf)
        if derivative is None:
            continue
        if theta.ndim == 0:
            yield Entry(leaf, (), name)
            continue
        size = np.abs(derivative).max(axis=(0, 1)).ravel()
        for flat in np.argsort(-size)[:ENTRIES]:
            place = tuple(int(k) for k in np.unravel_index(flat, theta.shape))
            yield Entry(leaf, place, f"{name}[{', '.join(map(str, place))}]")
