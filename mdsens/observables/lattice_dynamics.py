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
"""Multiple of the precision, relative to the terms of its sum, below which ω² counts as zero."""

IMBALANCE = 4.0
"""ω² that counts as zero, in units of the largest force that is left per mass and distance of neighbours."""

SEPARATION = 1e-3
"""Share of the lowest |ω²| of the other bands below which rigid motions' bands are refined."""

REFINEMENTS = 3
"""Steps towards the space of these bands; each gains the digits by which they lie below the others."""

STRAIGHTNESS = 1e-6
"""Least distance of a wire's atoms from its axis, as a share of its period, at which a rotation counts as moving them."""

BATCH_NUMBERS = 2**20
"""Numbers that the couplings of all wave vectors treated together may take."""


class ForceConstants(eqx.Module):
    """Force constants Φ(R) as a list of couplings [eV/Å²]; the blocks of a pair that is listed several times add up.

    Attributes:
        row, column: atoms i and j.
        shift: R in cell vectors.
        block: ∂²U/∂x_i(0) ∂x_j(R).
        masses: of the atoms [amu].
        rotation: displacements of the rotation about a wire's axis, times √m, of length 1; None where there is none.
        rotates: whether that rotation moves anything.
        imbalance: the largest force per mass and distance of neighbours [eV/(Å² amu)], a constant to derivatives.
        charges: waves of the Ewald terms.
    """

    row: Int[Array, " couplings"]
    column: Int[Array, " couplings"]
    shift: Int[Array, "couplings dim"]
    block: Float[Array, "couplings dim dim"]
    masses: Float[Array, " atoms"]
    rotation: Float[Array, "atoms dim"] | None
    rotates: Bool[Array, ""]
    imbalance: Float[Array, ""]
    charges: tuple[ChargeWaves, ...] = ()

    def dynamical_matrix(self, q: Float[Array, " dim"]) -> Complex[Array, "bands bands"]:
        """Return D(q) [eV/(Å² amu)], Hermitian."""
        return self._at_gamma() + self._change(q) + self._field(q)

    @property
    def unrest(self) -> Float[Array, ""]:
        """The largest force that is left, as a share of one that moves an atom to its neighbour."""
        return self.imbalance / jnp.where(self.bound > 0.0, self.bound, 1.0)

    @property
    def bound(self) -> Float[Array, ""]:
        """Gershgorin's bound on |ω²| at all wave vectors [eV/(Å² amu)], a constant to derivatives."""
        sizes = jnp.linalg.norm(jax.lax.stop_gradient(self._mass_weighted()), axis=(1, 2))
        rows = jax.ops.segment_sum(sizes, self.row, len(self.masses))
        for waves in jax.lax.stop_gradient(self.charges):
            rows = rows + jnp.sum(waves.size / jnp.sqrt(self.masses[:, None] * self.masses), axis=1)
        return jnp.max(rows)

    def squared_frequencies(self, q: Float[Array, "q dim"]) -> tuple[Float[Array, "q bands"], Float[Array, "q bands"]]:
        """Return ω² of each band in ascending order, negative where the crystal is unstable, and below what ω² counts as zero.

        Both are in eV/(Å² amu). The first vectors of the basis are the rigid motions, which cost nothing at Γ: D(q) acts on them
        as D(q) - D(0) does, which is summed by itself. So acoustic bands keep their digits however small q is.
        """
        numbers = self.block.size + sum(4 * waves.waves.size * len(self.masses) for waves in self.charges)
        bound, batch = self.bound, max(1, BATCH_NUMBERS // numbers)
        motions = self._rigid_basis()
        # Neither translations nor a rotation cause forces: the parts of first order in q vanish between them.
        ends = motions.rigid.reshape(*self.masses.shape, -1, motions.count)
        between = jnp.einsum("cag,cab,cbh->cgh", ends[self.row], self._mass_weighted(), ends[self.column])
        still = motions.basis.T @ self._at_gamma() @ motions.basis
        known = motions.known[:, None] | motions.known[None, :]

        def bands(q: Array) -> tuple[Array, Array]:
            angle = self._angle(q)
            rigid = jnp.tensordot(-2.0 * jnp.sin(0.5 * angle) ** 2 + 1j * _sine_beyond_first_order(angle), between, 1)
            for waves in self.charges:
                rigid = rigid + waves.acoustic_sum(q) / jnp.sum(self.masses)
            # Rigid motions make no field.
            static = still + motions.basis.T @ self._field(q) @ motions.basis if self.charges else still
            matrix = motions.basis.T @ self._change(q) @ motions.basis + jnp.where(known, 0.0, static)
            matrix = jnp.where(
                motions.known[:, None] & motions.known[None, :], matrix.at[: motions.count, : motions.count].set(rigid), matrix
            )
            return eigenvalues(0.5 * (matrix + matrix.conj().T), bound, self.imbalance, motions)

        return jax.lax.map(bands, q, batch_size=min(batch, len(q)))

    def _rigid_basis(self) -> "RigidBasis":
        """Return a basis whose first vectors are the translations, and a wire's rotation."""
        n, dim = len(self.masses), self.block.shape[-1]
        shares = jnp.sqrt(self.masses / jnp.sum(self.masses))
        rigid = (shares[:, None, None] * jnp.eye(dim, dtype=shares.dtype)).reshape(n * dim, dim)
        if self.rotation is None:
            basis = jnp.linalg.qr(jax.lax.stop_gradient(rigid), mode="complete")[0]
            return RigidBasis(basis, jnp.arange(n * dim) < dim, None, dim)
        turning = self.rotation.ravel()
        start = jax.lax.stop_gradient(turning)
        basis = jnp.linalg.qr(jnp.concatenate([rigid, start[:, None]], axis=1), mode="complete")[0]
        # The basis turns with the rotation's vector, which follows the positions.
        once = jnp.outer(turning, start @ basis) - jnp.outer(start, turning @ basis)
        twice = jnp.outer(turning, start @ once) - jnp.outer(start, turning @ once)
        basis = basis + once + twice / (1.0 + turning @ start)
        known = (jnp.arange(n * dim) < dim) | ((jnp.arange(n * dim) == dim) & self.rotates)
        return RigidBasis(basis, known, self.rotates, dim + 1)

    def _angle(self, q: Array) -> Array:
        """2π q·R, with the equivalent of q that is nearest Γ."""
        return 2.0 * jnp.pi * (self.shift.astype(self.block.dtype) @ (q - jnp.round(q)))

    def _change(self, q: Array) -> Array:
        """D(q) - D(0)."""
        angle = self._angle(q)
        near = self._assemble((-2.0 * jnp.sin(0.5 * angle) ** 2 + 1j * jnp.sin(angle))[:, None, None] * self._mass_weighted())
        return near + sum(self._matrix(waves.change(q)) for waves in self.charges)

    def _field(self, q: Array) -> Array:
        return sum((self._matrix(waves.field_term(q)) for waves in self.charges), jnp.zeros(()))

    def _at_gamma(self) -> Array:
        return self._assemble(self._mass_weighted()) + sum(self._matrix(waves.at_gamma()) for waves in self.charges)

    def _matrix(self, blocks: Array) -> Array:
        """The Hermitian matrix of blocks of all pairs, divided by the masses."""
        return _hermitian(blocks / jnp.sqrt(self.masses[:, None] * self.masses)[:, :, None, None])

    def _assemble(self, blocks: Array) -> Array:
        """The Hermitian matrix of one block for each coupling."""
        n, dim = len(self.masses), self.block.shape[-1]
        return _hermitian(jnp.zeros((n, n, dim, dim), blocks.dtype).at[self.row, self.column].add(blocks))

    def _mass_weighted(self) -> Array:
        return self.block / jnp.sqrt(self.masses[self.row] * self.masses[self.column])[:, None, None]


def _hermitian(blocks: Float[Array, "atoms atoms dim dim"]) -> Float[Array, "bands bands"]:
    n, _, dim, _ = blocks.shape
    matrix = jnp.swapaxes(blocks, 1, 2).reshape(n * dim, n * dim)
    return 0.5 * (matrix + matrix.conj().T)


class RigidBasis(eqx.Module):
    """An orthonormal basis of the bands whose first `count` vectors are rigid motions.

    Attributes:
        basis: its columns.
        known: True for rigid motions.
        rotates: whether the last of them is the rotation of a wire; None without a wire, and any vector otherwise.
    """

    basis: Float[Array, "bands bands"]
    known: Bool[Array, " bands"]
    rotates: Bool[Array, ""] | None
    count: int = eqx.field(static=True)

    @property
    def rigid(self) -> Float[Array, "bands count"]:
        return self.basis[:, : self.count]


def eigenvalues(
    matrix: Complex[Array, "n n"], bound: Float[Array, ""], imbalance: Array | float = 0.0, motions: RigidBasis | None = None
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Return eigenvalues of a Hermitian matrix, ascending, twice differentiable where degenerate, and below what they are zero.

    Bands whose distance counts as zero, by rounding and the forces that are left, form a cluster.
    A perturbation may split it, and then no single band has a derivative that is linear in the perturbation;
    the mean of the cluster has. The first and second derivatives of each band are those of its cluster's mean: exact for
    each band where the perturbation keeps the degeneracy (as parameters do whose change keeps the crystal's symmetry), and
    for sums over the cluster in any case. Third derivatives are NaN.

    Perturbation theory about the point itself, in plain operations (JAX drops a `custom_jvp` rule where it linearises inside
    `jit` and `scan`, and a second derivative would go through `eigh`):

        λ_n = λ_n⁰ + ⟨V_nn + Σ_m |V_nm|² / (λ_n⁰ - λ_m⁰)⟩,     V = D - D⁰ = 0 in value,

    with ⟨⟩ the mean over n's cluster, and m outside of it.

    Args:
        bound: upper bound of the eigenvalues' magnitude.
        imbalance: as in `ForceConstants`.
        motions: the basis of the matrix, if its first rows and columns have the accuracy of their own size.

    T. Kato, Perturbation Theory for Linear Operators (1966), chapter II §2.
    """
    point, imbalance = jax.lax.stop_gradient((matrix, IMBALANCE * jnp.asarray(imbalance)))
    values, vectors = jnp.linalg.eigh(point, symmetrize_input=False)
    tolerance = jnp.full(values.shape, ROUNDING * jnp.finfo(values.dtype).eps * bound + imbalance)
    if motions is not None:
        pairs, refine = (values, vectors, tolerance), functools.partial(_refine, point, bound)
        if motions.rotates is None:
            values, vectors, tolerance = refine(motions.count, pairs)
        else:
            more, fewer = (functools.partial(refine, motions.count - k) for k in (0, 1))
            values, vectors, tolerance = jax.lax.cond(motions.rotates, more, fewer, pairs)
    cluster = jnp.concatenate([jnp.zeros(1, int), jnp.cumsum(jnp.diff(values) > jnp.maximum(tolerance[1:], tolerance[:-1]))])
    same = cluster[:, None] == cluster[None, :]
    change = vectors.conj().T @ (matrix - point) @ vectors
    gaps = jnp.where(same, jnp.inf, values[:, None] - values[None, :])
    shift = jnp.real(jnp.diagonal(change)) + jnp.sum(jnp.real(change * change.conj()) / gaps, axis=1)
    # Zero, as are its first two derivatives; the third is NaN, since what this expansion says of it is wrong.
    beyond = 0.0 * jnp.real(jnp.trace(matrix - point)) ** 2.5
    return values + same.astype(values.dtype) @ shift / jnp.sum(same, axis=1) + beyond, tolerance


def _refine(matrix: Array, bound: Array, count: int, pairs: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return eigenvalues, vectors and tolerances, the `count` lowest in magnitude as accurate as the first rows and columns.

    They are refined where they lie far below the others. With M = [[A, B*], [B, C]] their space is that of [1; X], where
    B + C X = X (A + B* X); a few steps lead there. An error of X enters A + B* X + X* B + X* C X in second order.

    G. W. Stewart, SIAM Rev. 15, 727 (1973), doi:10.1137/1015095.
    """
    values, vectors, tolerance = pairs
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
    separated = size < SEPARATION * jnp.min(others)
    refined = (
        values.at[chosen].set(low),
        vectors.at[:, chosen].set(space),
        tolerance.at[chosen].set(tolerance[0] * size / jnp.where(bound > 0.0, bound, 1.0)),
    )
    order = jnp.argsort(jnp.where(separated, refined[0], values))
    values, vectors, tolerance = (jnp.where(separated, one, other) for one, other in zip(refined, pairs, strict=True))
    return values[order], vectors[:, order], tolerance[order]


def _sine_beyond_first_order(angle: Array) -> Array:
    """sin φ - φ, to all digits."""
    square = angle * angle
    small = -angle * square / 6.0 * (1.0 - square / 20.0 * (1.0 - square / 42.0 * (1.0 - square / 72.0)))
    return jnp.where(square < 0.01, small, jnp.sin(angle) - angle)


def vanishing(squared: Float[Array, "..."], tolerance: Float[Array, "..."]) -> Array:
    """Return where ω² is no more than rounding and the forces that are left can make it."""
    return jnp.abs(squared) <= tolerance


def in_terahertz(squared: Float[Array, "..."], tolerance: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return frequencies ν = sign(ω²) |ω²|^½ / 2π [THz]; 0 where ω² vanishes, and so is the derivative."""
    zero = vanishing(squared, tolerance)
    size = jnp.sqrt(jnp.where(zero, 1.0, jnp.abs(squared)))
    return jnp.where(zero, 0.0, THZ * jnp.sign(squared) * size)


def force_constants(system: System, potential: Potential, direction: Float[Array, " dim"] | None = None) -> ForceConstants:
    """Return Φ(R) at a state, from `system.neighbors` as it is; pure JAX.

    Args:
        direction: the direction from which q comes to Γ, in units of the reciprocal vectors, which matters with charges.
    """
    fresh = freshness(potential, system)
    system = system.with_positions(fresh * system.positions)
    terms = list(_terms(system, potential))
    parts = [_near(at, term) for term, at in terms]
    row, column, shift, block = map(jnp.concatenate, zip(*parts, strict=True))
    charges = tuple(charge_waves(term, at, direction) for term, at in terms if isinstance(term, Ewald))
    rotation, rotates = _wire_rotation(system)
    still, frozen = jax.lax.stop_gradient((system, potential))
    forces = jax.grad(lambda x: total_energy(frozen, still.with_positions(x)))(still.positions)
    assert still.cell is not None
    d = still.positions[column] - still.positions[row] + shift @ still.cell
    apart = jnp.linalg.norm(d, axis=1)
    nearest = jnp.min(jnp.where((apart > 0.0) & jnp.any(block != 0.0, axis=(1, 2)), apart, jnp.inf))
    imbalance = jnp.max(jnp.linalg.norm(forces, axis=1) / still.masses) / nearest
    return ForceConstants(row, column, shift, block, system.masses, rotation, rotates, imbalance, charges)


def _terms(system: System, potential: Potential) -> Iterator[tuple[Potential, System]]:
    """Yield the terms of a sum, each with the system in its own list."""
    if isinstance(potential, Reparameterised):
        yield from _terms(system, potential.inner)
    elif isinstance(potential, Sum):
        for term, at in potential.placed(system):
            yield from _terms(at, term)
    else:
        yield potential, system


def _near(system: System, term: Potential) -> tuple[Array, ...]:
    """The couplings of listed pairs: row, column, shift, block."""
    if not isinstance(term, Ewald):
        return couplings(system, term)
    sound = soundness(term, system)
    return pair_couplings(pair_list(system), jax.tree.map(lambda leaf: sound * leaf, term.near_stiffness(system)))


def _wire_rotation(system: System) -> tuple[Array | None, Array]:
    """The rotation about a wire's axis, as a displacement times √m of length 1, and whether it moves anything."""
    if system.dim == 2 or sum(system.pbc) != 1 or len(system) == 1:
        return None, jnp.asarray(False)
    assert system.cell is not None
    axis = system.cell[system.pbc.index(True)]
    centre = system.masses @ system.positions / jnp.sum(system.masses)
    motion = jnp.sqrt(system.masses)[:, None] * jnp.cross(axis, system.positions - centre)
    size = jnp.sum(motion**2)
    turns = size > (STRAIGHTNESS * jnp.sum(axis**2)) ** 2 * jnp.sum(system.masses)
    return motion / jnp.sqrt(jnp.where(turns, size, 1.0)), turns


def prepare_crystal(system: System, potential: Potential) -> System:
    """Return the system with a list from which phonons can be computed; a traced system keeps its own.

    Raises:
        InputError: no periodicity, frozen or massless atoms, an energy that hides its cell, or as `potential.check`.
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
