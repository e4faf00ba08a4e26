"""The second derivatives of the energy at a state: A = ∂²U/∂z² as an operator, and its lowest curvature."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.errors import InputError
from mdsens.gauge import RigidMotions, coupled_atoms
from mdsens.implicit.linear_system import Gauge, assembled
from mdsens.potentials.base import Potential, soundness, total_energy
from mdsens.potentials.pair import PairPotential
from mdsens.system import System

DENSE_LIMIT = 1500
"""Degrees of freedom up to which all curvatures are computed from the assembled matrix."""

STORED_LIMIT = 10**8
"""Numbers in stored stiffnesses of pairs, at most (0.8 GB)."""

LANCZOS_STEPS = 120
NEGATIVE = 1e-7
"""Share of the largest curvature below minus which a curvature counts as negative."""

FLOPPY = 1e-9
"""Share of the largest curvature within which a curvature counts as zero."""


class Frame(eqx.Module):
    """What stays fixed while positions and parameters vary: the system with its neighbour list, and its gauge."""

    system: System
    motions: RigidMotions


def gradient(positions, data) -> Float[Array, "atoms dim"]:
    """∂U/∂positions at `data = (frame, potential)`, zero on frozen atoms: the condition of an equilibrium. Pure JAX."""
    frame, potential = data
    slope = jax.grad(lambda x: total_energy(potential, frame.system.with_positions(x)))(positions)
    return jnp.where(frame.system.frozen[:, None], 0.0, slope)


def rigid_gauge(positions, data) -> Gauge:
    """The null space that forces respect by themselves: frozen atoms and free rigid motions."""
    frame, _ = data
    return _gauge(positions, frame, ~frame.system.frozen)


def gauge(positions, data) -> Gauge:
    """The known null space of the Hessian at a state: rattlers too, on which a general right-hand side may act."""
    frame, _ = data
    coupled = coupled_atoms(hessian_operator(positions, data), positions)
    return _gauge(positions, frame, ~frame.system.frozen & coupled)


@eqx.filter_jit
def known_gauge(positions, frame: Frame, rattlers: tuple[int, ...]) -> Gauge:
    """The same as `gauge` where the rattlers are known already."""
    return _gauge(positions, frame, (~frame.system.frozen).at[np.array(rattlers, dtype=int)].set(False))


def _gauge(positions, frame, active):
    active = jnp.repeat(active[:, None], positions.shape[1], axis=1)
    return Gauge(active.ravel(), frame.motions.basis(positions, active))


def hessian_operator(positions, data):
    """v ↦ A v on flat vectors, made once and applied many times; pure JAX, differentiable in positions and data.

    Stored pair stiffnesses, gathered, for a plain sum over pairs, where they fit; otherwise the linearised gradient.
    """
    frame, potential = data
    shape, system = positions.shape, frame.system
    pairwise = isinstance(potential, PairPotential) and type(potential).atom_energies is PairPotential.atom_energies
    if pairwise and system.neighbors.index.size * shape[1] ** 2 <= STORED_LIMIT:
        factor, index = soundness(potential, system.with_positions(positions)), system.neighbors.index
        pairs = factor * potential.pair_stiffness(system.with_positions(factor * positions))
        own = jnp.sum(pairs, axis=1)

        def product(v):
            v = v.reshape(shape)
            image = jnp.einsum("iab,ib->ia", own, v) - jnp.einsum("ikab,ikb->ia", pairs, v[index])
            return jnp.where(system.frozen[:, None], 0.0, image).ravel()

        return product
    return jax.linearize(lambda x: gradient(x.reshape(shape), data).ravel(), positions.ravel())[1]


@dataclasses.dataclass(frozen=True)
class Curvature:
    """The spectrum's ends outside the known null space [eV/Å²].

    Attributes:
        lowest: lowest eigenvalue of the Hessian; from `exact = False` (large systems) an upper bound by Lanczos.
        highest: largest eigenvalue, or its estimate from below.
        floppy: how many eigenvalues vanish beyond the known ones (as far as they were computed).
        rattlers: atoms without contact, which were left out.
    """

    lowest: float
    highest: float
    floppy: int
    rattlers: tuple[int, ...]
    exact: bool

    @property
    def negative(self) -> bool:
        return self.lowest < -NEGATIVE * self.highest


def curvature(positions, frame: Frame, potential: Potential) -> Curvature:
    """The lowest and highest curvature of a state [host]: exact up to `DENSE_LIMIT` degrees of freedom, else by Lanczos.

    Raises:
        InputError: a rigid motion that should cost nothing does, so the energy has a geometry of its own.
    """
    exact = positions.size <= DENSE_LIMIT
    null, cost, matrix = (_dense if exact else _lanczos)(positions, frame, potential)
    matrix = np.asarray(matrix)
    active, basis = np.asarray(null.active), np.asarray(null.basis)
    loose = ~active.reshape(positions.shape).any(axis=1) & ~np.asarray(frame.system.frozen)
    rattlers = tuple(int(atom) for atom in np.flatnonzero(loose))
    free = np.flatnonzero(active)
    if free.size <= basis.shape[1]:
        return Curvature(np.inf, 0.0, 0, rattlers, True)
    if exact:
        matrix, null = matrix[np.ix_(free, free)], basis[free]
        top = np.abs(matrix).sum(axis=1).max()
        values = np.linalg.eigvalsh(0.5 * (matrix + matrix.T) + 2.0 * top * (null @ null.T))
        values = values[: free.size - null.shape[1]]
    else:
        values = np.linalg.eigvalsh(matrix)
    highest = float(np.abs(values).max())
    _check_rigid(np.asarray(cost), highest, positions, frame, potential)
    floppy = int((np.abs(values) <= FLOPPY * highest).sum())
    return Curvature(float(values.min()), highest, floppy, rattlers, exact)


def _rigid_cost(product, null, positions):
    """‖A q‖ of each rigid motion q."""
    count = null.basis.shape[1]
    if count == 0:
        return jnp.zeros(0, positions.dtype)
    return jnp.linalg.norm(jax.vmap(product)(null.basis.T), axis=1)


def _check_rigid(cost, highest, positions, frame, potential):
    # A rotation of unit length changes forces by at most their own size; rounding grows with the root of the precision.
    rounding = 10.0 * np.sqrt(np.finfo(positions.dtype).eps) * highest
    forces = np.linalg.norm(np.asarray(gradient(positions, (frame, potential))))
    for name, size in zip(frame.motions.names, cost, strict=True):
        if size > rounding + 10.0 * forces:
            raise InputError(
                f"The energy changes under a rigid motion of all atoms ({name}, by {size:.1e} eV/Å²): "
                "give the system the cell and pbc that the energy itself uses, or freeze an atom."
            )


@eqx.filter_jit
def _dense(positions, frame, potential):
    """`(gauge, cost of rigid motions, matrix)` with the whole Hessian `(n, n)`."""
    product = hessian_operator(positions, (frame, potential))
    null = _gauge(positions, frame, ~frame.system.frozen & coupled_atoms(product, positions))
    return null, _rigid_cost(product, null, positions), assembled(product, positions.size, positions.dtype)


@eqx.filter_jit
def _lanczos(positions, frame, potential):
    """`(gauge, cost of rigid motions, matrix)`, tridiagonal, of Lanczos steps outside the known null space.

    With full reorthogonalisation.
    """
    steps = LANCZOS_STEPS
    product = hessian_operator(positions, (frame, potential))
    null = _gauge(positions, frame, ~frame.system.frozen & coupled_atoms(product, positions))
    start = null.project(jax.random.normal(jax.random.key(1), (positions.size,), positions.dtype))

    def step(k, carry):
        vectors, diagonal, off = carry
        w = null.project(product(vectors[k]))
        diagonal = diagonal.at[k].set(vectors[k] @ w)
        for _ in range(2):
            w = w - vectors.T @ (vectors @ w)
        length = jnp.linalg.norm(w)
        return vectors.at[k + 1].set(w / length), diagonal, off.at[k].set(length)

    vectors = jnp.zeros((steps + 1, positions.size), positions.dtype).at[0].set(start / jnp.linalg.norm(start))
    _, diagonal, off = jax.lax.fori_loop(0, steps, step, (vectors, jnp.zeros(steps), jnp.zeros(steps)))
    return null, _rigid_cost(product, null, positions), jnp.diag(diagonal) + jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1)
