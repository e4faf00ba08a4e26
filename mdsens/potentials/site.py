"""`SitePotential`: a many-body energy, written as the energy of one site with its neighbours."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mdsens.along_last import along_last
from mdsens.neighbor_sums import fence
from mdsens.potentials.base import Atom, Potential
from mdsens.potentials.bonds import bond_vectors, handles
from mdsens.potentials.local_stiffness import SiteStiffness
from mdsens.system import System

CACHED = 2**19
"""Pairs of neighbours (K² for each site) up to which all sites are evaluated together; beyond, in blocks of this size."""

HESSIAN_BLOCK = 2**14
"""The same for the second derivatives of sites."""


class SitePotential(Potential):
    """U = Σ_i E_i(d_i1, d_i2, ...). A subclass gives `site_energy(d, i, j, mask)`, and a static `cutoff` or a `range`."""

    pair_numbers: ClassVar[int] = 1
    """Numbers that `site_energy` keeps for each pair of neighbours: the more there are, the fewer sites go into a block."""

    def site_energy(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, ""]:
        """Energy of atom i [eV] from the vectors to its neighbours j [Å].

        Places where `mask` is False hold a harmless vector and must not count.
        """
        raise NotImplementedError

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        return in_blocks(lambda *sites: along_last(self.site_energy, *sites), self._sites(system), CACHED // self.pair_numbers)

    def local_stiffness(self, system: System) -> SiteStiffness:
        # For two second derivatives of a scalar in few variables reverse over reverse takes the fewest operations, most of
        # them contractions, for which the sites come first.
        hessian = jax.jacrev(jax.jacrev(self.site_energy))
        sites = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), self._sites(system))
        batch = max(128, HESSIAN_BLOCK // system.neighbors.atom.shape[0] ** 2)
        batch = max(8, batch // self.pair_numbers)
        blocks = jax.lax.map(lambda site: hessian(*site), fence(sites, system.neighbors), batch_size=batch)
        return SiteStiffness(jnp.moveaxis(blocks, 0, -1))

    def _sites(self, system: System) -> tuple[Any, ...]:
        d, inside = bond_vectors(system, self.range)
        return jnp.swapaxes(d, 0, 1), *handles(system), inside


def in_blocks(function: Callable[..., Any], arguments: Any, pairs: int, least: int = 128) -> Any:
    """`function(*arguments)`, atoms last, block by block of so many pairs of neighbours, so that a block stays in the cache.

    A block has `least` atoms at least, where there are as many. It is evaluated again for its derivative rather than kept.
    """
    first = jax.tree.leaves(arguments)[0]
    capacity, size = first.shape[0], first.shape[-1]
    block = max(least, pairs // capacity**2)
    if size <= block:
        return function(*arguments)
    count = -(-size // block)
    block = -(-size // count)

    def cut(leaf: Any) -> Any:
        filled = jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, count * block - size)], mode="edge")
        return jnp.moveaxis(filled.reshape(*leaf.shape[:-1], count, block), -2, 0)

    results = jax.lax.map(jax.checkpoint(lambda sites: function(*sites)), jax.tree.map(cut, arguments))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2).reshape(*leaf.shape[1:-1], -1)[..., :size], results)
