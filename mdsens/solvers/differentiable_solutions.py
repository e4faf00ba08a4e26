"""Differentiable solutions of conditions, each by one call: `root`, `fixed_point`, `minimum`.

Each gives a function `solve(z0, *args)`: on concrete values the driver runs on the host, and a solve that did not converge is
an error; under `jit` and `vmap` a compiled loop does the same steps, and a member that did not converge is NaN, alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import ConvergenceError, InputError
from mdsens.implicit.checks import check_condition
from mdsens.implicit.krylov import MINRES
from mdsens.implicit.linear_system import LinearSolver, assemble
from mdsens.implicit.optimality import stationary
from mdsens.implicit.probes import replace_nonfinite, withhold
from mdsens.implicit.root import custom_root, fixed_point_condition, linearise
from mdsens.implicit.trees import PyTree, is_traced
from mdsens.solvers.arrival import Judgement, judge, judge_on_host
from mdsens.solvers.driver import Progress, Result, evaluated, solve_traced
from mdsens.solvers.driver import solve as drive
from mdsens.solvers.mixing import Anderson
from mdsens.solvers.newton import Newton, TruncatedNewton
from mdsens.solvers.solver import Problem, Solver
from mdsens.solvers.status import Status

CURVATURE_LIMIT = 500
"""Unknowns up to which a minimum on concrete values is told from a saddle point."""

NEGATIVE_SHARE = 1e-6
"""Share of the largest curvature below minus which a curvature is negative."""

FIRST_SHARE = 1e-3
"""Share of the condition at the start at which the solver's point is first judged."""

MAX_JUDGEMENTS = 20
"""Judgements of a solve, at most."""


def root(
    condition: Callable[..., Any],
    *,
    solver: Solver | None = None,
    tolerance: float | None = None,
    max_steps: int = 10_000,
    symmetric: bool = False,
    null_space: Callable[..., Any] | None = None,
    precondition: Callable[..., Any] | None = None,
    linear_solver: LinearSolver | None = None,
    return_status: bool = False,
    progress: Progress = None,
) -> Callable[..., Any]:
    """Return `solve(z0, *args)`: the root of `condition(z, *args)` near z0, differentiable in `args` to any order.

        jax.grad(lambda a: root(lambda z, a: z**2 - a)(1.0, a))(4.0)      # 1/4

    Args:
        condition: F(z, *args), of the structure of z; any pytrees.
        solver: settings of one of `mdsens.solvers`; by default `Newton(max_step=None, backtracks=40)`. Minimisers take F for
            a gradient, `Picard` and `Anderson` for T(z) - z.
        tolerance: largest component of |F| that may be left. By default each component is compared with |∂F/∂z| times the size
            of z: 1e-11 of that may be left in float64 and 1e-5 in float32, whatever units F and z have.
        max_steps: of the solver.
        symmetric, null_space, precondition, linear_solver: of the derivative, as for `implicit.custom_root`.
        return_status: return `(z, code)`, with `Status.from_code(code)` saying how it ended, and raise nothing.
        progress: called on the host with the steps taken and the norm of the residual.

    Raises:
        InputError: settings that make no sense; when called, a start that is no pytree of floating-point arrays, or a
            condition of another structure.
        ConvergenceError, when called: with the reason; under `jit` and `vmap` the answer is NaN instead.
    """
    # A symmetric Jacobian need not be positive: F may vanish at a saddle point.
    indefinite = MINRES() if symmetric else None
    settings = Newton(max_step=None, backtracks=40, linear_solver=indefinite) if solver is None else solver
    options = {"symmetric": symmetric, "null_space": null_space, "precondition": precondition, "linear_solver": linear_solver}
    driving = _Driving(tolerance, max_steps, return_status, progress)
    return _solution(condition, settings, None, driving, options)


def fixed_point(
    T: Callable[..., Any],
    *,
    solver: Solver | None = None,
    tolerance: float | None = None,
    max_steps: int = 10_000,
    return_status: bool = False,
    progress: Progress = None,
    **options: Any,
) -> Callable[..., Any]:
    """Return `solve(z0, *args)`: the z = T(z, *args) near z0, differentiable in `args`.

        fixed_point(lambda z, a: jnp.cos(a * z))(1.0, 1.0)                # 0.739

    Args:
        T: T(z, *args), of the structure of z, or an entry of `implicit.optimality` that has one.
        solver: by default `Anderson()`; one that follows gradients is given z - T(z).
        options: of the derivative, as for `root`.
        others: as for `root`, which raises the same.
    """
    settings = Anderson() if solver is None else solver
    driving = _Driving(tolerance, max_steps, return_status, progress)
    return _solution(fixed_point_condition(T), settings, "change", driving, options)


def minimum(
    objective: Callable[..., Any],
    *,
    solver: Solver | None = None,
    tolerance: float | None = None,
    max_steps: int = 10_000,
    return_status: bool = False,
    progress: Progress = None,
    **options: Any,
) -> Callable[..., Any]:
    """Return `solve(z0, *args)`: the minimum of `objective(z, *args)` near z0, differentiable in `args`.

        minimum(lambda z, a: jnp.sum((z - a) ** 2))(jnp.zeros(3), 2.0)    # [2, 2, 2]

    A saddle point is refused on concrete values up to 500 unknowns; not under `jit` and `vmap`.

    Args:
        objective: f(z, *args), a scalar.
        solver: by default `TruncatedNewton(max_step=None)`.
        tolerance: for the gradient, as for `root`; without, its units do not matter.
        options: of the derivative, as for `root`; the Jacobian of a gradient is symmetric.
        others: as for `root`, which raises the same.
    """
    settings = TruncatedNewton(max_step=None) if solver is None else solver
    options["symmetric"] = True
    driving = _Driving(tolerance, max_steps, return_status, progress)
    return _solution(stationary(objective), settings, "gradient", driving, options)


class _Driving(NamedTuple):
    """Settings of the driver, as `root` takes them."""

    tolerance: float | None
    max_steps: int
    return_status: bool
    progress: Progress


def _solution(
    condition: Callable[..., Any], solver: Solver, kind: str | None, driving: _Driving, options: dict[str, Any]
) -> Callable[..., Any]:
    tolerance, max_steps, return_status, progress = driving
    if not isinstance(solver, Solver):
        raise InputError(
            f"solver must be settings of one of mdsens.solvers, such as Newton(), not {solver!r:.80}; "
            "a function solve(z0, *args) is decorated with implicit.custom_root(F) instead."
        )
    if not ((tolerance is None or tolerance > 0.0) and max_steps >= 1):
        raise InputError(f"tolerance must be positive and max_steps at least 1, not {tolerance} and {max_steps}.")
    null_space = options.get("null_space")
    problem = Problem(
        _WithData(condition),
        null_space=Problem.null_space if null_space is None else _WithData(null_space),
        symmetric=options.get("symmetric", False),
        kind=kind,
    )
    # T(z) - z is the difference of two numbers of the size of z.
    is_change = kind == "change" or (kind is None and solver.follows == "change")
    method = _JudgedSolver(problem, solver, is_change, tolerance, max_steps)

    def find(z0: PyTree, *args: Any) -> tuple[PyTree, Array]:
        z0 = _unknown(z0)
        check_condition(eqx.filter_eval_shape(condition, z0, *args), z0)
        if is_traced(z0, args):
            z, code = method.traced(z0, args)
        else:
            result = method.on_host(z0, args, progress)
            z, status = result.z, result.status
            if kind == "gradient" and status is Status.CONVERGED and _lowest_curvature(problem, z, args) < 0.0:
                status = Status.SADDLE
            if status is not Status.CONVERGED and not return_status:
                raise ConvergenceError(f"{solver} after {result.steps} steps (residual {result.norm:.1e}): {status.value}.")
            code = jnp.asarray(status.code)
        return replace_nonfinite(z, z0), code

    # The driver has checked that the answer is a root.
    solution = custom_root(condition, has_aux=True, root_tol=None, **options)(find)

    def solve(z0: PyTree, *args: Any) -> Any:
        """Return the solution near z0, or `(solution, status code)`; its derivatives are those in the arguments."""
        z, code = solution(z0, *args)
        z = withhold(code != Status.CONVERGED.code, z)
        return (z, code) if return_status else z

    return solve


@dataclasses.dataclass(frozen=True)
class _JudgedSolver:
    """A solver driven to where the condition is zero in its own units (or, with a tolerance, below that)."""

    problem: Problem
    solver: Solver
    is_change: bool
    tolerance: float | None
    max_steps: int

    def on_host(self, z0: PyTree, args: Any, progress: Progress) -> Result:
        """Solve from a start, on concrete values."""
        z, steps, seen = z0, 0, judge_on_host(self.problem, z0, z0, args, self.is_change)
        norm = float(evaluated(self.problem, z0, args)[1])
        if self.tolerance is None and seen.arrived:
            return Result(z0, args, norm, 0, Status.CONVERGED)
        aim = FIRST_SHARE * norm if self.tolerance is None else self.tolerance
        for _ in range(MAX_JUDGEMENTS):
            options: dict[str, Any] = {"tolerance": aim, "max_steps": max(1, self.max_steps - steps)}
            result = drive(self.problem, self.solver, z, args, progress=progress, **options)
            z, steps = result.z, steps + result.steps
            seen = judge_on_host(self.problem, z, z0, args, self.is_change)
            ended = result.status is not Status.CONVERGED or steps >= self.max_steps
            if seen.arrived or ended or self.tolerance is not None:
                break
            aim = min(0.1 * aim, float(seen.aim))
        status = result.status
        if self.tolerance is None and status is not Status.NOT_FINITE:
            ran_out = Status.MAX_STEPS if status is Status.CONVERGED else status
            status = Status.CONVERGED if seen.arrived else ran_out
        if status is Status.CONVERGED and seen.lost:
            status = Status.RAN_AWAY
        return dataclasses.replace(result, steps=steps, status=status)

    def traced(self, z0: PyTree, args: Any) -> tuple[PyTree, Array]:
        """Solve inside a traced function: `(z, status code)`; between two judgements there may be `max_steps`."""
        converged = jnp.asarray(Status.CONVERGED.code)

        def approach(z: PyTree, aim: Array | float) -> tuple[PyTree, Array]:
            z, _, code = solve_traced(self.problem, self.solver, z, args, tolerance=aim, max_steps=self.max_steps)
            return z, code

        def judgement(z: PyTree) -> Judgement:
            return judge(self.problem, z, z0, args, self.is_change)

        if self.tolerance is None:
            seen, first = judgement(z0), FIRST_SHARE * self.problem.norm(self.problem.residual(z0, args))

            def go_on(carry: Any) -> Array:
                _, _, seen, code, k = carry
                return ~seen.arrived & (code == converged) & (k < MAX_JUDGEMENTS)

            def nearer(carry: Any) -> tuple[Any, ...]:
                z, aim, _, _, k = carry
                z, code = approach(z, aim)
                seen = judgement(z)
                return z, jnp.minimum(0.1 * aim, seen.aim), seen, code, k + 1

            z, _, seen, code, _ = jax.lax.while_loop(go_on, nearer, (z0, first, seen, converged, jnp.asarray(0)))
            short = jnp.where(code == converged, Status.MAX_STEPS.code, code)
            code = jnp.where(seen.arrived & (code != Status.NOT_FINITE.code), converged, short)
        else:
            z, code = approach(z0, self.tolerance)
            seen = judgement(z)
        return z, jnp.where((code == converged) & seen.lost, Status.RAN_AWAY.code, code)


@dataclasses.dataclass(frozen=True)
class _WithData:
    """`f(z, *args)` as the driver calls it, `f(z, args)`; equal for the same f, so that compiled code is found again."""

    function: Callable[..., Any]

    def __call__(self, z: PyTree, args: Any) -> Any:
        return self.function(z, *args)


def _lowest_curvature(problem: Problem, z: PyTree, args: Any) -> float:
    """Return the lowest eigenvalue of ∂F/∂z; zero if it is rounding beside the largest, and beyond `CURVATURE_LIMIT`."""
    if ravel_pytree(z)[0].size > CURVATURE_LIMIT:
        return 0.0
    values = jnp.linalg.eigvalsh(_matrix(problem, z, args))
    return float(jnp.where(values[0] < -NEGATIVE_SHARE * jnp.max(jnp.abs(values)), values[0], 0.0))


@eqx.filter_jit
def _matrix(problem: Problem, z: PyTree, args: Any) -> Array:
    flat, _ = ravel_pytree(z)
    return assemble(linearise(problem.residual, z, (args,))[0], flat.size, flat.dtype)


def _unknown(z0: PyTree) -> PyTree:
    """Return the start as arrays; raise InputError for one that is no tree of floating-point numbers."""
    leaves = jax.tree.leaves(z0)
    if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        raise InputError("The start z0 must be a pytree of real floating-point arrays, of the structure of the unknown.")
    return jax.tree.map(jnp.asarray, z0)
