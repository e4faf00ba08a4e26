"""Distances."""

import itertools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mdsens.errors import InputError


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
        if (self.pairs.shape[0] and isinstance(self.pairs, np.ndarray)) and not (
            -len(system) <= self.pairs.min() and self.pairs.max() < len(system)
        ):
            raise InputError(f"distances names an atom beyond the {len(system)} of the system.")
        d = system.positions[self.pairs[:, 1]] - system.positions[self.pairs[:, 0]]
        if any(system.pbc):
            # Rounding brings a vector near its shortest image, and for a skewed cell a neighbouring one may be shorter.
            periodic = jnp.asarray(system.pbc)
            fractional = jnp.where(periodic, d @ jnp.linalg.pinv(system.cell), 0.0)
            d = d - jnp.round(fractional) @ system.cell
            steps = [(-1, 0, 1) if flag else (0,) for flag in system.pbc]
            images = jnp.asarray(list(itertools.product(*steps)), d.dtype) @ system.cell
            candidates = d[:, None, :] + images
            nearest = jnp.argmin(jnp.sum(candidates**2, axis=-1), axis=1)
            d = jnp.take_along_axis(candidates, nearest[:, None, None], axis=1)[:, 0]
        return jnp.sqrt(jnp.sum(d * d, axis=-1))
