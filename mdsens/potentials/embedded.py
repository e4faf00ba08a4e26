"""`EmbeddedPotential`: pairs, and a function of the density that an atom's neighbours make at it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mdsens.potentials.base import Atom, Potential, handles, neighbor_vectors


class EmbeddedPotential(Potential):
    """U = ½ Σ_i Σ_{j≠i} φ(r_ij) + Σ_i F(ρ_i), ρ_i = Σ_{j≠i} f(r_ij).

    A subclass gives `pair_energy(r, i, j)`, `density(r, i, j)`, `embedding(rho, i)`, and a static `cutoff` or a `range`,
    at which φ and f vanish by themselves.
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

    def atom_energies(self, system):
        d, inside = neighbor_vectors(system, self.range)
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        i, j = handles(system)
        pairs = 0.5 * jnp.sum(jnp.where(inside, _over_pairs(self.pair_energy)(r, i, j), 0.0), axis=1)
        rho = jnp.sum(jnp.where(inside, _over_pairs(self.density)(r, i, j), 0.0), axis=1)
        return pairs + jax.vmap(self.embedding)(rho, i)

    def stiffness_terms(
        self, system
    ) -> tuple[Float[Array, "atoms capacity dim dim"], Float[Array, " atoms"], Float[Array, "atoms capacity dim"]]:
        """The Hessian as pairs plus a term of low rank, from `system.neighbors`; pure JAX.

        Returns:
            `(pairs, weight, gradient)` with (H v)_i = Σ_k pairs_ik (v_i - v_j) + (Gᵀ weight G v)_i and
            (G v)_i = Σ_k gradient_ik · (v_j - v_i): `pairs` are second derivatives of φ + F'_i f_ij + F'_j f_ji [eV/Å²],
            `weight` is F'' [eV], and `gradient` is f' n, so that G v is the change of the densities.
        """
        d, inside = neighbor_vectors(system, self.range)
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        i, j = handles(system)
        n = d / r[..., None]

        def at_neighbor(r, i, j):
            return self.density(r, j, i)

        (f, f_slope, f_curvature), (_, slope, curvature), (_, back_slope, back_curvature) = (
            _over_pairs(_with_derivatives(function))(r, i, j) for function in (self.density, self.pair_energy, at_neighbor)
        )
        rho = jnp.sum(jnp.where(inside, f, 0.0), axis=1)
        _, own, weight = jax.vmap(_with_derivatives(self.embedding))(rho, i)
        own, other = own[:, None], own[system.neighbors.index]
        slope = slope + own * f_slope + other * back_slope
        curvature = curvature + own * f_curvature + other * back_curvature
        along = n[..., :, None] * n[..., None, :]
        tension = (slope / r)[..., None, None]
        pairs = curvature[..., None, None] * along + tension * (jnp.eye(system.dim, dtype=d.dtype) - along)
        gradient = jnp.where(inside[..., None], f_slope[..., None] * n, 0.0)
        return jnp.where(inside[..., None, None], pairs, 0.0), weight, gradient


def embedded_product(terms, index: Int[Array, "atoms capacity"], v: Float[Array, "atoms dim"], reverse=None):
    """H v from `stiffness_terms`.

    Args:
        index: the neighbour list's.
        reverse: `(atoms, capacity)`, for each place the number (row · capacity + column) of the place that holds the same
            pair from its other side, anything at unused places that points to an unused one: Gᵀ then gathers, and adds
            nothing up at random places.
    """
    pairs, weight, gradient = terms
    change = v[index] - v[:, None]
    pull = (weight * jnp.sum(gradient * change, axis=(1, 2)))[:, None, None] * gradient
    image = -jnp.sum(pairs * change[..., None, :], axis=(1, 3)) - jnp.sum(pull, axis=1)
    if reverse is None:
        return image.at[index].add(pull)
    return image + jnp.sum(pull.reshape(-1, v.shape[1])[reverse], axis=1)


def _over_pairs(function):
    return jax.vmap(jax.vmap(function, in_axes=(0, None, 0)))


def _with_derivatives(function):
    """Value, slope and curvature in the first argument."""

    def derivatives(x, *rest):
        def slope(x):
            return jax.jvp(lambda x: function(x, *rest), (x,), (jnp.ones_like(x),))

        (value, first), (_, second) = jax.jvp(slope, (x,), (jnp.ones_like(x),))
        return value, first, second

    return derivatives
