"""`SitePotential`: a many-body energy, written as the energy of one site with its neighbours."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mdsens.potentials.base import Potential
from mdsens.potentials.forms.atoms_last import map_last_axis
from mdsens.potentials.forms.neighbor_vectors import bond_vectors, handles, pair_list
from mdsens.potentials.forms.stored_stiffness import SiteStiffness
from mdsens.potentials.methods import SITE_ENERGY, MissingMethod, scalar_method
from mdsens.potentials.species import Atom
from mdsens.structures.neighbors.sums_over_neighbors import fence
from mdsens.structures.system import System

CACHE_SIZE = 2**19
"""Numbers that all sites together may keep; if they keep more, they are evaluated in blocks of this size."""

HESSIAN_BLOCK = 2**14
"""Numbers that a block may keep for the second derivatives of its sites."""


class SitePotential(Potential):
    """The energy U = Σ_i E_i(d_i1, d_i2, ...). A subclass gives `site_energy(d, i, j, mask)`, and a `cutoff` or a `range`."""

    stiffness_form: ClassVar = SiteStiffness

    def site_energy(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, ""]:
        """Return the energy of atom i [eV] from the vectors to its neighbours j [Å].

        Places where `mask` is False hold a harmless vector and must not count.
        """
        raise MissingMethod(self, SITE_ENERGY, "the energy of a site")

    def site_numbers(self, neighbors: int) -> int:
        """Return about how many numbers `site_energy` keeps of so many neighbours: the more, the fewer sites go into a block."""
        return neighbors**2

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        block = CACHE_SIZE // self.site_numbers(len(pair_list(system).atom))
        return in_blocks(lambda *sites: map_last_axis(scalar_method(self, SITE_ENERGY), *sites), self._sites(system), block)

    def local_stiffness(self, system: System) -> SiteStiffness:
        # For two second derivatives of a scalar in few variables reverse over reverse takes the fewest operations, most of
        # them contractions, for which the sites come first.
        hessian = jax.jacrev(jax.jacrev(scalar_method(self, SITE_ENERGY)))
        sites = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), self._sites(system))
        neighbors = pair_list(system)
        capacity = len(neighbors.atom)
        pairs, numbers = capacity**2, self.site_numbers(capacity)
        batch = max(8, max(128 * pairs, HESSIAN_BLOCK) // max(pairs, numbers))
        return SiteStiffness(jnp.moveaxis(_in_equal_batches(lambda site: hessian(*site), fence(sites, neighbors), batch), 0, -1))

    def _sites(self, system: System) -> tuple[Any, ...]:
        d, inside = bond_vectors(system, self.range)
        return jnp.swapaxes(d, 0, 1), *handles(system), inside


def _in_equal_batches(function: Callable[[Any], Array], sites: Any, batch: int) -> Array:
    """Return `function(site)` of all sites, in batches of one size, no larger than asked for.

    `jax.lax.map(batch_size=)` would trace and compile the function once more for a remainder.
    """
    n = jax.tree.leaves(sites)[0].shape[0]
    count = -(-n // batch)
    if count == 1:
        return jax.vmap(function)(sites)
    batch = -(-n // count)

    def cut(leaf: Array) -> Array:
        filled = jnp.pad(leaf, [(0, count * batch - n)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")
        return filled.reshape(count, batch, *leaf.shape[1:])

    results = jax.lax.map(jax.vmap(function), jax.tree.map(cut, sites))
    return results.reshape(count * batch, *results.shape[2:])[:n]


def in_blocks(function: Callable[..., Any], arguments: Any, block: int, least: int = 128) -> Any:
    """Return `function(*arguments)`, atoms last, evaluated for about `block` atoms at a time, so that they stay in the cache.

    A block has `least` atoms at least, where there are as many. It is evaluated again for its derivative rather than kept.
    """
    size, block = jax.tree.leaves(arguments)[0].shape[-1], max(least, block)
    if size <= block:
        return function(*arguments)
    block = -(-size // -(-size // block))
    # An odd multiple of 8: rows that lie a power of two apart share the few places of a cache.
    block += (8 - block) % 16
    count = -(-size // block)

    def cut(leaf: Any) -> Any:
        filled = jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, count * block - size)], mode="edge")
        return jnp.moveaxis(filled.reshape(*leaf.shape[:-1], count, block), -2, 0)

    results = jax.lax.map(jax.checkpoint(lambda sites: function(*sites)), jax.tree.map(cut, arguments))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2).reshape(*leaf.shape[1:-1], -1)[..., :size], results)
