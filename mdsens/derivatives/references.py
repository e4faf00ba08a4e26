"""Observables that refer to other equilibria, as formation energies do: these are relaxed with the same potential."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.equilibrium.relaxation import FLOAT32_FMAX, Equilibrium
from mdsens.potentials.base import Potential
from mdsens.structures.system import System, is_concrete

SINGLE_STATE = "structure"
"""Name of a structure that comes without one."""

CACHE_SIZE = 16
"""References relaxed again that are remembered, since values and derivatives need the same ones."""


class RelaxedReference(eqx.Module):
    """The structure of a reference, relaxed with the potential of the moment."""

    system: System


class ReferringObservable(eqx.Module):
    """Base class of observables whose value depends on other equilibria beside the structure's.

    A reference is relaxed again, under its own conditions, for each potential. Inside `jit` that is impossible: there another
    potential than the reference's gives NaN, and so do second derivatives, to which its response belongs.
    """

    references: Any

    def __call__(self, system: Any, potential: Potential) -> Array:
        references = self.references
        if not any(isinstance(reference, Equilibrium) for reference in references):
            return self.beside(system, [reference.system for reference in references], potential)
        if is_concrete(system, potential):
            return self.beside(system, [relax_for(reference, potential).system for reference in references], potential)
        value = self.beside(system, [reference.system for reference in references], potential)
        alike = jnp.asarray([_is_same_potential(reference.potential, potential) for reference in references])
        for leaf in jax.tree.leaves(potential):
            value = value + (_zero_without_first(leaf) if any(map(_is_loaded, references)) else _zero_without_second(leaf))
        return jnp.where(jnp.all(alike), value, jnp.nan)

    def beside(self, system: Any, references: list[System], potential: Potential) -> Array:
        """Return the observable of a system and of its references, relaxed with the same potential."""
        raise NotImplementedError


class ObservableWithReferences(eqx.Module):
    """An observable whose references are among the states, by the names that stand in their places.

    Args:
        names: of the references.
        alone: name of the structure, where the observable takes a single one.
    """

    observable: Any
    names: tuple[str, ...] = eqx.field(static=True)
    alone: str | None = eqx.field(static=True)

    def __call__(self, states: Mapping[str, Any], potential: Potential) -> Array:
        filled = with_named(self.observable, states)
        if self.alone is not None:
            return filled(states[self.alone], potential)
        return filled({name: state for name, state in states.items() if name not in self.names}, potential)


def with_references(g: Any, eq: Any, *, order: int = 1) -> tuple[Any, Any]:
    """Return `(g, states)` with the references of g relaxed for the states' potential, and among the states where needed.

    They are not needed for first derivatives of an energy at its minimum, where no load works on the cell.

    Args:
        eq: an equilibrium, or several by name.
        order: of the derivatives.
    """
    references = _references_in(g)
    if not references or not (isinstance(eq, Equilibrium) or (isinstance(eq, Mapping) and eq)):
        return g, eq
    potential = eq.potential if isinstance(eq, Equilibrium) else next(iter(eq.values())).potential
    if order == 1 and not any(map(_is_loaded, references)):
        return _replace_references(g, lambda reference: RelaxedReference(relax_for(reference, potential).system)), eq
    alone = SINGLE_STATE if isinstance(eq, Equilibrium) else None
    own = {SINGLE_STATE: eq} if isinstance(eq, Equilibrium) else dict(eq)
    g, states = named_references(g, own, potential)
    return ObservableWithReferences(g, tuple(name for name in states if name not in own), alone), states


def named_references(g: Any, states: Mapping[str, Any], potential: Potential) -> tuple[Any, dict[str, Any]]:
    """Return `(g, states)` with names in the places of g's references, which join the states, relaxed for the potential."""
    states, names = dict(states), dict[int, str]()
    for reference in _references_in(g):
        if id(reference) not in names:
            names[id(reference)] = f"reference {len(names) + 1} of an observable"
            states[names[id(reference)]] = relax_for(reference, potential)
    return _replace_references(g, lambda reference: names[id(reference)]), states


def with_named(g: Any, systems: Mapping[str, Any]) -> Any:
    """Return g with systems for the names that `named_references` put there."""
    return _replace_references(g, lambda name: RelaxedReference(systems[name]))


def relax_for(reference: Equilibrium, potential: Potential) -> Equilibrium:
    """Relax a reference with another potential under its own conditions; with its own it stays as it is.

    Raises:
        ConvergenceError: it does not relax.
    """
    if _is_same_potential(reference.potential, potential):
        return reference
    leaves, structure = jax.tree.flatten(potential)
    numbers = tuple((np.shape(leaf), np.asarray(leaf).tobytes()) for leaf in leaves)
    return _relax_again(_Key(reference, id(reference)), _Key(potential, numbers, structure))


class _Key:
    """A value that a cache finds again by its key."""

    def __init__(self, value: Any, key: Hashable, structure: Any = None) -> None:
        self.value, self.key, self.structure = value, key, structure

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key and bool(self.structure == other.structure)


@functools.lru_cache(maxsize=CACHE_SIZE)
def _relax_again(reference: _Key, potential: _Key) -> Equilibrium:
    eq: Equilibrium = reference.value
    options: dict[str, Any] = {"progress": False}
    if eq.system.positions.dtype == jnp.float32:
        options["fmax"] = FLOAT32_FMAX
    return eq.again(potential.value, **options)


def _is_referring(node: Any) -> bool:
    return isinstance(node, ReferringObservable)


def _references_in(g: Any) -> list[Equilibrium]:
    """Return the references of an observable, and of those inside it, that no name or structure stands for yet."""
    nodes = [node for node in jax.tree.leaves(g, is_leaf=_is_referring) if _is_referring(node)]
    return [reference for node in nodes for reference in node.references if isinstance(reference, Equilibrium)]


def _replace_references(g: Any, change: Callable[[Any], Any]) -> Any:
    """Return g with each reference changed."""

    def replace(node: Any) -> Any:
        if not _is_referring(node):
            return node
        return eqx.tree_at(lambda n: n.references, node, tuple(map(change, node.references)))

    return jax.tree.map(replace, g, is_leaf=_is_referring)


def _is_loaded(reference: Equilibrium) -> bool:
    """Return whether a load works on the cell, so that the energy is not at its minimum in all that moves."""
    return reference.load is not None and bool(np.any(np.asarray(reference.load) != 0.0))


def _is_same_potential(own: Potential, other: Potential) -> bool | Array:
    if jax.tree.structure(own) != jax.tree.structure(other):  # type: ignore[operator]  # of jax's stubs
        return False
    pairs = list(zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True))
    if is_concrete(own, other):
        return all(np.array_equal(a, b) for a, b in pairs)
    return jnp.all(jnp.stack([jnp.all(jax.lax.stop_gradient(a) == jax.lax.stop_gradient(b)) for a, b in pairs]))


@jax.custom_jvp
def _zero_without_first(x: Array) -> Array:
    """Return zero, with a derivative that is NaN."""
    return jnp.zeros((), x.dtype)


@_zero_without_first.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return jnp.zeros((), primals[0].dtype), jnp.sum(jnp.nan * tangents[0])


@jax.custom_jvp
def _zero_without_second(x: Array) -> Array:
    """Return zero, with a derivative of zero and a second one that is NaN."""
    return jnp.zeros((), x.dtype)


@_zero_without_second.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return jnp.zeros((), primals[0].dtype), _zero_without_first(primals[0]) * jnp.sum(tangents[0])
