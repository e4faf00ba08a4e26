"""The driver that all solvers share: loop, convergence, stale data, progress, status.

It runs chunks of compiled steps; between chunks the host shows progress and renews what went stale.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import CoincidingAtoms
from mdsens.implicit.trees import PyTree
from mdsens.solvers.solver import Problem, Solver
from mdsens.solvers.status import Status

CHUNK_SECONDS = 0.5
"""Time that a chunk of steps should take at least."""

FIRST_CHUNK = 16
"""Steps of the first chunk."""

LINEAR_SHARE = 0.01
"""Residual of a whole step's linear system in the average component, as a share of the tolerance for the largest."""


Progress = Callable[[int, float], None] | None
"""A function that is called with the steps taken and the norm of the residual."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The end of a solve: the point, the data that is right there, the norm of the residual, steps taken, status."""

    z: PyTree
    data: Any
    norm: float
    steps: int
    status: Status


class _Run(NamedTuple):
    state: Any
    norm: Array
    steps: Array
    stale: Array


def _run(problem: Problem, solver: Solver, state: Any, data: Any, *, tolerance: Array | float, limit: Array | int) -> _Run:
    """Step until converged, not finite, failed, stale or at the limit. A step that made `data` stale is taken back."""

    def go_on(run: _Run) -> Array:
        return (run.steps < limit) & (run.norm > tolerance) & ~run.stale & ~solver.terminate(run.state)

    def step(run: _Run) -> _Run:
        new = solver.step(problem, run.state, data)
        stale = problem.is_stale(new.z, data)
        state = jax.tree.map(lambda old, fresh: jnp.where(stale, old, fresh), run.state, new)
        return _Run(state, problem.norm(state.residual), run.steps + jnp.where(stale, 0, 1), stale)

    start = _Run(state, problem.norm(state.residual), jnp.asarray(0), problem.is_stale(state.z, data))
    return jax.lax.while_loop(go_on, step, start)


def _status_code(solver: Solver, run: _Run, tolerance: Array | float) -> Array:
    """Return the code of the status with which steps ended; at the limit it is that of `MAX_STEPS`."""
    statuses = (Status.STALE_NEIGHBORS, Status.CONVERGED, Status.NOT_FINITE, Status.STALLED)
    signs = [run.stale, run.norm <= tolerance, ~jnp.isfinite(run.norm), solver.terminate(run.state)]
    return jnp.select(signs, [status.code for status in statuses], Status.MAX_STEPS.code).astype(int)


@eqx.filter_jit
def _init(problem: Problem, solver: Solver, z: PyTree, data: Any) -> tuple[Any, Array]:
    state = solver.init(problem, z, data)
    return state, problem.norm(state.residual)


@eqx.filter_jit
def _start(solver: Solver, z: PyTree, residual: PyTree) -> Any:
    return solver.start(z, residual)


def _first_state(problem: Problem, solver: Solver, z: PyTree, data: Any) -> tuple[Any, Any]:
    """Return `(the first state, the norm of its residual)`, without compiling the residual where it can be evaluated."""
    if problem.evaluate is None or type(solver).start is Solver.start:
        return _init(problem.seen_by(solver), solver, z, data)
    residual, norm = problem.evaluate(z, data)
    return _start(solver, z, residual), norm


@eqx.filter_jit
def _chunk(problem: Problem, solver: Solver, state: Any, data: Any, *, tolerance: Array, limit: Array) -> tuple[_Run, Array]:
    run = _run(problem, solver, state, data, tolerance=tolerance, limit=limit)
    return run, _status_code(solver, run, tolerance)


def solve(
    problem: Problem,
    solver: Solver,
    z: PyTree,
    data: Any,
    *,
    tolerance: float,
    max_steps: int,
    refresh: Callable[..., Any] | None = None,
    progress: Progress = None,
    watch: Callable[[PyTree, Any], None] | None = None,
) -> Result:
    """Drive a solver on the host.

    Args:
        refresh: `refresh(z, data, wider) -> data`, called when `data` went stale at z; `wider` says that it must reach
            farther than before, since not even one step fitted.
        progress: called with the steps taken and the norm of the residual, about twice a second.
        watch: called as often with z and its data; an exception from it ends the solve.
    """
    if problem.focus is not None and solver.whole_steps:
        return _solve_by_whole_steps(problem, solver, z, data, tolerance=tolerance, max_steps=max_steps, progress=progress)
    state, first = _first_state(problem, solver, z, data)
    # What is evaluated on the host is no part of what is compiled.
    problem = dataclasses.replace(problem.seen_by(solver), evaluate=None, whole_step=None, focus=None)
    if first <= tolerance:
        return Result(state.z, data, float(first), 0, Status.CONVERGED)
    goal = jnp.asarray(tolerance)
    steps, chunk = 0, FIRST_CHUNK
    while True:
        began = time.monotonic()
        limit = jnp.asarray(min(chunk, max_steps - steps))
        run, code = _chunk(problem, solver, state, data, tolerance=goal, limit=limit)
        state, taken, norm, status = run.state, int(run.steps), float(run.norm), Status.from_code(int(code))
        steps += taken
        if progress is not None:
            progress(steps, norm)
        if watch is not None and status is not Status.CONVERGED:
            watch(state.z, data)
        if status is Status.STALE_NEIGHBORS:
            assert refresh is not None
            data = refresh(state.z, data, taken == 0)
        elif status is not Status.MAX_STEPS or steps >= max_steps:
            return Result(state.z, data, norm, steps, status)
        elif time.monotonic() - began < 0.5 * CHUNK_SECONDS:
            chunk *= 2


def evaluated(problem: Problem, z: PyTree, data: Any) -> tuple[PyTree, Any]:
    """Return `(F(z, data), its norm)`, as the problem does it or compiled."""
    return _evaluated(problem, z, data) if problem.evaluate is None else problem.evaluate(z, data)


@eqx.filter_jit
def _evaluated(problem: Problem, z: PyTree, data: Any) -> tuple[PyTree, Array]:
    residual = problem.residual(z, data)
    return residual, problem.norm(residual)


@eqx.filter_jit
def take_step(problem: Problem, solver: Any, z: PyTree, residual: PyTree, data: Any, tolerance: Any) -> tuple[PyTree, Array]:
    """Return `(where a whole step of the solver leads, whether to go there)`, compiled."""
    flat, unravel = ravel_pytree(z)
    move, sound = solver.move(problem, z, residual, data, LINEAR_SHARE * tolerance * flat.size**0.5)
    return unravel(flat + move), sound


def _solve_by_whole_steps(
    problem: Problem, solver: Solver, z: PyTree, data: Any, *, tolerance: float, max_steps: int, progress: Progress
) -> Result:
    """Solve by whole steps, each point with data of its own. A step that does not lower the norm is taken back and ends it."""
    focus, step = problem.focus, problem.whole_step or take_step
    assert focus is not None
    data = focus(z, data)
    residual, norm = evaluated(problem, z, data)
    for steps in range(max_steps + 1):
        if progress is not None and steps:
            progress(steps, float(norm))
        if norm <= tolerance:
            return Result(z, data, float(norm), steps, Status.CONVERGED)
        if not np.isfinite(norm) or steps == max_steps:
            return Result(z, data, float(norm), steps, Status.MAX_STEPS if np.isfinite(norm) else Status.NOT_FINITE)
        target, sound = step(problem, solver, z, residual, data, np.asarray(tolerance))
        if not sound:
            break
        try:
            target_data = focus(target, data)
        except CoincidingAtoms:
            break
        residual, new = evaluated(problem, target, target_data)
        if not new < norm:
            break
        z, data, norm = target, target_data, new
    return Result(z, data, float(norm), steps, Status.STALLED)


def solve_traced(
    problem: Problem, solver: Solver, z: PyTree, data: Any, *, tolerance: Array | float, max_steps: int
) -> tuple[PyTree, Array, Array]:
    """Drive a solver inside a traced function: `(z, norm, status code)`. Data that went stale cannot be renewed there."""
    problem = problem.seen_by(solver)
    run = _run(problem, solver, solver.init(problem, z, data), data, tolerance=tolerance, limit=max_steps)
    return run.state.z, run.norm, _status_code(solver, run, tolerance)


class Descended(NamedTuple):
    """The end of a solve inside a traced function: the solver's state, the steps, the code of the status."""

    state: Any
    steps: Array
    code: Array


def descend_traced(problem: Problem, solver: Solver, state: Any, data: Any, *, tolerance: Array, max_steps: Array) -> Descended:
    """Drive a solver inside a traced function on from a state of its own, `solver.start(z, residual)` or one that it left."""
    run = _run(problem, solver, state, data, tolerance=tolerance, limit=max_steps)
    return Descended(run.state, run.steps, _status_code(solver, run, tolerance))
