"""The parts of a linear solve: the null spaces, the operator between their complements, the settings of a solver."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError

COLUMNS = 64
"""Columns of an assembled matrix that are computed together."""

DEFAULT_RTOL = {"float64": 1e-12, "float32": 1e-6}
FAIL_RTOL = {"float64": 1e-6, "float32": 1e-3}
"""Default tolerances of a `LinearSolver`, by precision."""

Matvec = Callable[[Float[Array, " n"]], Float[Array, " n"]]


class NullSpace(eqx.Module):
    """The known null space of an operator.

    Attributes:
        active: `(n,)`, False for components that are held at zero; None if there are none.
        basis: `(n, m)`, orthonormal columns Q that span the rest of the null space, A Q = 0, zero where not active; or None.
        left: `(n, m)`, orthonormal columns L with Aᵀ L = 0; None where L = Q, as for every symmetric operator.
    """

    active: Bool[Array, " n"] | None = None
    basis: Float[Array, "n m"] | None = None
    left: Float[Array, "n m"] | None = None

    def __check_init__(self) -> None:
        if self.left is not None and (self.basis is None or jnp.shape(self.left) != jnp.shape(self.basis)):
            raise InputError(
                "The left null space must have as many columns as the right one: a square operator has as many of both."
            )

    def project(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return the part of an unknown outside the null space."""
        return _outside(vector, self.active, self.basis)

    def project_equations(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """Return the part of a right-hand side outside the left null space: the part that A u can reach."""
        return _outside(vector, self.active, self.basis if self.left is None else self.left)

    @property
    def transposed(self) -> "NullSpace":
        """The null space of Aᵀ."""
        return self if self.left is None else NullSpace(self.active, self.left, self.basis)


def bases(null_space: NullSpace, n: int, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Return `(basis, left)` of a null space for vectors of n components, without columns where there are none."""
    basis = jnp.zeros((n, 0), dtype) if null_space.basis is None else null_space.basis
    return basis, basis if null_space.left is None else null_space.left


def _outside(vector: Array, active: Array | None, basis: Array | None, passes: int = 2) -> Array:
    """Project twice, which is enough (Kahan, Parlett): once leaves rounding of the size of what was taken away."""
    if active is not None:
        xp = np if isinstance(vector, np.ndarray) and isinstance(active, np.ndarray) else jnp
        vector = xp.where(active, vector, 0.0)
    if basis is not None:
        for _ in range(passes):
            vector = vector - basis @ (basis.T @ vector)
    return vector


class LinearSystem(NamedTuple):
    """The operator A from the complement of its null space to that of its left null space, where it is invertible.

    Attributes:
        matvec, transpose: u ↦ A u and v ↦ Aᵀ v for vectors outside the null spaces, where the images are kept too.
        precondition: r ↦ M r with M near A⁻¹, likewise; or None.
        null_space: the null spaces.
        size, dtype: of a vector.
    """

    matvec: Matvec
    transpose: Matvec
    precondition: Matvec | None
    null_space: NullSpace
    size: int
    dtype: jnp.dtype

    def pair(self, vector: Array) -> Array:
        """Map the null space onto the left one. Added to A this makes A invertible and changes no answer."""
        null_space, rest = self.null_space, vector - self.null_space.project(vector)
        if null_space.left is None or null_space.basis is None:
            return rest
        moved = null_space.left @ (null_space.basis.T @ vector)
        return moved if null_space.active is None else jnp.where(null_space.active, moved, rest)

    def complete(self, vector: Array) -> Array:
        """Apply A + `pair`, an invertible operator on all vectors, for solvers that know of no null space."""
        return self.matvec(self.null_space.project(vector)) + self.pair(vector)


def linear_system(
    matvec: Matvec, transpose: Matvec, precondition: Matvec | None, null_space: NullSpace, b: Array
) -> LinearSystem:
    """Restrict an operator and its preconditioner to the complements of the null spaces."""
    right, left = null_space.basis, null_space.basis if null_space.left is None else null_space.left

    def outside(function: Matvec, basis: Array | None) -> Matvec:
        # What is to be taken away is rounding: A has no part along its left null space.
        return lambda vector: _outside(function(vector), null_space.active, basis, passes=1)

    return LinearSystem(
        outside(matvec, left),
        outside(transpose, right),
        None if precondition is None else (lambda r: null_space.project(precondition(r))),
        null_space,
        b.size,
        b.dtype,
    )


def assemble(matvec: Matvec, n: int, dtype: jnp.dtype) -> Float[Array, "n n"]:
    """Assemble the matrix of u ↦ A u by n products."""
    # Filled up to whole batches: a remainder would compile everything twice.
    batch = min(COLUMNS, n)
    padded = -(-n // batch) * batch
    identity = jnp.eye(padded, n, dtype=dtype).reshape(-1, batch, n)
    return jax.lax.map(jax.vmap(matvec), identity).reshape(padded, n)[:n].T


@dataclasses.dataclass(frozen=True)
class LinearSolver:
    """Settings of a linear solver; a subclass is one method.

    Attributes:
        rtol: residual aimed at, relative to the right-hand side; None for 1e-12 in float64 and 1e-6 in float32.
        atol: residual that is good enough whatever the right-hand side.
        fail_rtol: relative residual above which the answer is NaN or an error; None for 1e-6 and 1e-3.
    """

    rtol: float | None = None
    atol: float = 0.0
    fail_rtol: float | None = None

    symmetric: ClassVar[bool] = False
    """Whether the method is for symmetric operators only."""

    iterative: ClassVar[bool] = False
    """Whether the method comes as near as it is asked to, rather than as near as it can."""

    rounds: ClassVar[int] = 2
    """How often the method is asked: rounding lets the true residual drift from the one that an iteration carries along."""

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "fail_rtol"):
            value = getattr(self, name)
            if value is not None and not value >= 0.0:
                raise InputError(f"{type(self).__name__}'s {name} must not be negative, not {value!r}.")

    def prepare(self, system: LinearSystem) -> Callable[..., Any]:
        """Return `solve(b, goal) -> (u, failed)`: ‖b - A u‖ <= goal, or a sign that the method does not apply. Pure JAX."""
        raise NotImplementedError

    def tolerances(self, dtype: DTypeLike) -> tuple[float, float]:
        """Return `(rtol, fail_rtol)` in a precision."""
        name = str(jnp.dtype(dtype))
        return (
            DEFAULT_RTOL.get(name, 1e-3) if self.rtol is None else self.rtol,
            FAIL_RTOL.get(name, 1e-1) if self.fail_rtol is None else self.fail_rtol,
        )
