"""Saddle points of first order: where a barrier is highest on the way from one minimum to another."""

import dataclasses
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common.errors import CoincidingAtoms, InputError
from mdsens.common.suggestions import spelled
from mdsens.equilibrium.descent import NEWTON_STEPS, PROBLEM, Arrival, based, refresher
from mdsens.equilibrium.elastic_band import Chain
from mdsens.equilibrium.progress import residual_bar
from mdsens.equilibrium.relaxation import Equilibrium, check_movable, check_settings, finish
from mdsens.implicit import MINRES
from mdsens.mechanics.hessian_operator import gauge
from mdsens.mechanics.scales import scales_of
from mdsens.mechanics.unknown import Frame, frame_of
from mdsens.potentials.base import Potential
from mdsens.solvers import MinimumMode, Newton, Status, solve
from mdsens.structures.system import System

CLIMB = dataclasses.replace(PROBLEM, gauge=gauge)
"""The problem with rattlers in its null space, whose curvatures would otherwise be the lowest."""

POLISH = Newton(linear_solver=MINRES())
"""Newton's method as it goes to saddle points too."""


@spelled
def find_saddle(
    start: System | Chain,
    potential: Potential,
    *,
    mode: Any = None,
    fmax: float | None = None,
    max_step: float | None = None,
    max_steps: int = 1000,
    throw: bool = True,
    progress: bool | None = None,
) -> Equilibrium:
    """Find a saddle point of the energy with exactly one negative curvature, at a fixed cell.

    The mode of lowest curvature is followed up and all others down (`solvers.MinimumMode`), and Newton's method with MINRES
    goes the last stretch. The equilibrium has `index` 1; all derivatives go through it as through a minimum, and
    `observables.barrier` compares both:

        chain = ms.nudged_chain(here, there)
        saddle = ms.find_saddle(chain, potential)
        height, slope = ms.value_and_gradient(ms.observables.barrier, {"saddle": saddle, "minimum": here})

    Args:
        start: a structure, or a chain of images, whose highest image and its tangent are taken.
        mode: `(N, dim)`, the direction to go first, with its sign; None for the softest mode, which near a saddle point
            leads to it and from a minimum may lead anywhere.
        fmax: largest force that may be left on an atom [eV/Å]; by default as for `relax`.
        max_step: largest change of a coordinate in one step [Å]; by default 0.1 where distances and forces are of a usual size in
            Å and eV, and else as much in the system's own units.
        max_steps: of minimum-mode following.
        throw: raise if the state is not what was asked; otherwise it is returned with its status.
        progress: show a bar; by default only at a terminal and for long work.

    Raises:
        InputError: a mode of another shape than the positions, or one that moves frozen atoms or all atoms alike only; what
            `relax` refuses.
        ConvergenceError: no saddle point was reached, or one with another number of negative curvatures: a minimum, say.
    """
    if isinstance(start, Chain):
        mode = start.tangent if mode is None else mode
        start = start.images[start.highest]
    check_settings(start, potential, fmax, max_steps)
    if not (max_step is None or (isinstance(max_step, Real) and max_step > 0.0)):
        raise InputError(f"max_step must be a positive length in Å, or None, not {max_step!r}.")
    mode = _checked(mode, start)
    asked: dict[str, Any] = {"cell": "fixed", "load": None, "solver": "MinimumMode()", "index": 1}
    try:
        frame = frame_of(potential.prepared(start))
        check_movable(frame)
        scales = scales_of(PROBLEM, frame.start, (frame, potential))
        fmax = float(scales.fmax) if fmax is None else fmax
        length = scales.units.length
        solver = MinimumMode(mode=mode, max_step=0.1 * length if max_step is None else max_step)
        polish = dataclasses.replace(POLISH, max_step=0.1 * length)
        arrival = _climb(frame, potential, solver, polish, fmax, max_steps, progress)
    except CoincidingAtoms as error:
        if throw:
            raise
        there = start.with_positions(jnp.asarray(error.positions))
        return Equilibrium(there, potential, np.nan, np.nan, 0, Status.COINCIDING, None, **asked)
    return finish(arrival, potential, asked, True, throw)


def _climb(
    frame: Frame, potential: Potential, solver: MinimumMode, polish: Newton, fmax: float, max_steps: int, progress: Any
) -> Arrival:
    with residual_bar(fmax, progress) as show:
        data = (frame, potential)
        options: dict[str, Any] = {"tolerance": fmax, "refresh": refresher()}
        result = solve(CLIMB, solver, frame.start, data, max_steps=max_steps, progress=show.after(0), **options)
        steps = result.steps
        if result.status is Status.STALLED:
            # Its steps are judged by how well forces are predicted, which rounding hides at the end.
            result = solve(PROBLEM, polish, result.z, result.data, max_steps=NEWTON_STEPS, progress=show.after(steps), **options)
            steps += result.steps
    frame = result.data[0]
    if result.status is Status.NOT_FINITE:
        frame = frame_of(frame.place(result.z))
        return Arrival(frame, frame.start, result.norm, steps, result.status)
    frame = based(frame, result.z, potential)
    return Arrival(frame, frame.start, result.norm, steps, result.status)


def _checked(mode: Any, system: System) -> Array | None:
    if mode is None:
        return None
    try:
        mode = np.asarray(mode, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"The mode must be a direction of shape {system.positions.shape}, not {mode!r:.80}.") from None
    if mode.shape != system.positions.shape or not np.isfinite(mode).all() or not np.any(mode):
        raise InputError(f"The mode must be a direction of shape {system.positions.shape} that is not zero, not {mode.shape}.")
    return jnp.asarray(mode, system.positions.dtype)
