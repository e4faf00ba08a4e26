"""The lowest curvatures of an equilibrium: whether it is a minimum, and how soft it is."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from mdsens.errors import InputError
from mdsens.frame import Frame, as_unknown
from mdsens.implicit.linear_system import Gauge, assembled
from mdsens.potentials.base import Potential
from mdsens.stiffness import coupled, gauge_of, gradient, hessian_operator, lagrangian

DENSE_LIMIT = 1500
"""Unknowns up to which all curvatures are computed from the assembled matrix."""

LANCZOS_STEPS = 120

KEPT = 30_000
"""Unknowns up to which Lanczos vectors are kept and orthogonalised; beyond, what appears twice counts once."""

SAME = 1e-7
"""Share of the largest curvature within which two curvatures are one that rounding has found again."""

FEW = 4
"""Curvatures that are kept, from the lowest."""

NEGATIVE = 1e-7
"""Share of the largest curvature below minus which a curvature counts as negative."""

FLOPPY = 1e-9
"""Share of the largest curvature within which a curvature counts as zero."""


@dataclasses.dataclass(frozen=True)
class Curvature:
    """The spectrum's ends outside the known null space, and along constraints [eV/Å²].

    Attributes:
        lowest: lowest eigenvalue of the Hessian; from `exact = False` (large systems) an upper bound by Lanczos.
        highest: largest eigenvalue, or its estimate from below.
        floppy: how many eigenvalues vanish beyond the known ones (as far as they were computed).
        rattlers: atoms without contact, which were left out.
        exact: whether they come from the whole spectrum.
        few: the lowest eigenvalues, in order.
        index: how many are negative (as far as they were computed): 0 at a minimum, 1 at a first-order saddle point.
        nearest_zero: the smallest magnitude of an eigenvalue of ∂F/∂z, which multipliers are part of.
    """

    lowest: float
    highest: float
    floppy: int
    rattlers: tuple[int, ...]
    exact: bool
    few: tuple[float, ...]
    index: int
    nearest_zero: float


def curvature(z, frame: Frame, potential: Potential) -> Curvature:
    """The ends of the spectrum at a state [host]: exact up to `DENSE_LIMIT` unknowns, else by Lanczos.

    Raises:
        InputError: a rigid motion that should cost nothing does, so the energy has a geometry of its own.
    """
    exact = ravel_pytree(z)[0].size <= DENSE_LIMIT
    null, moving, cost, matrix = (_dense if exact else _lanczos)(z, frame, potential)
    matrix = np.asarray(matrix)
    active, basis = np.asarray(null.active), np.asarray(null.basis)
    loose = ~np.asarray(moving).any(axis=1) & ~np.asarray(frame.held).all(axis=1)
    rattlers = tuple(int(atom) for atom in np.flatnonzero(loose))
    free = np.flatnonzero(active)
    if free.size <= basis.shape[1]:
        return Curvature(np.inf, 0.0, 0, rattlers, True, (), 0, np.inf)
    values = _eigenvalues(matrix, active, basis) if exact else np.linalg.eigvalsh(matrix)
    highest = float(np.abs(values).max())
    if ravel_pytree(z)[0].size > KEPT:
        values = values[np.concatenate([[True], np.diff(values) > SAME * highest])]
    _check_rigid(np.asarray(cost), highest, z, frame, potential)
    return Curvature(
        float(values.min()),
        highest,
        int((np.abs(values) <= FLOPPY * highest).sum()),
        rattlers,
        exact,
        tuple(float(value) for value in values[:FEW]),
        int((values < -NEGATIVE * highest).sum()),
        float(np.abs(values).min()) if frame.constraints is None or not exact else _nearest_zero(matrix, z, frame, moving),
    )


def _eigenvalues(matrix, active, basis):
    """Eigenvalues of a symmetric matrix outside a null space, in order."""
    free = np.flatnonzero(active)
    matrix, null = matrix[np.ix_(free, free)], basis[free]
    null = null[:, np.abs(null).max(axis=0, initial=0.0) > 0.0]
    top = np.abs(matrix).sum(axis=1).max()
    matrix = 0.5 * (matrix + matrix.T)
    matrix = matrix - null @ (null.T @ matrix)
    matrix = matrix - (matrix @ null) @ null.T
    return np.linalg.eigvalsh(matrix + 2.0 * top * (null @ null.T))[: free.size - null.shape[1]]


def _nearest_zero(matrix, z, frame, moving):
    """Of the matrix with its multipliers."""
    null = gauge_of(z, frame, moving)
    return float(np.abs(_eigenvalues(matrix, np.asarray(null.active), np.asarray(null.basis))).min())


def _operator(z, data):
    """The Hessian of the Lagrangian; `hessian_operator` is the same where F is its gradient."""
    if data[0].symmetric:
        return hessian_operator(z, data)
    flat, unravel = ravel_pytree(z)
    return jax.linearize(lambda x: ravel_pytree(jax.grad(lagrangian)(unravel(x), data))[0], flat)[1]


def _outside(z, frame, moving):
    """The gauge of the spectrum: constraints leave the motions along them only, and multipliers are no motions."""
    null = gauge_of(z, frame, moving)
    if frame.constraints is None:
        return null
    _, unravel = ravel_pytree(z)
    at = lambda x: frame.constraints.values(frame.place(unravel(x)))  # noqa: E731
    normals = jax.jacrev(at)(ravel_pytree(z)[0]).T
    active = null.active.at[null.active.size - frame.constraints.count :].set(False)
    basis = jnp.linalg.qr(jnp.where(active[:, None], jnp.concatenate([null.basis, normals], axis=1), 0.0))[0]
    return Gauge(active, basis)


def _rigid_cost(product, z, frame, moving):
    """‖A q‖ of each rigid motion q."""
    basis = gauge_of(z, frame, moving).basis
    if basis.shape[1] == 0:
        return jnp.zeros(0, basis.dtype)
    return jnp.linalg.norm(jax.vmap(product)(basis.T), axis=1)


def _check_rigid(cost, highest, z, frame, potential):
    # A rotation of unit length changes forces by at most their own size; rounding grows with the root of the precision.
    rounding = 10.0 * np.sqrt(np.finfo(as_unknown(z).positions.dtype).eps) * highest
    forces = np.linalg.norm(np.asarray(ravel_pytree(gradient(z, (frame, potential)))[0]))
    for name, size in zip(frame.motions.names, cost, strict=True):
        if size > rounding + 10.0 * forces:
            raise InputError(
                f"The energy changes under a rigid motion of all atoms ({name}, by {size:.1e} eV/Å²): "
                "give the system the cell and pbc that the energy itself uses, or freeze an atom."
            )


@eqx.filter_jit
def _dense(z, frame, potential):
    """`(gauge, moving components, cost of rigid motions, matrix)` with the whole Hessian `(n, n)`."""
    product, flat = _operator(z, (frame, potential)), ravel_pytree(z)[0]
    moving = coupled(product, z, frame)
    return _outside(z, frame, moving), moving, _rigid_cost(product, z, frame, moving), assembled(product, flat.size, flat.dtype)


@eqx.filter_jit
def _lanczos(z, frame, potential):
    """`(gauge, moving components, cost of rigid motions, matrix)`, tridiagonal, of Lanczos steps outside the null space.

    With full reorthogonalisation in systems of up to `KEPT` unknowns.
    """
    steps = LANCZOS_STEPS
    product, flat = _operator(z, (frame, potential)), ravel_pytree(z)[0]
    moving = coupled(product, z, frame)
    null = _outside(z, frame, moving)
    start = null.project(jax.random.normal(jax.random.key(1), flat.shape, flat.dtype))

    def short_step(k, carry):
        (before, v), diagonal, off = carry
        w = null.project(product(v)) - off[k - 1] * before
        diagonal = diagonal.at[k].set(v @ w)
        w = w - diagonal[k] * v
        length = jnp.linalg.norm(w)
        return (v, w / length), diagonal, off.at[k].set(length)

    def step(k, carry):
        vectors, diagonal, off = carry
        w = null.project(product(vectors[k]))
        diagonal = diagonal.at[k].set(vectors[k] @ w)
        for _ in range(2):
            w = w - vectors.T @ (vectors @ w)
        length = jnp.linalg.norm(w)
        return vectors.at[k + 1].set(w / length), diagonal, off.at[k].set(length)

    first = start / jnp.linalg.norm(start)
    if flat.size <= KEPT:
        vectors = jnp.zeros((steps + 1, flat.size), flat.dtype).at[0].set(first)
    else:
        step, vectors = short_step, (jnp.zeros_like(first), first)
    _, diagonal, off = jax.lax.fori_loop(0, steps, step, (vectors, jnp.zeros(steps), jnp.zeros(steps)))
    matrix = jnp.diag(diagonal) + jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1)
    return null, moving, _rigid_cost(product, z, frame, moving), matrix
