"""Vectors between atoms, to the nearest periodic image."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mdsens.structures.system import System

SHORTENING = 1e-8
"""Share of its squared length by which a cell vector must become shorter to be replaced."""


def nearest_vectors(system: System, pairs: Int[Array, "pairs 2"]) -> Float[Array, "pairs dim"]:
    """Return the vectors from the first atom of each pair to the nearest image of the second [Å], in any cell, however skewed.

    Where two images are equally near, one of them is taken, and the vector has no derivative. NaN for a missing atom.
    """
    return _nearest(pairs, system.positions, system.cell, system.pbc)


@eqx.filter_jit
def _nearest(pairs: Array, positions: Array, cell: Array | None, pbc: tuple[bool, ...]) -> Array:
    # Traced indices cannot be refused: without the fill value an atom that does not exist would be another one.
    ends = positions.at[pairs].get(mode="fill", fill_value=jnp.nan)
    d = ends[:, 1] - ends[:, 0]
    if cell is None or not any(pbc):
        return d
    periodic = cell[np.flatnonzero(pbc)]
    rows = _reduction(jax.lax.stop_gradient(periodic)).astype(d.dtype) @ periodic
    # In a reduced cell rounding leaves the nearest image at most one vector away in each direction.
    basis, fixed = jax.lax.stop_gradient((rows, d))
    d = d - jnp.round(jnp.linalg.solve(basis @ basis.T, basis @ fixed.T).T) @ rows
    steps = jnp.asarray(list(itertools.product((-1, 0, 1), repeat=len(rows))), d.dtype)
    candidates = d[:, None, :] + steps @ rows
    nearest = jnp.argmin(jnp.sum(candidates**2, axis=-1), axis=1)
    return jnp.take_along_axis(candidates, nearest[:, None, None], axis=1)[:, 0]


def _reduction(rows: Float[Array, "n dim"]) -> Int[Array, "n n"]:
    """Return the integer matrix H whose H @ rows is a Minkowski-reduced basis of the lattice, by greedy steps.

    No vector of the basis becomes shorter when others are added with factors -1, 0, 1, which is Minkowski's condition in up to
    three dimensions. P. Q. Nguyen, D. Stehlé, ACM Trans. Algorithms 5, 46 (2009).
    """
    n = len(rows)
    moves = [(k, step) for k in range(n) for step in itertools.product((-1, 0, 1), repeat=n) if step[k] == 1]
    vector, steps = (np.array(column) for column in zip(*moves, strict=True))

    def gains(reduced: Array) -> Array:
        basis = reduced.astype(rows.dtype) @ rows
        return 1.0 - jnp.sum((steps.astype(rows.dtype) @ basis) ** 2, axis=1) / jnp.sum(basis**2, axis=1)[vector]

    def shorten(reduced: Array) -> Array:
        best = jnp.argmax(gains(reduced))
        return reduced.at[jnp.asarray(vector)[best]].set(jnp.asarray(steps)[best] @ reduced)

    return jax.lax.while_loop(lambda reduced: jnp.max(gains(reduced)) > SHORTENING, shorten, jnp.eye(n, dtype=steps.dtype))
