"""Force constants and dynamical matrices of a cell among its own periodic images, and eigenvalues with derivatives.

No supercell: the neighbour list holds the images that the potential sees, so that the sum over lattice translations

    D_ia,jb(q) = (m_i m_j)^-½ Σ_R Φ_ia,jb(R) exp(2πi q·R),     Φ_ia,jb(R) = ∂²U/∂x_ia(0) ∂x_jb(R)

(R in cell vectors, q in reciprocal ones) is finite and exact, however small the cell.

M. Born, K. Huang, Dynamical Theory of Crystal Lattices (1954), chapter V.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from jaxtyping import Array, Complex, Float, Int

from mdsens.couplings import couplings
from mdsens.errors import InputError
from mdsens.masses import mass_of
from mdsens.potentials.base import Potential, freshness, is_local
from mdsens.potentials.jaxmd import JaxMDEnergy
from mdsens.system import System, is_concrete

THZ = float(np.sqrt(units._e / units._amu) * 1e10 / (2.0 * np.pi) / 1e12)
"""Frequency ν = ω/2π of ω² = 1 eV/(Å² amu) [THz], CODATA 2014 as in `ase.units`; phonopy's is smaller by 1.3e-7 of it."""

DEGENERATE = 1e-8
"""Share of the bound on ω² within which neighbouring bands count as degenerate."""

ROUNDING = 1e3
"""Multiple of the precision, as a share of the bound on ω², below which ω² counts as zero."""

BATCH_NUMBERS = 2**20
"""Numbers that the couplings of all wave vectors treated together may take."""


class ForceConstants(eqx.Module):
    """Φ(R) as a list of couplings [eV/Å²]; one pair of atoms may stand there several times, its blocks add up.

    Attributes:
        row, column: atoms i and j. shift: R in cell vectors. block: ∂²U/∂x_i(0) ∂x_j(R).
        masses: [amu].
    """

    row: Int[Array, " couplings"]
    column: Int[Array, " couplings"]
    shift: Int[Array, "couplings dim"]
    block: Float[Array, "couplings dim dim"]
    masses: Float[Array, " atoms"]

    def dynamical_matrix(self, q: Float[Array, " dim"]) -> Complex[Array, "bands bands"]:
        """D(q) [eV/(Å² amu)], Hermitian."""
        n, dim = len(self.masses), self.block.shape[-1]
        phase = jnp.exp(2j * jnp.pi * (self.shift.astype(self.block.dtype) @ q))
        weighted = phase[:, None, None] * self._weighted()
        matrix = jnp.zeros((n, n, dim, dim), weighted.dtype).at[self.row, self.column].add(weighted)
        matrix = jnp.swapaxes(matrix, 1, 2).reshape(n * dim, n * dim)
        return 0.5 * (matrix + matrix.conj().T)

    @property
    def bound(self) -> Float[Array, ""]:
        """Gershgorin's bound on |ω²| at all wave vectors [eV/(Å² amu)], a constant to derivatives."""
        sizes = jnp.linalg.norm(jax.lax.stop_gradient(self._weighted()), axis=(1, 2))
        return jnp.max(jax.ops.segment_sum(sizes, self.row, len(self.masses)))

    def squared_frequencies(self, q: Float[Array, "q dim"]) -> Float[Array, "q bands"]:
        """ω² of each band in ascending order [eV/(Å² amu)]; negative where the crystal is unstable."""
        bound, batch = self.bound, max(1, BATCH_NUMBERS // self.block.size)
        return jax.lax.map(lambda one: eigenvalues(self.dynamical_matrix(one), bound), q, batch_size=min(batch, len(q)))

    def _weighted(self) -> Array:
        return self.block / jnp.sqrt(self.masses[self.row] * self.masses[self.column])[:, None, None]


def eigenvalues(matrix: Complex[Array, "n n"], bound: Float[Array, ""]) -> Float[Array, " n"]:
    """Eigenvalues of a Hermitian matrix, ascending, twice differentiable where bands are degenerate.

    Bands nearer to their neighbours than `DEGENERATE · bound` form a cluster. A perturbation may split it, and then no
    single band has a derivative that is linear in the perturbation; the mean of the cluster has. The first and second
    derivatives of each band are those of its cluster's mean: exact for each band where the perturbation keeps the degeneracy
    (as parameters do whose change keeps the crystal's symmetry), and for sums over the cluster in any case. Third
    derivatives are NaN.

    Perturbation theory about the point itself, in plain operations (JAX drops a `custom_jvp` rule where it linearises inside
    `jit` and `scan`, and a second derivative would go through `eigh`):

        λ_n = λ_n⁰ + ⟨V_nn + Σ_m |V_nm|² / (λ_n⁰ - λ_m⁰)⟩,     V = D - D⁰ = 0 in value,

    with ⟨⟩ the mean over n's cluster, and m outside of it.

    T. Kato, Perturbation Theory for Linear Operators (1966), chapter II §2.
    """
    point = jax.lax.stop_gradient(matrix)
    values, vectors = jnp.linalg.eigh(point, symmetrize_input=False)
    tolerance = jnp.maximum(DEGENERATE, ROUNDING * jnp.finfo(values.dtype).eps) * bound
    cluster = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(jnp.diff(values) > tolerance)])
    same = cluster[:, None] == cluster[None, :]
    change = vectors.conj().T @ (matrix - point) @ vectors
    gaps = jnp.where(same, jnp.inf, values[:, None] - values[None, :])
    shift = jnp.real(jnp.diagonal(change)) + jnp.sum(jnp.real(change * change.conj()) / gaps, axis=1)
    # Zero, as are its first two derivatives; the third is NaN, since what this expansion says of it is wrong.
    beyond = 0.0 * jnp.real(jnp.trace(matrix - point)) ** 2.5
    return values + same.astype(values.dtype) @ shift / jnp.sum(same, axis=1) + beyond


def vanishing(squared: Float[Array, "..."], bound: Float[Array, ""]) -> Array:
    """Where ω² is no more than rounding: acoustic bands at Γ, and other motions that cost no energy."""
    return jnp.abs(squared) <= ROUNDING * jnp.finfo(squared.dtype).eps * bound


def in_terahertz(squared: Float[Array, "..."], bound: Float[Array, ""]) -> Float[Array, "..."]:
    """Frequencies ν = sign(ω²) |ω²|^½ / 2π [THz]; where ω² vanishes 0, and so is the derivative."""
    zero = vanishing(squared, bound)
    size = jnp.sqrt(jnp.where(zero, 1.0, jnp.abs(squared)))
    return jnp.where(zero, 0.0, THZ * jnp.sign(squared) * size)


def force_constants(system: System, potential: Potential) -> ForceConstants:
    """Φ(R) at a state, from `system.neighbors` as it is; pure JAX."""
    fresh = freshness(potential, system)
    row, column, shift, block = couplings(system.with_positions(fresh * system.positions), potential)
    return ForceConstants(row, column, shift, block, system.masses)


def crystal(system: System, potential: Potential) -> System:
    """The system with a list from which phonons can be computed, checked; a traced one keeps its own.

    Raises:
        InputError: no periodicity, frozen or massless atoms, an energy that hides its cell, or what `potential.check`
            refuses.
    """
    if any(isinstance(part, JaxMDEnergy) for part in potential.parts()):
        raise InputError("A wrapped jax-md energy hides its cell, so it has no phonons here: use one of mdsens's own.")
    potential.check(system)
    if not is_local(potential):
        raise InputError(
            f"The energy of {type(potential).__name__} is no sum over listed neighbours, which phonons are made of here: "
            "ASE's take potential.calculator()."
        )
    if system.cell is None or not any(system.pbc):
        raise InputError("Phonons are waves in a periodic structure: give the system a cell and pbc.")
    if is_concrete(system.frozen) and np.asarray(system.frozen).any():
        raise InputError("Phonons move all atoms, but some of this system are frozen: build it without frozen atoms.")
    if not system.masses_known:
        strange = next(label for label in system.labels if mass_of(label) is None)
        raise InputError(
            f"Phonons need masses, and {strange!r} is no element: give the system masses=, for each atom or one for all, in amu."
        )
    if is_concrete(system.masses) and not (np.asarray(system.masses) > 0.0).all():
        raise InputError("Phonons need masses greater than zero: give the system masses= in amu.")
    if not is_concrete(system.positions, system.cell):
        return potential.prepared(system)
    return system.with_neighbors(potential, skin=0.0)
