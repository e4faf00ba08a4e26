"""The work of each kind of task, from its input, plain values, to numbers by path."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

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

Systems = Mapping[str, System]
Options = Mapping[str, dict[str, Any]]
Settings = Mapping[str, Any]


def do_task(recipe: Mapping[str, Any]) -> Record:
    """Do the task of an input.

    Raises:
        Exception: the task has failed.
    """
    systems = {name: recipes.structure_of(one) for name, one in recipe["structures"].items()}
    potential = with_values(recipes.potential_of(recipe["potential"]), recipe["parameters"])
    options = {name: recipes.with_solver(one) for name, one in recipe["relax"].items()}
    observed = recipes.observables_of(recipe["observables"], tuple(systems))
    record = _TASKS_BY_KIND[recipe["kind"]](systems, potential, options, observed, recipe["settings"])
    names = [*recipe["parameters"], *record.facts.get("names", ())]
    record.facts["units"] = units_of(potential, names, observed, systems)
    return record


def _sweep(systems: Systems, potential: Potential, options: Options, observed: ObservableVector, settings: Settings) -> Record:
    values, derivatives, states = observe_point(systems, potential, observed, settings["derivatives"], options)
    record = Point("", {}, values, derivatives).record()
    record.facts["names"] = list(Selection.of(potential).names) if derivatives else []
    return with_structures(record, states)


def _sensitivity(
    systems: Systems, potential: Potential, options: Options, observed: ObservableVector, settings: Settings
) -> Record:
    states = relax_all(systems, potential, options)
    return with_structures(sensitivity_table(states, observed.parts, wrt=settings.get("wrt")).record(), states)


def _uncertainty(
    systems: Systems, potential: Potential, options: Options, observed: ObservableVector, settings: Settings
) -> Record:
    states = relax_all(systems, potential, options)
    covariance = settings.get("std") or settings.get("covariance")
    if covariance is None:
        covariance = [with_values(potential, member) for member in settings["ensemble"]]
    wrt = settings.get("wrt")
    if "ensemble" in settings and wrt is None:
        wrt = sorted({name for member in settings["ensemble"] for name in member})
    again = {name: _convergence(one) for name, one in options.items()}
    result = uncertainty(
        states,
        observed.parts,
        covariance,
        wrt=wrt,
        check=settings["check"],
        samples=settings["samples"],
        seed=settings["seed"],
        relax=again,
    )
    record = result.record()
    if method := settings.get("indices"):
        count, seed = settings.get("index_samples", 64), settings["seed"]
        indices = global_indices(states, observed.parts, settings["std"], method=method, samples=count, seed=seed, relax=again)
        record = merge(record, indices.record())
    return with_structures(record, states)


def _convergence(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `relax` that hold for relaxing again, too."""
    return {key: options[key] for key in ("fmax", "smax", "max_steps") if key in options}


def _calibration(
    systems: Systems, potential: Potential, options: Options, observed: ObservableVector, settings: Settings, *, inverse: bool
) -> Record:
    more = {
        "wrt": settings.get("wrt"),
        "bounds": {name: tuple(pair) for name, pair in settings["bounds"].items()},
        "priors": {name: tuple(pair) for name, pair in settings["priors"].items()},
        "relax": options,
        "max_steps": settings["max_steps"],
        "tolerance": settings["tolerance"],
        "optimizer": _optimizer(settings),
        "second_derivatives": settings.get("second_derivatives", False),
    }
    parts, targets = observed.parts, settings["targets"]
    if inverse:
        fit = inverse_design(systems, potential, {name: (parts[name], one["value"]) for name, one in targets.items()}, **more)
    else:
        wanted = {name: Target(parts[name], one["value"], one.get("sigma")) for name, one in targets.items()}
        fit = calibrate(systems, potential, wanted, **more)
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


def _continuation(
    systems: Systems, potential: Potential, options: Options, observed: ObservableVector, settings: Settings
) -> Record:
    ((name, eq),) = relax_all(systems, potential, options).items()
    path = continuation(
        eq,
        settings["parameters"],
        observables={key: part.observable for key, part in observed.parts.items()},
        first_step=settings["first_step"],
        largest_step=settings["largest_step"],
        max_steps=settings["max_steps"],
        relax=_convergence(options[name]),
    )
    return with_structures(path.record(), {name: path.states[-1]})


_TASKS_BY_KIND: dict[str, Callable[..., Record]] = {
    "sweep": _sweep,
    "sensitivity": _sensitivity,
    "uncertainty": _uncertainty,
    "calibration": functools.partial(_calibration, inverse=False),
    "inverse": functools.partial(_calibration, inverse=True),
    "continuation": _continuation,
}
