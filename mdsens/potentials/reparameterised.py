"""`Reparameterised`: another potential's parameters fixed, tied to each other, or seen through a logarithm or a ratio."""

from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.potentials.base import Approximation, Potential, built, parameter_paths
from mdsens.potentials.parameter_names import named_leaves
from mdsens.structures.system import System, is_concrete

ALONE, TOGETHER = ("fixed", "log"), ("tied", "ratio")
"""Rules of one parameter, and those that name another one."""

Rule = str | tuple[str, str]


class Constants:
    """Arrays by path that are no parameters: equal if their values are, so that they can be static."""

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
        """The variables by their parameters' names."""
        return {name: value for name, value in self._variables().items() if value is not None}

    def _variables(self) -> dict[str, Any]:
        return self.__dict__["free"].parameters() if "free" in self.__dict__ else {}

    @property
    def inner(self) -> Potential:
        """The potential with its own parameters. Pure JAX."""
        paths, variables, structure = _opened(self.free)
        rules = {path: (rule, other) for path, rule, other in self.rules}
        values: dict[str, Any] = {}
        # Those of others come last.
        for path in sorted(paths, key=lambda path: rules.get(path, ("", ""))[1] != ""):
            rule, other = rules.get(path, ("", ""))
            variable = variables[path]
            if rule == "fixed":
                variable = jnp.asarray(self.held.values[path], self.dtype)
            elif rule == "log":
                variable = jnp.exp(variable)
            elif rule == "tied":
                variable = values[other]
            elif rule == "ratio":
                variable = variable * values[other]
            values[path] = variable
        return jax.tree.unflatten(structure, [values[path] for path in paths])

    # The potential's own.

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
        found = self.inner.approximation(system)
        if found is None:
            return None
        (mixed,) = jax.vjp(lambda potential: potential.inner, self)[1](found.mixed)
        return found._replace(mixed=jax.tree.map(jnp.abs, mixed))

    def check(self, system: System) -> None:
        self.inner.check(system)

    def find_neighbors(self, system: System, *, skin: float | None = None) -> Any:
        return self.inner.find_neighbors(system, skin=skin)

    def prepared(self, system: System) -> System:
        return self.inner.prepared(system)

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        return self.inner.atom_energies(system)

    def total(self, system: System) -> Float[Array, ""]:
        return self.inner.total(system)

    def local_stiffness(self, system: System) -> Any:
        return self.inner.local_stiffness(system)

    def check_strain(self, system: System) -> None:
        self.inner.check_strain(system)

    # Names and files.

    def astype(self, dtype: Any) -> "Reparameterised":
        held = Constants({path: value.astype(dtype) for path, value in self.held.values.items()})
        return Reparameterised(self.free.astype(dtype), self.rules, held)

    def path_name(self, path: Any) -> str:
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
        flat = dict(_flattened(values))
        own = dict(flat)
        for path, rule, other in sorted(settings["rules"], key=lambda rule: rule[2] != ""):
            if rule == "log":
                own[path] = np.exp(flat[path])
            elif rule in TOGETHER:
                own[path] = own[other] * (flat[path] if rule == "ratio" else 1.0)
        (term,) = settings["terms"]
        inner = known[term["class"]].from_stored(_nested(own), term["static"], known)
        rules = {path: (rule, other) if other else rule for path, rule, other in settings["rules"]}
        again = reparameterised(inner, rules)
        # The variables themselves, not what rounding makes of there and back.
        leaves = [jnp.asarray(flat[path]) for path in parameter_paths(again)]
        return jax.tree.unflatten(jax.tree.structure(again), leaves)


@suggest_names
def reparameterised(potential: Potential, rules: Mapping[str, Rule]) -> Reparameterised:
    """The same potential in other variables, which is what all derivatives are then in.

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
        known = {path: (rule, other) for path, rule, other in potential.rules}
        inner = potential.inner
    paths, values, structure = _opened(inner)
    known |= _expanded(inner, rules, values)
    for path, (rule, other) in known.items():
        _check_rule(path, rule, other, known, values)
    values |= {path: values[other] for path, (rule, other) in known.items() if rule == "tied"}
    held = {path: np.asarray(values[path]) for path, (rule, _) in known.items() if rule == "fixed"}
    variables = {path: _variable(path, known.get(path, ("", "")), values) for path in paths}
    free = jax.tree.unflatten(structure, [variables[path] for path in paths])
    ordered = tuple((path, *known[path]) for path in paths if path in known)
    return Reparameterised(built(free, jax.tree.unflatten(structure, [values[path] for path in paths])), ordered, Constants(held))


@suggest_names
def fixed(potential: Potential, *names: str) -> Reparameterised:
    """The same potential with some parameters that are none any more: `fixed(potential, "a", "epsilon.A-B")`.

    Raises:
        InputError: a name that does not exist.
    """
    return reparameterised(potential, dict.fromkeys(names, "fixed"))


@suggest_names
def tied(potential: Potential, ties: Mapping[str, str]) -> Reparameterised:
    """The same potential with parameters that take the value of another one: `tied(potential, {"sigma.B-B": "sigma.A-A"})`.

    Raises:
        InputError: a name that does not exist, parameters of different shapes, a parameter tied to one that is tied itself.
    """
    return reparameterised(potential, {name: ("tied", other) for name, other in ties.items()})


def own_sizes(potential: Potential) -> Potential:
    """What counts as a change of each parameter by its own size, potential-shaped (leaves of None stay so) [host].

    That is |θ|, and for zeros the largest of their array or 1; for logarithms 1, which changes what they are of by its size.
    """
    inside = lambda node: isinstance(node, Potential) and node is not potential  # noqa: E731
    if not isinstance(potential, Reparameterised):
        return jax.tree.map(lambda part: own_sizes(part) if inside(part) else _own_size(part), potential, is_leaf=inside)
    (paths, sizes, structure), logs = (
        _opened(own_sizes(potential.free)),
        [path for path, rule, _ in potential.rules if rule == "log"],
    )
    leaves = [np.ones(np.shape(sizes[path])) if path in logs and sizes[path] is not None else sizes[path] for path in paths]
    return eqx.tree_at(lambda p: p.free, potential, jax.tree.unflatten(structure, leaves))


def _own_size(theta: Any) -> np.ndarray:
    size = np.abs(np.asarray(theta))
    return np.where(size == 0.0, size.max(initial=0.0) or 1.0, size)


def _opened(tree: Potential) -> tuple[list[str], dict[str, Any], Any]:
    """`(paths, leaves by path, structure)`, None being a leaf."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)
    paths = parameter_paths(jax.tree.unflatten(structure, list(range(len(leaves)))))
    return paths, dict(zip(paths, leaves, strict=True)), structure


def _expanded(potential: Potential, rules: Mapping[str, Any], values: Any) -> dict[str, tuple[str, str]]:
    """`(rule, other path)` of each leaf that the rules name."""
    found: dict[str, tuple[str, str]] = {}
    for name, given in rules.items():
        rule, other = given if isinstance(given, tuple) and len(given) == 2 else (given, "")
        if rule not in (*ALONE, *TOGETHER) or (rule in TOGETHER) != bool(other):
            raise InputError(f'The rule {given!r} of {name} is none of "fixed", "log", ("tied", path) and ("ratio", path).')
        leaves = [path for path, meant in zip(values, named_leaves(potential, [name]), strict=True) if meant]
        if other and sum(named_leaves(potential, [other])) != 1:
            raise InputError(f"{name} can follow one parameter, but {other!r} means several: give the path of one.")
        found |= {path: (rule, other) for path in leaves if path != other}
    return found


def _check_rule(path: str, rule: str, other: str, rules: Mapping[str, tuple[str, str]], values: Mapping[str, Any]) -> None:
    if rule == "log" and not (np.asarray(values[path]) > 0.0).all():
        raise InputError(f"{path} is {np.asarray(values[path])!s:.40}, and only a positive number has a logarithm.")
    if not other:
        return
    if other in rules and rules[other][0] in TOGETHER:
        raise InputError(f"{path} cannot follow {other}, which follows {rules[other][1]}: let both follow that one.")
    if np.shape(values[path]) != np.shape(values[other]):
        raise InputError(f"{path} and {other} have different shapes, {np.shape(values[path])} and {np.shape(values[other])}.")
    if rule == "ratio" and not (np.asarray(values[other]) != 0.0).all():
        raise InputError(f"{path} has no ratio to {other}, which is zero.")


def _variable(path: str, rule: tuple[str, str], values: Any) -> Any:
    kind, other = rule
    if kind in ("fixed", "tied"):
        return None
    if kind == "log":
        return jnp.log(values[path])
    return values[path] / values[other] if kind == "ratio" else values[path]


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        yield from _flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree
