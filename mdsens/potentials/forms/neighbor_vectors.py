"""Vectors from atoms to their listed neighbours, and handles of both, as potentials want them: atoms along the last axis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mdsens.potentials.species import Atom
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.neighbors.sums_over_neighbors import fence
from mdsens.structures.neighbors.vectors import bonds
from mdsens.structures.system import System


def pair_list(system: System) -> Neighbors:
    """Return the neighbour list of a system that has one and nothing else."""
    assert isinstance(system.neighbors, Neighbors)
    return system.neighbors


def bond_vectors(system: System, reach: Any) -> tuple[Float[Array, "dim capacity atoms"], Bool[Array, "capacity atoms"]]:
    """Return `(d, inside)`: the vectors to all listed neighbours, stored, and which of them are shorter than `reach`."""
    neighbors = pair_list(system)
    d = fence(bonds(system.positions, system.cell, neighbors), neighbors)
    return mask_vectors(d, neighbors.used, reach)


def mask_vectors(d: Float[Array, "dim places atoms"], used: Any, reach: Any) -> tuple[Array, Array]:
    """Return `(d, inside)`: which vectors count, and a harmless one in place of each other, so that no derivative is NaN."""
    inside = used & (jnp.sum(d * d, axis=0) < jax.lax.stop_gradient(reach).astype(d.dtype) ** 2)
    harmless = jnp.zeros((len(d), 1, 1), d.dtype).at[0].set(_harmless_length(reach).astype(d.dtype))
    return jnp.where(inside, d, harmless), inside


def mark_squares(squares: Float[Array, "places atoms"], used: Any, reach: Any) -> Float[Array, "places atoms"]:
    """Return squares of distances, infinite where they do not count."""
    return jnp.where(used & (squares < jax.lax.stop_gradient(reach).astype(squares.dtype) ** 2), squares, jnp.inf)


def mask_squares(squares: Float[Array, "places atoms"], reach: Any) -> tuple[Array, Array]:
    """Return `(squares, inside)`: which squares `mark_squares` left finite, and a harmless one in place of each other."""
    inside = squares < jnp.inf
    return jnp.where(inside, squares, _harmless_length(reach).astype(squares.dtype) ** 2), inside


def _harmless_length(reach: Any) -> Array:
    reach = jax.lax.stop_gradient(reach)
    return jnp.where(jnp.isfinite(reach), 0.5 * reach, 1.0)


def neighbor_vectors(system: System, reach: Any) -> tuple[Float[Array, "atoms capacity dim"], Bool[Array, "atoms capacity"]]:
    """Return what `bond_vectors` does, with the atoms along the first axis."""
    d, inside = bond_vectors(system, reach)
    return d.T, inside.T


def handles(system: System, atom: Array | None = None) -> tuple[Atom, Atom]:
    """Return the handles of all atoms `(N,)` and of their neighbours: those listed, `(capacity, N)`, or `atom`."""
    atom, n = pair_list(system).atom if atom is None else atom, len(system)
    centre = Atom(jnp.arange(n), system.species, system.labels, n)
    return centre, Atom(atom, system.species[atom], system.labels, n)


def map_pairs(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function(*values, i, j)` of each listed pair; `arguments` are values `(capacity, N)`, then the handles."""
    *values, i, j = arguments
    inner = jax.vmap(function)
    return jax.vmap(inner, in_axes=(*(0 for _ in values), None, 0))(*values, i, j)


def with_derivatives(function: Callable[..., Array]) -> Callable[..., tuple[Array, Array, Array]]:
    """Return the function that gives value, slope and curvature of `function` in its first argument."""

    def derivatives(x: Array, *rest: Any) -> tuple[Array, Array, Array]:
        def slope(x: Array) -> tuple[Array, Array]:
            return jax.jvp(lambda x: function(x, *rest), (x,), (jnp.ones_like(x),))

        (value, first), (_, second) = jax.jvp(slope, (x,), (jnp.ones_like(x),))
        return value, first, second

    return derivatives
