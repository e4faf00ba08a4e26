"""Newton's method: each step a linear solve of the implicit core."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.implicit.krylov import CG
from mdsens.implicit.linear import automatic
from mdsens.implicit.linear_system import LinearSolver, linear_system
from mdsens.implicit.root import linearise
from mdsens.implicit.trees import PyTree
from mdsens.solvers.line_search import descend
from mdsens.solvers.solver import Problem, Solver


class NewtonState(NamedTuple):
    """The point, and whether the last step was given back."""

    z: PyTree
    residual: PyTree
    failed: Array


@suggest_names
@dataclasses.dataclass(frozen=True)
class Newton(Solver):
    """Newton's method, z ← z - A⁻¹F(z) outside the known null space, for any condition F.

    A step is refused if it moves a component by more than `max_step`, meets a negative curvature (of a symmetric problem), or
    does not lower the norm of the residual. It is then halved up to `backtracks` times; if none of these steps is accepted, the
    solve has failed. The defaults are for the last stretch to an equilibrium, from forces of 1e-3 to 1e-12 in a few steps; from
    farther off take `Newton(max_step=None, backtracks=40)`.

    Attributes:
        rtol: tolerance of a step's linear system; the residual falls by about this factor each step.
        max_step: largest change of a component in one step; None for no limit.
        backtracks: halvings of a step.
        linear_solver: by default CG where the problem is symmetric, else `implicit.automatic`; its own tolerances do not count.
    """

    rtol: float = 1e-5
    max_step: float | None = 0.1
    backtracks: int = 0
    linear_solver: LinearSolver | None = None

    def __post_init__(self) -> None:
        if not (0.0 < self.rtol < 1.0 and (self.max_step is None or self.max_step > 0.0) and self.backtracks >= 0):
            raise InputError(
                f"Newton needs 0 < rtol < 1, a positive max_step (or None) and backtracks >= 0, not {self.rtol}, "
                f"{self.max_step} and {self.backtracks}."
            )

    def init(self, problem: Problem, z: PyTree, data: Any) -> NewtonState:
        return NewtonState(z, problem.residual(z, data), jnp.asarray(False))

    @property
    def whole_steps(self) -> bool:
        """Whether a step goes the whole way or not at all."""
        return self.max_step is not None and not self.backtracks

    def move(self, problem: Problem, z: PyTree, residual: PyTree, data: Any, aim: Array | float = 0.0) -> tuple[Array, Array]:
        """Return `(-A⁻¹F, flat; whether it is a step to take)`.

        Args:
            aim: size that the residual of the linear system may have, if that is more than `rtol` asks for and still a
                hundredth of the right-hand side.
        """
        product, _ = linearise(problem.residual, z, (data,), problem.operator)
        null_space = problem.null_space(z, data)
        b = null_space.project_equations(-ravel_pytree(residual)[0])
        transpose = product if problem.symmetric else lambda v: jax.linear_transpose(product, b)(v)[0]
        solver = self.linear_solver
        if solver is None:
            solver = CG() if problem.symmetric else automatic(b.size, symmetric=False)
        system = linear_system(product, transpose, getattr(product, "precondition", None), null_space, b)
        size = jnp.linalg.norm(b)
        move, failed = solver.prepare(system)(b, jnp.clip(aim, self.rtol * size, 0.01 * size))
        near = self.max_step is None or jnp.max(jnp.abs(move)) <= self.max_step
        return move, ~failed & jnp.all(jnp.isfinite(move)) & near

    def terminate(self, state: NewtonState) -> Array:
        return state.failed

    def step(self, problem: Problem, state: NewtonState, data: Any) -> NewtonState:
        flat, unravel = ravel_pytree(state.z)
        move, _ = self.move(problem, state.z, state.residual, data)
        before = problem.norm(state.residual)

        def at(share: Array) -> tuple[Any, Any, Array]:
            z = unravel(flat + share * move)
            residual = problem.residual(z, data)
            good = problem.norm(residual) < before
            if self.max_step is not None:
                good = good & (share * jnp.max(jnp.abs(move)) <= self.max_step)
            return z, residual, good

        share = jnp.ones((), flat.dtype)
        trial = (share, *at(share), 0)
        if self.backtracks:
            trial = jax.lax.while_loop(
                lambda c: ~c[3] & (c[4] < self.backtracks), lambda c: (0.5 * c[0], *at(0.5 * c[0]), c[4] + 1), trial
            )
        _, z, residual, good, _ = trial
        z, residual = jax.tree.map(lambda new, old: jnp.where(good, new, old), (z, residual), (state.z, state.residual))
        return NewtonState(z, residual, ~good)


class TruncatedNewtonState(NamedTuple):
    """The point, whether the last step failed, and the norm of the residual at the start."""

    z: PyTree
    residual: PyTree
    failed: Array
    first: Array


@suggest_names
@dataclasses.dataclass(frozen=True)
class TruncatedNewton(Solver):
    """Minimisation by Newton steps whose conjugate gradients stop early: at a curvature that is not positive, or as soon
    as the step is good enough for its place. From rough starts too, and quadratic at the end.

    R. S. Dembo, T. Steihaug, Math. Program. 26, 190 (1983); Nocedal, Wright, "Numerical Optimization", algorithm 7.1, with
    a line search on slopes (`line_search.descend`).

    Attributes:
        max_step: largest change of a component in one step; None for no limit.
    """

    max_step: float | None = 0.2

    follows: ClassVar = "gradient"

    def __post_init__(self) -> None:
        if self.max_step is not None and not self.max_step > 0.0:
            raise InputError(f"TruncatedNewton's max_step must be positive, or None for no limit, not {self.max_step}.")

    def init(self, problem: Problem, z: PyTree, data: Any) -> TruncatedNewtonState:
        residual = problem.residual(z, data)
        return TruncatedNewtonState(z, residual, jnp.asarray(False), problem.norm(residual))

    def terminate(self, state: TruncatedNewtonState) -> Array:
        return state.failed

    def step(self, problem: Problem, state: TruncatedNewtonState, data: Any) -> TruncatedNewtonState:
        flat, _ = ravel_pytree(state.z)
        product, _ = linearise(problem.residual, state.z, (data,), problem.operator)
        null_space, downhill = problem.null_space(state.z, data), -ravel_pytree(state.residual)[0]
        downhill = null_space.project(downhill)
        size = jnp.linalg.norm(downhill)
        # The forcing term of superlinear convergence.
        left = problem.norm(state.residual) / jnp.where(state.first > 0.0, state.first, 1.0)
        goal = jnp.minimum(0.5, jnp.sqrt(left)) * size
        move, _ = CG().prepare(linear_system(product, product, None, null_space, flat))(downhill, goal)
        direction = jnp.where(jnp.any(move != 0.0), move, downhill)
        new = descend(problem, state.z, state.residual, direction, data, max_step=self.max_step, tries=20)
        return TruncatedNewtonState(new.z, new.residual, ~new.accepted, state.first)
