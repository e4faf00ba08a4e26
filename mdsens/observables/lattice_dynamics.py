"""Force constants and dynamical matrices of a cell among its own periodic images, and eigenvalues with derivatives.

No supercell: the neighbour list holds the images that the potential sees, so that the sum over lattice translations

    D_ia,jb(q) = (m_i m_j)^-½ Σ_R Φ_ia,jb(R) exp(2πi q·R),     Φ_ia,jb(R) = ∂²U/∂x_ia(0) ∂x_jb(R)

(R in cell vectors, q in reciprocal ones) is finite and exact, however small the cell. Charges that reach everywhere have
Ewald's sum beside it (see `charge_waves`).

M. Born, K. Huang, Dynamical Theory of Crystal Lattices (1954), chapter V.
"""

import functools
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from jaxtyping import Array, Bool, Complex, Float, Int

from mdsens.common.errors import InputError
from mdsens.derivatives.nonfinite import check_free
from mdsens.mechanics.force_constants import couplings, pair_couplings
from mdsens.observables.charge_waves import ChargeWaves, charge_waves
from mdsens.potentials.base import Potential, freshness, soundness, total_energy
from mdsens.potentials.electrostatics.ewald import Ewald
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.potentials.reparameterised import Reparameterised
from mdsens.potentials.sums import Sum
from mdsens.potentials.wrapped.jaxmd_energy import JaxMDEnergy
from mdsens.structures.masses import mass_of
from mdsens.structures.system import System, is_concrete

THZ = float(np.sqrt(units._e / units._amu) * 1e10 / (2.0 * np.pi) / 1e12)
"""Frequency ν = ω/2π of ω² = 1 eV/(Å² amu) [THz], CODATA 2014 as in `ase.units`; phonopy's is smaller by 1.3e-7 of it."""

ROUNDING = 1e3
"""Multiple of the precision, as a share of the numbers that it is the sum of, below which ω² counts as zero."""

UNBALANCED = 4.0
"""ω² that counts as zero, in forces per mass and distance of neighbours that are left in the state."""

SEPARATED = 1e-3
"""Share of the lowest |ω²| of the other bands below which rigid motions' bands are refined."""

REFINEMENTS = 3
"""Steps towards the space of these bands, of which each gains the digits by which they lie apart."""

STRAIGHT = 1e-6
"""Share of its period by which the atoms of a wire lie off its axis, if a rotation is to move them."""

BATCH_NUMBERS = 2**20
"""Numbers that the couplings of all wave vectors treated together may take."""


class ForceConstants(eqx.Module):
    """Φ(R) as a list of couplings [eV/Å²]; one pair of atoms may stand there several times, its blocks add up.

    Attributes:
        row, column: atoms i and j. shift: R in cell vectors. block: ∂²U/∂x_i(0) ∂x_j(R).
        masses: [amu].
        turning: displacements of the rotation about a wire's axis, times √m, of length 1; None where there is none.
        turns: whether that rotation moves anything.
        unbalanced: the largest force per mass and distance of neighbours [eV/(Å² amu)], a constant to derivatives.
        charges: of the terms that reach everywhere.
    """

    row: Int[Array, " couplings"]
    column: Int[Array, " couplings"]
    shift: Int[Array, "couplings dim"]
    block: Float[Array, "couplings dim dim"]
    masses: Float[Array, " atoms"]
    turning: Float[Array, "atoms dim"] | None
    turns: Bool[Array, ""]
    unbalanced: Float[Array, ""]
    charges: tuple[ChargeWaves, ...] = ()

    def dynamical_matrix(self, q: Float[Array, " dim"]) -> Complex[Array, "bands bands"]:
        """D(q) [eV/(Å² amu)], Hermitian."""
        return self._at_gamma() + self._change(q) + self._field(q)

    @property
    def unrest(self) -> Float[Array, ""]:
        """Which share of a force that would move an atom to its neighbour is left."""
        return self.unbalanced / jnp.where(self.bound > 0.0, self.bound, 1.0)

    @property
    def bound(self) -> Float[Array, ""]:
        """Gershgorin's bound on |ω²| at all wave vectors [eV/(Å² amu)], a constant to derivatives."""
        sizes = jnp.linalg.norm(jax.lax.stop_gradient(self._weighted()), axis=(1, 2))
        rows = jax.ops.segment_sum(sizes, self.row, len(self.masses))
        for waves in jax.lax.stop_gradient(self.charges):
            rows = rows + jnp.sum(waves.size / jnp.sqrt(self.masses[:, None] * self.masses), axis=1)
        return jnp.max(rows)

    def squared_frequencies(self, q: Float[Array, "q dim"]) -> tuple[Float[Array, "q bands"], Float[Array, "q bands"]]:
        """ω² of each band in ascending order, negative where the crystal is unstable, and below what it is zero [eV/(Å² amu)].

        In a basis whose first vectors are the rigid motions, which cost nothing at Γ. What D(q) makes of them is what
        D(q) - D(0) does, and that is summed by itself: so acoustic bands keep their digits however small q is.
        """
        numbers = self.block.size + sum(4 * waves.waves.size * len(self.masses) for waves in self.charges)
        bound, batch = self.bound, max(1, BATCH_NUMBERS // numbers)
        motions = self._motions()
        # Neither translations nor a rotation are answered by forces: the parts of first order in q vanish between them.
        ends = motions.rigid.reshape(*self.masses.shape, -1, motions.count)
        between = jnp.einsum("cag,cab,cbh->cgh", ends[self.row], self._weighted(), ends[self.column])
        still = motions.basis.T @ self._at_gamma() @ motions.basis
        known = motions.known[:, None] | motions.known[None, :]

        def bands(one: Array) -> tuple[Array, Array]:
            angle = self._angle(one)
            rigid = jnp.tensordot(-2.0 * jnp.sin(0.5 * angle) ** 2 + 1j * _sine_beyond_first_order(angle), between, 1)
            for waves in self.charges:
                rigid = rigid + waves.between(one) / jnp.sum(self.masses)
            # Rigid motions make no field.
            static = still + motions.basis.T @ self._field(one) @ motions.basis if self.charges else still
            matrix = motions.basis.T @ self._change(one) @ motions.basis + jnp.where(known, 0.0, static)
            matrix = jnp.where(
                motions.known[:, None] & motions.known[None, :], matrix.at[: motions.count, : motions.count].set(rigid), matrix
            )
            return eigenvalues(0.5 * (matrix + matrix.conj().T), bound, self.unbalanced, motions)

        return jax.lax.map(bands, q, batch_size=min(batch, len(q)))

    def _motions(self) -> "Motions":
        """Translations, and of a wire the rotation, as the first vectors of a basis."""
        n, dim = len(self.masses), self.block.shape[-1]
        shares = jnp.sqrt(self.masses / jnp.sum(self.masses))
        rigid = (shares[:, None, None] * jnp.eye(dim, dtype=shares.dtype)).reshape(n * dim, dim)
        if self.turning is None:
            basis = jnp.linalg.qr(jax.lax.stop_gradient(rigid), mode="complete")[0]
            return Motions(basis, jnp.arange(n * dim) < dim, None, dim)
        turning = self.turning.ravel()
        start = jax.lax.stop_gradient(turning)
        basis = jnp.linalg.qr(jnp.concatenate([rigid, start[:, None]], axis=1), mode="complete")[0]
        # The basis turns with the rotation's vector, which follows the positions.
        once = jnp.outer(turning, start @ basis) - jnp.outer(start, turning @ basis)
        twice = jnp.outer(turning, start @ once) - jnp.outer(start, turning @ once)
        basis = basis + once + twice / (1.0 + turning @ start)
        known = (jnp.arange(n * dim) < dim) | ((jnp.arange(n * dim) == dim) & self.turns)
        return Motions(basis, known, self.turns, dim + 1)

    def _angle(self, q: Array) -> Array:
        """2π q·R, q being the one of its equals that is nearest Γ."""
        return 2.0 * jnp.pi * (self.shift.astype(self.block.dtype) @ (q - jnp.round(q)))

    def _change(self, q: Array) -> Array:
        """D(q) - D(0)."""
        angle = self._angle(q)
        near = self._summed((-2.0 * jnp.sin(0.5 * angle) ** 2 + 1j * jnp.sin(angle))[:, None, None] * self._weighted())
        return near + sum(self._matrix(waves.change(q)) for waves in self.charges)

    def _field(self, q: Array) -> Array:
        return sum((self._matrix(waves.of_field(q)) for waves in self.charges), jnp.zeros(()))

    def _at_gamma(self) -> Array:
        return self._summed(self._weighted()) + sum(self._matrix(waves.at_gamma()) for waves in self.charges)

    def _matrix(self, blocks: Array) -> Array:
        """Blocks of all pairs, weighted, as a matrix."""
        blocks = blocks / jnp.sqrt(self.masses[:, None] * self.masses)[:, :, None, None]
        n, dim = len(self.masses), self.block.shape[-1]
        matrix = jnp.swapaxes(blocks, 1, 2).reshape(n * dim, n * dim)
        return 0.5 * (matrix + matrix.conj().T)

    def _summed(self, blocks: Array) -> Array:
        n, dim = len(self.masses), self.block.shape[-1]
        matrix = jnp.zeros((n, n, dim, dim), blocks.dtype).at[self.row, self.column].add(blocks)
        matrix = jnp.swapaxes(matrix, 1, 2).reshape(n * dim, n * dim)
        return 0.5 * (matrix + matrix.conj().T)

    def _weighted(self) -> Array:
        return self.block / jnp.sqrt(self.masses[self.row] * self.masses[self.column])[:, None, None]


class Motions(eqx.Module):
    """An orthonormal basis `(bands, bands)` whose first `count` vectors are rigid motions, as far as they are `known`.

    Of a wire the last of them is its rotation, if that `turns` anything, and any vector otherwise.
    """

    basis: Float[Array, "bands bands"]
    known: Bool[Array, " bands"]
    turns: Bool[Array, ""] | None
    count: int = eqx.field(static=True)

    @property
    def rigid(self) -> Float[Array, "bands count"]:
        return self.basis[:, : self.count]


def eigenvalues(
    matrix: Complex[Array, "n n"], bound: Float[Array, ""], unbalanced: Array | float = 0.0, motions: Motions | None = None
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Eigenvalues of a Hermitian matrix, ascending, twice differentiable where bands are degenerate; and what is zero of them.

    Bands that are as near to their neighbours as zero is to 0 form a cluster: nearer than rounding and the forces that are
    left can tell. A perturbation may split it, and then no single band has a derivative that is linear in the perturbation;
    the mean of the cluster has. The first and second derivatives of each band are those of its cluster's mean: exact for
    each band where the perturbation keeps the degeneracy (as parameters do whose change keeps the crystal's symmetry), and
    for sums over the cluster in any case. Third derivatives are NaN.

    Perturbation theory about the point itself, in plain operations (JAX drops a `custom_jvp` rule where it linearises inside
    `jit` and `scan`, and a second derivative would go through `eigh`):

        λ_n = λ_n⁰ + ⟨V_nn + Σ_m |V_nm|² / (λ_n⁰ - λ_m⁰)⟩,     V = D - D⁰ = 0 in value,

    with ⟨⟩ the mean over n's cluster, and m outside of it.

    Args:
        bound: on the magnitude of the eigenvalues.
        unbalanced: what forces that are left may change of them.
        motions: the basis in which the matrix is given; its first rows and columns have the accuracy of their own size.

    T. Kato, Perturbation Theory for Linear Operators (1966), chapter II §2.
    """
    point, unbalanced = jax.lax.stop_gradient((matrix, UNBALANCED * jnp.asarray(unbalanced)))
    values, vectors = jnp.linalg.eigh(point, symmetrize_input=False)
    tolerance = jnp.full(values.shape, ROUNDING * jnp.finfo(values.dtype).eps * bound + unbalanced)
    if motions is not None:
        found, refined = (values, vectors, tolerance), functools.partial(_refined, point, bound)
        if motions.turns is None:
            values, vectors, tolerance = refined(motions.count, found)
        else:
            more, fewer = (functools.partial(refined, motions.count - k) for k in (0, 1))
            values, vectors, tolerance = jax.lax.cond(motions.turns, more, fewer, found)
    cluster = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(jnp.diff(values) > jnp.maximum(tolerance[1:], tolerance[:-1]))])
    same = cluster[:, None] == cluster[None, :]
    change = vectors.conj().T @ (matrix - point) @ vectors
    gaps = jnp.where(same, jnp.inf, values[:, None] - values[None, :])
    shift = jnp.real(jnp.diagonal(change)) + jnp.sum(jnp.real(change * change.conj()) / gaps, axis=1)
    # Zero, as are its first two derivatives; the third is NaN, since what this expansion says of it is wrong.
    beyond = 0.0 * jnp.real(jnp.trace(matrix - point)) ** 2.5
    return values + same.astype(values.dtype) @ shift / jnp.sum(same, axis=1) + beyond, tolerance


def _refined(matrix: Array, bound: Array, count: int, found: tuple[Array, ...]) -> tuple[Array, ...]:
    """Eigenvalues, vectors and tolerances whose `count` lowest in magnitude have the accuracy of the first rows and columns.

    Where they lie far below the others. With M = [[A, B*], [B, C]] their space is that of [1; X], B + C X = X (A + B* X), a
    few steps from what is known of it; and what is off in X counts squared in A + B* X + X* B + X* C X.

    G. W. Stewart, SIAM Rev. 15, 727 (1973), doi:10.1137/1015095.
    """
    values, vectors, tolerance = found
    chosen = jnp.argsort(-jnp.sum(jnp.abs(vectors[:count]) ** 2, axis=0))[:count]
    others = jnp.where(jnp.ones(len(values), bool).at[chosen].set(False), jnp.abs(values), jnp.inf)
    A, B, C = matrix[:count, :count], matrix[count:, :count], matrix[count:, count:]
    X = vectors[count:, chosen] @ jnp.linalg.inv(vectors[:count, chosen])
    inverse = (vectors[count:] / jnp.copysign(others, values)) @ vectors[count:].conj().T
    for _ in range(REFINEMENTS):
        X = X - inverse @ (B + C @ X - X @ (A + B.conj().T @ X))
    terms = A, 2.0 * B.conj().T @ X, X.conj().T @ C @ X
    lengths = jnp.linalg.inv(jnp.linalg.cholesky(jnp.eye(count, dtype=X.dtype) + X.conj().T @ X))
    low, turn = jnp.linalg.eigh(lengths @ sum(terms) @ lengths.conj().T)
    space = jnp.concatenate([jnp.eye(count, dtype=X.dtype), X]) @ lengths.conj().T @ turn
    size = sum(jnp.linalg.norm(term) for term in terms)
    separated = size < SEPARATED * jnp.min(others)
    refined = (
        values.at[chosen].set(low),
        vectors.at[:, chosen].set(space),
        tolerance.at[chosen].set(tolerance[0] * size / jnp.where(bound > 0.0, bound, 1.0)),
    )
    order = jnp.argsort(jnp.where(separated, refined[0], values))
    values, vectors, tolerance = (jnp.where(separated, one, other) for one, other in zip(refined, found, strict=True))
    return values[order], vectors[:, order], tolerance[order]


def _sine_beyond_first_order(angle: Array) -> Array:
    """sin φ - φ."""
    square = angle * angle
    small = -angle * square / 6.0 * (1.0 - square / 20.0 * (1.0 - square / 42.0 * (1.0 - square / 72.0)))
    return jnp.where(square < 0.01, small, jnp.sin(angle) - angle)


def vanishing(squared: Float[Array, "..."], tolerance: Float[Array, "..."]) -> Array:
    """Where ω² is no more than what rounding and forces that are left make of it."""
    return jnp.abs(squared) <= tolerance


def in_terahertz(squared: Float[Array, "..."], tolerance: Float[Array, "..."]) -> Float[Array, "..."]:
    """Frequencies ν = sign(ω²) |ω²|^½ / 2π [THz]; where ω² vanishes 0, and so is the derivative."""
    zero = vanishing(squared, tolerance)
    size = jnp.sqrt(jnp.where(zero, 1.0, jnp.abs(squared)))
    return jnp.where(zero, 0.0, THZ * jnp.sign(squared) * size)


def force_constants(system: System, potential: Potential, direction: Float[Array, " dim"] | None = None) -> ForceConstants:
    """Φ(R) at a state, from `system.neighbors` as it is; pure JAX.

    Args:
        direction: from which q comes to Γ, where charges reach everywhere, in units of the reciprocal vectors.
    """
    fresh = freshness(potential, system)
    system = system.with_positions(fresh * system.positions)
    terms = list(_terms(system, potential))
    parts = [_near(at, term) for term, at in terms]
    row, column, shift, block = map(jnp.concatenate, zip(*parts, strict=True))
    charges = tuple(charge_waves(term, at, direction) for term, at in terms if isinstance(term, Ewald))
    turning, turns = _turning(system)
    still, frozen = jax.lax.stop_gradient((system, potential))
    forces = jax.grad(lambda x: total_energy(frozen, still.with_positions(x)))(still.positions)
    assert still.cell is not None
    d = still.positions[column] - still.positions[row] + shift @ still.cell
    apart = jnp.linalg.norm(d, axis=1)
    nearest = jnp.min(jnp.where((apart > 0.0) & jnp.any(block != 0.0, axis=(1, 2)), apart, jnp.inf))
    unbalanced = jnp.max(jnp.linalg.norm(forces, axis=1) / still.masses) / nearest
    return ForceConstants(row, column, shift, block, system.masses, turning, turns, unbalanced, charges)


def _terms(system: System, potential: Potential) -> Iterator[tuple[Potential, System]]:
    """Each term of a sum, with the list that it wants."""
    if isinstance(potential, Reparameterised):
        yield from _terms(system, potential.inner)
    elif isinstance(potential, Sum):
        for term, at in potential.placed(system):
            yield from _terms(at, term)
    else:
        yield potential, system


def _near(system: System, term: Potential) -> tuple[Array, ...]:
    """What listed pairs couple."""
    if not isinstance(term, Ewald):
        return couplings(system, term)
    sound = soundness(term, system)
    return pair_couplings(pair_list(system), jax.tree.map(lambda leaf: sound * leaf, term.near_stiffness(system)))


def _turning(system: System) -> tuple[Array | None, Array]:
    """The rotation about a wire's axis, with the other atoms' inertia, and whether it moves anything."""
    if system.dim == 2 or sum(system.pbc) != 1 or len(system) == 1:
        return None, jnp.asarray(False)
    assert system.cell is not None
    axis = system.cell[system.pbc.index(True)]
    centre = system.masses @ system.positions / jnp.sum(system.masses)
    motion = jnp.sqrt(system.masses)[:, None] * jnp.cross(axis, system.positions - centre)
    size = jnp.sum(motion**2)
    turns = size > (STRAIGHT * jnp.sum(axis**2)) ** 2 * jnp.sum(system.masses)
    return motion / jnp.sqrt(jnp.where(turns, size, 1.0)), turns


def crystal(system: System, potential: Potential) -> System:
    """The system with a list from which phonons can be computed, checked; a traced one keeps its own.

    Raises:
        InputError: no periodicity, frozen or massless atoms, an energy that hides its cell, or what `potential.check`
            refuses.
    """
    if any(isinstance(part, JaxMDEnergy) for part in potential.parts()):
        raise InputError("A wrapped jax-md energy hides its cell, so it has no phonons here: use one of mdsens's own.")
    potential.check(system)
    check_free(system, "phonons")
    if other := [part for part in potential.parts() if not (part.local or isinstance(part, Ewald))]:
        raise InputError(
            f"The energy of {type(other[0]).__name__} is no sum over listed neighbours, which phonons are made of here: "
            "ASE's take ms.Calculator(potential)."
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
