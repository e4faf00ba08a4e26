"""`EmbeddedPotential`: pairs, and a function of the density that an atom's neighbours make at it."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.potentials.base import Potential
from mdsens.potentials.forms.neighbor_vectors import (
    bond_vectors,
    handles,
    map_pairs,
    mark_squares,
    mask_squares,
    pair_list,
    with_derivatives,
)
from mdsens.potentials.forms.stored_stiffness import EmbeddedStiffness, PairStiffness, pair_stiffness
from mdsens.potentials.methods import DENSITY, EMBEDDING, PAIR_ENERGY, MissingMethod, scalar_method
from mdsens.potentials.species import Atom
from mdsens.structures.neighbors.sums_over_neighbors import fence, from_both_sides, mean_of_sides, sum_over_atoms
from mdsens.structures.neighbors.vectors import join_places, over_places, squared_distances
from mdsens.structures.system import System


class EmbeddedPotential(Potential):
    """The energy U = ½ Σ_i Σ_{j≠i} φ(r_ij) + Σ_i F(ρ_i), ρ_i = Σ_{j≠i} f(r_ij).

    A subclass gives `pair_energy(r, i, j)`, `density(r, i, j)`, `embedding(rho, i)`, and a static `cutoff` or a `range`,
    at which φ and f vanish by themselves. An attraction of two species that grows as the root of its neighbours' overlap:

        from mdsens.potentials.forms.embedded import square_root  # not NaN for an atom that is alone

        class Glue(ms.EmbeddedPotential):
            strength: dict
            width: float
            cutoff: float = ms.static(5.0)

            def pair_energy(self, r, i, j):
                return (self.cutoff - r) ** 3 / r

            def density(self, r, i, j):
                return self.pair(self.strength, i, j) * jnp.exp(-r / self.width) * (self.cutoff - r) ** 3

            def embedding(self, rho, i):
                return -square_root(rho)
    """

    stiffness_form: ClassVar = EmbeddedStiffness

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        """Return φ of the pair i, j at distance r [eV], which is that of j, i."""
        raise MissingMethod(self, PAIR_ENERGY, "the energy of a pair")

    def density(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        """Return f, the density that atom j makes at atom i, at distance r [Å]."""
        raise MissingMethod(self, DENSITY, "what an atom makes at another")

    def embedding(self, rho: Float[Array, ""], i: Atom) -> Float[Array, ""]:
        """Return F, the energy of atom i in the density rho [eV]."""
        raise MissingMethod(self, EMBEDDING, "the energy of an atom in a density")

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        d, inside = bond_vectors(system, self.range)
        return self._embedded(system, *self._sums(jnp.sum(d * d, axis=0), inside, *handles(system)))

    def total(self, system: System) -> Float[Array, ""]:
        neighbors, components = pair_list(system), tuple(system.positions.T)

        def squares_of(atom: Array, kind: Array, used: Array) -> Array:
            return mark_squares(squared_distances(components, system.cell, neighbors, atom, kind), used, self.range)

        def sums_of(atom: Array, squares: Array) -> tuple[Array, Array]:
            squares, inside = mask_squares(fence(squares, neighbors), self.range)
            return self._sums(squares, inside, *handles(system, atom))

        squares = over_places(squares_of, neighbors.atom, neighbors.kind, neighbors.used)
        squares = from_both_sides(join_places(squares), neighbors)
        sums = over_places(sums_of, neighbors.atom, squares)
        return sum_over_atoms(self._embedded(system, *(jnp.sum(part, axis=0) for part in sums)), neighbors)

    def _sums(self, squares: Array, inside: Array, i: Atom, j: Atom) -> tuple[Array, Array]:
        """Return `(Σ φ, ρ)` of each atom, summed over some places."""
        r = jnp.sqrt(squares)

        def summed(function: Callable[..., Any]) -> Array:
            return jnp.sum(jnp.where(inside, map_pairs(function, r, i, j), 0.0), axis=0)

        return summed(scalar_method(self, PAIR_ENERGY)), summed(scalar_method(self, DENSITY))

    def _embedded(self, system: System, pairs: Array, rho: Array) -> Array:
        i, _ = handles(system)
        return 0.5 * pairs + jax.vmap(scalar_method(self, EMBEDDING))(rho, i)

    def local_stiffness(self, system: System) -> EmbeddedStiffness:
        neighbors, (d, inside) = pair_list(system), bond_vectors(system, self.range)

        def density_of(atom: Array, inside: Array, d: Array) -> Array:
            r = jnp.sqrt(jnp.sum(d * d, axis=0))
            return jnp.sum(jnp.where(inside, map_pairs(scalar_method(self, DENSITY), r, *handles(system, atom)), 0.0), axis=0)

        arrays = neighbors.atom, inside, d
        rho = jnp.sum(over_places(density_of, *arrays), axis=0)
        _, first, second = jax.vmap(with_derivatives(scalar_method(self, EMBEDDING)))(rho, handles(system)[0])

        def pairs_of(atom: Array, inside: Array, d: Array) -> tuple[PairStiffness, Array]:
            r, ij = jnp.sqrt(jnp.sum(d * d, axis=0)), handles(system, atom)
            (_, slope, curvature), (_, f_slope, f_curvature) = (
                tuple(jnp.where(inside, value, 0.0) for value in map_pairs(with_derivatives(function), r, *ij))
                for function in (scalar_method(self, PAIR_ENERGY), scalar_method(self, DENSITY))
            )
            return pair_stiffness(d, r, 0.5 * slope + first * f_slope, 0.5 * curvature + first * f_curvature), f_slope

        pairs, slope = jax.tree.map(join_places, over_places(pairs_of, *arrays))
        mean = lambda values: mean_of_sides(values, neighbors)  # noqa: E731
        pairs = PairStiffness(pairs.direction, mean(pairs.along), mean(pairs.across))
        return EmbeddedStiffness(pairs, slope, 2.0 * mean(slope) - slope, second)


def square_root(rho: Float[Array, ""]) -> Float[Array, ""]:
    """Return √ρ for an `embedding`: 0, with all derivatives, for an atom that is alone and where √ρ is below rounding."""
    counts = rho > jnp.finfo(rho.dtype).tiny ** (1.0 / 3.0)
    return jnp.where(counts, jnp.sqrt(jnp.where(counts, rho, 1.0)), 0.0)
