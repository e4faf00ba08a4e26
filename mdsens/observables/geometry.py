"""Distances."""

import itertools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mdsens.errors import InputError
from mdsens.system import is_concrete


class distances(eqx.Module):
    """`distances(pairs)`: lengths between pairs of atoms, nearest images [Å], shape `(n_pairs,)`.

    Args:
        pairs: `[(i, j), ...]`.

    Raises:
        InputError: no pairs of two different atoms, or an atom that does not exist.
    """

    pairs: Int[Array, "pairs 2"]

    def __init__(self, pairs):
        pairs = np.asarray(pairs)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind != "i" or (pairs[:, 0] == pairs[:, 1]).any():
            raise InputError("distances wants pairs of different atoms: [(i, j), ...].")
        self.pairs = pairs

    def __call__(self, system, potential):
        n = len(system)
        if is_concrete(self.pairs) and not (-n <= np.min(self.pairs) and np.max(self.pairs) < n):
            raise InputError(f"distances names an atom beyond the {n} of the system.")
        return _lengths(self.pairs, system.positions, system.cell, system.pbc)


@eqx.filter_jit
def _lengths(pairs, positions, cell, pbc):
    d = positions[pairs[:, 1]] - positions[pairs[:, 0]]
    if any(pbc):
        # Rounding brings a vector near its shortest image; for a skewed cell a neighbouring one may be shorter.
        fractional = jnp.where(jnp.asarray(pbc), d @ jnp.linalg.pinv(cell), 0.0)
        d = d - jnp.round(fractional) @ cell
        steps = [(-1, 0, 1) if flag else (0,) for flag in pbc]
        candidates = d[:, None, :] + jnp.asarray(list(itertools.product(*steps)), d.dtype) @ cell
        nearest = jnp.argmin(jnp.sum(candidates**2, axis=-1), axis=1)
        d = jnp.take_along_axis(candidates, nearest[:, None, None], axis=1)[:, 0]
    return jnp.sqrt(jnp.sum(d * d, axis=-1))
