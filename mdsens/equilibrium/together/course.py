"""The course of one structure to its equilibrium: L-BFGS to a hand-over, then steps by Cholesky's factor of the Hessian.

It is written as if the structure were alone: it yields what is asked of programs, and is sent the answers. Where anything is out
of the ordinary (atoms that meet, a curvature that is not positive, no arrival), it gives up: `relax` alone then takes the
structure, and says what is wrong with it.
"""

from typing import Any, NamedTuple

import numpy as np

from mdsens.common.errors import CoincidingAtoms
from mdsens.common.modules import with_fields
from mdsens.equilibrium.descent import HANDOVER, MAX_REBASES, NEWTON_STEPS, VOLUME_RATIO, default_solvers
from mdsens.equilibrium.together.member import Asking, Member
from mdsens.equilibrium.together.questions import DescentFrom, HessianAt, SpectrumOf, State, StateAt, solver_state
from mdsens.mechanics.dense_system import DenseSystem
from mdsens.mechanics.scales import displaced, scales_from, typical_distance
from mdsens.mechanics.spectrum import Spectrum
from mdsens.mechanics.unknown import periodic_volume, raveled
from mdsens.solvers import LBFGS, Status
from mdsens.solvers.host_lbfgs import Flat, Point, descend_on_host

CHORD_GAIN = 0.25
"""Factor by which a step with an older factor of the Hessian must lower the forces, for another one with it."""

MAX_LISTS = 100
"""Lists, at most, on the way of a solver."""

FEW_STEPS = 5
"""Steps with one list, below which the next has more room."""

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
    """The end of a course: the state, its linear system, the number of steps, and the spectrum there."""

    state: State
    dense: DenseSystem
    steps: int
    spectrum: Spectrum | None = None


def course(member: Member, wish: Wish) -> Asking:
    """Go to the equilibrium, and return the `Landing` there.

    Raises:
        GivenUp: see above.
    """
    landing = yield from _land(member, wish)
    spectrum = yield SpectrumOf(landing.dense)
    if spectrum is None:
        raise GivenUp
    return landing._replace(spectrum=spectrum)


def _land(member: Member, wish: Wish) -> Asking:
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
        end, taken = yield from _downhill(member, state, solver, handover, wish.max_steps - steps)
        steps += taken
        member.tighten()
        state = yield from _state(member, end)
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
    dense = yield HessianAt(member, state)
    if dense is None:
        raise GivenUp
    return dense


def _state(member: Member, flat: Flat) -> Asking:
    try:
        state = yield StateAt(member, flat)
    except CoincidingAtoms:
        raise GivenUp from None
    if not np.isfinite(state.point.norm):
        raise GivenUp
    return state


def _downhill(member: Member, state: State, solver: LBFGS, tolerance: float, max_steps: int) -> Asking:
    """Go down by a solver; return `(z, steps)`."""
    member.loosen()
    if member.freedom is not None:
        end = yield from _by_host(member, solver, state, tolerance, max_steps)
        return end
    steps, begun = 0, solver_state(member, solver, state.point)
    for _ in range(MAX_LISTS):
        begun, taken, code = yield DescentFrom(member, begun, solver, tolerance, max_steps - steps)
        flat = begun.z[: len(member.held)].ravel()
        steps += taken
        if code == Status.CONVERGED.code:
            return flat, steps
        if code != Status.STALE_NEIGHBORS.code or steps >= max_steps:
            raise GivenUp
        # A step that leaves the list is not taken: there it is made again, with more room where it left little.
        member.renew_list(wider=taken < FEW_STEPS)
        yield from _state(member, flat)
    raise GivenUp


def _by_host(member: Member, solver: LBFGS, state: State, tolerance: float, max_steps: int) -> Asking:
    """Go down by NumPy's steps, each state with a list of its own. A point where atoms coincide looks infinitely steep."""
    descending = descend_on_host(solver, state.point, tolerance=tolerance, max_steps=max_steps, watch=lambda point, steps: None)
    try:
        wanted = next(descending)
        while True:
            try:
                tried = yield StateAt(member, wanted)
                point = tried.point
            except CoincidingAtoms:
                point = Point(wanted, np.full(wanted.shape, np.nan), np.inf)
            wanted = descending.send(point)
    except StopIteration as stop:
        end = stop.value
    if not end.point.norm <= tolerance:
        raise GivenUp
    return end.point.z, end.steps


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
