"""From a condition to its differentiable solution in one call: `root`, `fixed_point`, `minimum`.

Each gives a function `solve(z0, *args)`: on concrete values the driver runs on the host and refuses what did not converge;
under `jit` and `vmap` a compiled loop does the same steps, and a member that did not converge is NaN, alone.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from mdsens.errors import ConvergenceError, InputError
from mdsens.implicit.checks import check_condition, is_traced
from mdsens.implicit.root import custom_root, fixed_point_condition
from mdsens.implicit.system import Gauge, LinearSolver
from mdsens.solvers.driver import Problem, solve, solve_traced
from mdsens.solvers.mixing import Anderson
from mdsens.solvers.newton import Newton, TruncatedNewton
from mdsens.solvers.status import Status


def root(
    condition: Callable,
    *,
    solver: Any = None,
    tolerance: float = 1e-10,
    max_steps: int = 10_000,
    symmetric: bool = False,
    null_space: Callable | None = None,
    linear_solver: LinearSolver | None = None,
    return_status: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> Callable:
    """`solve(z0, *args)`: the root of `condition(z, *args)` near z0, differentiable in `args` to any order.

    Args:
        condition: F(z, *args), of the structure of z; any pytrees.
        solver: settings of one of `mdsens.solvers`; by default Newton's method with halved steps.
        tolerance: largest component of |F| that may be left.
        max_steps: of the solver.
        symmetric, null_space, linear_solver: as for `implicit.custom_root`.
        return_status: return `(z, code)`, with `Status.from_code(code)` saying how it ended, and raise nothing.
        progress: called on the host with the steps taken and the norm of the residual.

    Raises, when called:
        InputError: a start that is no pytree of floating-point arrays, a condition of another structure.
        ConvergenceError: with the reason; under `jit` and `vmap` the answer is NaN instead.
    """
    if not (tolerance > 0.0 and max_steps >= 1):
        raise InputError(f"tolerance must be positive and max_steps at least 1, not {tolerance} and {max_steps}.")
    settings = Newton(max_step=None, backtracks=40) if solver is None else solver

    def residual(z, args):
        return condition(z, *args)

    def gauge(z, args):
        return Gauge() if null_space is None else null_space(z, *args)

    problem = Problem(residual, gauge=gauge, symmetric=symmetric)

    def find(z0, *args):
        z0 = _unknown(z0)
        check_condition(eqx.filter_eval_shape(condition, z0, *args), z0)
        if is_traced(z0, args):
            z, _, code = solve_traced(problem, settings, z0, args, tolerance=tolerance, max_steps=max_steps)
        else:
            found = solve(problem, settings, z0, args, tolerance=tolerance, max_steps=max_steps, progress=progress)
            z, code = found.z, jnp.asarray(found.status.code)
            if found.status is not Status.CONVERGED and not return_status:
                raise ConvergenceError(f"{settings} after {found.steps} steps (residual {found.norm:.1e}): {found.status.value}.")
        arrived = code == Status.CONVERGED.code
        return jax.tree.map(lambda leaf: jnp.where(arrived, leaf, jnp.nan), z), code

    options = {"symmetric": symmetric, "null_space": null_space, "linear_solver": linear_solver, "root_tol": None}
    solution = custom_root(condition, has_aux=True, **options)(find)

    def answer(z0, *args):
        z, code = solution(z0, *args)
        return (z, code) if return_status else z

    return answer


def fixed_point(fixed_point: Callable, *, solver: Any = None, **options) -> Callable:
    """`solve(z0, *args)`: z = T(z, *args), differentiable in `args`.

    Args:
        fixed_point: T(z, *args), of the structure of z, or an entry of `implicit.optimality` that has one.
        solver: by default `Anderson()`.
        options: as for `root`.
    """

    return root(fixed_point_condition(fixed_point), solver=Anderson() if solver is None else solver, **options)


def minimum(objective: Callable, *, solver: Any = None, **options) -> Callable:
    """`solve(z0, *args)`: the minimum of `objective(z, *args)` near z0, differentiable in `args`.

    Args:
        objective: f(z, *args), a scalar.
        solver: by default `TruncatedNewton(max_step=None)`.
        options: as for `root`; `tolerance` is for the gradient.
    """
    settings = TruncatedNewton(max_step=None) if solver is None else solver
    return root(jax.grad(objective), solver=settings, symmetric=True, **options)


def _unknown(z0):
    leaves = jax.tree.leaves(z0)
    if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        raise InputError("The start z0 must be a pytree of real floating-point arrays, of the structure of the unknown.")
    return jax.tree.map(jnp.asarray, z0)
