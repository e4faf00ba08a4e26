"""The course of one structure to its equilibrium: L-BFGS to a hand-over, then steps by Cholesky's factor of the Hessian.

It is written as if the structure were alone: it yields what is asked of programs, and is sent the answers. Where anything is out
of the ordinary (atoms that meet, a curvature that is not positive, no arrival), it gives up: `relax` alone then takes the
structure, and says what is wrong with it.
"""

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np

from mdsens.common.errors import CoincidingAtoms
from mdsens.common.modules import with_fields
from mdsens.equilibrium.descent import HANDOVER, MAX_REBASES, NEWTON_STEPS, VOLUME_RATIO, default_solvers
from mdsens.equilibrium.together.member import Asking, Member, State
from mdsens.mechanics.dense_system import DenseSystem, dense_system
from mdsens.mechanics.scales import displaced, scales_from, typical_distance
from mdsens.mechanics.unknown import periodic_volume, raveled
from mdsens.solvers.host_lbfgs import Flat, Point, descend_on_host

CHORD_GAIN = 0.25
"""Factor by which a step with an older factor of the Hessian must lower the forces, for another one with it."""

MAX_NEWTON_STEP = 0.1
"""Largest change of a component in a step by the Hessian [units of `scales`]."""


class GivenUp(Exception):
    """The structure goes no ordinary way."""


class Wish(NamedTuple):
    """What is asked of a relaxation, by the names of `relax`.

    Attributes:
        fmax: None for the system's own.
        smax: None for what fmax leaves.
    """

    fmax: float | None
    smax: float | None
    max_steps: int


class Landing(NamedTuple):
    """The end of a course: the state, its linear system, and the number of steps."""

    state: State
    dense: DenseSystem
    steps: int


def course(member: Member, wish: Wish) -> Asking:
    """Go to the equilibrium, and return the `Landing` there.

    Raises:
        GivenUp: see above.
    """
    volume = None if member.reference.freedom is None else periodic_volume(member.reference.system)
    steps = 0
    for _ in range(MAX_REBASES):
        landing = yield from _descend(member, wish, steps)
        if volume is None:
            return landing
        placed = member.placed(landing.state.point.z)
        ratio = periodic_volume(placed) / volume
        if not 1.0 / VOLUME_RATIO < ratio < VOLUME_RATIO:
            raise GivenUp
        # Seen from the relaxed cell the strains are others, if only a little.
        member.rest(placed, member.reference.freedom)
        state = yield from _state(member, member.start)
        steps = landing.steps
        tolerance = yield from _tolerance(member, wish, state)
        if state.point.norm <= tolerance:
            dense = yield from _factorised(member, state)
            return Landing(state, dense, steps)
    raise GivenUp


def _descend(member: Member, wish: Wish, steps: int) -> Asking:
    member.loosen()
    state = yield from _state(member, member.start)
    scales = yield from _scales(member, state)
    units, tolerance = scales.units, _held_to(member, wish, scales)
    solver, handover = default_solvers(units)[0], max(tolerance, HANDOVER * units.force)
    while steps < wish.max_steps:
        member.loosen()
        descending = descend_on_host(
            solver, state.point, tolerance=handover, max_steps=wish.max_steps - steps, watch=lambda point, steps: None
        )
        end = yield from _followed(member, descending)
        steps += end.steps
        if not end.point.norm <= handover:
            raise GivenUp
        member.tighten()
        state = yield from _state(member, end.point.z)
        # Atoms too near each other at the start made the system look stiff, those far apart soft.
        tolerance = yield from _tolerance(member, wish, state)
        landing = yield from _by_factors(member, state, tolerance, MAX_NEWTON_STEP * units.length)
        if landing is not None:
            return landing._replace(steps=steps + landing.steps)
        if handover <= tolerance:
            break
        handover = max(tolerance, 0.01 * handover)
    raise GivenUp


def _by_factors(member: Member, state: State, tolerance: float, max_step: float) -> Asking:
    """Return the landing that steps by factors of the Hessian reach; None where it is not positive, or a step goes astray."""
    steps = 0
    for _ in range(NEWTON_STEPS):
        try:
            dense = yield from _factorised(member, state)
        except GivenUp:
            return None
        if state.point.norm <= tolerance:
            return Landing(state, dense, steps)
        first = True
        while state.point.norm > tolerance:
            move = dense.solve(-state.point.gradient)
            if not np.abs(move).max() <= max_step:
                return None
            new = yield from _state(member, state.point.z + move)
            steps += 1
            gain = new.point.norm / state.point.norm
            if not gain < 1.0:
                if first:
                    return None
                break
            state, first = new, False
            if gain > CHORD_GAIN:
                break
    return None


def _factorised(member: Member, state: State) -> Asking:
    matrix, stored = yield from member.hessian(state)
    dense = dense_system(member.unknown(state.point.z), member.reference, matrix, stored)
    if dense is None:
        raise GivenUp
    return dense


def _state(member: Member, flat: Flat) -> Asking:
    try:
        state = yield from member.state(flat)
    except CoincidingAtoms:
        raise GivenUp from None
    if not np.isfinite(state.point.norm):
        raise GivenUp
    return state


def _followed(member: Member, descending: Generator[Flat, Point, Any]) -> Asking:
    """Run a descent, and return its end. A point where atoms coincide looks infinitely steep."""
    try:
        wanted = next(descending)
        while True:
            try:
                state = yield from member.state(wanted)
                point = state.point
            except CoincidingAtoms:
                point = Point(wanted, np.full(wanted.shape, np.nan), np.inf)
            wanted = descending.send(point)
    except StopIteration as end:
        return end.value


def _scales(member: Member, state: State) -> Asking:
    z, reference, listed = member.unknown(state.point.z), member.reference, member.listed.neighbors
    length = typical_distance(with_fields(member.placed(state.point.z), neighbors=listed), member.potential)
    there = yield from _state(member, raveled(displaced(z, reference, length)))
    here, beside = (member.unknown(at.point.gradient) for at in (state, there))
    return scales_from(z, length, here, beside)


def _tolerance(member: Member, wish: Wish, state: State) -> Asking:
    if wish.fmax is not None:
        return _held_to(member, wish, None)
    scales = yield from _scales(member, state)
    return _held_to(member, wish, scales)


def _held_to(member: Member, wish: Wish, scales: Any) -> float:
    fmax = float(scales.fmax) if wish.fmax is None else wish.fmax
    return member.force_tolerance(fmax, wish.smax)
