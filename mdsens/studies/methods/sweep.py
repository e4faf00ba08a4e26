"""Observables over a grid or a list of parameters and structures."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mdsens.common.errors import InputError, MdsensError
from mdsens.common.progress import bar
from mdsens.common.suggestions import suggest_names
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.potentials import Potential
from mdsens.structures.system import System
from mdsens.studies.methods.observed import (
    Observables,
    ObservableVector,
    Systems,
    by_name,
    differentiate,
    evaluate,
    join_observables,
    relax_all,
    split,
    units_of,
)
from mdsens.studies.methods.parameters import Selection, with_values
from mdsens.studies.results.record import Collected, Record, add_prefix, merge
from mdsens.studies.results.result import Result, outcome


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        structure: its name; empty where several are relaxed together.
        parameters: values by name.
        values: observables by name, empty where it failed.
        derivatives: by observable, `(*shape, parameters)`, in the order of `Sweep.names`; empty unless asked for.
        reason: why it failed, empty otherwise.
    """

    structure: str
    parameters: dict[str, float]
    values: dict[str, np.ndarray]
    derivatives: dict[str, np.ndarray]
    reason: str = ""

    def record(self) -> Record:
        """Return its numbers by path, as files keep them."""
        return Record({**add_prefix("values", self.values), **add_prefix("derivatives", self.derivatives)}, {})


@dataclasses.dataclass(frozen=True, repr=False)
class Sweep(Result):
    """Observables at the points of a sweep; those that failed are among them, with their reason.

    Attributes:
        points: in the order of the grid, the last parameter fastest, structure by structure.
        names: the parameters of derivatives.
    """

    _study_kind: ClassVar[str] = "sweep"

    points: tuple[Point, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.points)

    @property
    def failures(self) -> tuple[Point, ...]:
        """The points that failed."""
        return tuple(point for point in self.points if point.reason)

    def column(self, name: str) -> np.ndarray:
        """Return a parameter or an observable at all points, NaN where it failed."""
        if all(name in point.parameters for point in self.points):
            return np.array([point.parameters[name] for point in self.points])
        example = next((point.values[name] for point in self.points if name in point.values), None)
        if example is None:
            raise InputError(f"The sweep has no parameter and no observable {name!r}.")
        return np.stack([point.values.get(name, np.full(example.shape, np.nan)) for point in self.points])

    def collected(self) -> Collected:
        """Return the sweep as if it had been read from a collected file."""
        facts, outcomes = Record({}, {"names": list(self.names), "units": self.units}), []
        for point in self.points:
            label = " ".join([point.structure, *(f"{name}={value:g}" for name, value in point.parameters.items())]).strip()
            outcomes.append(outcome(label, point.parameters, merge(point.record(), facts), point.reason))
        return Collected(self._study_kind, "", tuple(outcomes))


def grid(parameters: Mapping[str, Iterable[float]], mode: str = "grid") -> list[dict[str, float]]:
    """Return points: all combinations, the last parameter fastest (`"grid"`), or the k-th value of each parameter (`"list"`).

    Raises:
        InputError: an unknown mode, or lists of different lengths.
    """
    columns = {name: np.ravel(np.asarray(values)).tolist() for name, values in parameters.items()}
    rows: Iterable[tuple[Any, ...]]
    if mode == "grid":
        rows = itertools.product(*columns.values())
    elif mode == "list":
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f'A list wants as many values of each parameter, not {lengths}; or mode="grid".')
        rows = zip(*columns.values(), strict=True) if columns else [()]
    else:
        raise InputError(f'mode must be "grid" or "list", not {mode!r}.')
    return [dict(zip(columns, row, strict=True)) for row in rows]


@suggest_names
def sweep(
    systems: Systems,
    potential: Potential,
    parameters: Mapping[str, Iterable[float]] | Sequence[Mapping[str, float]],
    observables: Observables,
    *,
    mode: str = "grid",
    joint: bool = False,
    derivatives: bool = False,
    relax: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Relax at every point and observe.

    Every structure is relaxed from where it was given, so that no point depends on another one.

        studies.sweep(crystal, potential, {"sigma": [3.3, 3.4]}, {"energy": ms.observables.energy})

    Args:
        systems: a structure, or several by name; equilibria are relaxed again under their own conditions, saddle points too.
        parameters: values by parameter's name or path, combined as `mode` says; or the points themselves.
        observables: `g(system, potential)` by name.
        mode: `"grid"` or `"list"`.
        joint: relax all structures at each point and hand observables the dict of them (or use `studies.Of`).
        derivatives: differentiate the observables in all parameters, too.
        relax: options of `mdsens.relax`, for all structures or by their name.
        progress: show a bar; by default only at a terminal.

    Raises:
        InputError: names that do not exist, before anything is relaxed.
    """
    points = grid(parameters, mode) if isinstance(parameters, Mapping) else [dict(point) for point in parameters]
    for point in points:
        with_values(potential, point)
    named = by_name(systems)
    groups = {"": named} if joint else {name: {name: system} for name, system in named.items()}
    observed = {name: join_observables(observables, group) for name, group in groups.items()}
    names = Selection.of(potential).names
    rows = [(name, point) for name in groups for point in points]

    def observe(structure: str, parameters: dict[str, float]) -> Point:
        try:
            changed = with_values(potential, parameters)
            values, slopes, _ = observe_point(groups[structure], changed, observed[structure], derivatives, relax or {})
            return Point(structure, parameters, values, slopes)
        except MdsensError as error:
            return Point(structure, parameters, {}, {}, str(error))

    done = tuple(observe(name, point) for name, point in bar(rows, progress, desc="sweep"))
    varied = dict.fromkeys([*names, *(name for point in points for name in point)])
    units = units_of(potential, varied, next(iter(observed.values())), named)
    return Sweep(done, names, units=units)


def observe_point(
    systems: Mapping[str, System | Equilibrium],
    potential: Potential,
    observed: ObservableVector,
    derivatives: bool,
    options: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Equilibrium]]:
    """Return values, derivatives and equilibria at one point of a sweep."""
    states = relax_all(systems, potential, options)
    if not derivatives:
        return evaluate(observed, states), {}, states
    values, rows = differentiate(observed, states, Selection.of(potential))
    return values, split(rows, values), states
