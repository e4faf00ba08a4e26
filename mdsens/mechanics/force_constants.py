"""Second derivatives of the energy between atoms and images of atoms, as a list: Hessians and phonons are made of it."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.potentials.base import Potential, gives_stiffness, listed_energies, sound_stiffness
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.potentials.forms.stored_stiffness import PairStiffness, SumStiffness
from mdsens.potentials.reparameterised import Reparameterised
from mdsens.potentials.sums import Sum
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.system import System

Couplings = tuple[Array, Array, Array, Array]
"""`(row, column, shift, block)`: atoms i `(n,)` and j, R `(n, dim)` in cell vectors, ∂²U/∂x_i(0) ∂x_j(R) `(n, dim, dim)`."""


def couplings(system: System, potential: Potential) -> Couplings:
    """Return the `Couplings` of a structure, by `system.neighbors` as it is; pure JAX.

    One pair of atoms may stand there several times, its blocks add up; those of unused places are zero. Where a potential stores
    no second derivatives, each atom's energy is differentiated twice in the vectors to its neighbours, of which alone it must be
    a function.
    """
    if isinstance(potential, Reparameterised):
        return couplings(system, potential.inner)
    if isinstance(potential, Sum):
        terms = [couplings(at, term) for term, at in potential.placed(system)]
        row, column, shift, block = map(jnp.concatenate, zip(*terms, strict=True))
        return row, column, shift, block
    if not gives_stiffness(potential):
        parts = _site_couplings(pair_list(system), _site_stiffness(system, potential))
    elif isinstance(stored := sound_stiffness(potential, system), PairStiffness):
        return pair_couplings(pair_list(system), stored)
    else:
        assert not isinstance(stored, SumStiffness)  # the terms of a sum come one by one
        parts = _site_couplings(pair_list(system), jnp.moveaxis(stored.site_blocks(), -1, 0))
    return _flatten(*parts)


def coupling_numbers(system: System, potential: Potential) -> int:
    """Return the count of numbers in the blocks of `couplings`."""
    return int(jax.eval_shape(couplings, system, potential)[3].size)


def pair_couplings(neighbors: Neighbors, stored: PairStiffness) -> Couplings:
    """Return the `Couplings` of stored second derivatives of pairs."""
    # Each site has half of a pair's energy.
    pairs = 2.0 * jnp.transpose(stored.blocks(), (3, 2, 0, 1))
    n, capacity = pairs.shape[:2]
    row = jnp.broadcast_to(jnp.arange(n)[:, None], (n, capacity + 1))
    column, shift = _neighborhoods(neighbors)
    return _flatten(row, column, shift, jnp.concatenate([jnp.sum(pairs, axis=1, keepdims=True), -pairs], axis=1))


def _flatten(row: Array, column: Array, shift: Array, block: Array) -> Couplings:
    dim = block.shape[-1]
    return row.ravel(), column.ravel(), shift.reshape(-1, dim), block.reshape(-1, dim, dim)


def _site_couplings(neighbors: Neighbors, stiffness: Float[Array, "atoms capacity dim capacity dim"]) -> Couplings:
    column, shift = _neighborhoods(neighbors)
    # Moving the centre moves all neighbours the other way.
    stiffness = jnp.concatenate([-jnp.sum(stiffness, axis=1, keepdims=True), stiffness], axis=1)
    stiffness = jnp.concatenate([-jnp.sum(stiffness, axis=3, keepdims=True), stiffness], axis=3)
    n, places = column.shape
    row = jnp.broadcast_to(column[:, :, None], (n, places, places))
    other = jnp.broadcast_to(column[:, None, :], (n, places, places))
    return row, other, shift[:, None, :] - shift[:, :, None], jnp.swapaxes(stiffness, 2, 3)


def _site_stiffness(system: System, potential: Potential) -> Float[Array, "atoms capacity dim capacity dim"]:
    """Return ∂²E_i/∂d_ik ∂d_il of each atom's energy in the vectors to its neighbours [eV/Å²]."""
    assert system.cell is not None
    neighbors, dim = pair_list(system), system.dim
    capacity = neighbors.index.shape[1]

    def slope(offset: Array) -> Array:
        moved = eqx.tree_at(lambda s: s.neighbors.offset, system, offset, is_leaf=lambda leaf: leaf is None)
        return jnp.sum(listed_energies(potential, moved))

    still = jnp.zeros((dim, *neighbors.atom.shape), system.positions.dtype)
    product = jax.linearize(jax.grad(slope), still)[1]
    # The sites' energies are independent: one direction probes all of them.
    directions = jnp.eye(dim * capacity, dtype=still.dtype).reshape(-1, dim, capacity, 1)
    images = jax.vmap(lambda direction: product(jnp.broadcast_to(direction, still.shape)))(directions)
    return jnp.transpose(images.reshape(dim, capacity, *still.shape), (4, 1, 0, 3, 2))


def _neighborhoods(neighbors: Neighbors) -> tuple[Array, Array]:
    """Return atoms and cell shifts of each atom's neighbourhood, itself first."""
    n, _, dim = neighbors.shift.shape
    index = jnp.concatenate([jnp.arange(n, dtype=neighbors.index.dtype)[:, None], neighbors.index], axis=1)
    return index, jnp.concatenate([jnp.zeros((n, 1, dim), neighbors.shift.dtype), neighbors.shift], axis=1)
