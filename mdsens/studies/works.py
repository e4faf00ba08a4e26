"""What each kind of unit does: from its input, plain values, to numbers by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mdsens.equilibrium import Equilibrium
from mdsens.studies import building
from mdsens.studies.calibration import Target, calibrate, inverse_design
from mdsens.studies.following import continuation
from mdsens.studies.indices import global_indices
from mdsens.studies.observing import Together, relax_all
from mdsens.studies.parameters import Selection, with_values
from mdsens.studies.sweeping import at_point
from mdsens.studies.tables import sensitivity_table
from mdsens.studies.uncertain import uncertainty


@dataclasses.dataclass(frozen=True)
class Record:
    """What a unit found.

    Attributes:
        arrays: numbers by path, `"values/pressure"`.
        facts: plain values.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def work(given: Mapping[str, Any]) -> Record:
    """Do a unit of work.

    Raises:
        MdsensError: and whatever else goes wrong; the unit has failed then.
    """
    systems = {name: building.structure_of(recipe) for name, recipe in given["structures"].items()}
    potential = with_values(building.potential_of(given["potential"]), given["parameters"])
    options = {name: building.with_solver(one) for name, one in given["relax"].items()}
    observed = building.observables_of(given["observables"], tuple(systems))
    return _WORKS[given["kind"]](systems, potential, options, observed, given["settings"])


def _sweep(systems, potential, options, observed: Together, settings) -> Record:
    values, derivatives, states = at_point(systems, potential, observed, settings["derivatives"], options)
    arrays = {**_under("values", values), **_under("derivatives", derivatives), **_structures(states)}
    return Record(arrays, {"names": list(Selection.of(potential).names) if derivatives else [], "states": _states(states)})


def _sensitivity(systems, potential, options, observed, settings) -> Record:
    states = relax_all(systems, potential, options)
    table = sensitivity_table(states, observed.parts, wrt=settings.get("wrt"))
    arrays = {
        "parameters": table.parameters,
        **_under("values", table.values),
        **_under("derivatives", table.derivatives),
        **_structures(states),
    }
    facts = {"names": list(table.names), "trusted": table.trusted, "reasons": list(table.reasons), "states": _states(states)}
    return Record(arrays, facts)


def _uncertainty(systems, potential, options, observed, settings) -> Record:
    states = relax_all(systems, potential, options)
    given = settings.get("std") or settings.get("covariance")
    if given is None:
        given = [with_values(potential, member) for member in settings["ensemble"]]
    wrt = settings.get("wrt")
    if "ensemble" in settings and wrt is None:
        wrt = sorted({name for member in settings["ensemble"] for name in member})
    again = {name: {key: one[key] for key in ("fmax", "smax", "max_steps") if key in one} for name, one in options.items()}
    found = uncertainty(
        states,
        observed.parts,
        given,
        wrt=wrt,
        check=settings["check"],
        samples=settings["samples"],
        seed=settings["seed"],
        relax=again,
    )
    arrays = {
        **_under("values", found.values),
        **_under("std", found.std),
        **_under("shares", found.shares),
        "covariance": found.covariance,
        **_structures(states),
    }
    facts = {
        "names": list(found.names),
        "nonlinearity": found.nonlinearity,
        "trusted": found.trusted,
        "reasons": list(found.reasons),
        "states": _states(states),
    }
    if (sampled := found.sampling) is not None:
        for what in ("mean", "std", "std_error"):
            arrays |= _under(f"sampling/{what}", getattr(sampled, what))
        facts["sampling"] = {"count": sampled.count, "failed": sampled.failed}
    if method := settings.get("indices"):
        count, seed = settings.get("index_samples", 64), settings["seed"]
        whole = global_indices(states, observed.parts, settings["std"], method=method, samples=count, seed=seed, relax=again)
        for index, by_observable in whole.values.items():
            arrays |= _under(f"indices/{index}", by_observable)
        facts["indices"] = {"method": method, "names": list(whole.names), "count": whole.count, "failed": whole.failed}
    return Record(arrays, facts)


def _calibration(systems, potential, options, observed, settings) -> Record:
    more = {
        "wrt": settings.get("wrt"),
        "bounds": {name: tuple(pair) for name, pair in settings["bounds"].items()},
        "priors": {name: tuple(pair) for name, pair in settings["priors"].items()},
        "relax": options,
        "max_steps": settings["max_steps"],
        "tolerance": settings["tolerance"],
    }
    parts, targets = observed.parts, settings["targets"]
    if settings["inverse"]:
        fit = inverse_design(systems, potential, {name: (parts[name], one["value"]) for name, one in targets.items()}, **more)
    else:
        wanted = {name: Target(parts[name], one["value"], one["sigma"]) for name, one in targets.items()}
        fit = calibrate(systems, potential, wanted, **more)
    fields = ("start", "parameters", "std", "found", "wanted", "sigma", "singular_values", "directions", "history")
    arrays = {name: np.asarray(getattr(fit, name)) for name in fields}
    facts = {name: getattr(fit, name) for name in ("converged", "message", "cost", "relaxations", "evaluations")}
    facts |= {"names": list(fit.names), "labels": list(fit.labels), "states": _states(fit.states)}
    return Record({**arrays, **_structures(fit.states)}, facts)


def _continuation(systems, potential, options, observed, settings) -> Record:
    ((name, eq),) = relax_all(systems, potential, options).items()
    again = {key: options[name][key] for key in ("fmax", "smax", "max_steps") if key in options[name]}
    path = continuation(
        eq,
        settings["parameters"],
        observables={key: part.observable for key, part in observed.parts.items()},
        first_step=settings["first_step"],
        largest_step=settings["largest_step"],
        max_steps=settings["max_steps"],
        relax=again,
    )
    arrays = {"t": path.t, "lowest": path.lowest, "speed": path.speed, **_under("values", path.values)}
    facts = {key: getattr(path, key) for key in ("complete", "end", "kind", "critical")}
    return Record({**arrays, **_structures({name: path.states[-1]})}, {**facts, "states": _states({name: path.states[-1]})})


_WORKS = {
    "sweep": _sweep,
    "sensitivity": _sensitivity,
    "uncertainty": _uncertainty,
    "calibration": lambda *given: _calibration(*given[:-1], {**given[-1], "inverse": False}),
    "inverse": lambda *given: _calibration(*given[:-1], {**given[-1], "inverse": True}),
    "continuation": _continuation,
}


def _under(group, values) -> dict[str, np.ndarray]:
    return {f"{group}/{name}": np.asarray(value) for name, value in values.items()}


def _structures(states: Mapping[str, Equilibrium]) -> dict[str, np.ndarray]:
    """Where the atoms came to rest."""
    arrays = {}
    for name, eq in states.items():
        arrays[f"structures/{name}/positions"] = np.asarray(eq.system.positions)
        if eq.system.cell is not None:
            arrays[f"structures/{name}/cell"] = np.asarray(eq.system.cell)
    return arrays


def _states(states: Mapping[str, Equilibrium]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "energy": eq.energy,
            "fmax": eq.fmax,
            "steps": eq.steps,
            "lowest_curvature": None if eq.curvature is None else eq.curvature.lowest,
        }
        for name, eq in states.items()
    }
