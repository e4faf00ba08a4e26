"""`SitePotential`: a many-body energy, written as the energy of one site with its neighbours."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mdsens.potentials.base import Potential
from mdsens.potentials.forms.atoms_last import along_last
from mdsens.potentials.forms.neighbor_vectors import bond_vectors, handles
from mdsens.potentials.forms.stored_stiffness import SiteStiffness
from mdsens.potentials.methods import SITE_ENERGY, missing, number
from mdsens.potentials.species import Atom
from mdsens.structures.neighbors.sums_over_neighbors import fence
from mdsens.structures.system import System

CACHED = 2**19
"""Numbers kept up to which all sites are evaluated together; beyond, in blocks of this size."""

HESSIAN_BLOCK = 2**14
"""The same for the second derivatives of sites."""


class SitePotential(Potential):
    """U = Σ_i E_i(d_i1, d_i2, ...). A subclass gives `site_energy(d, i, j, mask)`, and a static `cutoff` or a `range`."""

    def site_energy(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, ""]:
        """Energy of atom i [eV] from the vectors to its neighbours j [Å].

        Places where `mask` is False hold a harmless vector and must not count.
        """
        raise missing(self, SITE_ENERGY, "the energy of a site")

    def site_numbers(self, neighbors: int) -> int:
        """Numbers that `site_energy` keeps of so many neighbours, roughly: the more, the fewer sites go into a block."""
        return neighbors**2

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        block = CACHED // self.site_numbers(system.neighbors.atom.shape[0])
        return in_blocks(lambda *sites: along_last(number(self, SITE_ENERGY), *sites), self._sites(system), block)

    def local_stiffness(self, system: System) -> SiteStiffness:
        # For two second derivatives of a scalar in few variables reverse over reverse takes the fewest operations, most of
        # them contractions, for which the sites come first.
        hessian = jax.jacrev(jax.jacrev(number(self, SITE_ENERGY)))
        sites = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), self._sites(system))
        neighbors = system.neighbors.atom.shape[0]
        pairs, numbers = neighbors**2, self.site_numbers(neighbors)
        batch = max(8, max(128 * pairs, HESSIAN_BLOCK) // max(pairs, numbers))
        blocks = jax.lax.map(lambda site: hessian(*site), fence(sites, system.neighbors), batch_size=batch)
        return SiteStiffness(jnp.moveaxis(blocks, 0, -1))

    def _sites(self, system: System) -> tuple[Any, ...]:
        d, inside = bond_vectors(system, self.range)
        return jnp.swapaxes(d, 0, 1), *handles(system), inside


def in_blocks(function: Callable[..., Any], arguments: Any, block: int, least: int = 128) -> Any:
    """`function(*arguments)`, atoms last, in blocks of about so many atoms, so that a block stays in the cache.

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
