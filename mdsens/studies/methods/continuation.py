"""An equilibrium followed along a path in parameter space."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np

from mdsens.common.errors import InputError, MdsensError
from mdsens.common.suggestions import suggest_names
from mdsens.derivatives.first_order import jvp
from mdsens.derivatives.second_order import direction_to
from mdsens.derivatives.verification import relax_from
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.potentials import Potential
from mdsens.studies.methods.observed import Observables, ObservableVector, evaluate, join_observables, units_of
from mdsens.studies.methods.parameters import with_values
from mdsens.studies.results.record import Record, add_prefix
from mdsens.studies.results.result import Result

PREDICTION_ERROR = 0.2
"""Largest error of a prediction that is accepted, as a share of the predicted displacement."""

POSITION_ERROR = 1e-6
"""Error of a prediction [Å] that is always accepted."""

SMALLEST_STEP = 1e-5
"""Step, as a share of the path, below which the path has come to its end."""


@dataclasses.dataclass(frozen=True, repr=False)
class Continuation(Result):
    """A path of equilibria from t = 0 (the first) to 1 (the parameters asked for), as far as it goes.

    Attributes:
        t: place of each equilibrium on the path.
        states: the equilibria.
        values: observables by name, one row a state.
        lowest: lowest curvature of each state [eV/Å²].
        speed: ‖dX/dt‖ of each state [Å].
        complete: whether t = 1 was reached.
        end: how it ended, in words.
        kind: `"none"`; `"fold"`, where a minimum meets a saddle point, both vanish, and the structure runs away along the soft
            mode; or `"instability"`, where a mode loses its stiffness without the structure moving along it.
        critical: t at which the lowest curvature vanishes, extrapolated; nan where nothing softens.
    """

    _study_kind: ClassVar[str] = "continuation"

    t: np.ndarray
    states: tuple[Equilibrium, ...] = dataclasses.field(repr=False)
    values: dict[str, np.ndarray]
    lowest: np.ndarray
    speed: np.ndarray
    complete: bool
    end: str
    kind: str
    critical: float

    def _numbers(self) -> Record:
        arrays = {"t": self.t, "lowest": self.lowest, "speed": self.speed, **add_prefix("values", self.values)}
        return Record(arrays, {key: getattr(self, key) for key in ("complete", "end", "kind", "critical")})

    def _structures(self) -> dict[str, Equilibrium]:
        return {"structure": self.states[-1]}


@suggest_names
def continuation(
    eq: Equilibrium,
    parameters: Mapping[str, float] | Potential,
    *,
    observables: Observables | None = None,
    first_step: float = 0.1,
    largest_step: float = 0.25,
    max_steps: int = 200,
    relax: Mapping[str, Any] | None = None,
) -> Continuation:
    """Follow an equilibrium while parameters go from its own to others, in a straight line.

    Each state is predicted from the last one's derivative and relaxed from there; the step follows the error of the prediction.

    Args:
        parameters: where to go, values by name or another potential of the same kind.
        observables: `g(system, potential)` by name.
        first_step, largest_step: shares of the path.
        max_steps: steps, accepted or not.
        relax: options of `mdsens.relax`.

    Raises:
        InputError: parameters that do not exist, or nothing that changes.
    """
    goal = with_values(eq.potential, parameters) if isinstance(parameters, Mapping) else parameters
    direction = direction_to(eq.potential, goal)
    if not any(np.any(np.asarray(leaf) != 0.0) for leaf in jax.tree.leaves(direction)):
        raise InputError("The path has no length: the parameters asked for are the equilibrium's own.")
    if not 0.0 < first_step <= 1.0:
        raise InputError(f"first_step must be a share of the path between 0 and 1, not {first_step!r}.")
    observed = None if observables is None else join_observables(observables, ("structure",))
    options = {"progress": False, "fmax": 1e-10, **(relax or {})}
    path, t, step, end = [_node(eq, 0.0, direction, observed)], 0.0, first_step, ""
    for _ in range(max_steps):
        if t >= 1.0:
            break
        ahead = min(step, largest_step, 1.0 - t)
        goal = jax.tree.map(lambda theta, v, t=t + ahead: theta + t * v, eq.potential, direction)
        there, error, why = _advance(path[-1], goal, ahead, options)
        if there is not None:
            t = 1.0 if t + ahead >= 1.0 - 1e-12 else t + ahead
            try:
                path.append(_node(there, t, direction, observed))
            except MdsensError as failure:
                there, why = None, str(failure)
                t = path[-1].t
        if there is None:
            step = 0.5 * ahead
            if step < SMALLEST_STEP:
                end = why
                break
        else:
            step = ahead * min(2.0, 0.8 * math.sqrt(PREDICTION_ERROR / max(error, 1e-3)) + 0.5)
    complete = t >= 1.0
    kind, critical = _criticality(path)
    if not complete and not end:
        end = "the number of steps ran out: allow more with max_steps"
    return Continuation(
        np.array([node.t for node in path]),
        tuple(node.eq for node in path),
        {} if observed is None else {name: np.stack([node.values[name] for node in path]) for name in path[0].values},
        np.array([node.lowest for node in path]),
        np.array([node.speed for node in path]),
        complete,
        "the parameters asked for were reached" if complete else f"at t = {t:.6g}: {end}",
        "none" if complete else kind,
        math.nan if complete else critical,
        units=units_of(eq.potential, (), observed, {"": eq}),
    )


@dataclasses.dataclass(frozen=True)
class _Node:
    eq: Equilibrium
    t: float
    moved: tuple[Any, Any]
    """Derivatives in t of positions and cell."""
    values: dict[str, np.ndarray]

    @property
    def speed(self) -> float:
        return _length(*self.moved)

    @property
    def lowest(self) -> float:
        return math.nan if self.eq.spectrum is None else self.eq.spectrum.lowest


def _node(eq: Equilibrium, t: float, direction: Potential, observed: ObservableVector | None) -> _Node:
    moved = jvp(eq, direction, return_cell=True)
    return _Node(eq, t, moved, {} if observed is None else evaluate(observed, {"structure": eq}))


def _advance(
    node: _Node, potential: Potential, ahead: float, options: Mapping[str, Any]
) -> tuple[Equilibrium | None, float, str]:
    """Return the equilibrium at t (None if it was not reached), the error of its prediction, and why it was not reached."""
    start, (positions, cell) = node.eq.system, node.moved
    predicted = start.with_positions(start.positions + ahead * positions)
    if cell is not None:
        predicted = eqx.tree_at(lambda s: s.cell, predicted, start.cell + ahead * cell)
    try:
        there = relax_from(node.eq, predicted, potential, **options)
    except MdsensError as failure:
        return None, math.inf, str(failure)
    cells = (there.system.cell, predicted.cell)
    strained = None if cell is None or cells[0] is None or cells[1] is None else cells[0] - cells[1]
    missed = _length(there.system.positions - predicted.positions, strained)
    moved = ahead * node.speed
    error = missed / max(moved, 1e-300)
    if missed > POSITION_ERROR and error > PREDICTION_ERROR:
        return None, error, "the structure leaves the path"
    return there, 0.0 if missed <= POSITION_ERROR else error, ""


def _length(positions: Any, cell: Any) -> float:
    """Return the length of a displacement of atoms and cell together."""
    return math.sqrt(sum(float(np.sum(np.asarray(part) ** 2)) for part in (positions, cell) if part is not None))


def _criticality(path: Sequence[_Node]) -> tuple[str, float]:
    """Return the kind of critical point, and the t at which the lowest curvature vanishes, from the last two states.

    Near a fold λ² falls linearly in t and ‖dX/dt‖ grows as 1/λ; where a symmetry breaks λ itself falls linearly, and
    ‖dX/dt‖ stays what it is or grows as 1/√λ.
    """
    if len(path) < 2:
        return "none", math.nan
    before, last = path[-2:]
    lowest = [node.lowest for node in (before, last)]
    if not 0.0 < lowest[1] < lowest[0]:
        return "none", math.nan
    runs_away = last.speed / max(before.speed, 1e-300) > (lowest[0] / lowest[1]) ** 0.75
    power = 2 if runs_away else 1
    a, b = lowest[0] ** power, lowest[1] ** power
    return ("fold" if runs_away else "instability"), last.t + (last.t - before.t) * b / (a - b)
