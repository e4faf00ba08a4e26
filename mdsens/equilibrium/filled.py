"""A solver's descent of a structure that is filled up, so that one of about the same size finds its compiled steps again."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array

from mdsens.common.modules import with_fields
from mdsens.mechanics.landscape import LandscapeLike
from mdsens.mechanics.programs import can_fill, fill_up
from mdsens.mechanics.unknown import Reference, Unknown, as_unknown
from mdsens.solvers import FIRE, LBFGS, Problem, Result, Solver, solve

ROOM = 1.2
"""Places of a list, as a multiple of those that it needs at the start: on the way atoms come by."""


def solve_filled(
    problem: Problem,
    solver: Solver,
    z: Unknown | Array,
    data: LandscapeLike,
    *,
    refresh: Callable[..., Any],
    watch: Callable[..., Any] | None,
    **options: Any,
) -> Result:
    """Return what `solvers.solve` does [host].

    Further atoms are frozen and have no neighbours. For solvers of unknown making there are none.
    """
    reference, potential = data.reference, data.potential
    if not isinstance(solver, LBFGS | FIRE) or reference.constraints is not None or not can_fill(reference.system, potential):
        return solve(problem, solver, z, data, refresh=refresh, watch=watch, **options)
    n, own = len(reference.system), data

    def cut(z: Unknown | Array) -> Unknown | Array:
        positions = as_unknown(z).positions[:n]
        return z._replace(positions=positions) if isinstance(z, Unknown) else positions

    def evaluate(z: Unknown | Array, _: Any) -> tuple[Any, Any]:
        assert problem.evaluate is not None
        residual, norm = problem.evaluate(cut(z), own)
        return _longer(residual, as_unknown(z).positions.shape[0]), norm

    def refresh_filled(z: Unknown | Array, _: Any, wider: bool) -> Any:
        nonlocal own
        own = refresh(cut(z), own, wider)
        return _filled(own)

    watch_cut = None if watch is None else lambda z, _: watch(cut(z), own)
    whole = _filled(data)
    problem_filled = problem if problem.evaluate is None else dataclasses.replace(problem, evaluate=evaluate)
    start = _longer(z, len(whole.reference.system))
    result = solve(problem_filled, solver, start, whole, refresh=refresh_filled, watch=watch_cut, **options)
    return dataclasses.replace(result, z=cut(result.z), data=own)


def _filled(data: LandscapeLike) -> Any:
    reference: Reference = data.reference
    system = fill_up(reference.system, data.potential, room=ROOM)
    listed = None if reference.listed is None else _longer(reference.listed, len(system))
    return data._replace(reference=with_fields(reference, system=system, listed=listed, grid=None))


def _longer(z: Any, count: int) -> Any:
    """Return an unknown, or a residual, with zeros for further atoms."""
    positions: Any = np.asarray(as_unknown(z).positions)
    positions = np.pad(positions, ((0, count - len(positions)), (0, 0)))
    return z._replace(positions=positions) if isinstance(z, Unknown) else positions
