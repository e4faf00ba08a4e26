"""Observables of one equilibrium, or of several together, as one function; their values and derivatives."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens import observables as catalogue
from mdsens.common.errors import InputError
from mdsens.derivatives.first_order import value_and_jacobian
from mdsens.derivatives.references import SINGLE_STATE, named_references, with_named
from mdsens.derivatives.states import check_index
from mdsens.equilibrium.relaxation import Equilibrium, relax
from mdsens.mechanics.rounding import rounding_of
from mdsens.observables.elastic import is_sheet
from mdsens.potentials import Potential
from mdsens.structures.system import System
from mdsens.studies.methods.parameters import Selection
from mdsens.studies.results.record import unit_of_observable

SADDLE_OPTIONS = ("mode", "fmax", "max_step", "max_steps", "throw", "progress")
"""Options of `relax` that `find_saddle` takes too."""

Systems = System | Equilibrium | Mapping[str, System | Equilibrium]
States = Equilibrium | Mapping[str, Equilibrium]
Observables = Callable[..., Any] | Mapping[str, Callable[..., Any]]


class Of(eqx.Module):
    """An observable of certain structures among those that are relaxed together.

    `Of(ms.observables.volume, "vacancy")` is the volume of the structure that is called `"vacancy"`.

    Args:
        observable: `g(system, potential)`, or `g(states, potential)` if several structures are named.
        structures: the structure's name; or `{"defect": name, "bulk": name}`, the observable's own names for them.
    """

    observable: Any
    structures: Any = eqx.field(static=True)

    def __init__(self, observable: Callable[..., Any], structures: str | Mapping[str, str]) -> None:
        self.observable = observable
        self.structures = structures if isinstance(structures, str) else tuple(sorted(structures.items()))

    @property
    def state_index(self) -> dict[str, int]:
        """Numbers of negative curvatures that the structures must have, where the observable says so."""
        index = getattr(self.observable, "state_index", {})
        return {} if isinstance(self.structures, str) else {name: index[role] for role, name in self.structures if role in index}

    @property
    def needed(self) -> tuple[str, ...]:
        """The names of the structures."""
        return (self.structures,) if isinstance(self.structures, str) else tuple(name for _, name in self.structures)

    def __call__(self, systems: Mapping[str, System], potential: Potential) -> Array:
        if isinstance(self.structures, str):
            return self.observable(systems[self.structures], potential)
        return self.observable({role: systems[name] for role, name in self.structures}, potential)


class ObservableVector(eqx.Module):
    """Observables by name as one vector, in the order asked for; a pytree, so that equal ones share compiled code."""

    members: tuple[Any, ...]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, parts: Mapping[str, Callable[..., Any]]) -> None:
        self.members, self.names = tuple(parts.values()), tuple(parts)

    @property
    def parts(self) -> dict[str, Any]:
        """The observables by name."""
        return dict(zip(self.names, self.members, strict=True))

    @property
    def state_index(self) -> dict[str, int]:
        """Numbers of negative curvatures that structures must have, by their names."""
        return {name: index for part in self.parts.values() for name, index in getattr(part, "state_index", {}).items()}

    def __call__(self, systems: Mapping[str, System], potential: Potential) -> Array:
        return jnp.concatenate([jnp.ravel(part(systems, potential)) for part in self.members])


def by_name(systems: Systems | States) -> dict[Any, Any]:
    """Return structures (or equilibria) by name; a single one gets a name of its own."""
    if isinstance(systems, System | Equilibrium):
        return {SINGLE_STATE: systems}
    if not isinstance(systems, Mapping) or not systems or not all(isinstance(s, System | Equilibrium) for s in systems.values()):
        raise InputError(f'A structure is wanted, or several by name, {{"defect": ..., "bulk": ...}}, not {systems!r:.80}.')
    return dict(systems)


def join_observables(observables: Observables, structures: Iterable[str]) -> ObservableVector:
    """Join observables of structures of these names into one function; with a single structure they need not say which.

    Raises:
        InputError: no observables, or ones that name structures that are not there.
    """
    structures = tuple(structures)
    named = {"observable": observables} if callable(observables) else dict(observables)
    if not named or not all(callable(g) for g in named.values()):
        raise InputError('Observables are wanted by name, {"pressure": ms.observables.pressure}, functions g(system, potential).')
    parts = {}
    for name, g in named.items():
        if not isinstance(g, Of):
            g = Of(g, structures[0] if len(structures) == 1 else {structure: structure for structure in structures})
        if missing := set(g.needed) - set(structures):
            raise InputError(f"The observable {name!r} is of a structure {min(missing)!r} that is not among {structures}.")
        parts[name] = g
    return ObservableVector(parts)


def anonymize(observed: ObservableVector, states: Mapping[str, Any]) -> tuple[ObservableVector, dict[str, Any]]:
    """Return observables and states under numbers in the place of names, so that no name is part of what is compiled."""
    numbers = {name: f"{k:06d}" for k, name in enumerate(sorted(states))}
    parts = {f"{k:06d}": _rename(part, numbers) for k, part in enumerate(observed.members)}
    return ObservableVector(parts), {numbers[name]: eq for name, eq in states.items()}


def _rename(part: Callable[..., Any], numbers: Mapping[str, str]) -> Callable[..., Any]:
    """Return an observable of the same structures by other names."""
    if not isinstance(part, Of):
        return part
    if isinstance(part.structures, str):
        return Of(part.observable, numbers[part.structures])
    return Of(part.observable, {role: numbers[name] for role, name in part.structures})


class _Constant:
    """Observables whose own numbers are constants of compiled code, so that they can be checked: equal if the numbers are."""

    def __init__(self, parts: tuple[Callable[..., Any], ...]) -> None:
        leaves, structure = jax.tree.flatten(parts)
        self.parts, self.identity = parts, (structure, *map(_hashable, leaves))

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and self.identity == other.identity


def _hashable(leaf: Any) -> Any:
    """Return something hashable that is equal if the leaf is."""
    if not eqx.is_array(leaf) and not isinstance(leaf, np.ndarray):
        return leaf
    array = np.asarray(leaf)
    return array.shape, array.dtype, array.tobytes()


@functools.partial(jax.jit, static_argnums=0)
def _evaluate_members(known: _Constant, systems: dict[str, System], potential: Potential) -> list[Array]:
    return [jnp.asarray(part(systems, potential)) for part in with_named(known.parts, systems)]


def evaluate(observed: ObservableVector, states: Mapping[str, Equilibrium]) -> dict[str, np.ndarray]:
    """Return the observables' values by name; NaN where they have none.

    Raises:
        InputError: an observable that does not fit the structures.
    """
    potential = next(iter(states.values())).potential
    plain, numbered = anonymize(observed, states)
    # References of observables differ from one potential to the next: they are arguments of compiled code, no constants.
    members, numbered = named_references(plain.members, numbered, potential)
    systems = {name: eq.system for name, eq in numbered.items()}
    values = _evaluate_members(_Constant(members), systems, potential)
    return {name: np.asarray(value) for name, value in zip(observed.names, values, strict=True)}


def rounding(observed: ObservableVector, states: Mapping[str, Equilibrium]) -> Float[np.ndarray, " values"]:
    """Return the change of each of the observables' numbers that is nothing but rounding."""

    def value(systems: dict[str, System]) -> np.ndarray:
        return flatten(
            evaluate(observed, {name: eqx.tree_at(lambda e: e.system, states[name], systems[name]) for name in states})
        )

    return rounding_of(value, {name: eq.system for name, eq in states.items()})


def differentiate(
    observed: ObservableVector, states: Mapping[str, Equilibrium], selection: Selection
) -> tuple[dict[str, np.ndarray], Float[np.ndarray, "values chosen"]]:
    """Return the values by name, and the total derivative of all of them with one row a number."""
    check_index(observed, states)
    values = evaluate(observed, states)
    _, jacobian = value_and_jacobian(*anonymize(observed, states))
    return values, selection.columns(jacobian, sum(value.size for value in values.values()))


def units_of(
    potential: Potential,
    names: Iterable[str],
    observed: ObservableVector | None,
    structures: Mapping[str, System | Equilibrium],
) -> dict[str, dict[str, Any]]:
    """Return the units of parameters and observables by name, as files have them, where they are known."""
    systems = {name: one.system if isinstance(one, Equilibrium) else one for name, one in structures.items()}
    parts = {} if observed is None else observed.parts
    return {
        "parameters": {name: potential.unit_of(name.partition("[")[0]) for name in names},
        "observables": {name: unit for name, part in parts.items() if (unit := _unit_of(part, systems)) is not None},
    }


def _unit_of(observable: Any, systems: Mapping[str, System]) -> str | list[str] | None:
    """Return the unit of an observable of the catalogue, whatever it is wrapped in."""
    components, sheet = None, None
    structure = getattr(observable, "structures", None)
    system = systems[structure] if isinstance(structure, str) and structure in systems else next(iter(systems.values()))
    while (
        not isinstance(observable, type)
        and (inner := getattr(observable, "observable", getattr(observable, "func", None))) is not None
    ):
        sheet = getattr(observable, "keywords", {}).get("sheet", sheet)
        components, observable = getattr(observable, "indices", components), inner
    name = getattr(observable, "__name__", type(observable).__name__)
    if not any(getattr(catalogue, name, None) is it for it in (observable, type(observable))):
        return None
    return unit_of_observable(name, system.dim, components, sheet=is_sheet(system, sheet))


def flatten(values: Mapping[str, np.ndarray]) -> Float[np.ndarray, " values"]:
    """Join values by name into one vector, in the order of `ObservableVector`."""
    return np.concatenate([np.ravel(value) for value in values.values()])


def split(rows: Float[np.ndarray, "values ..."], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split rows, one for each number of a vector, by name and into the values' shapes."""
    ends = np.cumsum([value.size for value in values.values()])
    parts = np.split(rows, ends[:-1])
    return {
        name: part.reshape((*value.shape, *rows.shape[1:])) for (name, value), part in zip(values.items(), parts, strict=True)
    }


def relax_all(systems: Mapping[str, Any], potential: Potential, options: Mapping[str, Any]) -> dict[str, Equilibrium]:
    """Relax each structure, an equilibrium under its own conditions; options are those of `relax`, or by structures' names."""
    each = options_of(systems, options)
    return {
        name: _again(system, potential, each[name])
        if isinstance(system, Equilibrium)
        else relax(system, potential, **{"progress": False, **each[name]})
        for name, system in systems.items()
    }


def relax_again(states: Mapping[str, Equilibrium], potential: Potential, options: Mapping[str, Any]) -> dict[str, Equilibrium]:
    """Relax each equilibrium with another potential, from where it is."""
    each = options_of(states, options)
    return {name: _again(eq, potential, each[name]) for name, eq in states.items()}


def _again(eq: Equilibrium, potential: Potential, options: Mapping[str, Any]) -> Equilibrium:
    """Relax an equilibrium again. A saddle point is searched for, with fewer options than `relax` has."""
    own = {key: value for key, value in options.items() if not eq.index or key in SADDLE_OPTIONS}
    return eq.again(potential, **{"progress": False, **own})


def options_of(systems: Mapping[str, Any], options: Mapping[str, Any] | None) -> dict[str, dict[Any, Any]]:
    """Return the options of `relax` for each structure.

    Raises:
        InputError: options by name for a structure that is not there.
    """
    options = dict(options or {})
    if options and all(isinstance(value, Mapping) for value in options.values()):
        if missing := set(options) - set(systems):
            raise InputError(f"Options of relax are given for a structure {min(missing)!r} that is not among {tuple(systems)}.")
        return {name: dict(options.get(name, {})) for name in systems}
    return dict.fromkeys(systems, options)
