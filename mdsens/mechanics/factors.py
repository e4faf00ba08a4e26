"""Factors of a Hessian, which are nearly exact preconditioners.

Small systems have dense ones, plane systems sparse ones, which in space would fill up. A solve then takes one or two iterations,
whatever the condition number, and its residual is still looked at.
"""

import itertools
import weakref
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
_factors: dict[int, scipy.sparse.linalg.SuperLU] = {}
"""LU factors of all `SparseFactor`s that are alive: a compiled program can be given numbers only."""


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

    def solve_rows(self, rows: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "k n"]:
        """Return (A + c QQᵀ)⁻¹ of each row, by LAPACK [host]."""
        free, answers = np.asarray(self.free), np.zeros_like(rows)
        factor = np.asarray(self.lower), True
        answers[:, free] = scipy.linalg.cho_solve(factor, rows[:, free].T, check_finite=False).T
        return answers

    @property
    def description(self) -> str:
        """A description for people."""
        return f"Cholesky's factor of its {self.free.size} unknowns"


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
    _factors[number] = scipy.sparse.linalg.splu(between, **options)
    handle = jnp.asarray(number)
    weakref.finalize(handle, _factors.pop, number)
    return SparseFactor(handle, jnp.asarray(kept))


def _solve(handle: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Solve with NumPy and SciPy only: JAX inside a callback dead-locks on the CPU."""
    rows = np.asarray(rows)
    factors = _factors.get(int(np.asarray(handle).ravel()[0]))
    if factors is None:
        return rows
    return factors.solve(rows.reshape(-1, rows.shape[-1]).T.astype(float)).T.reshape(rows.shape).astype(rows.dtype)


class DenseMatrix(eqx.Module):
    """v ↦ A v between the free components.

    Attributes:
        matrix: A.
        free: `(k,)`, components of v.
    """

    matrix: Float[Array, "k k"]
    free: Int[Array, " k"]

    def rows(self, rows: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "k n"]:
        """Return the products with rows, A being symmetric, by NumPy [host]."""
        free, images = np.asarray(self.free), np.zeros_like(rows)
        images[:, free] = rows[:, free] @ np.asarray(self.matrix)
        return images

    def __call__(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.zeros_like(v).at[self.free].set(self.matrix @ v[self.free])
