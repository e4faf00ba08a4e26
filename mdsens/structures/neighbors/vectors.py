"""Vectors from atoms to their listed neighbours, in pieces that caches hold."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.neighbors.sums_over_neighbors import at_neighbors, differences, lattice_vectors

Positions = Float[Array, "atoms dim"]
Cell = Float[Array, "dim dim"] | None

CACHE_SIZE = 2**18
"""Numbers of an array up to which all places are treated together, beyond which some at a time."""


def over_places(function: Callable[..., Any], *arrays: Shaped[Array, "*lead capacity atoms"]) -> Any:
    """Apply a function to some places of all atoms at a time, which stay in the cache; results are along a new first axis."""
    capacity, n = arrays[0].shape[-2:]
    if capacity * n <= CACHE_SIZE:
        return jax.tree.map(lambda leaf: leaf[None], function(*arrays))
    places = 8 if capacity % 8 == 0 else 4

    def of_chunk(arguments: tuple[Array, tuple[Array, ...]]) -> Any:
        k, rows = arguments[0], iter(arguments[1])
        # Those of several components would be copied if they were cut beforehand.
        cut = (
            next(rows) if leaf.ndim == 2 else jax.lax.dynamic_slice_in_dim(leaf, k * places, places, axis=leaf.ndim - 2)
            for leaf in arrays
        )
        return function(*cut)

    rows = tuple(leaf.reshape(-1, places, n) for leaf in arrays if leaf.ndim == 2)
    # Evaluated again for a derivative rather than kept.
    return jax.lax.map(jax.checkpoint(of_chunk), (jnp.arange(capacity // places), rows))


def join_places(chunks: Shaped[Array, "chunks *lead places atoms"]) -> Shaped[Array, "*lead capacity atoms"]:
    """Join results of `over_places` that have a value for each place, along one axis of places again."""
    count, *lead, places, n = chunks.shape
    return jnp.moveaxis(chunks, 0, -3).reshape(*lead, count * places, n)


def bonds(positions: Positions, cell: Cell, neighbors: Neighbors) -> Float[Array, "dim capacity atoms"]:
    """Return the vectors from each atom to its listed neighbours [Å]."""
    x = positions.T
    d = at_neighbors(x, neighbors) - jnp.where(neighbors.used, x[:, None, :], 0.0)
    d = d if cell is None else d + lattice_vectors(cell.T, neighbors.kind, neighbors)
    return d if neighbors.offset is None else d + neighbors.offset


def squared_distances(
    components: tuple[Array, ...], cell: Cell, neighbors: Neighbors, atom: Array, kind: Array
) -> Float[Array, "places atoms"]:
    """Return squares of distances in some places of a list [Å²], for sums over all pairs only (see `differences`).

    Args:
        components: of the positions, `(N,)` each.
    """
    columns = [None] * len(components) if cell is None else cell.T

    # One component after another: for all together, compilers would store the vectors.
    def squared(x: Array, column: Array | None) -> Array:
        d = differences(x, atom)
        d = d if column is None else d + lattice_vectors(column, kind, neighbors)
        return d * d

    return functools.reduce(operator.add, map(squared, components, columns))


def displacements(positions: Positions, cell: Cell, neighbors: Neighbors) -> Float[Array, "atoms capacity dim"]:
    """Return the vectors from each atom to its listed neighbours [Å], atom by atom."""
    return bonds(positions, cell, neighbors).T
