"""`SitePotential`: a many-body energy, written as the energy of one site with its neighbours."""

import jax
from jaxtyping import Array, Bool, Float

from mdsens.potentials.base import Atom, Potential, handles, lookup_one, lookup_pair, neighbor_vectors


class SitePotential(Potential):
    """U = Σ_i E_i(d_i1, d_i2, ...). A subclass gives `site_energy(d, i, j, mask)`, and a static `cutoff` or a `range`."""

    def site_energy(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, ""]:
        """Energy of atom i [eV] from the vectors to its neighbours j [Å].

        Places where `mask` is False hold a harmless vector and must not count.
        """
        raise NotImplementedError

    def pair(self, parameter, i: Atom, j: Atom):
        """The value of a parameter for the pair: a scalar as it is, a dict by the pair's labels."""
        return lookup_pair(parameter, i, j)

    def one(self, parameter, i: Atom):
        """The value of a parameter for one atom: scalar, dict by label, or one value per atom, shape `(N,)`."""
        return lookup_one(parameter, i)

    def atom_energies(self, system):
        d, inside = neighbor_vectors(system, self.range)
        i, j = handles(system)
        return jax.vmap(self.site_energy)(d, i, j, inside)
