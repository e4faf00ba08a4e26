"""Derivatives of observables from values: along one parameter after the other, outside of compiled functions [host]."""

from collections.abc import Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.by_values import Known, giving_values
from mdsens.common.compilation import planned_compilation
from mdsens.common.errors import explain_untraceable
from mdsens.common.modules import with_fields
from mdsens.derivatives.known_energies import KnownEnergies
from mdsens.derivatives.linear_response import FEW_PARAMETERS, along_all
from mdsens.derivatives.states import Hessians, Observable, displacements, hessian_list, named_hessians
from mdsens.mechanics.evaluation import place
from mdsens.mechanics.hessian import Hessian
from mdsens.mechanics.programs import FILLED_LIMIT
from mdsens.potentials.base import Potential

VALUES_CALLS = 10
"""Derivatives of an observable from values, after which it is compiled: then each takes milliseconds instead of a tenth of a
second."""

MAX_KINDS = 256
"""Kinds of observables whose derivatives are counted."""

_calls: dict[Hashable, int] = {}
"""Derivatives from values so far, by what would be compiled."""


def has_values(g: Observable, hessians: Hessians, potential: Potential) -> bool:
    """Return whether an observable can be differentiated from values, one parameter at a time, and is not worth compiling yet.

    In single precision it cannot: the imaginary steps of `mechanics.strain_algebra` vanish there.
    """
    few = sum(leaf.size for leaf in jax.tree.leaves(potential)) <= FEW_PARAMETERS
    if not few or not all(_is_small(hessian) for hessian in hessian_list(hessians)):
        return False
    often = planned_compilation()
    return derivatives_so_far(g, hessians, potential) < VALUES_CALLS if often is None else not often


def _is_small(hessian: Hessian) -> bool:
    return hessian.is_stored and hessian.dtype == np.float64 and len(hessian.reference.system) <= FILLED_LIMIT


def derivatives_so_far(g: Observable, hessians: Hessians, potential: Potential) -> int:
    """Return how many derivatives of an observable from values there were, with states of these sizes."""
    return _calls.get(_kind(g, hessians, potential), 0)


def _kind(g: Observable, hessians: Hessians, potential: Potential) -> Hashable:
    """Return what the compiled derivative of an observable would depend on, or nearly."""
    leaves, structure = jax.tree.flatten(g)
    words = tuple(leaf if isinstance(leaf, Hashable) else id(leaf) for leaf in leaves if not eqx.is_array_like(leaf))
    sizes = tuple(len(hessian.reference.system) for hessian in hessian_list(hessians))
    return structure, words, sizes, jax.tree.structure(potential)


def forward_from_values(g: Observable, hessians: Hessians, potential: Potential) -> tuple[Array, np.ndarray, np.ndarray]:
    """Return an observable, its derivatives in all parameters along a last axis, and each state's relative residual."""
    kind = _kind(g, hessians, potential)
    _calls[kind] = _calls.pop(kind, 0) + 1
    if len(_calls) > MAX_KINDS:
        # What was not asked for longest: its functions keep alive what they see.
        _calls.pop(next(iter(_calls)))
    directions = np.eye(sum(leaf.size for leaf in jax.tree.leaves(potential)))
    unravel = ravel_pytree(potential)[1]
    systems, moved, residuals = {}, {}, []
    for name, hessian in named_hessians(hessians):
        columns, residual = along_all(hessian, directions)
        positions, cell = displacements(hessian, columns)
        systems[name] = place(hessian.z, hessian.reference)
        moved[name] = {"positions": positions} | ({} if cell is None else {"cell": cell})
        residuals.append(residual)
    states = {name: {part: getattr(system, part) for part in moved[name]} for name, system in systems.items()}

    def value(states: Any, potential: Potential) -> Array:
        placed = {name: with_fields(systems[name], **parts) for name, parts in states.items()}
        return jnp.asarray(g(placed.get(None, placed), potential))

    rows = []
    with giving_values(Known(KnownEnergies())), explain_untraceable("The observable", "g(system, potential) -> array"):
        for k, direction in enumerate(directions):
            steps = jax.tree.map(lambda change, k=k: jnp.asarray(change[k]), moved)
            result, row = jax.jvp(value, (states, potential), (steps, unravel(jnp.asarray(direction))))
            rows.append(np.asarray(row))
    matrix = np.stack(rows, axis=-1)
    return result, matrix, np.max(np.stack(residuals), axis=1, initial=0.0)
