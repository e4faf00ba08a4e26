"""The linear systems of many small equilibria, with bounds on their errors: what they ask of programs is answered together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mdsens.derivatives import linear_response
from mdsens.derivatives.certificate import distance_to_kinks
from mdsens.derivatives.linear_response import Response
from mdsens.derivatives.many_parameters import is_worthwhile
from mdsens.derivatives.selection import Selection, select
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.equilibrium.together.member import LEAST_COUNT, Asking, Member, can_go_together
from mdsens.equilibrium.together.questions import DerivativesAt
from mdsens.equilibrium.together.workers import run_courses
from mdsens.mechanics.programs import TOGETHER
from mdsens.mechanics.unknown import raveled
from mdsens.potentials import SHIPPED
from mdsens.potentials.base import Potential, parameter_paths
from mdsens.potentials.reparameterised import own_sizes


class Answer(NamedTuple):
    """The response of an equilibrium to its parameters, and the bounds on the errors of its columns."""

    response: Response
    bounds: np.ndarray


class Chosen(NamedTuple):
    """The parameters of derivatives: their selection, their own sizes `(k,)`, and a name for each number."""

    selection: Selection
    weights: np.ndarray
    names: list[str]


def choose(potential: Potential, wrt: Sequence[str] | None) -> Chosen:
    """Choose parameters by names or paths; all of them for None.

    Raises:
        InputError: a name that does not exist.
    """
    selection = select(potential, wrt)
    leaves = jax.tree.leaves(selection.parameters)
    weights = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(own_sizes(selection.parameters))])
    paths = zip(parameter_paths(selection.parameters), leaves, strict=True)
    return Chosen(selection, weights, [path for path, leaf in paths for _ in range(leaf.size)])


class _Wanted(Exception):
    """The defects at another z are wanted for a bound."""

    def __init__(self, flat: np.ndarray) -> None:
        super().__init__()
        self.flat = flat


def respond_together(eqs: Any, choices: Callable[[Potential], Chosen]) -> dict[int, Answer]:
    """Return the answers of equilibria that go together, by their `id`; what is out of the ordinary is left to be asked alone."""
    chosen = [eq for eq in (eqs.values() if isinstance(eqs, Mapping) else eqs) if _goes_together(eq)]
    if len(chosen) < LEAST_COUNT:
        return {}
    shares = all(eq.potential is chosen[0].potential for eq in chosen)
    found = run_courses([lambda eq=eq: _course(eq, choices(eq.potential), shares) for eq in chosen])  # type: ignore[misc]
    return {id(chosen[number]): answer for number, answer in found if isinstance(answer, Answer)}


def _goes_together(eq: Any) -> bool:
    """Return whether an equilibrium is a minimum of few unknowns and parameters, whose potential is one of mdsens's own."""
    if not isinstance(eq, Equilibrium) or not eq.converged or eq.index or eq.constraints is not None or eq.spectrum is None:
        return False
    potential, system = eq.potential, eq.system
    count = sum(leaf.size for leaf in jax.tree.leaves(potential))
    if not 0 < count <= TOGETHER or not can_go_together(system, potential):
        return False
    known = all(type(part) in set(SHIPPED.values()) for part in (potential, *potential.parts()))
    kinks = distance_to_kinks(potential)
    return known and (kinks is None or not np.isnan(kinks)) and eq.is_as_relaxed


def _course(eq: Equilibrium, chosen: Chosen, shares: bool) -> Asking:
    selection, weights, _ = chosen
    hessian = linear_response.differentiable_hessian(eq, None)
    if not hessian.systems.is_factorised or is_worthwhile(hessian, len(weights)) or not hessian.reference.symmetric:
        return None
    member = Member.at_rest(eq.system, eq.potential, hessian.reference.freedom, shares=shares)
    force, slopes, _ = yield DerivativesAt(member, raveled(hessian.z))
    hessian.aside.value.slopes = slopes
    places = selection.places
    response = linear_response.solutions(hessian, slopes[places], force, weights)
    known: dict[bytes, tuple[np.ndarray, float]] = {}

    def defects(z: Any, columns: np.ndarray) -> tuple[np.ndarray, float]:
        flat = raveled(z)
        if flat.tobytes() not in known:
            raise _Wanted(flat)
        return known[flat.tobytes()]

    while True:
        try:
            return Answer(response, linear_response.error_bounds(hessian, selection, response, weights, defects))
        except _Wanted as wanted:
            flat = wanted.flat
        force, slopes, matrix = yield DerivativesAt(member, flat)
        rows = hessian.systems.outside(response.columns @ matrix.T + slopes[places])
        left = hessian.systems.outside(force[None])
        known[flat.tobytes()] = np.linalg.norm(rows, axis=1), float(np.linalg.norm(left))
