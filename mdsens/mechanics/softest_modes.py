"""The ends of a Hessian's spectrum: the whole of it, or a search by Lanczos' method and LOBPCG."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.implicit.linear_system import COLUMNS, NullSpace
from mdsens.mechanics.assembly import Assembly, assemble
from mdsens.mechanics.factors import DenseMatrix
from mdsens.mechanics.forces import lagrangian
from mdsens.mechanics.hessian_operator import Operator, hessian_operator, is_stored, stored_operator, stored_size
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.unknown import Reference, Unknown, as_unknown, raveled
from mdsens.potentials.base import Potential

Pair = tuple[Array, Array]
"""A vector and its image."""

DENSE_LIMIT = 1500
"""Unknowns that can move, up to which all eigenvalues are computed from the assembled matrix."""

SEARCH_COUNT = 2
"""Eigenvalues sought in larger systems while they are negative: one more than a saddle point has."""

LANCZOS_STEPS = {"preconditioned": 24, "plain": 120}
"""Steps of Lanczos' method towards a negative eigenvalue."""

LANCZOS_LIMIT = 10**8
"""Numbers that its vectors may hold; in huge systems it takes as few steps as with a preconditioner."""

LOBPCG_STEPS = {"lowest": 10, "highest": 8}
"""Steps of LOBPCG from there to the lowest eigenvalue, and to the highest, of which only the size is needed."""

ASSEMBLED_LIMIT = 3 * 10**7
"""Numbers, at most, in second derivatives that a matrix is assembled of by NumPy."""

BLOCK_LIMIT = 10**7
"""Numbers, at most, in the columns of a matrix that are computed together."""

ZERO_SHARE = 1e-12
"""Share of a vector below which what is left of it counts as zero."""


@eqx.filter_jit
def _linearised_operator(z: Unknown | Array, landscape: Landscape) -> Operator:
    """Return the Hessian of the Lagrangian, by its gradient's derivative."""
    flat, unravel = ravel_pytree(z)
    return jax.linearize(lambda x: ravel_pytree(jax.grad(lagrangian)(unravel(x), landscape))[0], flat)[1]


@eqx.filter_jit
def _operator_at(z: Unknown | Array, landscape: Landscape) -> Operator:
    """Return the derivative of the condition."""
    return hessian_operator(z, landscape)


class Columns:
    """Products of an operator with the columns of NumPy matrices, a fixed number at a time, so that they are compiled once."""

    def __init__(self, function: Operator, preconditioner: Operator | None, size: int, dtype: np.dtype[Any]) -> None:
        self.function, self.preconditioner = function, preconditioner
        self.size, self.dtype = size, dtype

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return the products with the columns of `(n, k)` vectors."""
        images, width = np.empty_like(vectors), min(COLUMNS, self.size) if self.size <= DENSE_LIMIT else 1
        for start in range(0, vectors.shape[1], width):
            part = vectors[:, start : start + width]
            filled = np.zeros((len(vectors), width), self.dtype)
            filled[:, : part.shape[1]] = part
            images[:, start : start + width] = np.asarray(_apply_columns(self.function, filled))[:, : part.shape[1]]
        return images

    def submatrix(self, free: np.ndarray) -> np.ndarray:
        """Return the matrix between some components."""
        matrix = np.empty((len(free), len(free)))
        width = max(1, min(COLUMNS, self.size, BLOCK_LIMIT // self.size))
        for start in range(0, len(free), width):
            chosen = free[start : start + width]
            unit = np.zeros((self.size, width), self.dtype)
            unit[chosen, np.arange(len(chosen))] = 1.0
            matrix[:, start : start + width] = np.asarray(_apply_columns(self.function, unit))[free, : len(chosen)]
        return matrix


class MatrixColumns(Columns):
    """Products of a matrix with the columns of others, and its parts.

    Attributes:
        matrix: sparse.
        stored: the second derivatives that it was made of, and their list.
    """

    def __init__(self, assembly: Assembly, dtype: np.dtype[Any]) -> None:
        self.matrix, self.stored = assembly
        self.size, self.dtype = self.matrix.shape[0], dtype

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        return np.asarray(self.matrix @ vectors)

    def submatrix(self, free: np.ndarray) -> np.ndarray:
        whole = len(free) == self.size
        return (self.matrix if whole else self.matrix[free][:, free]).toarray()

    @property
    def acting(self) -> np.ndarray:
        """The components that the matrix acts on: not those of frozen atoms, and of atoms without a contact."""
        return np.flatnonzero(np.diff(self.matrix.indptr))

    def dense(self) -> DenseMatrix:
        """Return the matrix between those components."""
        acting = self.acting
        return DenseMatrix(*jax.device_put((self.submatrix(acting), acting)))


def columns_at(z: Unknown | Array, landscape: Landscape) -> Columns:
    """Return products with the Hessian of the Lagrangian at a state [host]."""
    reference, potential = landscape
    size, dtype = raveled(z).size, as_unknown(z).positions.dtype
    if is_assembled(reference, potential):
        return MatrixColumns(assemble(z, landscape), dtype)
    if is_stored(reference, potential):
        return Columns(*stored_operator(z, landscape), size, dtype)
    return Columns(_operator_at(z, landscape) if reference.symmetric else _linearised_operator(z, landscape), None, size, dtype)


def is_assembled(reference: Reference, potential: Potential) -> bool:
    """Return whether the Hessian of a small system is a matrix of NumPy's: in double precision, and where it is stored."""
    system = reference.system
    count = system.positions.size - int(np.asarray(reference.held).sum())
    if count > DENSE_LIMIT or system.positions.dtype != np.float64 or not is_stored(reference, potential):
        return False
    return stored_size(system, potential) <= ASSEMBLED_LIMIT


class _NegativeOperator(eqx.Module):
    """-A."""

    function: Operator

    def __call__(self, v: Array) -> Array:
        return -self.function(v)


@jax.jit
def _apply_columns(function: Operator, vectors: Any) -> Array:
    return jax.vmap(function, 1, 1)(vectors)


def random_vectors(size: int, count: int) -> np.ndarray:
    """Return columns that are random and always the same."""
    return np.random.default_rng(1).normal(size=(size, count))


def exact_ends(matrix: np.ndarray, null: np.ndarray) -> tuple[np.ndarray, float]:
    """Return `(eigenvalues of a symmetric matrix outside a null space, in order, the largest magnitude)`."""
    null = null[:, null.any(axis=0)]
    top = np.abs(matrix).sum(axis=1).max()
    matrix = 0.5 * (matrix + matrix.T)
    matrix = matrix - null @ (null.T @ matrix)
    matrix = matrix - (matrix @ null) @ null.T
    values = np.linalg.eigvalsh(matrix + 2.0 * top * (null @ null.T))[: len(matrix) - null.shape[1]]
    return values, float(np.abs(values).max())


def search_ends(columns: Columns, null: NullSpace) -> tuple[np.ndarray, float]:
    """Return `(the lowest eigenvalues, the highest)` of an operator outside a null space: a second if the first is negative."""
    active, basis = np.asarray(null.active), np.asarray(null.basis)
    # One more column, for the first direction.
    basis, rank = np.pad(basis, ((0, 0), (0, SEARCH_COUNT - 1))), basis.shape[1]
    most = LANCZOS_STEPS["plain" if columns.preconditioner is None else "preconditioned"]
    steps = max(LANCZOS_STEPS["preconditioned"], min(most, LANCZOS_LIMIT // active.size))
    lowest, highest = [], 0.0
    for k in range(SEARCH_COUNT):
        start = jnp.asarray(random_vectors(active.size, k + 1)[:, k], columns.dtype)
        outside = NullSpace(null.active, jnp.asarray(basis))
        softest = softest_vector(columns.function, columns.preconditioner, outside, start, steps)
        value, vector = _lobpcg(columns.function, columns.preconditioner, outside, softest, LOBPCG_STEPS["lowest"])
        lowest.append(float(value))
        if k == 0:
            highest = -float(_lobpcg(_NegativeOperator(columns.function), None, outside, start, LOBPCG_STEPS["highest"])[0])
        if not value < 0.0 or k + 1 == SEARCH_COUNT:
            break
        basis[:, rank + k] = vector
    return np.array(lowest), max(highest, *np.abs(lowest))


@eqx.filter_jit
def softest_vector(product: Operator, precondition: Operator | None, null: NullSpace, start: Array, steps: int) -> Array:
    """Return the Ritz vector of the lowest μ by Lanczos' method for A x = μ M⁻¹x; `start` is M⁻¹x of the first step."""
    smoothed = (lambda r: r) if precondition is None else precondition

    def step(k: Any, carry: Any) -> tuple[Any, ...]:
        v, before, r, vectors, diagonal, off = carry
        q = null.project(smoothed(r))
        length = jnp.sqrt(jnp.maximum(r @ q, 0.0))
        safe = jnp.where(length > 0.0, length, 1.0)
        before, v, q = v, r / safe, q / safe
        w = null.project(product(q)) - length * before
        diagonal, off = diagonal.at[k].set(q @ w), off.at[k].set(length)
        return v, before, w - diagonal[k] * v, vectors.at[k].set(q), diagonal, off

    r = null.project(start)
    empty = (jnp.zeros((steps, r.size), r.dtype), jnp.zeros(steps, r.dtype), jnp.zeros(steps, r.dtype))
    *_, vectors, diagonal, off = jax.lax.fori_loop(0, steps, step, (jnp.zeros_like(r), jnp.zeros_like(r), r, *empty))
    _, ritz = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(off[1:], 1) + jnp.diag(off[1:], -1))
    return ritz[:, 0] @ vectors


@eqx.filter_jit
def _lobpcg(product: Operator, precondition: Operator | None, null: NullSpace, start: Array, steps: int) -> tuple[Array, Array]:
    """Return `(the lowest eigenvalue, its vector)` by LOBPCG with one vector, with one product a step.

    Each step takes the best of the vector x, its preconditioned residual and the last step.
    """
    smoothed = (lambda r: r) if precondition is None else precondition

    def image(v: Array) -> Array:
        return null.project(product(v))

    def orthonormalise(pair: Pair, others: list[Pair]) -> Pair:
        """Return a vector and its image, orthonormal to others; zero where nothing is left."""
        v, Av = pair
        for _ in range(2):
            for w, Aw in others:
                share = w @ v
                v, Av = v - share * w, Av - share * Aw
        size = jnp.linalg.norm(v)
        scale = jnp.where(size > ZERO_SHARE * jnp.linalg.norm(pair[0]), 1.0 / size, 0.0)
        return scale * v, scale * Av

    def step(_: Any, carry: Any) -> Any:
        x, last = carry
        residual = x[1] - (x[0] @ x[1]) * x[0]
        down = null.project(smoothed(residual))
        size = jnp.linalg.norm(down)
        down = down / jnp.where(size > 0.0, size, 1.0)
        descent = orthonormalise((down, image(down)), [x])
        last = orthonormalise(last, [x, descent])
        space, images = (jnp.stack(part) for part in zip(x, descent, last, strict=True))
        small = space @ images.T
        # A vector that is zero must not look like the lowest one.
        missing = jnp.sum(space * space, axis=1) < 0.5
        small = 0.5 * (small + small.T) + jnp.diag(jnp.where(missing, 2.0 * jnp.linalg.norm(small), 0.0))
        _, vectors = jnp.linalg.eigh(small)
        shares = vectors[:, 0]
        moved = shares.at[0].set(0.0)
        best = orthonormalise((shares @ space, shares @ images), [])
        return best, (moved @ space, moved @ images)

    x = null.project(start)
    x = x / jnp.linalg.norm(x)
    pair = (x, image(x))
    (x, _), _ = jax.lax.fori_loop(0, steps, step, (pair, (jnp.zeros_like(x), jnp.zeros_like(x))))
    return x @ product(x), x
