"""Global sensitivity: which parameters an observable's variance is due to, by Sobol's indices and Morris's effects.

J Σ Jᵀ is local. Global indices relax structures at many points of the parameters' distribution, and see curvature and
interactions of parameters. SALib chooses and evaluates the points (Iwanaga, Usher, Herman, Socio-Environ. Syst. Model. 4,
18155 (2022)).
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mdsens.common.errors import InputError, MdsensError
from mdsens.common.suggestions import suggest_names
from mdsens.studies.methods.observed import (
    Observables,
    States,
    by_name,
    evaluate,
    flatten,
    join_observables,
    options_of,
    relax_again,
    rounding,
    split,
    units_of,
)
from mdsens.studies.methods.parameters import Selection
from mdsens.studies.results.record import Record, add_prefix
from mdsens.studies.results.result import Result

METHODS = {"sobol": ("S1", "S1_conf", "ST", "ST_conf"), "morris": ("mu", "mu_star", "mu_star_conf", "sigma")}
"""Names of SALib's indices, by method."""

LEVELS = 4
"""Number of levels of Morris's grid."""


@dataclasses.dataclass(frozen=True)
class GlobalIndices(Result):
    """Global sensitivity indices.

    Attributes:
        method: `"sobol"` or `"morris"`.
        names: of the parameters.
        values: by SALib's name of the index, by observable, `(*shape, parameters)`. Sobol: `"S1"`, the share of the variance
            that a parameter has alone; `"ST"`, with its interactions; `"_conf"` is half of the 95 %
            interval. Morris: `"mu_star"`, the mean size of what a parameter does across its range, `"mu"` with its sign,
            and `"sigma"`, how much it differs from place to place. All are 0 where nothing varies beyond rounding.
        count: structures relaxed; `failed` did not, and their groups were left out.
        seconds: wall time.
    """

    method: str
    names: tuple[str, ...]
    values: dict[str, dict[str, np.ndarray]]
    count: int
    failed: int
    seconds: float

    def _numbers(self) -> Record:
        arrays: dict[str, np.ndarray] = {}
        for index, by_observable in self.values.items():
            arrays |= add_prefix(f"indices/{index}", by_observable)
        facts = {"method": self.method, "names": list(self.names), "count": self.count, "failed": self.failed}
        return Record(arrays, {"indices": facts})


@suggest_names
def global_indices(
    states: States,
    observables: Observables,
    distributions: Mapping[str, float | tuple[float, float]],
    *,
    method: str = "sobol",
    samples: int = 128,
    seed: int = 0,
    relax: Mapping[str, Any] | None = None,
) -> GlobalIndices:
    """Return global indices of observables of an equilibrium (or of several together) over independent parameters.

    Args:
        observables: `g(system, potential)` by name; see `studies.Of` for several states.
        distributions: by parameter's name the standard deviation of a normal distribution around its value, or a pair, the
            ends of a uniform one. Morris's grid is uniform, and has the same variance as a normal distribution.
        method: `"sobol"` relaxes `samples` (P + 2) structures for P parameters, `"morris"` `samples` (P + 1).
        samples: a power of two for `"sobol"`.
        relax: options of `mdsens.relax`.

    Raises:
        InputError: SALib is not installed, an unknown method, an impossible distribution, or none of the samples relaxed.
    """
    begun = time.perf_counter()
    if method not in METHODS:
        raise InputError(f'method must be "sobol" or "morris", not {method!r}.')
    if samples < 2 or (method == "sobol" and samples & (samples - 1)):
        raise InputError(f"samples must be 2 or more, and a power of two for Sobol's indices, not {samples}.")
    try:
        from SALib.analyze import morris as morris_effects
        from SALib.analyze import sobol as sobol_indices
        from SALib.sample import morris, sobol
    except ImportError:
        raise InputError("Global indices want SALib: pip install 'mdsens[salib]'.") from None
    named = by_name(states)
    observed = join_observables(observables, named)
    selection = Selection.of(next(iter(named.values())).potential, list(distributions))
    problem = _problem(selection, distributions, method)
    if method == "sobol":
        points = sobol.sample(problem, samples, calc_second_order=False, seed=seed)
        group = len(selection.names) + 2
    else:
        points = morris.sample(problem, samples, num_levels=LEVELS, seed=seed)
        group = len(selection.names) + 1
    options = {name: {"check_minimum": False, **own} for name, own in options_of(named, relax).items()}
    noise = rounding(observed, named)
    rows, shapes = [], evaluate(observed, named)
    for point in points:
        try:
            rows.append(flatten(evaluate(observed, relax_again(named, selection.at(point), options))))
        except MdsensError:
            rows.append(np.full(sum(value.size for value in shapes.values()), np.nan))
    results = np.stack(rows)
    failed = ~np.isfinite(results).all(axis=1)
    # Points belong together in groups, of which each must be whole.
    complete = np.repeat(~failed.reshape(-1, group).any(axis=1), group)
    if complete.sum() < 2 * group:
        raise InputError(f"Of {len(points)} samples {failed.sum()} did not relax: narrow the distributions.")

    def indices(column: np.ndarray, noise: float) -> Any:
        if np.std(column) <= noise:
            return {key: np.zeros(len(selection.names)) for key in METHODS[method]}
        if method == "sobol":
            return sobol_indices.analyze(problem, column, calc_second_order=False, seed=seed)
        return morris_effects.analyze(problem, points[complete], column, num_levels=LEVELS, seed=seed)

    each = [indices(column, float(least)) for column, least in zip(results[complete].T, noise, strict=True)]
    values = {key: split(np.array([np.asarray(one[key], dtype=float) for one in each]), shapes) for key in METHODS[method]}
    units = units_of(selection.potential, selection.names, observed, named)
    seconds = time.perf_counter() - begun
    return GlobalIndices(method, selection.names, values, len(points), int(failed.sum()), seconds, units=units)


def _problem(selection: Selection, distributions: Mapping[str, float | tuple[float, float]], method: str) -> dict[str, Any]:
    """Return the problem as SALib takes it: names, bounds and distributions of parameters."""
    low = selection.vector({name: np.ravel(entry)[0] for name, entry in distributions.items()}, np.nan, "The distributions")
    high = selection.vector({name: np.ravel(entry)[-1] for name, entry in distributions.items()}, np.nan, "The distributions")
    normal = selection.vector({name: np.size(entry) == 1 for name, entry in distributions.items()}, 0.0, "") > 0.0
    if not (np.isfinite(low) & np.isfinite(high) & np.where(normal, low > 0.0, low < high)).all():
        raise InputError(
            f"Distributions are positive standard deviations, or pairs (low, high), unlike {dict(distributions)!r:.120}."
        )
    centre = selection.values()
    if method == "morris":
        half = np.sqrt(3.0) * low
        low, high = np.where(normal, centre - half, low), np.where(normal, centre + half, high)
        normal = np.zeros_like(normal)
    bounds = np.where(normal[:, None], np.stack([centre, low], axis=1), np.stack([low, high], axis=1))
    dists = ["norm" if one else "unif" for one in normal]
    return {"num_vars": len(centre), "names": list(selection.names), "bounds": bounds.tolist(), "dists": dists}
