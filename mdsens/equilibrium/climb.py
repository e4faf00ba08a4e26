"""The way of `find_saddle` to a saddle point: the softest mode is followed up, and Newton's method goes the last stretch."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.common.progress import residual_bar
from mdsens.equilibrium.descent import NEWTON_STEPS, PROBLEM, Arrival, rebase, refresher
from mdsens.implicit import MINRES
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.null_space import null_space
from mdsens.mechanics.unknown import Reference, reference_at
from mdsens.potentials.base import Potential
from mdsens.solvers import MinimumMode, Newton, Status, solve
from mdsens.structures.system import System

CLIMB = dataclasses.replace(PROBLEM, null_space=null_space)
"""The problem with rattlers in its null space, whose vanishing curvatures would otherwise be the lowest."""

POLISH = Newton(linear_solver=MINRES())
"""Newton's method with a linear solver for saddle points too."""


def climb(
    reference: Reference,
    potential: Potential,
    mode: Array | None,
    *,
    max_step: float,
    length: float,
    fmax: float,
    max_steps: int,
    progress: bool | None,
) -> Arrival:
    """Climb from a reference to a saddle point [host].

    Args:
        mode: the direction to go first; None for the softest mode.
        max_step: largest change of a coordinate in one step of minimum-mode following [Å].
        length: the system's own unit of length [Å].
        fmax: largest force that may be left on an atom [eV/Å].
        max_steps: of minimum-mode following.
    """
    solver = MinimumMode(mode=mode, max_step=max_step)
    polish = dataclasses.replace(POLISH, max_step=0.1 * length)
    with residual_bar(fmax, progress) as show:
        data = Landscape(reference, potential)
        options: dict[str, Any] = {"tolerance": fmax, "refresh": refresher()}
        result = solve(CLIMB, solver, reference.start, data, max_steps=max_steps, progress=show.after(0), **options)
        steps = result.steps
        if result.status is Status.STALLED:
            # Its steps are judged by how well they predict the forces, which at the end are lost in rounding.
            result = solve(PROBLEM, polish, result.z, result.data, max_steps=NEWTON_STEPS, progress=show.after(steps), **options)
            steps += result.steps
    reference = result.data.reference
    if result.status is Status.NOT_FINITE:
        reference = reference_at(reference.place(result.z))
    else:
        reference = rebase(reference, result.z, potential)
    return Arrival(reference, reference.start, result.norm, steps, result.status)


def checked_mode(mode: Any, system: System) -> Array | None:
    """Return the mode as an array of the shape of the positions.

    Raises:
        InputError: it has another shape, is zero, or not finite.
    """
    if mode is None:
        return None
    try:
        mode = np.asarray(mode, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"The mode must be a direction of shape {system.positions.shape}, not {mode!r:.80}.") from None
    if mode.shape != system.positions.shape or not np.isfinite(mode).all() or not np.any(mode):
        raise InputError(f"The mode must be a direction of shape {system.positions.shape} that is not zero, not {mode.shape}.")
    return jnp.asarray(mode, system.positions.dtype)
