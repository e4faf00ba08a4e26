"""Structures of different sizes in groups padded to one shape, which share a compiled program.

The padding is atoms that are frozen and have no neighbours: they move nothing, and nothing moves them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.mechanics.unknown import Reference, reference_at
from mdsens.potentials.base import Potential
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.structures.neighbors.neighbor_list import Neighbors, pad, rounded_capacity, widen_like
from mdsens.structures.system import System


def map_systems(action: Callable[[System], Any], systems: Sequence[System]) -> list[Any]:
    """Return `action(system)` of each system; a refusal says the number of the system."""
    if not systems:
        raise InputError("A batch of no systems has no positions: give at least one.")
    results = []
    for k, system in enumerate(systems):
        try:
            results.append(action(system))
        except InputError as error:
            raise InputError(f"System {k} of the batch: {error}") from error
    return results


def with_list(system: System, potential: Potential, skin: float | None) -> System:
    """Return a member with its list [host].

    Raises:
        InputError: a potential whose list has a form of its own.
    """
    system = system.with_neighbors(potential, skin=skin)
    if not isinstance(system.neighbors, Neighbors):
        raise InputError(f"{type(potential).__name__} sees more than listed neighbours, so relax its systems one at a time.")
    return system


def group_by_shape(systems: Sequence[System]) -> list[tuple[list[int], Reference]]:
    """Return groups of systems that share a shape: their numbers, and their references stacked [host]."""
    references = [_pad(reference_at(system), rounded_capacity(len(system))) for system in systems]
    groups: dict[Any, Any] = {}
    for k, reference in enumerate(references):
        # Capacities are made equal within a group.
        same = eqx.tree_at(lambda f: f.system.neighbors, reference, None)
        key = jax.tree.structure(same), tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(same))
        groups.setdefault(key, []).append(k)
    return [(members, _stack([references[k] for k in members])) for members in groups.values()]


def _pad(reference: Reference, n: int) -> Reference:
    system = reference.system
    more = n - len(system)

    def filled(values: Array, value: float) -> Array:
        return jnp.concatenate([values, jnp.full((more, *values.shape[1:]), value, values.dtype)])

    middle = jnp.broadcast_to(jnp.mean(system.positions, axis=0), (more, system.dim))
    positions = jnp.concatenate([system.positions, middle])
    where = lambda s: (s.positions, s.species, s.masses, s.frozen, s.neighbors)  # noqa: E731
    parts = (filled(system.species, 0), filled(system.masses, 1.0), filled(system.frozen, True))
    whole = eqx.tree_at(where, system, (positions, *parts, pad(pair_list(system), positions)))
    return eqx.tree_at(lambda f: f.system, reference, whole)


def _stack(references: list[Reference]) -> Reference:
    widest = pair_list(references[0].system)
    for reference in references:
        widest = widen_like(widest, pair_list(reference.system))
    references = [
        eqx.tree_at(lambda f: f.system.neighbors, reference, widen_like(pair_list(reference.system), widest))
        for reference in references
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *references)
