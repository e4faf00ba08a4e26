"""What an equilibrium keeps of its Hessian: the operator itself, and factors, which are nearly exact preconditioners.

Factors are dense ones of small systems, and sparse ones of plane systems, where they stay sparse; in space they fill up. A
solve then takes one or two iterations, whatever the condition number, and its residual is still looked at.
"""

import dataclasses
import itertools
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Array, Float, Int

_handles = itertools.count(1)
_factors: dict[int, scipy.sparse.linalg.SuperLU] = {}
"""Of all `SparseFactor`s that are alive, since a compiled program can be given numbers only."""


class DenseInverse(eqx.Module):
    """r ↦ (A + c QQᵀ)⁻¹ r between the free components, Q being the null space.

    Attributes:
        factor: of Cholesky, lower.
        free: `(k,)`, components of r.
    """

    factor: Float[Array, "k k"]
    free: Int[Array, " k"]

    def __call__(self, r: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.zeros_like(r).at[self.free].set(jax.scipy.linalg.cho_solve((self.factor, True), r[self.free]))


class SparseInverse(eqx.Module):
    """r ↦ A⁻¹ r between the free components but as many as the null space has dimensions, which stay at zero.

    Attributes:
        handle: of a `SparseFactor`; r itself where that is gone, as a preconditioner may.
        free: `(k,)`, components of r.
    """

    handle: Int[Array, ""]
    free: Int[Array, " k"]

    def __call__(self, r: Float[Array, " n"]) -> Float[Array, " n"]:
        rest = r[self.free]
        shape = jax.ShapeDtypeStruct(rest.shape, rest.dtype)
        solved = jax.pure_callback(_solve, shape, self.handle, rest, vmap_method="expand_dims")
        return jnp.zeros_like(r).at[self.free].set(solved)


def _solve(handle: Any, rows: Any) -> Any:
    """SciPy only: JAX inside a callback dead-locks on the CPU."""
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

    def __call__(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.zeros_like(v).at[self.free].set(self.matrix @ v[self.free])


@dataclasses.dataclass(frozen=True, eq=False)
class KeptHessian:
    """What is kept of the Hessian at one state.

    All are equal: they change nothing about an equilibrium, and no program is compiled anew for another one.

    Attributes:
        operator: v ↦ A v on flat vectors, a pytree, perhaps with a preconditioner of its own; None where it was not worth it.
        factor: `DenseFactor`, `SparseFactor` or None.
        grid: of the preconditioner that goes with a frame at the state; None for one that is to be made.
        made_from: the potential, structure and conditions that all of it is of; None where nobody said so.
    """

    operator: Any = None
    factor: Any = None
    grid: Any = None
    made_from: Any = None

    def is_of(self, ingredients: Any) -> bool:
        """Whether it was made from just these."""
        if self.made_from is None:
            return True
        (ours, alike), (theirs, like) = jax.tree.flatten(self.made_from), jax.tree.flatten(ingredients)
        # Leaves are arrays, and words among the conditions.
        return bool(alike == like) and all(  # type: ignore[operator]  # of jax's stubs
            a is b or np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeptHessian)

    def __hash__(self) -> int:
        return hash(KeptHessian)

    def __bool__(self) -> bool:
        return self.operator is not None or self.factor is not None


class DenseFactor:
    """Cholesky's factor of a symmetric matrix between free components, positive outside a null space."""

    def __init__(self, matrix: Any, null: np.ndarray, free: Any, dtype: Any) -> None:
        lower = scipy.linalg.cholesky(matrix + np.abs(np.diag(matrix)).max() * (null @ null.T), lower=True)
        self.factor, self.free = lower.astype(dtype), free

    def inverse(self) -> DenseInverse:
        """What a compiled program is given."""
        return DenseInverse(jnp.asarray(self.factor), jnp.asarray(self.free))

    def __str__(self) -> str:
        return f"Cholesky's factor of its {len(self.free)} unknowns"


class SparseFactor:
    """LU factors of a sparse symmetric matrix, positive outside a null space (SuperLU)."""

    def __init__(self, matrix: Any, null: np.ndarray, free: Any) -> None:
        # With as many unknowns held as there are motions that cost nothing, the matrix between the others is regular.
        null = null[:, null.any(axis=0)]
        held = scipy.linalg.qr(null.T, mode="r", pivoting=True)[1][: null.shape[1]] if null.size else []
        kept = np.delete(np.arange(len(free)), held)
        self.free = free[kept]
        between = matrix[self.free][:, self.free].tocsc()
        options = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
        self.handle = next(_handles)
        _factors[self.handle] = scipy.sparse.linalg.splu(between, **options)
        weakref.finalize(self, _factors.pop, self.handle)

    def inverse(self) -> SparseInverse:
        """What a compiled program is given."""
        return SparseInverse(jnp.asarray(self.handle), jnp.asarray(self.free))

    def __str__(self) -> str:
        return f"sparse LU factors of its {len(self.free)} unknowns"
