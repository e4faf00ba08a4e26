"""Named observables of one equilibrium, or of several together, as one function; their values and derivatives."""

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
from mdsens.derivatives.first_order import check_index, value_and_jacobian
from mdsens.derivatives.references import SINGLE_STATE, named_references, with_named
from mdsens.equilibrium.relaxation import Equilibrium, relax
from mdsens.mechanics.rounding import rounding_of
from mdsens.observables.elastic import is_sheet
from mdsens.potentials import Potential
from mdsens.structures.system import System
from mdsens.studies.methods.parameters import Selection
from mdsens.studies.results.record import unit_of_observable

OF_SADDLES = ("mode", "fmax", "max_step", "max_steps", "throw", "progress")
"""Options of `find_saddle`."""

Systems = System | Equilibrium | Mapping[str, System | Equilibrium]
States = Equilibrium | Mapping[str, Equilibrium]
Observables = Callable[..., Any] | Mapping[str, Callable[..., Any]]


class Of(eqx.Module):
    """An observable of certain structures among those that are relaxed together.

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
        asked = getattr(self.observable, "state_index", {})
        return {} if isinstance(self.structures, str) else {name: asked[role] for role, name in self.structures if role in asked}

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the structures."""
        return (self.structures,) if isinstance(self.structures, str) else tuple(name for _, name in self.structures)

    def __call__(self, systems: Any, potential: Potential) -> Array:
        if isinstance(self.structures, str):
            return self.observable(systems[self.structures], potential)
        return self.observable({role: systems[name] for role, name in self.structures}, potential)


class Together(eqx.Module):
    """Observables by name as one vector, in the order asked for; a pytree, so that equal ones share compiled code."""

    members: tuple[Any, ...]
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.members, self.names = tuple(parts.values()), tuple(parts)

    @property
    def parts(self) -> dict[str, Any]:
        """The observables by name."""
        return dict(zip(self.names, self.members, strict=True))

    @property
    def state_index(self) -> dict[str, int]:
        return {name: index for part in self.parts.values() for name, index in getattr(part, "state_index", {}).items()}

    def __call__(self, systems: Any, potential: Potential) -> Array:
        return jnp.concatenate([jnp.ravel(part(systems, potential)) for part in self.members])


def by_name(systems: Systems | States) -> dict[Any, Any]:
    """Structures (or equilibria) by name."""
    if isinstance(systems, System | Equilibrium):
        return {SINGLE_STATE: systems}
    if not isinstance(systems, Mapping) or not systems or not all(isinstance(s, System | Equilibrium) for s in systems.values()):
        raise InputError(f'A structure is wanted, or several by name, {{"defect": ..., "bulk": ...}}, not {systems!r:.80}.')
    return dict(systems)


def together(observables: Observables, structures: Any) -> Together:
    """Observables for structures of these names; with a single one they need not say which.

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
    return Together(parts)


def nameless(observed: Together, states: Mapping[str, Any]) -> tuple[Together, dict[str, Any]]:
    """Return observables and states under numbers in the place of names, so that no name is part of what is compiled."""
    numbers = {name: f"{k:06d}" for k, name in enumerate(sorted(states))}
    parts = {f"{k:06d}": _renamed(part, numbers) for k, part in enumerate(observed.members)}
    return Together(parts), {numbers[name]: eq for name, eq in states.items()}


def _renamed(part: Any, numbers: Mapping[str, str]) -> Any:
    """An observable of structures with other names."""
    if not isinstance(part, Of):
        return part
    if isinstance(part.structures, str):
        return Of(part.observable, numbers[part.structures])
    return Of(part.observable, {role: numbers[name] for role, name in part.structures})


class _Known:
    """Observables whose own numbers are known to compiled code, so that these are looked at: equal if the numbers are."""

    def __init__(self, parts: Any) -> None:
        leaves, structure = jax.tree.flatten(parts)
        self.parts, self.identity = parts, (structure, *map(_value, leaves))

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and self.identity == other.identity


def _value(leaf: Any) -> Any:
    """Something that is equal if the leaf is."""
    if not eqx.is_array(leaf) and not isinstance(leaf, np.ndarray):
        return leaf
    array = np.asarray(leaf)
    return array.shape, array.dtype, array.tobytes()


@functools.partial(jax.jit, static_argnums=0)
def _values(known: _Known, systems: Any, potential: Potential) -> list[Array]:
    return [jnp.asarray(part(systems, potential)) for part in with_named(known.parts, systems)]


def evaluate(observed: Together, states: Mapping[str, Equilibrium]) -> dict[str, np.ndarray]:
    """The observables' values by name; NaN where they have none.

    Raises:
        InputError: an observable that does not fit the structures.
    """
    potential = next(iter(states.values())).potential
    plain, numbered = nameless(observed, states)
    # What observables refer to differs from one potential to the next, unlike what compiled code knows of them.
    members, numbered = named_references(plain.members, numbered, potential)
    systems = {name: eq.system for name, eq in numbered.items()}
    found = _values(_Known(members), systems, potential)
    return {name: np.asarray(value) for name, value in zip(observed.names, found, strict=True)}


def rounding(observed: Together, states: Mapping[str, Equilibrium]) -> Float[np.ndarray, " values"]:
    """How much of a change of each of the observables' numbers is nothing but rounding."""

    def value(systems: dict[str, System]) -> np.ndarray:
        return flat(evaluate(observed, {name: eqx.tree_at(lambda e: e.system, states[name], systems[name]) for name in states}))

    return rounding_of(value, {name: eq.system for name, eq in states.items()})


def differentiate(
    observed: Together, states: Mapping[str, Equilibrium], selection: Selection
) -> tuple[dict[str, np.ndarray], Float[np.ndarray, "values chosen"]]:
    """`(values by name, total derivative of all of them, one row a number)`."""
    check_index(observed, states)
    values = evaluate(observed, states)
    _, jacobian = value_and_jacobian(*nameless(observed, states))
    return values, selection.columns(jacobian, sum(value.size for value in values.values()))


def units_of(
    potential: Potential, names: Iterable[str], observed: Together | None, systems: Mapping[str, System]
) -> dict[str, dict[str, Any]]:
    """Units of parameters and observables by name, as files have them, where they are known."""
    parts = {} if observed is None else observed.parts
    return {
        "parameters": {name: potential.unit_of(name.partition("[")[0]) for name in names},
        "observables": {name: found for name, part in parts.items() if (found := _unit_of(part, systems)) is not None},
    }


def _unit_of(observable: Any, systems: Mapping[str, System]) -> str | list[str] | None:
    """Of an observable of the catalogue, inside whatever it is wrapped in."""
    components, sheet = None, None
    structure = getattr(observable, "structures", None)
    system = systems[structure] if isinstance(structure, str) and structure in systems else next(iter(systems.values()))
    while not isinstance(observable, type) and (inner := _inside(observable)) is not None:
        sheet = getattr(observable, "keywords", {}).get("sheet", sheet)
        components, observable = getattr(observable, "indices", components), inner
    name = getattr(observable, "__name__", type(observable).__name__)
    known = getattr(catalogue, name, None)
    return (
        unit_of_observable(name, system.dim, components, sheet=is_sheet(system, sheet))
        if known is not None and any(known is one for one in (observable, type(observable)))
        else None
    )


def _inside(observable: Any) -> Any:
    return getattr(observable, "observable", getattr(observable, "func", None))


def flat(values: Mapping[str, np.ndarray]) -> Float[np.ndarray, " values"]:
    """Values by name as one vector, in the order of `Together`."""
    return np.concatenate([np.ravel(value) for value in values.values()])


def split(rows: Float[np.ndarray, "values ..."], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What stands behind each number of a vector, by name, in the values' shapes."""
    ends = np.cumsum([value.size for value in values.values()])
    parts = np.split(rows, ends[:-1])
    return {
        name: part.reshape((*value.shape, *rows.shape[1:])) for (name, value), part in zip(values.items(), parts, strict=True)
    }


def structures_of(named: Mapping[str, Any]) -> dict[str, System]:
    """Return the structures of structures or equilibria by name."""
    return {name: one.system if isinstance(one, Equilibrium) else one for name, one in named.items()}


def relax_all(systems: Mapping[str, Any], potential: Potential, options: Mapping[str, Any]) -> dict[str, Equilibrium]:
    """Each structure relaxed, an equilibrium under its own conditions; options are those of `relax`, or by structures' names."""
    each = options_of(systems, options)
    return {
        name: _again(one, potential, each[name])
        if isinstance(one, Equilibrium)
        else relax(one, potential, **{"progress": False, **each[name]})
        for name, one in systems.items()
    }


def relax_again(states: Mapping[str, Equilibrium], potential: Potential, options: Mapping[str, Any]) -> dict[str, Equilibrium]:
    """Each equilibrium relaxed with another potential, from where it is."""
    each = options_of(states, options)
    return {name: _again(eq, potential, each[name]) for name, eq in states.items()}


def _again(eq: Equilibrium, potential: Potential, options: Mapping[str, Any]) -> Equilibrium:
    """Saddle points are searched for, and know fewer options than `relax`."""
    kept = {key: value for key, value in options.items() if not eq.index or key in OF_SADDLES}
    return eq.again(potential, **{"progress": False, **kept})


def options_of(systems: Mapping[str, Any], options: Mapping[str, Any] | None) -> dict[str, dict[Any, Any]]:
    """Options of `relax` for each structure.

    Raises:
        InputError: options by name for a structure that is not there.
    """
    options = dict(options or {})
    if options and all(isinstance(value, Mapping) for value in options.values()):
        if missing := set(options) - set(systems):
            raise InputError(f"Options of relax are given for a structure {min(missing)!r} that is not among {tuple(systems)}.")
        return {name: dict(options.get(name, {})) for name in systems}
    return dict.fromkeys(systems, options)
