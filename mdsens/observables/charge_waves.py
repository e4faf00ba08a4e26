"""The term of distant charges in dynamical matrices: Ewald's reciprocal sum at a wave vector.

    Φ_ia,jb(q) = k z_i z_j 4π/V Σ_G K_a K_b/K² exp(-K²/4α²) exp(iK·(x_i - x_j)) - δ_ij Σ_l Φ_ia,lb(0),     K = G + q,

where G = 0 is left out at Γ. Its limit there depends on the direction that q comes from: the field of a longitudinal wave,

    k z_i z_j 4π/V n_a n_b,     n = q/|q|.

M. Born, K. Huang, Dynamical Theory of Crystal Lattices (1954), §31; A. A. Maradudin et al., Theory of Lattice Dynamics in the
Harmonic Approximation (1971), chapter VI.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from mdsens.potentials.electrostatics.ewald import Ewald, reciprocal_rows, waves_of
from mdsens.structures.system import System


class ChargeWaves(eqx.Module):
    """The charges of a crystal and the waves of their sum; blocks are `(N, N, dim, dim)` [eV/Å²].

    Attributes:
        charge: √k z [(eV Å)^½].
        net: the sum of the charges, exactly 0 where the cell is neutral.
        positions: of the atoms [Å].
        lattice: rows of the reciprocal lattice, with 2π [1/Å].
        volume: of the cell [Å³].
        waves: G, in units of these rows; one of G and -G.
        width: 2α [1/Å].
        field: n, the direction from which q comes to Γ, of length 1; None for no macroscopic field there.
    """

    charge: Float[Array, " atoms"]
    net: Float[Array, ""]
    positions: Float[Array, "atoms dim"]
    lattice: Float[Array, "dim dim"]
    volume: Float[Array, ""]
    waves: Float[Array, "waves dim"]
    width: float
    field: Float[Array, " dim"] | None

    def at_gamma(self) -> Float[Array, "atoms atoms dim dim"]:
        """Return Φ(0)."""
        G = self.waves @ self.lattice
        # Each wave stands for its opposite too.
        pairs = self._times_charges(2.0 * jnp.real(self._sum(G, self._weights(G))))
        n = len(self.charge)
        return pairs.at[jnp.arange(n), jnp.arange(n)].add(-jnp.sum(pairs, axis=1))

    def change(self, q: Float[Array, " dim"]) -> Complex[Array, "atoms atoms dim dim"]:
        """Return Φ(q) - Φ(0), q in units of the reciprocal lattice, without a field at Γ."""
        q = self._nearest_gamma(q)
        G = self._both_signs()
        K = jnp.concatenate([G + q, q[None]])
        weights = self._weights(K) * jnp.append(self._weights(G) > 0.0, True)
        return self._times_charges(self._sum(K, weights) - self._sum(G, self._weights(G)))

    def field_term(self, q: Float[Array, " dim"]) -> Float[Array, "atoms atoms dim dim"]:
        """Return the term of the field along its direction at Γ itself; 0 elsewhere, where Φ(q) has it."""
        n = jnp.zeros(self.positions.shape[1]) if self.field is None else self.field
        return self._times_charges(jnp.where(jnp.any(self._nearest_gamma(q) != 0.0), 0.0, n[:, None] * n))

    def acoustic_sum(self, q: Float[Array, " dim"]) -> Float[Array, "dim dim"]:
        """Return Σ_ij Φ_ij(q) - Φ_ij(0), by differences of waves, so that it keeps its digits however small q is."""
        q = self._nearest_gamma(q)
        G = self._both_signs()
        still = jnp.exp(1j * (G @ self.positions.T))
        angle = self.positions @ q
        turn = -2.0 * jnp.sin(0.5 * angle) ** 2 + 1j * jnp.sin(angle)
        before, moved = still @ self.charge, still @ (self.charge * turn)
        square = jnp.real(before * before.conj())
        rise = 2.0 * jnp.real(before.conj() * moved) + jnp.real(moved * moved.conj())
        K, share = G + q, self._weights(G)
        step = 2.0 * G @ q + q @ q
        G2, K2 = jnp.sum(G * G, axis=1), jnp.sum(K * K, axis=1)
        used = G2 > 0.0
        wider = share * jnp.where(used, (G2 * jnp.expm1(-step / self.width**2) - step) / jnp.where(used, K2, 1.0), 0.0)
        outer = jnp.einsum("ka,b->kab", G, q)
        outer = outer + jnp.swapaxes(outer, 1, 2) + q[:, None] * q
        weights = (wider * (square + rise) + share * rise)[:, None, None]
        waves = weights * K[:, :, None] * K[:, None] + (share * square)[:, None, None] * outer
        total = self.charge @ turn + self.net
        first = self._weights(q[None])[0] * jnp.real(total * total.conj()) * q[:, None] * q
        half = len(G) // 2
        return 4.0 * jnp.pi / self.volume * (jnp.sum(waves[:half] + waves[half:], axis=0) + first)

    @property
    def size(self) -> Float[Array, "atoms atoms"]:
        """The approximate size of the blocks, at all q."""
        lengths = jnp.linalg.norm(self.at_gamma(), axis=(2, 3))
        return lengths + 4.0 * jnp.pi / self.volume * jnp.abs(self.charge[:, None] * self.charge)

    def _nearest_gamma(self, q: Array) -> Array:
        """The equivalent of q that is nearest Γ [1/Å]."""
        return (q - jnp.round(q)) @ self.lattice

    def _both_signs(self) -> Array:
        G = self.waves @ self.lattice
        return jnp.concatenate([G, -G])

    def _weights(self, K: Array) -> Array:
        """exp(-K²/4α²)/K²; 0 for K = 0, which marks unused places of the list."""
        squares = jnp.sum(K * K, axis=1)
        used = squares > 0.0
        return jnp.where(used, jnp.exp(-squares / self.width**2) / jnp.where(used, squares, 1.0), 0.0)

    def _sum(self, K: Array, weights: Array) -> Complex[Array, "atoms atoms dim dim"]:
        """Σ_K w K K exp(iK·(x_i - x_j)), with weights w."""
        n, dim = self.positions.shape
        along = (jnp.exp(1j * (K @ self.positions.T))[:, :, None] * K[:, None, :]).reshape(len(K), n * dim)
        return jnp.swapaxes(((weights[:, None] * along).T @ along.conj()).reshape(n, dim, n, dim), 1, 2)

    def _times_charges(self, pairs: Array) -> Array:
        return 4.0 * jnp.pi / self.volume * (self.charge[:, None] * self.charge)[:, :, None, None] * pairs


def charge_waves(potential: Ewald, system: System, direction: Float[Array, " dim"] | None) -> ChargeWaves:
    """Return the charges and waves of an Ewald term, from its own list; pure JAX.

    Args:
        direction: the direction from which q comes to Γ, in units of the reciprocal lattice.
    """
    rows, volume = reciprocal_rows(system.cell)
    lattice = 2.0 * jnp.pi * rows
    charge = jnp.sqrt(potential.coulomb) * potential.charges(system)
    field = None if direction is None else direction @ lattice / jnp.linalg.norm(direction @ lattice)
    waves = waves_of(system).astype(charge.dtype)
    net = jnp.sum(charge) if potential.background else jnp.zeros((), charge.dtype)
    return ChargeWaves(charge, net, system.positions, lattice, volume, waves, 2.0 * potential.alpha, field)
