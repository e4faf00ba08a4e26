"""Direct linear solvers: the operator is assembled by n products and factorised once for all right-hand sides.

Where the matrix is singular to working precision the factors are of no use; the answer of least norm is computed instead by
`NormalCG`, if there is one.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.implicit.krylov import NormalCG
from mdsens.implicit.linear_system import LinearSolver, LinearSystem, assemble

PIVOT_ROUNDING = 100.0
"""Pivots below so many n ε of the largest count as zero."""


def _matrix(system: LinearSystem) -> Array:
    """Return the matrix of A + `pair`, the pair scaled to A so that it does not spoil the condition number."""
    if system.null_space.active is None and system.null_space.basis is None:
        return assemble(system.matvec, system.size, system.dtype)
    matrix = assemble(lambda v: system.matvec(system.null_space.project(v)), system.size, system.dtype)
    scale = jnp.max(jnp.abs(matrix))
    return matrix + jnp.where(scale > 0.0, scale, 1.0) * assemble(system.pair, system.size, system.dtype)


def _is_singular(pivots: Any, xp: Any = jnp) -> Any:
    sizes = xp.abs(pivots)
    smallest, largest = xp.min(sizes, axis=-1), xp.max(sizes, axis=-1)
    return ~(smallest > PIVOT_ROUNDING * sizes.shape[-1] * xp.finfo(sizes.dtype).eps * largest)


def _answer(
    system: LinearSystem, matrix: Array, solve: Callable[[Array], tuple[Array, Array]], b: Array, goal: Array
) -> tuple[Array, Array]:
    """Return `(u, False)` by `solve(b) -> (u, singular)`, or u of least norm where the factors were singular.

    The latter costs nothing elsewhere, under vmap too.
    """
    u, singular = solve(b)
    dense = system._replace(matvec=lambda v: matrix @ v, transpose=lambda v: matrix.T @ v, precondition=None)
    shortest, _ = NormalCG().prepare(dense)(b, jnp.where(singular, goal, jnp.inf))
    return jnp.where(singular, shortest, u), jnp.asarray(False)


@dataclasses.dataclass(frozen=True)
class Direct(LinearSolver):
    """LU factorisation of the dense matrix: up to some thousand unknowns, with or without symmetry."""

    def prepare(self, system: LinearSystem) -> Callable[..., Any]:
        matrix = _matrix(system)
        factors = jax.scipy.linalg.lu_factor(matrix)
        singular = _is_singular(jnp.diagonal(factors[0]))
        return functools.partial(_answer, system, matrix, lambda b: (jax.scipy.linalg.lu_solve(factors, b), singular))


@dataclasses.dataclass(frozen=True)
class Cholesky(LinearSolver):
    """Cholesky factorisation of the dense matrix of a symmetric operator, positive outside its known null space."""

    symmetric: ClassVar[bool] = True

    def prepare(self, system: LinearSystem) -> Callable[..., Any]:
        matrix = _matrix(system)
        factor = jnp.linalg.cholesky(0.5 * (matrix + matrix.T))
        singular = _is_singular(jnp.diagonal(factor) ** 2)
        return functools.partial(_answer, system, matrix, lambda b: (jax.scipy.linalg.cho_solve((factor, True), b), singular))


@dataclasses.dataclass(frozen=True)
class SparseDirect(LinearSolver):
    """LU factorisation of the sparse matrix on the host (`scipy.sparse.linalg.splu`), also from inside `jit` and `vmap`.

    Entries that are exactly zero are left out; the matrix is dense for a moment while it is assembled, 8 n² bytes.
    """

    rounds: ClassVar[int] = 1  # each would factorise again; the host refines by itself

    def prepare(self, system: LinearSystem) -> Callable[..., Any]:
        matrix = _matrix(system)

        def solve(b: Array) -> tuple[Array, Array]:
            shapes = (jax.ShapeDtypeStruct(b.shape, b.dtype), jax.ShapeDtypeStruct((), bool))
            # Matrices that are the same for the whole batch come with a leading 1 and are factorised once.
            u, singular = jax.pure_callback(_solve_on_host, shapes, matrix, b, vmap_method="expand_dims")
            return u, singular

        return functools.partial(_answer, system, matrix, solve)


def _solve_on_host(matrices: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve with NumPy and SciPy only: JAX inside a callback dead-locks on the CPU."""
    matrices, vectors = np.asarray(matrices), np.asarray(vectors)
    batch = np.broadcast_shapes(matrices.shape[:-2], vectors.shape[:-1])
    n = vectors.shape[-1]
    right = np.broadcast_to(vectors, (*batch, n)).reshape(-1, n)
    left = matrices.reshape(-1, n, n)
    answers, singular = np.empty_like(right), np.empty(len(right), dtype=bool)
    shared = len(left) == 1
    for k, matrix in enumerate(left):
        rows = slice(None) if shared else slice(k, k + 1)
        answers[rows], singular[rows] = _factorise_and_solve(matrix, right[rows])
    return answers.reshape(*batch, n), singular.reshape(batch)


def _factorise_and_solve(matrix: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, Any]:
    import scipy.sparse

    if not np.isfinite(matrix).all():
        return np.full_like(rows, np.nan), False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.sparse.linalg.MatrixRankWarning)
        sparse, columns = scipy.sparse.csc_matrix(matrix), np.ascontiguousarray(rows.T)
        try:
            factors = scipy.sparse.linalg.splu(sparse)
        except RuntimeError:  # a pivot that is exactly zero
            return np.zeros_like(rows), True
    answers = factors.solve(columns)
    answers = answers + factors.solve(columns - sparse @ answers)
    return answers.T, _is_singular(factors.U.diagonal(), np)
