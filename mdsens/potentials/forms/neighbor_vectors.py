"""Vectors from atoms to their listed neighbours, and handles of both, as potentials want them: atoms along the last axis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mdsens.potentials.species import Atom
from mdsens.structures.neighbors.sums_over_neighbors import fence
from mdsens.structures.neighbors.vectors import bonds
from mdsens.structures.system import System


def bond_vectors(system: System, reach: Any) -> tuple[Float[Array, "dim capacity atoms"], Bool[Array, "capacity atoms"]]:
    """`(d, inside)`: vectors to the listed neighbours, and which of them lie within `reach`; stored, not computed twice."""
    d = fence(bonds(system.positions, system.cell, system.neighbors), system.neighbors)
    return within(d, system.neighbors.used, reach)


def within(d: Float[Array, "dim places atoms"], used: Any, reach: Any) -> tuple[Array, Array]:
    """`(d, inside)`: which of some vectors count; the others are replaced by a harmless one.

    No derivative of that one can be NaN.
    """
    inside = used & (jnp.sum(d * d, axis=0) < jax.lax.stop_gradient(reach).astype(d.dtype) ** 2)
    harmless = jnp.zeros((len(d), 1, 1), d.dtype).at[0].set(_harmless_length(reach).astype(d.dtype))
    return jnp.where(inside, d, harmless), inside


def marked(squares: Float[Array, "places atoms"], used: Any, reach: Any) -> Float[Array, "places atoms"]:
    """Squares of distances, infinite where they do not count."""
    return jnp.where(used & (squares < jax.lax.stop_gradient(reach).astype(squares.dtype) ** 2), squares, jnp.inf)


def finite(squares: Float[Array, "places atoms"], reach: Any) -> tuple[Array, Array]:
    """`(squares, inside)`: those that are not marked, the others replaced by a harmless one."""
    inside = squares < jnp.inf
    return jnp.where(inside, squares, _harmless_length(reach).astype(squares.dtype) ** 2), inside


def _harmless_length(reach: Any) -> Array:
    reach = jax.lax.stop_gradient(reach)
    return jnp.where(jnp.isfinite(reach), 0.5 * reach, 1.0)


def neighbor_vectors(system: System, reach: Any) -> tuple[Float[Array, "atoms capacity dim"], Bool[Array, "atoms capacity"]]:
    """The same, atom by atom."""
    d, inside = bond_vectors(system, reach)
    return d.T, inside.T


def handles(system: System, atom: Any = None) -> tuple[Atom, Atom]:
    """Handles of each atom `(N,)` and of its neighbours, those listed `(capacity, N)` or `atom`."""
    atom, n = system.neighbors.atom if atom is None else atom, len(system)
    centre = Atom(jnp.arange(n), system.species, system.labels, n)
    return centre, Atom(atom, system.species[atom], system.labels, n)


def of_pairs(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*values, i, j)` of each listed pair; arguments `(capacity, N)`, then the handles."""
    *values, i, j = arguments
    inner = jax.vmap(function)
    return jax.vmap(inner, in_axes=(*(0 for _ in values), None, 0))(*values, i, j)
