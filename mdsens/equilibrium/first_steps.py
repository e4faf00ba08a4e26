"""The first steps of L-BFGS with structures of one kind: on the host, so that a short descent compiles nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from mdsens.common.compilation import planned_compilation
from mdsens.common.errors import CoincidingAtoms
from mdsens.equilibrium.filled import solve_filled
from mdsens.mechanics.landscape import LandscapeLike
from mdsens.mechanics.programs import FILLED_LIMIT, bucket
from mdsens.mechanics.unknown import Unknown, raveled, unraveled
from mdsens.solvers import LBFGS, Problem, Result, Solver, Status
from mdsens.solvers.host_lbfgs import Flat, Point, minimise_on_host
from mdsens.structures.neighbors.neighbor_list import Neighbors

HOST_STEPS = 200
"""Steps with structures of one kind after which they are worth compiling: each takes thrice as long as a compiled one."""

WATCHED_STEPS = 16
"""Steps after which somebody looks at the way."""

_steps: dict[Any, int] = {}
"""Steps on the host so far, by the kind of structure."""


def solve_by_steps(
    problem: Problem,
    solver: Solver,
    z: Unknown | Array,
    data: LandscapeLike,
    *,
    max_steps: int,
    progress: Callable[[int, float], None],
    **options: Any,
) -> Result:
    """Return what `solvers.solve` does with these options, by as few compiled programs as pay [host]."""
    system, potential = data.reference.system, data.potential
    kind = bucket(len(system)), data.reference.freedom is None, jax.tree.structure(potential)
    plan = planned_compilation()
    left = HOST_STEPS - _steps.get(kind, 0) if plan is None else 0 if plan else HOST_STEPS
    if not isinstance(solver, LBFGS) or left <= 0 or not _is_quick(problem, data):
        return solve_filled(problem, solver, z, data, max_steps=max_steps, progress=progress, **options)
    first = _solve_on_host(problem, solver, z, data, max_steps=min(left, max_steps), progress=progress, **options)
    _steps[kind] = _steps.get(kind, 0) + first.steps
    if first.status is not Status.MAX_STEPS or first.steps == max_steps:
        return first
    rest = solve_filled(
        problem,
        solver,
        first.z,
        first.data,
        max_steps=max_steps - first.steps,
        progress=lambda steps, norm: progress(first.steps + steps, norm),
        **options,
    )
    return dataclasses.replace(rest, steps=first.steps + rest.steps)


def _is_quick(problem: Problem, data: LandscapeLike) -> bool:
    """Return whether forces are quick to evaluate on the host, each with a list of its own."""
    reference = data.reference
    small = len(reference.system) <= FILLED_LIMIT and isinstance(reference.system.neighbors, Neighbors)
    return small and problem.evaluate is not None and reference.constraints is None


def _solve_on_host(
    problem: Problem,
    solver: LBFGS,
    z: Unknown | Array,
    data: LandscapeLike,
    *,
    tolerance: float,
    max_steps: int,
    refresh: Callable[..., Any],
    progress: Callable[[int, float], None],
    watch: Callable[..., Any],
) -> Result:
    assert problem.evaluate is not None
    here = data
    evaluate = problem.evaluate

    def at(flat: Flat) -> Point:
        try:
            residual, norm = evaluate(unraveled(flat, z), here)
        except CoincidingAtoms:
            return Point(flat, np.full(flat.shape, np.nan), np.inf)
        return Point(flat, raveled(residual), float(norm))

    def look(point: Point, steps: int) -> None:
        nonlocal here
        progress(steps, point.norm)
        if steps and steps % WATCHED_STEPS == 0:
            here = refresh(unraveled(point.z, z), here, False)
            watch(unraveled(point.z, z), here)

    point, steps, status = minimise_on_host(solver, at, at(raveled(z)), tolerance=tolerance, max_steps=max_steps, watch=look)
    end = unraveled(point.z, z)
    if np.isfinite(point.norm):
        here = refresh(end, here, False)
    return Result(end, here, point.norm, steps, status)
