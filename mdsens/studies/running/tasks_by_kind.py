"""The work of each kind of task, from its input, plain values, to numbers by path."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mdsens.common.errors import InputError
from mdsens.potentials.base import Potential
from mdsens.structures.system import System
from mdsens.studies.input import recipes
from mdsens.studies.methods.calibration import calibrate, inverse_design
from mdsens.studies.methods.continuation import continuation
from mdsens.studies.methods.fits import Target
from mdsens.studies.methods.global_indices import global_indices
from mdsens.studies.methods.observed import ObservableVector, relax_all, units_of
from mdsens.studies.methods.parameters import Selection, with_values
from mdsens.studies.methods.sensitivity_table import sensitivity_table
from mdsens.studies.methods.sweep import Point, observe_point
from mdsens.studies.methods.uncertainty import uncertainty
from mdsens.studies.results.record import Record, merge, with_structures


class _Parts(NamedTuple):
    """The parts of a task; options of `relax` are by the structures' names."""

    systems: dict[str, System]
    potential: Potential
    options: dict[str, dict[str, Any]]
    observed: ObservableVector
    settings: Mapping[str, Any]


def do_task(recipe: Mapping[str, Any]) -> Record:
    """Do the task of an input.

    Raises:
        Exception: the task has failed.
    """
    systems = {name: recipes.structure_of(one) for name, one in recipe["structures"].items()}
    potential = with_values(recipes.potential_of(recipe["potential"]), recipe["parameters"])
    options = {name: recipes.with_solver(one) for name, one in recipe["relax"].items()}
    observed = recipes.observables_of(recipe["observables"], tuple(systems))
    record = _TASKS_BY_KIND[recipe["kind"]](_Parts(systems, potential, options, observed, recipe["settings"]))
    names = [*recipe["parameters"], *record.facts.get("names", ())]
    record.facts["units"] = units_of(potential, names, observed, systems)
    return record


def _sweep(task: _Parts) -> Record:
    derived = task.settings["derivatives"]
    values, derivatives, states = observe_point(task.systems, task.potential, task.observed, derived, task.options)
    record = Point("", {}, values, derivatives).record()
    record.facts["names"] = list(Selection.of(task.potential).names) if derivatives else []
    return with_structures(record, states)


def _sensitivity(task: _Parts) -> Record:
    states = relax_all(task.systems, task.potential, task.options)
    return with_structures(sensitivity_table(states, task.observed.parts, wrt=task.settings.get("wrt")).record(), states)


def _uncertainty(task: _Parts) -> Record:
    settings, states = task.settings, relax_all(task.systems, task.potential, task.options)
    covariance = settings.get("std") or settings.get("covariance")
    if covariance is None:
        covariance = [with_values(task.potential, member) for member in settings["ensemble"]]
    wrt = settings.get("wrt")
    if "ensemble" in settings and wrt is None:
        wrt = sorted({name for member in settings["ensemble"] for name in member})
    again = {name: _convergence(options) for name, options in task.options.items()}
    more = {key: settings[key] for key in ("check", "samples", "seed")}
    record = uncertainty(states, task.observed.parts, covariance, wrt=wrt, relax=again, **more).record()
    if method := settings.get("indices"):
        more = {"method": method, "samples": settings.get("index_samples", 64), "seed": settings["seed"]}
        record = merge(record, global_indices(states, task.observed.parts, settings["std"], relax=again, **more).record())
    return with_structures(record, states)


def _convergence(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `relax` that hold for relaxing again, too."""
    return {key: options[key] for key in ("fmax", "smax", "max_steps") if key in options}


def _calibration(task: _Parts, *, inverse: bool) -> Record:
    settings, parts = task.settings, task.observed.parts
    more = {
        **{key: settings[key] for key in ("wrt", "max_steps", "tolerance", "second_derivatives") if key in settings},
        **{key: {name: tuple(pair) for name, pair in settings[key].items()} for key in ("bounds", "priors")},
        "relax": task.options,
        "optimizer": _optimizer(settings),
    }
    if inverse:
        values = {name: (parts[name], target["value"]) for name, target in settings["targets"].items()}
        fit = inverse_design(task.systems, task.potential, values, **more)
    else:
        targets = {name: Target(parts[name], t["value"], t.get("sigma")) for name, t in settings["targets"].items()}
        fit = calibrate(task.systems, task.potential, targets, **more)
    return with_structures(fit.record(), fit.states)


def _optimizer(settings: Mapping[str, Any]) -> Any:
    """Return the optimiser of a fit, None for Gauss-Newton steps."""
    if "method" not in settings:
        return None
    try:
        import optax
    except ImportError:
        raise InputError("A fit by gradient descent wants optax: pip install 'mdsens[optax]'.") from None
    return getattr(optax, settings["method"])(settings.get("learning_rate", 0.01))


def _continuation(task: _Parts) -> Record:
    ((name, eq),) = relax_all(task.systems, task.potential, task.options).items()
    observables = {key: part.observable for key, part in task.observed.parts.items()}
    more = {key: task.settings[key] for key in ("first_step", "largest_step", "max_steps")}
    relax = _convergence(task.options[name])
    path = continuation(eq, task.settings["parameters"], observables=observables, relax=relax, **more)
    return with_structures(path.record(), {name: path.states[-1]})


_TASKS_BY_KIND: dict[str, Callable[..., Record]] = {
    "sweep": _sweep,
    "sensitivity": _sensitivity,
    "uncertainty": _uncertainty,
    "calibration": functools.partial(_calibration, inverse=False),
    "inverse": functools.partial(_calibration, inverse=True),
    "continuation": _continuation,
}
