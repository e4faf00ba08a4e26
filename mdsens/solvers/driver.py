"""The driver that all solvers share: loop, convergence, stale data, progress, status.

A solver is a frozen dataclass of settings with

    follows: "gradient", "change" or None    what it takes the residual for: minimisers step against it, `Picard` along it

    init(problem, z, data) -> state          the state is a pytree with fields `z` and `residual` = F(z, data)
    step(problem, state, data) -> state      pure JAX; a state may have a field `failed`, which ends the solve

The driver runs chunks of steps compiled; between chunks the host shows progress and renews what went stale.
"""

import dataclasses
import enum
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import CoincidingAtoms
from mdsens.implicit.linear_system import NullSpace
from mdsens.implicit.trees import PyTree
from mdsens.solvers.status import Status

CHUNK_SECONDS = 0.5
FIRST_CHUNK = 16

Focus = Callable[[Any, Any], Any]

LINEAR_SHARE = 0.01
"""What the linear system of a whole step may leave on the average component, as a share of the tolerance for the largest."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is solved. Its functions are compared by identity, so module-level ones find their compiled code again.

    Attributes:
        residual: F(z, data), of the structure of z; for a minimisation the gradient.
        norm: size of a residual, the number that is held against the tolerance.
        is_stale: whether `data` is no longer right at z.
        null_space: known null space of ∂F/∂z, for solvers that solve linear systems.
        symmetric: whether ∂F/∂z is.
        focus: `focus(z, data) -> data` on the host: data made for z alone. A solver of few, long steps is given it at each
            point (one with `whole_steps`, and `move(problem, z, residual, data, aim)` for the step).
        operator: `operator(z, data) -> (u ↦ ∂F/∂z u)` on z raveled, where there is a faster way than to linearise F.
        kind: "gradient" where F is one, "change" where it is T(z) - z, None where it is neither. A solver that follows the
            other kind is given -F.
    """

    residual: Callable[..., Any]
    norm: Callable[..., Any] = lambda residual: jnp.max(jnp.stack([jnp.max(jnp.abs(r)) for r in jax.tree.leaves(residual)]))
    is_stale: Callable[..., Any] = lambda z, data: jnp.asarray(False)
    null_space: Callable[..., Any] = lambda z, data: NullSpace()
    symmetric: bool = False
    operator: Callable[..., Any] | None = None
    focus: Focus | None = None
    kind: str | None = None

    def seen_by(self, solver: Any) -> "Problem":
        """The problem with the sign that a solver expects of its residual."""
        follows = getattr(solver, "follows", None)
        if self.kind is None or follows in (None, self.kind):
            return self
        operator = None if self.operator is None else _Negated(self.operator, of_operator=True)
        return dataclasses.replace(self, residual=_Negated(self.residual), operator=operator, kind=follows)


@dataclasses.dataclass(frozen=True)
class _Negated:
    """-f of a function f(z, data), or of the linear function that f(z, data) is."""

    function: Callable[..., Any]
    of_operator: bool = False

    def __call__(self, z: PyTree, data: Any) -> Any:
        value = self.function(z, data)
        if self.of_operator:
            return lambda u: -value(u)
        return jax.tree.map(jnp.negative, value)


@dataclasses.dataclass(frozen=True)
class Result:
    """Where a solve ended: the point, the data that is right there, the norm of the residual, steps taken, status."""

    z: Any
    data: Any
    norm: float
    steps: int
    status: Status


class _Stop(enum.IntEnum):
    LIMIT = 0
    CONVERGED = 1
    NOT_FINITE = 2
    FAILED = 3
    STALE = 4


class _Run(NamedTuple):
    state: Any
    norm: Any
    steps: Any
    stale: Any


def _has_failed(state: Any) -> Array:
    return getattr(state, "failed", jnp.asarray(False))


def _run(problem: Problem, solver: Any, state: Any, data: Any, tolerance: Any, limit: Array | int) -> _Run:
    """Step until converged, not finite, failed, stale or at the limit. A step that made `data` stale is taken back."""

    def go_on(run: _Run) -> Array:
        return (run.steps < limit) & (run.norm > tolerance) & ~run.stale & ~_has_failed(run.state)

    def step(run: _Run) -> _Run:
        new = solver.step(problem, run.state, data)
        stale = problem.is_stale(new.z, data)
        kept = jax.tree.map(lambda old, fresh: jnp.where(stale, old, fresh), run.state, new)
        return _Run(kept, problem.norm(kept.residual), run.steps + jnp.where(stale, 0, 1), stale)

    start = _Run(state, problem.norm(state.residual), jnp.asarray(0), problem.is_stale(state.z, data))
    return jax.lax.while_loop(go_on, step, start)


def _reason(run: _Run, tolerance: Array) -> Array:
    return jnp.select(
        [run.stale, run.norm <= tolerance, ~jnp.isfinite(run.norm), _has_failed(run.state)],
        [_Stop.STALE, _Stop.CONVERGED, _Stop.NOT_FINITE, _Stop.FAILED],
        _Stop.LIMIT,
    )


@eqx.filter_jit
def _init(problem: Problem, solver: Any, z: PyTree, data: Any) -> tuple[Any, Array]:
    state = solver.init(problem, z, data)
    return state, problem.norm(state.residual)


@eqx.filter_jit
def _chunk(problem: Problem, solver: Any, state: Any, data: Any, tolerance: Array, limit: Array) -> tuple[_Run, Array]:
    run = _run(problem, solver, state, data, tolerance, limit)
    return run, _reason(run, tolerance)


def solve(
    problem: Problem,
    solver: Any,
    z: PyTree,
    data: Any,
    *,
    tolerance: float,
    max_steps: int,
    refresh: Callable[..., Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
    watch: Callable[[PyTree, Any], None] | None = None,
) -> Result:
    """Drive a solver on the host.

    Args:
        refresh: `refresh(z, data, wider) -> data`, called when `data` went stale at z; `wider` says that it must reach
            farther than before, since not even one step fitted.
        progress: called with the steps taken and the norm of the residual, about twice a second.
        watch: called as often with z and its data; what it raises ends the solve.
    """
    problem = problem.seen_by(solver)
    if problem.focus is not None and getattr(solver, "whole_steps", False):
        return _solve_by_whole_steps(problem, problem.focus, solver, z, data, tolerance, max_steps, progress)
    state, first = _init(problem, solver, z, data)
    if first <= tolerance:
        return Result(state.z, data, float(first), 0, Status.CONVERGED)
    goal = jnp.asarray(tolerance)
    steps, chunk = 0, FIRST_CHUNK
    while True:
        began = time.monotonic()
        run, code = _chunk(problem, solver, state, data, goal, jnp.asarray(min(chunk, max_steps - steps)))
        state, taken, norm = run.state, int(run.steps), float(run.norm)
        reason = _Stop(int(code))
        steps += taken
        if progress is not None:
            progress(steps, norm)
        if reason is _Stop.CONVERGED:
            return Result(state.z, data, norm, steps, Status.CONVERGED)
        if watch is not None:
            watch(state.z, data)
        if reason is _Stop.NOT_FINITE:
            return Result(state.z, data, norm, steps, Status.NOT_FINITE)
        if reason is _Stop.FAILED:
            return Result(state.z, data, norm, steps, Status.STALLED)
        if reason is _Stop.STALE:
            assert refresh is not None
            data = refresh(state.z, data, taken == 0)
        elif steps >= max_steps:
            return Result(state.z, data, norm, steps, Status.MAX_STEPS)
        elif time.monotonic() - began < 0.5 * CHUNK_SECONDS:
            chunk *= 2


@eqx.filter_jit
def evaluated(problem: Problem, z: PyTree, data: Any) -> tuple[PyTree, Array]:
    """`(F(z, data), its norm)`, compiled."""
    residual = problem.residual(z, data)
    return residual, problem.norm(residual)


@eqx.filter_jit
def _take_step(problem: Problem, solver: Any, z: PyTree, residual: Any, data: Any, tolerance: Array) -> tuple[PyTree, Array]:
    flat, unravel = ravel_pytree(z)
    move, sound = solver.move(problem, z, residual, data, LINEAR_SHARE * tolerance * flat.size**0.5)
    return unravel(flat + move), sound


def _solve_by_whole_steps(
    problem: Problem, focus: Focus, solver: Any, z: PyTree, data: Any, tolerance: float, max_steps: int, progress: Any
) -> Result:
    """By whole steps, each point with data of its own. A step that does not lower the norm is taken back, and ends the solve."""
    data = focus(z, data)
    residual, norm = evaluated(problem, z, data)
    for steps in range(max_steps + 1):
        if progress is not None and steps:
            progress(steps, float(norm))
        if norm <= tolerance:
            return Result(z, data, float(norm), steps, Status.CONVERGED)
        if not jnp.isfinite(norm):
            return Result(z, data, float(norm), steps, Status.NOT_FINITE)
        if steps == max_steps:
            return Result(z, data, float(norm), steps, Status.MAX_STEPS)
        there, sound = _take_step(problem, solver, z, residual, data, jnp.asarray(tolerance))
        if not sound:
            break
        try:
            data_there = focus(there, data)
        except CoincidingAtoms:
            break
        residual, new = evaluated(problem, there, data_there)
        if not new < norm:
            break
        z, data, norm = there, data_there, new
    return Result(z, data, float(norm), steps, Status.STALLED)


def solve_traced(
    problem: Problem, solver: Any, z: PyTree, data: Any, *, tolerance: Any, max_steps: int
) -> tuple[PyTree, Array, Array]:
    """The same inside a traced function: `(z, norm, status code)`. Data that went stale cannot be renewed there."""
    problem = problem.seen_by(solver)
    run = _run(problem, solver, solver.init(problem, z, data), data, tolerance, max_steps)
    reason = _reason(run, tolerance)
    statuses = {
        _Stop.LIMIT: Status.MAX_STEPS,
        _Stop.CONVERGED: Status.CONVERGED,
        _Stop.NOT_FINITE: Status.NOT_FINITE,
        _Stop.FAILED: Status.STALLED,
        _Stop.STALE: Status.STALE_NEIGHBORS,
    }
    codes = jnp.asarray([statuses[stop].code for stop in sorted(statuses)])
    return run.state.z, run.norm, codes[reason]
