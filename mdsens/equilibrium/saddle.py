"""`find_saddle`: saddle points of first order, where a barrier is highest on the way from one minimum to another."""

from typing import Any

from mdsens.common.suggestions import suggest_names
from mdsens.equilibrium.elastic_band import Chain
from mdsens.equilibrium.relaxation import Equilibrium, saddle_from
from mdsens.potentials.base import Potential
from mdsens.structures.system import System


@suggest_names
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

    The mode of lowest curvature is followed up and all others down (`solvers.MinimumMode`); Newton's method with MINRES goes the
    last stretch. The equilibrium has `index` 1; all derivatives go through it as through a minimum, and
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
    options: dict[str, Any] = {"fmax": fmax, "max_step": max_step, "max_steps": max_steps, "throw": throw, "progress": progress}
    return saddle_from(start, potential, mode=mode, **options)
