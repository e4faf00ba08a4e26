"""The way of `relax` to an equilibrium: a solver to a hand-over, Newton's method from there, new neighbour lists on the way."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common.errors import MdsensError
from mdsens.common.progress import residual_bar
from mdsens.equilibrium.falling import Watch
from mdsens.equilibrium.first_steps import solve_by_steps
from mdsens.equilibrium.newton_step import whole_step
from mdsens.mechanics.evaluation import Evaluation, deformation_at, evaluate, has_multipliers, place
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.hessian_operator import Operator, hessian_operator, is_stored
from mdsens.mechanics.landscape import Landscape, LandscapeLike
from mdsens.mechanics.null_space import rigid_null_space
from mdsens.mechanics.scales import USUAL_UNITS, Units, scales_of
from mdsens.mechanics.unknown import (
    Reference,
    Unknown,
    as_unknown,
    periodic_volume,
    raveled,
    reference_at,
    unraveled,
    with_coarse_grid,
)
from mdsens.potentials.base import Potential
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.potentials.sums import TermLists
from mdsens.solvers import FIRE, LBFGS, Newton, Problem, Status, evaluated
from mdsens.structures.neighbors.neighbor_list import SKIN, Neighbors, widen_like
from mdsens.structures.neighbors.preparation import Preparation
from mdsens.structures.system import System

HANDOVER = 1e-2
"""Size of the largest force [units of `scales`, eV/Å as a rule] at which Newton's method is first tried."""

NEWTON_REACH = 0.05
"""Largest change of a component, in a step to the lowest point along the forces, up to which Newton's method is tried at once
[units of `scales`, Å as a rule]. Its own step is half as long again or more, and needs a list that is as much longer."""

PROBE = 1e-4
"""Largest change of a component in the step that shows the curvature along the forces [units of `scales`, Å as a rule]."""

NEWTON_STEPS = 50
"""Newton steps, at most, after one hand-over; a handful is usual."""

STATE_SKIN = 0.01
"""Skin of an equilibrium's list, as a share of the range: derivatives at the state need no more pairs than its own."""

RECOMPILATION_SIZE = 2000
"""Number of atoms from which a list with fewer places is worth compiling the forces again."""

VOLUME_RATIO = 8.0
"""Factor by which a cell may shrink or grow from its start before it counts as collapsed or flown apart."""

MAX_REBASES = 20
"""Descents, at most, from a relaxed cell as a new reference; under a pressure alone one is usual."""


def force_norm(slope: Unknown | Array) -> Array:
    """Return the largest force on an atom or a component of the strain [eV/Å], or violation of a constraint."""
    parts = as_unknown(slope)
    norm = jnp.sqrt(jnp.max(jnp.sum(parts.positions**2, axis=-1)))
    for part in (parts.strain, parts.multipliers):
        norm = norm if part is None else jnp.maximum(norm, jnp.max(jnp.abs(part), initial=0.0))
    return norm


def is_stale(z: Unknown | Array, data: LandscapeLike) -> Array:
    """Return whether a pair within the range could be missing from the list at z."""
    return data.reference.is_stale(z, data.potential.ranges)


def _focus(z: Unknown | Array, data: LandscapeLike) -> LandscapeLike:
    """Make a list of little more than the range at z, so that little is evaluated and stored, and a coarse grid [host]."""
    reference, potential = data.reference, data.potential
    listed = reference.system.neighbors
    if not isinstance(listed, Neighbors):
        # A potential of several terms keeps its lists as they are.
        if isinstance(listed, TermLists) and _is_stale_now(z, data):
            reference = relist(reference, z, potential, None)
        return data._replace(reference=reference)
    if not is_tight(listed) or _is_stale_now(z, data):
        reference = _with_tight_list(reference, z, potential)
        if len(reference.system) < RECOMPILATION_SIZE and not is_stored(reference, potential):
            reference = eqx.tree_at(lambda f: f.system.neighbors, reference, widen_like(pair_list(reference.system), listed))
    # Interpolation on the grid forgives that atoms move on.
    return data._replace(reference=with_coarse_grid(reference) if is_stored(reference, potential) else reference)


def _is_stale_now(z: Unknown | Array, data: LandscapeLike) -> bool:
    """Return `is_stale` [host], by NumPy where there is one list and one range."""
    reference, ranges = data.reference, np.asarray(data.potential.ranges)
    neighbors, freedom = reference.system.neighbors, reference.freedom
    if not isinstance(neighbors, Neighbors) or ranges.ndim:
        return bool(_is_stale(z, data))
    positions, stretch = np.asarray(as_unknown(z).positions), 1.0
    if freedom is None:
        moved = positions - np.asarray(neighbors.reference)
    else:
        listed = as_unknown(reference.start) if reference.listed is None else reference.listed
        deformation = deformation_at(z, freedom)
        stretch = np.linalg.svd(np.linalg.inv(deformation_at(listed, freedom)) @ deformation, compute_uv=False)[-1]
        moved = (positions - np.asarray(listed.positions)) @ deformation
    room = 0.5 * (float(neighbors.radius) * stretch - float(ranges))
    if freedom is None:
        room = max(room, 0.0)
    return bool(room < 0.0 or np.sum(moved**2, axis=-1).max() > room**2)


_is_stale = eqx.filter_jit(is_stale)


def _with_tight_list(reference: Reference, z: Unknown | Array, potential: Potential) -> Reference:
    return relist(reference, z, potential, STATE_SKIN * float(np.asarray(potential.range)))


def _evaluate(z: Unknown | Array, data: LandscapeLike) -> Evaluation:
    """Evaluate the condition [host], by a tight list, for which one program serves all states."""
    reference, potential = data.reference, data.potential
    listed = reference.system.neighbors
    if isinstance(listed, Neighbors) and np.isfinite(listed.radius) and not is_tight(listed) and not has_multipliers(reference):
        reference = _with_tight_list(reference, z, potential)
    return evaluate(z, data._replace(reference=reference))


PROBLEM = Problem(
    gradient,
    force_norm,
    is_stale,
    null_space=rigid_null_space,
    symmetric=True,
    operator=hessian_operator,
    focus=_focus,
    evaluate=_evaluate,
    whole_step=whole_step,
    kind="gradient",
)
"""The problem that all solvers are given: find the unknown at which no force is left."""

LOADED_PROBLEM = dataclasses.replace(PROBLEM, symmetric=False)
"""The problem under a stress that is not hydrostatic."""


def residual_forces(z: Unknown | Array, data: LandscapeLike) -> Evaluation:
    """Return `(F(z), its norm)` on an energy landscape [host]."""
    return _evaluate(z, data)


class UnstableCell(MdsensError):
    """A cell collapsed or flew apart, at the state `z` of a `reference`."""

    def __init__(self, z: Unknown | Array, reference: Reference) -> None:
        super().__init__(Status.UNSTABLE_CELL.value)
        self.z, self.reference = z, reference


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a descent, by the names of `relax`.

    Attributes:
        tolerance: largest force that may be left [eV/Å].
        own: whether the tolerance is the system's own, and follows its stiffness.
        units: of the settings of the default solvers.
    """

    solver: Any
    tolerance: float
    max_steps: int
    polish: bool
    progress: bool | None
    own: bool = False
    units: Units = USUAL_UNITS


@dataclasses.dataclass(frozen=True)
class Arrival:
    """The end of a descent or a climb: the state z in its own reference, and the largest force that is left [eV/Å]."""

    reference: Reference
    z: Unknown | Array
    norm: float
    steps: int
    status: Status


class Stage(NamedTuple):
    """The end of one approach: z, the landscape with its last list, the force left, all steps so far, the tolerance obeyed."""

    z: Unknown | Array
    data: Any
    norm: float
    steps: int
    status: Status
    tolerance: float


def descend(reference: Reference, potential: Potential, settings: Settings) -> Arrival:
    """Go from the reference to the next equilibrium [host].

    Raises:
        UnstableCell: the volume left the range in which the crystal could still be the one at the start.
        CoincidingAtoms: two atoms met.
    """
    problem = PROBLEM if reference.symmetric else LOADED_PROBLEM
    steps, volume = 0, reference_volume(reference)
    with residual_bar(settings.tolerance, settings.progress) as show:
        for _ in range(MAX_REBASES):
            reference = mark_listed(reference)
            data = Landscape(reference, potential)
            stage = approach(problem, reference.start, data, settings, volume=volume, steps=steps, show=show)
            z, (reference, _), norm, steps, status, tolerance = stage
            if status is Status.NOT_FINITE:
                reference = reference_at(place(z, reference), reference.freedom, reference.constraints)
                return Arrival(reference, reference.start, norm, steps, status)
            reference = rebase(reference, z, potential)
            if reference.freedom is None:
                break
            check_volume(reference.start, reference, volume)
            norm = float(residual_forces(reference.start, Landscape(reference, potential))[1])
            if status is not Status.CONVERGED or norm <= tolerance:
                break
            # Seen from the relaxed cell the strains are others, if only a little.
            status = Status.STALLED
            reference = eqx.tree_at(lambda f: f.system, reference, reference.system.with_neighbors(potential))
    return Arrival(reference, reference.start, norm, steps, status)


def reference_volume(reference: Reference) -> float | None:
    """Return the volume of a free cell, None of a fixed one."""
    return None if reference.freedom is None else periodic_volume(reference.system)


def mark_listed(reference: Reference) -> Reference:
    """Return the reference with a note that its list was made for its own start."""
    if reference.freedom is None:
        return reference
    return eqx.tree_at(lambda f: f.listed, reference, reference.start, is_leaf=lambda leaf: leaf is None)


def rebase(reference: Reference, z: Unknown | Array, potential: Potential) -> Reference:
    """Return a reference of the same freedom that starts at the state z, with the list that an equilibrium keeps."""
    return reference_at(with_tight_list(place(z, reference), potential), reference.freedom, reference.constraints)


def approach(
    problem: Problem,
    z: Unknown | Array,
    data: LandscapeLike,
    settings: Settings,
    *,
    volume: float | None,
    steps: int,
    show: Any,
    tolerance: float | None = None,
) -> Stage:
    """Run the solver down to a hand-over, and Newton's method from there; where that refuses, the solver goes on to a lower one.

    By default Newton's method is tried at once where the state looks near: there it arrives in a few steps. Else, and where it
    refuses, L-BFGS comes first, and FIRE should that stall.

    Args:
        volume: of the cell that the relaxation started from.
        steps: taken before.
        show: a bar, from `residual_bar`.
        tolerance: None for that of the settings.
    """
    units, newton = settings.units, Newton(max_step=0.1 * settings.units.length)
    solver, *others = default_solvers(units) if settings.solver is None else (settings.solver,)
    newton_first = settings.solver is None and settings.polish
    is_near = newton_first and _is_near(problem, z, data, units.length)
    own = settings.own and tolerance is None
    fmax, max_steps = settings.tolerance if tolerance is None else tolerance, settings.max_steps
    refresh = refresher(volume)
    polish = settings.polish and not isinstance(solver, Newton)
    handover = max(fmax, HANDOVER * units.force) if polish else fmax
    if newton_first and not is_near:
        # The list of Newton's method leaves no room for many short steps.
        data = refresh(z, data, False)
    run = functools.partial(solve_by_steps, problem, refresh=refresh, watch=Watch(z, data))
    while True:
        if not is_near:
            result = run(solver, z, data, tolerance=handover, max_steps=max_steps - steps, progress=show.after(steps))
            z, data, steps = result.z, result.data, steps + result.steps
            if own and 0.0 < result.norm < np.inf:
                # Atoms too near each other at the start made the system look stiff, those far apart soft.
                fmax = float(scales_of(problem, z, data).fmax)
            if result.status is Status.STALLED and result.norm > fmax and others:
                solver, *others = others
                continue
        if not is_near and (result.status is not Status.CONVERGED or result.norm <= fmax):
            arrived = result
        else:
            limit = max(1, min(NEWTON_STEPS, max_steps - steps))
            arrived = run(newton, z, data, tolerance=fmax, max_steps=limit, progress=show.after(steps))
            steps += arrived.steps
            if arrived.status is not Status.CONVERGED:
                data, handover = (refresh(z, data, False), handover) if is_near else (data, max(fmax, 0.01 * handover))
                is_near = False
                continue
            z, data = arrived.z, arrived.data
        if own and not is_near and 0.0 < arrived.norm < np.inf:
            before, fmax = fmax, float(scales_of(problem, z, data).fmax)
            if arrived.norm > fmax and arrived.status is Status.CONVERGED and fmax < before:
                handover = max(fmax, min(handover, 0.01 * before)) if polish else fmax
                continue
        break
    close = arrived.status is Status.STALLED and arrived.norm <= fmax
    return Stage(z, data, arrived.norm, steps, Status.CONVERGED if close else arrived.status, fmax)


def default_solvers(units: Units) -> tuple[LBFGS, FIRE]:
    """Return the solvers that are tried one after the other by default."""
    time = units.stiffness**-0.5
    fire = FIRE(dt_start=0.1 * time, dt_max=0.4 * time, force_softening=1e-6 * units.force**2, max_step=0.2 * units.length)
    return LBFGS(max_step=0.2 * units.length, first_step=0.01 * units.length), fire


def problem_in_units(units: Units) -> Problem:
    """Return the problem with lengths and stiffnesses counted in some units, which may be traced."""

    def residual(z: Array, data: Landscape) -> Array:
        return gradient(z * units.length, data) / units.force

    def operator(z: Array, data: Landscape) -> Operator:
        product = hessian_operator(z * units.length, data)
        return lambda v: product(v) / units.stiffness

    return dataclasses.replace(
        PROBLEM,
        residual=residual,
        is_stale=lambda z, data: PROBLEM.is_stale(z * units.length, data),
        null_space=lambda z, data: PROBLEM.null_space(z * units.length, data),
        operator=operator,
        evaluate=None,
        whole_step=None,
    )


def _is_near(problem: Problem, z: Unknown | Array, data: LandscapeLike, unit: float) -> bool:
    """Return whether the energy curves upwards along the forces, with its lowest point no farther than NEWTON_REACH."""
    flat, slope = raveled(z), raveled(evaluated(problem, z, data)[0])
    steepest = float(np.max(np.abs(slope)))
    if not 0.0 < steepest < np.inf:
        return steepest == 0.0
    share = PROBE * unit / steepest
    change = slope - raveled(evaluated(problem, unraveled(flat - share * slope, z), data)[0])
    curvature = float(slope @ change) / (share * float(slope @ slope))
    return curvature * NEWTON_REACH * unit >= steepest


def refresher(volume: float | None = None) -> Callable[..., Any]:
    """Return `refresh(z, data, wider)` for the driver, which makes a new list and checks the volume of the cell.

    Args:
        volume: of the cell that the relaxation started from.
    """
    widening = 1.0

    def refresh(z: Unknown | Array, data: Any, wider: bool) -> Any:
        nonlocal widening
        widening = 2.0 * widening if wider else widening
        check_volume(z, data.reference, volume)
        reach = np.asarray(data.potential.range)
        skin = SKIN * widening * float(reach) if np.isfinite(reach) else None
        return data._replace(reference=relist(data.reference, z, data.potential, skin))

    return refresh


def relist(reference: Reference, z: Unknown | Array, potential: Potential, skin: float | None) -> Reference:
    """Return the reference with a neighbour list made at z [host]."""
    neighbors = place(z, reference).with_neighbors(potential, skin=skin).neighbors
    if reference.freedom is None:
        moved = reference.system.with_positions(as_unknown(z).positions)
        return eqx.tree_at(lambda f: f.system, reference, eqx.tree_at(lambda s: s.neighbors, moved, neighbors))
    listed = as_unknown(z)._replace(multipliers=None)
    where = lambda f: (f.system.neighbors, f.listed)  # noqa: E731
    return eqx.tree_at(where, reference, (neighbors, listed), is_leaf=lambda leaf: leaf is None)


def with_tight_list(system: System, potential: Potential) -> System:
    """Return the system with the list that an equilibrium keeps; it depends on positions, cell and range alone."""
    reach = float(np.asarray(potential.range))
    return system.with_neighbors(potential, skin=STATE_SKIN * reach if np.isfinite(reach) else None)


def is_tight(neighbors: Preparation | None) -> bool:
    """Return whether a list is the one that an equilibrium keeps, in which atoms have no room to move."""
    if not isinstance(neighbors, Neighbors):
        return False
    skin, radius = float(neighbors.skin), float(neighbors.radius)
    return skin <= 1.01 * STATE_SKIN * (radius - skin)


def check_volume(z: Unknown | Array, reference: Reference, volume: float | None) -> None:
    """Raise UnstableCell where the volume has changed by more than `VOLUME_RATIO`."""
    if reference.freedom is None or volume is None:
        return
    ratio = periodic_volume(place(z, reference)) / volume
    if not 1.0 / VOLUME_RATIO < ratio < VOLUME_RATIO:
        raise UnstableCell(z, reference)
