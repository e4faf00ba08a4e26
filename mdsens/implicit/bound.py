"""A bound on the error of a root's derivative, from what can be computed at the iterate itself.

Theorem 1 of Blondel et al. 2021: at an iterate ẑ near the root z*, the derivative J = -A⁻¹B taken there obeys

    ‖J(ẑ) - J(z*)‖ <= C ‖ẑ - z*‖,    C = β/α + γR/α²,

with α the lowest singular value of A, β and γ the Lipschitz constants of B and A, and R >= ‖B‖. Its constants are worst
cases over a ball. Here the same two steps are taken a posteriori, with what is known at ẑ: a Newton step δ gives z⁺ = ẑ + δ,
so near to z* that

    ‖J - J(z⁺)‖ <= ‖A(z⁺) J + B(z⁺)‖ / α        holds for any J whatever: an inexact iterate, an inexact linear solve,
    ‖J(z⁺) - J(z*)‖ <= C ‖z⁺ - z*‖,  ‖z⁺ - z*‖ ≈ ‖F(z⁺)‖ / α,

with C the change of A J + B seen along δ, over α. The first line is a theorem; the second is small of second order. α is that
at z*, lower than what was seen at z⁺ by as much as it falls on the way: a mode that buckled is the softer the nearer it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.implicit.linear import linear_solve
from mdsens.implicit.linear_system import LinearSolver, LinearSystem, NullSpace, assemble, linear_system
from mdsens.implicit.root import linearise, root_jvp, split_arguments
from mdsens.implicit.trees import PyTree, is_traced

DENSE_LIMIT = 1500
"""Unknowns up to which the singular values are those of the assembled matrix."""

MIN_PROBE = 1e3
"""Least distance over which the change of A and B is measured, in roundings of z."""

CONTRACTION = 0.3
"""What a Newton step may leave of the distance to the root, and A lose of α on the rest of the way; beyond, ẑ is too far off."""

ROUNDING = 10.0
"""Rounding error of A J in units of ε ‖A‖ ‖J‖."""

TRUST_SHARE = 1e-2
"""Bound, as a share of the derivative, up to which a derivative is trusted."""


@dataclasses.dataclass(frozen=True)
class JacobianBound:
    """A bound on the error of dz, the tangent of a root.

    Attributes:
        error: bound on ‖dz - dz*‖ in the 2-norm; inf where none can be given.
        distance: ‖ẑ - z*‖ to first order, the length of the Newton step.
        lowest, highest: singular values of A outside the null spaces (the lowest is α).
        size: ‖dz‖.
        trusted: whether the bound is below a hundredth of the size.
        reason: why the derivative is not trusted, in a sentence; empty where it is.
    """

    error: float
    distance: float
    lowest: float
    highest: float
    size: float

    @property
    def trusted(self) -> bool:
        return not self.reason

    @property
    def reason(self) -> str:
        if not self.lowest > ROUNDING * np.finfo(float).eps * self.highest:
            return (
                f"the lowest singular value {self.lowest:.1e} is rounding beside the largest {self.highest:.1e}: "
                "the condition is singular beyond its known null space"
            )
        if not np.isfinite(self.error):
            return f"the iterate is about {self.distance:.1e} from the root, too far for a bound: let the solver converge"
        if self.error > TRUST_SHARE * self.size + np.finfo(float).tiny:
            return f"the derivative, of size {self.size:.1e}, may be off by {self.error:.1e}"
        return ""


def jacobian_bound(
    optimality: Callable[..., Any],
    z: Any,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    dz: Any,
    *,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    null_space: NullSpace | None = None,
) -> JacobianBound:
    """Bound the error of `dz`, a tangent of the root of `optimality(z, *args) == 0` computed at the iterate z.

    Args:
        tangents, symmetric, linear_solver, null_space: as for `root_jvp`.
        dz: the tangent by `root_jvp`, or by any other method (an unrolled derivative, say).

    Raises:
        InputError: traced values, since the singular values are found on the host.
        LinearSolveError: the Newton step cannot be solved for.
    """
    if is_traced(z, args, dz):
        raise InputError("jacobian_bound works on concrete values: call it outside jit, vmap and grad.")
    condition = RootCondition(optimality, args, symmetric, linear_solver, NullSpace() if null_space is None else null_space)
    flat, unravel = ravel_pytree(z)
    direction = ravel_pytree(dz)[0]
    step, residual = condition.newton_step(z)
    if not np.isfinite(residual):
        step = jnp.full_like(flat, jnp.nan)
    lowest, highest = condition.singular_values(unravel(flat + step))
    left = float(condition.norm(unravel(flat + step)))
    other, length = other_point(
        np.asarray(flat), np.asarray(step), left / lowest if lowest > 0.0 else np.inf, condition.null_space
    )

    def defect(point: Array) -> float:
        return float(condition.defect(unravel(point), tangents, direction))

    def softening() -> float:
        return abs(condition.singular_values(unravel(other))[0] - lowest) / length

    eps, size = float(jnp.finfo(flat.dtype).eps), float(jnp.linalg.norm(direction))
    error = error_bound(
        defect(flat + step),
        float(jnp.linalg.norm(step)),
        left,
        slope=lambda: (defect(flat + step) + defect(other)) / length,
        softening=softening,
        lowest=lowest,
        highest=highest,
        size=size,
        eps=eps,
        noise=eps * highest * float(jnp.linalg.norm(flat)),
    )
    return JacobianBound(error, float(jnp.linalg.norm(step)), lowest, highest, size)


def error_bound(
    defect: Any,
    step: float,
    left: float,
    *,
    slope: Callable[[], Any],
    softening: Callable[[], float],
    lowest: float,
    highest: float,
    size: Any,
    eps: float,
    noise: float,
) -> Any:
    """Return the bound from its ingredients [host]; `defect`, `slope()` and `size` may be arrays over several derivatives.

    Args:
        defect: ‖A J + B‖ at z⁺.
        step: ‖δ‖, the Newton step from ẑ to z⁺.
        left: ‖F(z⁺)‖.
        slope: () -> change of A J + B per length.
        softening: () -> change of the lowest curvature or singular value per length.
        lowest, highest: curvatures or singular values of A at z⁺.
        size: ‖J‖.
        noise: of F, by the rounding of z.
    """
    nothing = np.inf * np.ones_like(defect)
    alpha = lowest - ROUNDING * eps * highest
    if not (alpha > 0.0 and np.isfinite(step) and np.isfinite(left)):
        return nothing
    defect = defect + ROUNDING * eps * highest * size
    if left == 0.0 or alpha == np.inf:
        return defect / alpha
    if left > CONTRACTION * alpha * step and left > ROUNDING * noise:
        return nothing
    # Where the curvature falls evenly, the root is where alpha d - softening d²/2 = left.
    falling = softening()
    softest = np.sqrt(max(alpha**2 - 2.0 * falling * left, 0.0))
    if not softest > (1.0 - CONTRACTION) * alpha:
        return nothing
    return (defect + slope() * 2.0 * left / (alpha + softest)) / softest


def other_point(flat: Any, step: Any, distance: float, null_space: NullSpace) -> tuple[Any, float]:
    """Return a second point, at which the change of A and B is measured, and its distance from z⁺ [host].

    It is ẑ itself. Where the step is shorter than the rest of the way, or lost in the rounding of z, it lies beyond z⁺ along
    the step, or in a random direction where there is no step.
    """
    size = float(np.linalg.norm(step))
    length = max(distance, MIN_PROBE * float(np.finfo(flat.dtype).eps * np.abs(flat).max(initial=0.0)))
    if size >= length > 0.0 or not length < np.inf:
        return flat, size
    length = length if length > 0.0 else 1.0
    along: Any = step if size > 0.0 else np.random.default_rng(0).normal(size=flat.shape).astype(flat.dtype)
    along = np.asarray(null_space.project(along))
    return flat + step + length * along / np.linalg.norm(along), length


class RootCondition(eqx.Module):
    """F(·, *args), and how linear systems with A = ∂F/∂z are solved.

    Attributes:
        optimality: F(z, *args).
        symmetric, linear_solver, null_space: as for `root_jvp`.
    """

    optimality: Callable[..., Any]
    args: tuple[Any, ...]
    symmetric: bool = False
    linear_solver: LinearSolver | None = None
    null_space: NullSpace = NullSpace()

    @eqx.filter_jit
    def newton_step(self, z: PyTree) -> tuple[Array, Array]:
        """Return `(-A⁻¹F, residual)`, as the tangent of the root of F(z) + s F(ẑ) in s."""
        value = self.optimality(z, *self.args)

        def shifted(unknown: PyTree, s: Array) -> PyTree:
            return jax.tree.map(lambda f, constant: f + s * constant, self.optimality(unknown, *self.args), value)

        zero = jnp.zeros((), ravel_pytree(z)[0].dtype)
        step, residual = root_jvp(shifted, z, (zero,), (jnp.ones_like(zero),), project=True, probe=False, **self._options())
        return ravel_pytree(step)[0], residual

    @eqx.filter_jit
    def norm(self, z: PyTree) -> Array:
        """Return ‖F‖ outside the null space."""
        return jnp.linalg.norm(self.null_space.project_equations(ravel_pytree(self.optimality(z, *self.args))[0]))

    @eqx.filter_jit
    def defect(self, z: PyTree, tangents: tuple[Any, ...], direction: Array) -> Array:
        """Return ‖A dz + B dθ‖ outside the null space."""
        _, unravel = ravel_pytree(z)
        moving, resting = split_arguments(self.args, tangents)
        value = lambda unknown, m: self.optimality(unknown, *eqx.combine(m, resting))  # noqa: E731
        _, change = jax.jvp(value, (z, moving), (unravel(direction), tangents))
        return jnp.linalg.norm(self.null_space.project_equations(ravel_pytree(change)[0]))

    def singular_values(self, z: PyTree) -> tuple[float, float]:
        """Return the `(lowest, highest)` singular value of A outside its known null spaces [host].

        From the assembled matrix up to `DENSE_LIMIT` unknowns, else by Lanczos iterations on the inverse and on the operator
        (then the lowest is an upper bound, good to about a hundredth).
        """
        active, basis = self.null_space.active, self.null_space.basis
        size = ravel_pytree(z)[0].size
        known = (0 if active is None else int(np.sum(~np.asarray(active)))) + (0 if basis is None else basis.shape[1])
        if size <= known:
            return np.inf, 0.0
        if size <= DENSE_LIMIT:
            values = np.linalg.svd(np.asarray(self._matrix(z)), compute_uv=False)
            return float(values[size - known - 1]), float(values[0])
        return self._lanczos(z)

    def _lanczos(self, z: PyTree) -> tuple[float, float]:
        from scipy.sparse.linalg import LinearOperator, eigsh

        flat, _ = ravel_pytree(z)
        start = np.asarray(self.null_space.project(jax.random.normal(jax.random.key(1), flat.shape, flat.dtype)))
        ends = []
        for product in (self._inverse, self._normal):
            operator = LinearOperator(
                (flat.size, flat.size), matvec=lambda v, p=product: np.asarray(p(jnp.asarray(v), z)), dtype=flat.dtype
            )
            ends.append(float(eigsh(operator, k=1, which="LA", v0=start, tol=1e-2, return_eigenvectors=False)[0]))
        return float(1.0 / np.sqrt(ends[0])), float(np.sqrt(ends[1]))

    def _options(self) -> dict[str, Any]:
        return {"symmetric": self.symmetric, "linear_solver": self.linear_solver, "null_space": self.null_space}

    def _system(self, z: PyTree) -> LinearSystem:
        flat, _ = ravel_pytree(z)
        product, _ = linearise(self.optimality, z, self.args)
        transpose = jax.linear_transpose(product, flat)
        return linear_system(product, lambda v: transpose(v)[0], None, self.null_space, flat)

    @eqx.filter_jit
    def _matrix(self, z: PyTree) -> Array:
        system = self._system(z)
        return assemble(lambda v: system.matvec(self.null_space.project(v)), system.size, system.dtype)

    @eqx.filter_jit
    def _normal(self, v: Array, z: PyTree) -> Array:
        system = self._system(z)
        return system.transpose(system.matvec(v))

    @eqx.filter_jit
    def _inverse(self, v: Array, z: PyTree) -> Array:
        system = self._system(z)
        options: dict[str, Any] = {"solver": self.linear_solver, "symmetric": self.symmetric}
        w, _ = linear_solve(system.transpose, v, null_space=self.null_space.transposed, **options)
        return linear_solve(system.matvec, w, null_space=self.null_space, **options)[0]
