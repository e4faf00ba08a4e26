"""`EmbeddedPotential`: pairs, and a function of the density that an atom's neighbours make at it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.potentials.base import Atom, Potential
from mdsens.potentials.bonds import bond_vectors, handles, of_pairs
from mdsens.potentials.local_stiffness import EmbeddedStiffness, pair_stiffness
from mdsens.system import System


class EmbeddedPotential(Potential):
    """U = ½ Σ_i Σ_{j≠i} φ(r_ij) + Σ_i F(ρ_i), ρ_i = Σ_{j≠i} f(r_ij).

    A subclass gives `pair_energy(r, i, j)`, `density(r, i, j)`, `embedding(rho, i)`, and a static `cutoff` or a `range`,
    at which φ and f vanish by themselves. An attraction of two species that grows as the root of its neighbours' overlap:

        from mdsens.potentials.embedded import square_root  # not NaN for an atom that is alone

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

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        """φ of the pair i, j at distance r [eV]; the same for i, j and j, i."""
        raise NotImplementedError

    def density(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        """f: the density that atom j makes at atom i, at distance r."""
        raise NotImplementedError

    def embedding(self, rho: Float[Array, ""], i: Atom) -> Float[Array, ""]:
        """F: the energy of atom i in the density rho [eV]."""
        raise NotImplementedError

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        d, inside = bond_vectors(system, self.range)
        r, (i, j) = jnp.sqrt(jnp.sum(d * d, axis=0)), handles(system)
        pairs = 0.5 * jnp.sum(jnp.where(inside, of_pairs(self.pair_energy, r, i, j), 0.0), axis=0)
        rho = jnp.sum(jnp.where(inside, of_pairs(self.density, r, i, j), 0.0), axis=0)
        return pairs + jax.vmap(self.embedding)(rho, i)

    def local_stiffness(self, system: System) -> EmbeddedStiffness:
        d, inside = bond_vectors(system, self.range)
        r, (i, j) = jnp.sqrt(jnp.sum(d * d, axis=0)), handles(system)
        (_, slope, curvature), (f, f_slope, f_curvature) = (
            tuple(jnp.where(inside, value, 0.0) for value in of_pairs(_with_derivatives(function), r, i, j))
            for function in (self.pair_energy, self.density)
        )
        _, first, second = jax.vmap(_with_derivatives(self.embedding))(jnp.sum(f, axis=0), i)
        pairs = pair_stiffness(d, r, 0.5 * slope + first * f_slope, 0.5 * curvature + first * f_curvature)
        return EmbeddedStiffness(pairs, f_slope * d / r, second)


def square_root(rho: Float[Array, ""]) -> Float[Array, ""]:
    """√ρ for an `embedding`; 0, with all derivatives, for an atom that is alone and where √ρ is below rounding."""
    counts = rho > jnp.finfo(rho.dtype).tiny ** (1.0 / 3.0)
    return jnp.where(counts, jnp.sqrt(jnp.where(counts, rho, 1.0)), 0.0)


def _with_derivatives(function: Callable[..., Any]) -> Callable[..., tuple[Array, Array, Array]]:
    """Value, slope and curvature in the first argument."""

    def derivatives(x: Array, *rest: Any) -> tuple[Array, Array, Array]:
        def slope(x: Array) -> tuple[Array, Array]:
            return jax.jvp(lambda x: function(x, *rest), (x,), (jnp.ones_like(x),))

        (value, first), (_, second) = jax.jvp(slope, (x,), (jnp.ones_like(x),))
        return value, first, second

    return derivatives
