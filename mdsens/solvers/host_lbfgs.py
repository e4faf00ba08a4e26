"""The steps of `LBFGS` by NumPy, for gradients that are evaluated on the host: nothing is compiled but the gradient [host]."""

from collections import deque
from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mdsens.solvers.lbfgs import LBFGS, MIN_STEP_SHARE, TRIES
from mdsens.solvers.line_search import STEEPNESS
from mdsens.solvers.status import Status

Flat = Float[np.ndarray, " n"]


class Point(NamedTuple):
    """A point of a descent, flat: z, the gradient there, and its norm, which is held against the tolerance."""

    z: Flat
    gradient: Flat
    norm: float


class Descent(NamedTuple):
    """The end of a descent."""

    point: Point
    steps: int
    status: Status


Descending = Generator[Flat, Point, Descent]
"""A descent that yields where the gradient is wanted, is sent the point there, and returns its end."""


def minimise_on_host(
    solver: LBFGS,
    evaluate: Callable[[Flat], Point],
    start: Point,
    *,
    tolerance: float,
    max_steps: int,
    watch: Callable[[Point, int], None],
) -> Descent:
    """Return where the steps of `LBFGS` lead.

    Args:
        watch: called at each point with the steps so far; an exception from it ends the descent.
    """
    descending = descend_on_host(solver, start, tolerance=tolerance, max_steps=max_steps, watch=watch)
    try:
        wanted = next(descending)
        while True:
            wanted = descending.send(evaluate(wanted))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def descend_on_host(
    solver: LBFGS, start: Point, *, tolerance: float, max_steps: int, watch: Callable[[Point, int], None]
) -> Descending:
    """Take the steps of `LBFGS`, asking for each gradient; see `minimise_on_host`."""
    point, memory, scale, failed = start, deque[tuple[Flat, Flat] | None](maxlen=solver.memory), 1.0, False
    for steps in range(max_steps + 1):
        watch(point, steps)
        if point.norm <= tolerance:
            return Descent(point, steps, Status.CONVERGED)
        if not np.isfinite(point.norm) or failed:
            return Descent(point, steps, Status.STALLED if failed else Status.NOT_FINITE)
        if steps == max_steps:
            break
        remembers = any(pair is not None for pair in memory)
        direction = -_two_loops(point.gradient, memory, scale)
        known = remembers and direction @ point.gradient < 0.0
        if not known:
            farthest = np.abs(point.gradient).max()
            longest = solver.first_step / farthest
            direction = -point.gradient * np.clip(1.0, MIN_STEP_SHARE * longest, longest)
        new = yield from _line_search(point, direction, solver.max_step)
        move = change = np.zeros_like(point.z)
        if new is not None:
            move, change = new.z - point.z, new.gradient - point.gradient
        product, length = move @ change, change @ change
        is_curved = product > np.finfo(move.dtype).eps * length
        if remembers and not (known and new is not None):
            memory.clear()
        memory.append((move, change) if is_curved else None)
        scale = product / length if is_curved else scale
        failed = new is None and not known
        point = point if new is None else new
    return Descent(point, max_steps, Status.MAX_STEPS)


def _line_search(point: Point, direction: Flat, max_step: float | None) -> Generator[Flat, Point, Point | None]:
    """Return what `line_search.descend` does; None where it stays."""
    if max_step is not None:
        direction = direction * min(1.0, max_step / np.abs(direction).max(initial=np.finfo(direction.dtype).tiny))
    slope, share = direction @ point.gradient, 1.0
    if not slope < 0.0:
        return None
    for _ in range(TRIES):
        target = point.z + share * direction
        if np.array_equal(target, point.z):
            return None
        new = yield target
        left = direction @ new.gradient
        if left <= STEEPNESS * abs(slope):
            return new
        share *= np.clip(slope / (slope - left) if np.isfinite(left) else 0.0, 0.1, 0.5)
    return None


def _two_loops(gradient: Flat, memory: deque[tuple[Flat, Flat] | None], scale: float) -> Flat:
    """Return H g by the two-loop recursion; see `lbfgs`."""
    pairs = [pair for pair in memory if pair is not None]
    q, alphas = gradient.copy(), []
    for move, change in reversed(pairs):
        alphas.append((move @ q) / (move @ change))
        q -= alphas[-1] * change
    q *= scale
    for (move, change), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - (change @ q) / (move @ change)) * move
    return q
