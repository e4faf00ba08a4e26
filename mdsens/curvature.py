"""The lowest curvatures of an equilibrium: whether it is a minimum, and how soft it is."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import lobpcg

from mdsens.errors import InputError
from mdsens.frame import Frame, as_unknown
from mdsens.implicit.linear_system import COLUMNS, Gauge
from mdsens.potentials.base import Potential
from mdsens.stiffness import gauge_of, gradient, hessian_operator, known_gauge, lagrangian

DENSE_LIMIT = 1500
"""Unknowns that can move up to which all curvatures are computed from the assembled matrix."""

FEW = 4
"""Curvatures that are kept of a whole spectrum, from the lowest."""

SOUGHT = 2
"""Curvatures sought in larger systems: one more than a saddle point has below zero."""

STEPS = 120
"""Steps of the search, at most; with a preconditioner a tenth of them."""

HIGHEST_STEPS = 8
"""Steps towards the highest curvature, of which the size is wanted only."""

ACCURACY = 1e-5
"""Residual of a curvature, as a share of the highest, at which the search ends."""

NEGATIVE = 1e-7
"""Share of the largest curvature below minus which a curvature counts as negative."""

FLOPPY = 1e-9
"""Share of the largest curvature within which a curvature counts as zero."""


@dataclasses.dataclass(frozen=True)
class Curvature:
    """The spectrum's ends outside the known null space, and along constraints [eV/Å²].

    Attributes:
        lowest: lowest eigenvalue of the Hessian; from `exact = False` (large systems) an upper bound by LOBPCG.
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
    """The ends of the spectrum at a state [host]: exact up to `DENSE_LIMIT` unknowns, else the lowest by LOBPCG.

    A. V. Knyazev, SIAM J. Sci. Comput. 23, 517 (2001).

    Raises:
        InputError: a rigid motion that should cost nothing does, so the energy has a geometry of its own.
    """
    flat = ravel_pytree(z)[0]
    columns = _Columns(_operator(z, (frame, potential)), flat.size, flat.dtype)
    image = as_unknown(ravel_pytree(z)[1](columns(_random(flat.size, 1))[:, 0])).positions
    moving = ~np.asarray(frame.held) & np.any(np.asarray(image) != 0.0, axis=1)[:, None]
    loose = ~moving.any(axis=1) & ~np.asarray(frame.held).all(axis=1)
    rattlers = tuple(int(atom) for atom in np.flatnonzero(loose))
    null, rigid = _outside(z, frame, moving, rattlers)
    active, basis = np.asarray(null.active), np.asarray(null.basis)
    free = np.flatnonzero(active)
    if free.size <= basis.shape[1]:
        return Curvature(np.inf, 0.0, 0, rattlers, True, (), 0, np.inf)
    exact = free.size <= DENSE_LIMIT
    matrix = columns(np.eye(flat.size)[:, free]) if exact else None
    values, highest = _spectrum(matrix, active, basis) if exact else _searched(columns, free, basis)
    _check_rigid(columns(rigid), highest, z, frame, potential)
    nearest = float(np.abs(values).min())
    if exact and frame.constraints is not None:
        nearest = _nearest_zero(columns, z, frame, moving)
    return Curvature(
        float(values.min()),
        highest,
        int((np.abs(values) <= FLOPPY * highest).sum()),
        rattlers,
        exact,
        tuple(float(value) for value in values[:FEW]),
        int((values < -NEGATIVE * highest).sum()),
        nearest,
    )


@eqx.filter_jit
def _operator(z, data):
    """`(the Hessian of the Lagrangian, its preconditioner or None)`; `hessian_operator` is the same where F is its gradient."""
    if data[0].symmetric:
        operator = hessian_operator(z, data)
        return operator, getattr(operator, "precondition", None)
    flat, unravel = ravel_pytree(z)
    return jax.linearize(lambda x: ravel_pytree(jax.grad(lagrangian)(unravel(x), data))[0], flat)[1], None


@eqx.filter_jit
def _force(z, data):
    return jnp.linalg.norm(ravel_pytree(gradient(z, data))[0])


class _Columns:
    """Products with the columns of NumPy matrices, a fixed number of columns at a time, so that they are compiled once."""

    def __init__(self, operator, size, dtype):
        self.operator, self.preconditioner = operator
        self.width = min(COLUMNS if size <= DENSE_LIMIT else SOUGHT, size)
        self.dtype = dtype

    def __call__(self, vectors):
        return self._batched(self.operator, vectors)

    def precondition(self, vectors):
        return vectors if self.preconditioner is None else self._batched(self.preconditioner, vectors)

    def _batched(self, function, vectors):
        images = np.empty_like(vectors)
        for start in range(0, vectors.shape[1], self.width):
            part = vectors[:, start : start + self.width]
            filled = np.pad(part, ((0, 0), (0, self.width - part.shape[1])))
            images[:, start : start + self.width] = _each(function, jnp.asarray(filled, self.dtype))[:, : part.shape[1]]
        return images


@eqx.filter_jit
def _each(function, vectors):
    return jax.vmap(function, 1, 1)(vectors)


def _random(size, count):
    return np.random.default_rng(1).normal(size=(size, count))


def _spectrum(matrix, active, basis):
    values = _eigenvalues(matrix[np.flatnonzero(active)], active, basis)
    return values, float(np.abs(values).max())


def _eigenvalues(matrix, active, basis):
    """Eigenvalues of a symmetric matrix between the active components outside a null space, in order."""
    null = basis[active]
    null = null[:, np.abs(null).max(axis=0, initial=0.0) > 0.0]
    top = np.abs(matrix).sum(axis=1).max()
    matrix = 0.5 * (matrix + matrix.T)
    matrix = matrix - null @ (null.T @ matrix)
    matrix = matrix - (matrix @ null) @ null.T
    return np.linalg.eigvalsh(matrix + 2.0 * top * (null @ null.T))[: len(matrix) - null.shape[1]]


def _searched(columns, free, basis):
    """`(the lowest eigenvalues, the highest)` of an operator between the free components, outside a null space."""
    null = basis[free]
    null = null[:, np.abs(null).max(axis=0, initial=0.0) > 0.0]

    def between(function):
        def product(vectors):
            whole = np.zeros((len(basis), vectors.shape[1]))
            whole[free] = vectors
            image = function(whole)[free]
            return image - null @ (null.T @ image)

        return product

    operator, start = between(columns), _random(free.size, SOUGHT)
    options = {"Y": null if null.shape[1] else None}
    with warnings.catch_warnings():
        # That it did not get as far as it was asked to.
        warnings.simplefilter("ignore", UserWarning)
        top, _ = lobpcg(operator, start[:, :1], largest=True, maxiter=HIGHEST_STEPS, **options)
        highest = float(np.abs(top).max())
        if columns.preconditioner is not None:
            options |= {"M": between(columns.precondition), "maxiter": STEPS // 10}
        lowest, _ = lobpcg(operator, start, largest=False, tol=ACCURACY * highest, **{"maxiter": STEPS, **options})
    return np.sort(lowest), max(highest, float(np.abs(lowest).max()))


def _nearest_zero(columns, z, frame, moving):
    """Of the matrix with its multipliers."""
    null = gauge_of(z, frame, moving)
    active, basis = np.asarray(null.active), np.asarray(null.basis)
    matrix = columns(np.eye(len(active))[:, active])[active]
    return float(np.abs(_eigenvalues(matrix, active, basis)).min())


def _outside(z, frame, moving, rattlers):
    """`(the gauge of the spectrum, rigid motions)`: constraints leave the motions along them only, multipliers are no motions."""
    null = known_gauge(z, frame, rattlers)
    rigid = np.asarray(null.basis)
    if frame.constraints is None:
        return null, rigid
    _, unravel = ravel_pytree(z)
    at = lambda x: frame.constraints.values(frame.place(unravel(x)))  # noqa: E731
    normals = jax.jacrev(at)(ravel_pytree(z)[0]).T
    active = null.active.at[null.active.size - frame.constraints.count :].set(False)
    basis = jnp.linalg.qr(jnp.where(active[:, None], jnp.concatenate([null.basis, normals], axis=1), 0.0))[0]
    return Gauge(active, basis), rigid


def _check_rigid(images, highest, z, frame, potential):
    # A rotation of unit length changes forces by at most their own size; rounding grows with the root of the precision.
    rounding = 10.0 * np.sqrt(np.finfo(as_unknown(z).positions.dtype).eps) * highest
    for name, size in zip(frame.motions.names, np.linalg.norm(images, axis=0), strict=True):
        if size > rounding and size > rounding + 10.0 * _force(z, (frame, potential)):
            raise InputError(
                f"The energy changes under a rigid motion of all atoms ({name}, by {size:.1e} eV/Å²): "
                "give the system the cell and pbc that the energy itself uses, or freeze an atom."
            )
