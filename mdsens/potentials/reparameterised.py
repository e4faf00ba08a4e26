"""`Reparameterised`: a potential whose parameters are fixed, tied to each other, or seen through a logarithm or a ratio."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.potentials.base import Approximation, Potential, parameter_paths, with_built_range
from mdsens.potentials.forms.stored_stiffness import LocalStiffness
from mdsens.potentials.parameter_names import named_leaves
from mdsens.potentials.parameters import nest
from mdsens.structures.neighbors.preparation import Preparation
from mdsens.structures.system import System, is_concrete

SINGLE_RULES, PAIR_RULES = ("fixed", "log"), ("tied", "ratio")
"""Rules of one parameter, and rules that name another one."""

Rule = str | tuple[str, str]


class _Rule(NamedTuple):
    """The rule of a parameter (`""` for none), and the path of the other parameter that it names."""

    kind: str = ""
    other: str = ""


class Constants:
    """Arrays by path that are no parameters, equal where their values are, so that they can be static."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = values
        self._key = tuple((path, value.shape, value.dtype.str, value.tobytes()) for path, value in sorted(values.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constants) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class Reparameterised(Potential):
    """A potential whose leaves are fewer or other variables than its parameters; built by `reparameterised`.

    Args:
        free: the potential's own tree with a variable in place of each parameter, None where there is none.
        rules: `((path, rule, other path), ...)`, static.
        held: the values of fixed parameters, static.

    The variables read by their parameters' names: `potential.epsilon` is what `S.positions.epsilon` is the derivative in, ln ε
    under the rule `"log"`. `potential.inner` is the potential itself, with ε.
    """

    free: Potential
    rules: tuple[tuple[str, str, str], ...] = eqx.field(static=True)
    held: Constants = eqx.field(static=True, repr=False)

    def __getattr__(self, name: str) -> Any:
        # Reached only where there is no such field.
        variables = self._variables()
        return variables[name] if name in variables else super().__getattr__(name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._variables()]

    def parameters(self) -> dict[str, Any]:
        """Return the variables by their parameters' names."""
        return {name: value for name, value in self._variables().items() if value is not None}

    def _variables(self) -> dict[str, Any]:
        return self.__dict__["free"].parameters() if "free" in self.__dict__ else {}

    @property
    def inner(self) -> Potential:
        """The potential with its own parameters. Pure JAX."""
        paths, variables, structure = _open(self.free)
        rules = {path: _Rule(kind, other) for path, kind, other in self.rules}
        values: dict[str, Any] = {}
        # Parameters that follow others come last.
        for path in sorted(paths, key=lambda path: rules.get(path, _Rule()).other != ""):
            rule, value = rules.get(path, _Rule()), variables[path]
            if rule.kind == "fixed":
                value = jnp.asarray(self.held.values[path], self.dtype)
            elif rule.kind == "log":
                value = jnp.exp(value)
            elif rule.kind == "tied":
                value = values[rule.other]
            elif rule.kind == "ratio":
                value = value * values[rule.other]
            values[path] = value
        return jax.tree.unflatten(structure, [values[path] for path in paths])

    # What the potential itself says.

    @property
    def range(self) -> Float[Array, ""]:
        return self.inner.range

    @property
    def ranges(self) -> Float[Array, "*terms"]:
        return self.inner.ranges

    @property
    def smoothness(self) -> float:
        return self.inner.smoothness

    def parts(self) -> tuple[Potential, ...]:
        return self.inner.parts()

    def approximation(self, system: System) -> Approximation | None:
        errors = self.inner.approximation(system)
        if errors is None:
            return None
        (mixed,) = jax.vjp(lambda potential: potential.inner, self)[1](errors.mixed)
        return errors._replace(mixed=jax.tree.map(jnp.abs, mixed))

    def check(self, system: System) -> None:
        self.inner.check(system)

    def find_neighbors(self, system: System, *, skin: float | None = None) -> Preparation:
        return self.inner.find_neighbors(system, skin=skin)

    def prepared(self, system: System) -> System:
        return self.inner.prepared(system)

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        return self.inner.atom_energies(system)

    def total(self, system: System) -> Float[Array, ""]:
        return self.inner.total(system)

    def local_stiffness(self, system: System) -> LocalStiffness:
        return self.inner.local_stiffness(system)

    def check_strain(self, system: System) -> None:
        self.inner.check_strain(system)

    # Names and files.

    def astype(self, dtype: Any) -> "Reparameterised":
        held = Constants({path: value.astype(dtype) for path, value in self.held.values.items()})
        return Reparameterised(self.free.astype(dtype), self.rules, held)

    def path_name(self, path: Sequence[Any]) -> str:
        return self.free.path_name(path[1:])

    def unit_of(self, name: str) -> str | None:
        rule = {path: rule for path, rule, _ in self.rules}.get(name)
        return "" if rule in ("log", "ratio") else self.free.unit_of(name)

    @property
    def stored_constants(self) -> dict[str, np.ndarray]:
        return {**self.free.stored_constants, **self.held.values}

    def stored_settings(self) -> dict[str, Any]:
        inner = {"class": type(self.free).__name__, "static": self.free.stored_settings()}
        return {"rules": [list(rule) for rule in self.rules], "terms": [inner]}

    @classmethod
    def from_stored(cls, values: dict[str, Any], settings: dict[str, Any], known: dict[str, type[Potential]]) -> Potential:
        flat = {".".join(key.key for key in path): value for path, value in jax.tree_util.tree_leaves_with_path(values)}
        own = dict(flat)
        for path, rule, other in sorted(settings["rules"], key=lambda rule: rule[2] != ""):
            if rule == "log":
                own[path] = np.exp(flat[path])
            elif rule in PAIR_RULES:
                own[path] = own[other] * (flat[path] if rule == "ratio" else 1.0)
        (term,) = settings["terms"]
        inner = known[term["class"]].from_stored(nest(own), term["static"], known)
        rules = {path: (rule, other) if other else rule for path, rule, other in settings["rules"]}
        again = reparameterised(inner, rules)
        # The variables themselves, not what rounding makes of there and back.
        leaves = [jnp.asarray(flat[path]) for path in parameter_paths(again)]
        return jax.tree.unflatten(jax.tree.structure(again), leaves)


@suggest_names
def reparameterised(potential: Potential, rules: Mapping[str, Rule]) -> Reparameterised:
    """Return a potential in other variables, which all its derivatives are then taken in.

    `ms.reparameterised(potential, {"epsilon": "log", "sigma.B-B": ("tied", "sigma.A-A")})`

    Args:
        potential: with concrete parameters; one that was reparameterised before keeps its rules where no new one is given.
        rules: by name or path, for each parameter that is not a variable itself:
            `"fixed"`: it keeps its value, and costs nothing;
            `"log"`: the variable is its logarithm, so that dX/d ln ε = ε dX/dε;
            `("tied", path)`: it has the value of another parameter, whose derivative counts both;
            `("ratio", path)`: the variable is its ratio to another parameter, and follows that one.

    Returns:
        a potential whose leaves are the variables that are left; `fixed` and `tied` are short for two of the rules.

    Raises:
        InputError: a name or rule that does not exist, a logarithm of what is not positive, a ratio to zero, parameters of
            different shapes, a parameter that depends on one which depends on another.
    """
    if not isinstance(potential, Potential) or not is_concrete(potential):
        raise InputError("reparameterised wants a potential with concrete parameters: build it outside jit and grad.")
    known, inner = {}, potential
    if isinstance(potential, Reparameterised):
        known = {path: _Rule(kind, other) for path, kind, other in potential.rules}
        inner = potential.inner
    paths, values, structure = _open(inner)
    known |= _rules_by_path(inner, rules, values)
    for path in known:
        _check_rule(path, known, values)
    values |= {path: values[rule.other] for path, rule in known.items() if rule.kind == "tied"}
    held = {path: np.asarray(values[path]) for path, rule in known.items() if rule.kind == "fixed"}
    free = jax.tree.unflatten(structure, [_variable(path, known.get(path, _Rule()), values) for path in paths])
    whole = jax.tree.unflatten(structure, [values[path] for path in paths])
    return Reparameterised(
        with_built_range(free, whole), tuple((path, *known[path]) for path in paths if path in known), Constants(held)
    )


@suggest_names
def fixed(potential: Potential, *names: str) -> Reparameterised:
    """Return a potential in which some parameters are constants: `ms.fixed(potential, "a", "epsilon.A-B")`.

    Raises:
        InputError: a name that does not exist.
    """
    return reparameterised(potential, dict.fromkeys(names, "fixed"))


@suggest_names
def tied(potential: Potential, ties: Mapping[str, str]) -> Reparameterised:
    """Return a potential in which parameters have the value of another: `ms.tied(potential, {"sigma.B-B": "sigma.A-A"})`.

    Raises:
        InputError: a name that does not exist, parameters of different shapes, a parameter tied to one that is tied itself.
    """
    return reparameterised(potential, {name: ("tied", other) for name, other in ties.items()})


def own_sizes(potential: Potential) -> Potential:
    """Return the change of each parameter that is as large as the parameter, potential-shaped (leaves of None stay so) [host].

    That is |θ|, and for a zero the largest of its array or 1; for a logarithm 1, which changes its argument by its own size.
    """
    inside = lambda node: isinstance(node, Potential) and node is not potential  # noqa: E731
    if not isinstance(potential, Reparameterised):
        return jax.tree.map(lambda part: own_sizes(part) if inside(part) else _own_size(part), potential, is_leaf=inside)
    paths, sizes, structure = _open(own_sizes(potential.free))
    logs = [path for path, rule, _ in potential.rules if rule == "log"]
    leaves = [np.ones(np.shape(sizes[path])) if path in logs and sizes[path] is not None else sizes[path] for path in paths]
    return eqx.tree_at(lambda p: p.free, potential, jax.tree.unflatten(structure, leaves))


def _own_size(theta: Any) -> np.ndarray:
    size = np.abs(np.asarray(theta))
    return np.where(size == 0.0, size.max(initial=0.0) or 1.0, size)


def _open(tree: Potential) -> tuple[list[str], dict[str, Any], Any]:
    """Return `(paths, leaves by path, structure)` of a potential, None being a leaf."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)
    paths = parameter_paths(jax.tree.unflatten(structure, list(range(len(leaves)))))
    return paths, dict(zip(paths, leaves, strict=True)), structure


def _rules_by_path(potential: Potential, rules: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, _Rule]:
    """Return the rule of each leaf that a name or path in `rules` means."""
    result: dict[str, _Rule] = {}
    for name, rule in rules.items():
        kind, other = rule if isinstance(rule, tuple) and len(rule) == 2 else (rule, "")
        if kind not in (*SINGLE_RULES, *PAIR_RULES) or (kind in PAIR_RULES) != bool(other):
            raise InputError(f'The rule {rule!r} of {name} is none of "fixed", "log", ("tied", path) and ("ratio", path).')
        leaves = [path for path, meant in zip(values, named_leaves(potential, [name]), strict=True) if meant]
        if other and sum(named_leaves(potential, [other])) != 1:
            raise InputError(f"{name} can follow one parameter, but {other!r} means several: give the path of one.")
        result |= {path: _Rule(kind, other) for path in leaves if path != other}
    return result


def _check_rule(path: str, rules: Mapping[str, _Rule], values: Mapping[str, Any]) -> None:
    kind, other = rules[path]
    if kind == "log" and not (np.asarray(values[path]) > 0.0).all():
        raise InputError(f"{path} is {np.asarray(values[path])!s:.40}, and only a positive number has a logarithm.")
    if not other:
        return
    if other in rules and rules[other].kind in PAIR_RULES:
        raise InputError(f"{path} cannot follow {other}, which follows {rules[other].other}: let both follow that one.")
    if np.shape(values[path]) != np.shape(values[other]):
        raise InputError(f"{path} and {other} have different shapes, {np.shape(values[path])} and {np.shape(values[other])}.")
    if kind == "ratio" and not (np.asarray(values[other]) != 0.0).all():
        raise InputError(f"{path} has no ratio to {other}, which is zero.")


def _variable(path: str, rule: _Rule, values: Mapping[str, Any]) -> Array | None:
    if rule.kind in ("fixed", "tied"):
        return None
    if rule.kind == "log":
        return jnp.log(values[path])
    return values[path] / values[rule.other] if rule.kind == "ratio" else values[path]
