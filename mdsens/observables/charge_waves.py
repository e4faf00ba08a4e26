"""What distant charges add to dynamical matrices: Ewald's reciprocal sum at a wave vector.

    Φ_ia,jb(q) = k z_i z_j 4π/V Σ_G K_a K_b/K² exp(-K²/4α²) exp(iK·(x_i - x_j)) - δ_ij Σ_l Φ_ia,lb(0),     K = G + q,

where G = 0 is left out at Γ. What it adds there depends on the direction that q comes from: the field of a longitudinal wave,

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
        charge: √k z [(eV Å)^½]. net: their sum, exactly 0 where the cell is neutral.
        positions: [Å].
        lattice: rows of the reciprocal lattice, with 2π [1/Å].
        volume: [Å³].
        waves: G, in units of these rows; none of both signs.
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
        """Φ(0)."""
        G = self.waves @ self.lattice
        # Each wave stands for its opposite too.
        pairs = self._weighted(2.0 * jnp.real(self._summed(G, self._share(G))))
        n = len(self.charge)
        return pairs.at[jnp.arange(n), jnp.arange(n)].add(-jnp.sum(pairs, axis=1))

    def change(self, q: Float[Array, " dim"]) -> Complex[Array, "atoms atoms dim dim"]:
        """Φ(q) - Φ(0), q in units of the reciprocal lattice, without a field at Γ."""
        q = self._reduced(q)
        G = self._signed()

        K = jnp.concatenate([G + q, q[None]])
        share = self._share(K) * jnp.append(self._share(G) > 0.0, True)
        return self._weighted(self._summed(K, share) - self._summed(G, self._share(G)))

    def of_field(self, q: Float[Array, " dim"]) -> Float[Array, "atoms atoms dim dim"]:
        """What the field along its direction adds at Γ itself; nothing elsewhere, where Φ(q) has it."""
        n = jnp.zeros(self.positions.shape[1]) if self.field is None else self.field
        return self._weighted(jnp.where(jnp.any(self._reduced(q) != 0.0), 0.0, n[:, None] * n))

    def between(self, q: Float[Array, " dim"]) -> Float[Array, "dim dim"]:
        """Σ_ij of the same, to the digits that it has, however small q is: differences of waves without their sum."""
        q = self._reduced(q)
        G = self._signed()
        still = jnp.exp(1j * (G @ self.positions.T))
        angle = self.positions @ q
        turn = -2.0 * jnp.sin(0.5 * angle) ** 2 + 1j * jnp.sin(angle)
        before, moved = still @ self.charge, still @ (self.charge * turn)
        square = jnp.real(before * before.conj())
        rise = 2.0 * jnp.real(before.conj() * moved) + jnp.real(moved * moved.conj())
        K, share = G + q, self._share(G)
        step = 2.0 * G @ q + q @ q
        G2, K2 = jnp.sum(G * G, axis=1), jnp.sum(K * K, axis=1)
        used = G2 > 0.0
        wider = share * jnp.where(used, (G2 * jnp.expm1(-step / self.width**2) - step) / jnp.where(used, K2, 1.0), 0.0)
        outer = jnp.einsum("ka,b->kab", G, q)
        outer = outer + jnp.swapaxes(outer, 1, 2) + q[:, None] * q
        weights = (wider * (square + rise) + share * rise)[:, None, None]
        waves = weights * K[:, :, None] * K[:, None] + (share * square)[:, None, None] * outer
        total = self.charge @ turn + self.net
        first = self._share(q[None])[0] * jnp.real(total * total.conj()) * q[:, None] * q
        half = len(G) // 2
        return 4.0 * jnp.pi / self.volume * (jnp.sum(waves[:half] + waves[half:], axis=0) + first)

    @property
    def size(self) -> Float[Array, "atoms atoms"]:
        """Of the blocks, about, at all q."""
        lengths = jnp.linalg.norm(self.at_gamma(), axis=(2, 3))
        return lengths + 4.0 * jnp.pi / self.volume * jnp.abs(self.charge[:, None] * self.charge)

    def _reduced(self, q: Array) -> Array:
        """The one of its equals that is nearest Γ [1/Å]."""
        return (q - jnp.round(q)) @ self.lattice

    def _signed(self) -> Array:
        G = self.waves @ self.lattice
        return jnp.concatenate([G, -G])

    def _share(self, K: Array) -> Array:
        """exp(-K²/4α²)/K²; 0 for K = 0, as which places that are not used stand there."""
        squares = jnp.sum(K * K, axis=1)
        used = squares > 0.0
        return jnp.where(used, jnp.exp(-squares / self.width**2) / jnp.where(used, squares, 1.0), 0.0)

    def _summed(self, K: Array, share: Array) -> Complex[Array, "atoms atoms dim dim"]:
        """Σ_K K K exp(iK·(x_i - x_j)) of some shares."""
        n, dim = self.positions.shape
        along = (jnp.exp(1j * (K @ self.positions.T))[:, :, None] * K[:, None, :]).reshape(len(K), n * dim)
        return jnp.swapaxes(((share[:, None] * along).T @ along.conj()).reshape(n, dim, n, dim), 1, 2)

    def _weighted(self, pairs: Array) -> Array:
        return 4.0 * jnp.pi / self.volume * (self.charge[:, None] * self.charge)[:, :, None, None] * pairs


def charge_waves(potential: Ewald, system: System, direction: Float[Array, " dim"] | None) -> ChargeWaves:
    """Those of a term, from its own list; pure JAX.

    Args:
        direction: from which q comes to Γ, in units of the reciprocal lattice.
    """
    rows, volume = reciprocal_rows(system.cell)
    lattice = 2.0 * jnp.pi * rows
    charge = jnp.sqrt(potential.coulomb) * potential.charges(system)
    field = None if direction is None else direction @ lattice / jnp.linalg.norm(direction @ lattice)
    waves = waves_of(system).astype(charge.dtype)
    net = jnp.sum(charge) if potential.background else jnp.zeros((), charge.dtype)
    return ChargeWaves(charge, net, system.positions, lattice, volume, waves, 2.0 * potential.alpha, field)
