"""Factors of a Hessian, which are nearly exact preconditioners.

Small systems have dense ones, plane systems sparse ones, which in space would fill up. A solve then takes one or two iterations,
whatever the condition number, and its residual is still looked at.
"""

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Array, Float, Int

_handles = itertools.count(1)
_factors: dict[int, tuple[scipy.sparse.linalg.SuperLU, scipy.sparse.csr_array]] = {}
"""LU factors of all `SparseFactor`s that are alive, and their matrices: a compiled program can be given numbers only."""


HostFactor = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]


class DenseFactor(eqx.Module):
    """r ↦ (A + c QQᵀ)⁻¹ r between the free components, Q being the null space.

    Attributes:
        lower: Cholesky's factor.
        free: `(k,)`, components of r.
    """

    lower: Float[Array, "k k"]
    free: Int[Array, " k"]

    def __call__(self, r: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.zeros_like(r).at[self.free].set(jax.scipy.linalg.cho_solve((self.lower, True), r[self.free]))

    def on_host(self, operator: Any) -> HostFactor:
        """Return `(rows ↦ A⁻¹ rows, rows ↦ A rows)` for NumPy's rows, by LAPACK; A is symmetric."""
        free, lower, matrix = np.asarray(self.free), np.asarray(self.lower), np.asarray(operator.matrix)

        def solve(rows: np.ndarray) -> np.ndarray:
            answers = np.zeros_like(rows)
            answers[:, free] = scipy.linalg.cho_solve((lower, True), rows[:, free].T, check_finite=False).T
            return answers

        def product(rows: np.ndarray) -> np.ndarray:
            images = np.zeros_like(rows)
            images[:, free] = rows[:, free] @ matrix
            return images

        return solve, product

    @property
    def description(self) -> str:
        """A description for people."""
        return dense_description(self.free.size)


def dense_description(size: int) -> str:
    """Return what solves linear systems of so many unknowns, in words."""
    return f"Cholesky's factor of its {size} unknowns"


def dense_factor(matrix: np.ndarray, null: np.ndarray, free: np.ndarray, dtype: Any) -> DenseFactor:
    """Return Cholesky's factor of a symmetric matrix between free components, positive outside a null space [host].

    Raises:
        LinAlgError: it is not positive to working precision.
    """
    lower = scipy.linalg.cholesky(matrix + np.abs(np.diag(matrix)).max() * (null @ null.T), lower=True)
    return DenseFactor(*jax.device_put((lower.astype(dtype), free)))


class SparseFactor(eqx.Module):
    """r ↦ A⁻¹ r between the free components; as many as the null space has dimensions stay at zero.

    Attributes:
        handle: of LU factors on the host, which live as long as this number; where they are gone the answer is r, which a
            preconditioner may return.
        free: `(k,)`, components of r.
    """

    handle: Int[Array, ""]
    free: Int[Array, " k"]

    def __call__(self, r: Float[Array, " n"]) -> Float[Array, " n"]:
        rest = r[self.free]
        shape = jax.ShapeDtypeStruct(rest.shape, rest.dtype)
        solved = jax.pure_callback(_solve, shape, self.handle, rest, vmap_method="expand_dims")
        return jnp.zeros_like(r).at[self.free].set(solved)

    def on_host(self, operator: Any) -> HostFactor | None:
        """Return `(rows ↦ A⁻¹ rows, rows ↦ A rows)` for NumPy's rows; None where the factors are gone."""
        if (known := _factors.get(int(self.handle))) is None:
            return None
        (factors, matrix), free = known, np.asarray(self.free)

        def solve(rows: np.ndarray) -> np.ndarray:
            answers = np.zeros_like(rows)
            answers[:, free] = factors.solve(rows[:, free].T).T
            return answers

        return solve, lambda rows: np.asarray(matrix @ rows.T).T

    @property
    def description(self) -> str:
        """A description for people."""
        return f"sparse LU factors of its {self.free.size} unknowns"


def sparse_factor(matrix: scipy.sparse.csr_array, null: np.ndarray, free: np.ndarray) -> SparseFactor:
    """Return LU factors of a sparse symmetric matrix, positive outside a null space, by SuperLU [host].

    Raises:
        RuntimeError: it is singular to working precision.
    """
    # With one unknown held for each motion that costs nothing, the matrix between the others is regular.
    null = null[:, null.any(axis=0)]
    held = scipy.linalg.qr(null.T, mode="r", pivoting=True)[1][: null.shape[1]] if null.size else []
    kept = free[np.delete(np.arange(len(free)), held)]
    between = matrix[kept][:, kept].tocsc()
    options = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
    number = next(_handles)
    _factors[number] = scipy.sparse.linalg.splu(between, **options), matrix
    handle = jnp.asarray(number)
    weakref.finalize(handle, _factors.pop, number)
    return SparseFactor(handle, jnp.asarray(kept))


def _solve(handle: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Solve with NumPy and SciPy only: JAX inside a callback dead-locks on the CPU."""
    rows = np.asarray(rows)
    factors = _factors.get(int(np.asarray(handle).ravel()[0]))
    if factors is None:
        return rows
    return factors[0].solve(rows.reshape(-1, rows.shape[-1]).T.astype(float)).T.reshape(rows.shape).astype(rows.dtype)


class DenseMatrix(eqx.Module):
    """v ↦ A v between the free components.

    Attributes:
        matrix: A.
        free: `(k,)`, components of v.
    """

    matrix: Float[Array, "k k"]
    free: Int[Array, " k"]

    def __call__(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.zeros_like(v).at[self.free].set(self.matrix @ v[self.free])
