"""`SitePotential`: a many-body energy, written as the energy of one site with its neighbours."""

import jax
from jaxtyping import Array, Bool, Float

from mdsens.potentials.base import Atom, Potential, handles, neighbor_vectors


class SitePotential(Potential):
    """U = Σ_i E_i(d_i1, d_i2, ...). A subclass gives `site_energy(d, i, j, mask)`, and a static `cutoff` or a `range`."""

    def site_energy(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, ""]:
        """Energy of atom i [eV] from the vectors to its neighbours j [Å].

        Places where `mask` is False hold a harmless vector and must not count.
        """
        raise NotImplementedError

    def atom_energies(self, system):
        d, inside = neighbor_vectors(system, self.range)
        i, j = handles(system)
        return jax.vmap(self.site_energy)(d, i, j, inside)
