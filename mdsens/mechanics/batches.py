"""Programs of a potential for many structures of one shape, one after the other in one call.

One after the other, each structure stays in the cache of a core. Structures are filled up to few shapes, each by its own size, so
that what is computed for one depends on no other, bit for bit.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from mdsens.common.modules import with_fields
from mdsens.mechanics.programs import Slopes, fill, traced_slopes
from mdsens.potentials.base import Potential, sound_stiffness
from mdsens.potentials.forms.stored_stiffness import LocalStiffness
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.neighbors.search import Pairs, places_of
from mdsens.structures.system import System

PLACES = 32
"""Structures in one call, at most."""

LEAST_SHAPE, LEAST_CAPACITY = 8, 4
"""The smallest numbers of atoms, and of places for neighbours, to which structures are filled up."""


class Shaped(NamedTuple):
    """A structure filled up to one of few shapes, as arrays of NumPy.

    Attributes:
        leaves: its arrays, the first the positions, the second the cell if it has one.
        structure: the tree that they are leaves of.
        size: atoms that it has itself.
    """

    leaves: tuple[np.ndarray, ...]
    structure: Any
    size: int

    @property
    def key(self) -> Any:
        """What structures share that fit into one call."""
        return self.structure, tuple((leaf.shape, leaf.dtype.str) for leaf in self.leaves)

    @property
    def neighbors(self) -> Neighbors:
        """The list between the structure's own atoms, with as many places as it was filled up to."""
        whole = jax.tree.unflatten(self.structure, self.leaves).neighbors
        return _cut_list(whole, self.size)

    def at(self, positions: np.ndarray, cell: np.ndarray | None) -> "Shaped":
        """Return the structure with other positions and cell, and the same list."""
        moved = np.zeros_like(self.leaves[0])
        moved[: self.size] = positions
        leaves = (moved, *self.leaves[1:]) if cell is None else (moved, cell, *self.leaves[2:])
        return self._replace(leaves=leaves)


def _cut_list(neighbors: Neighbors, n: int) -> Neighbors:
    atom, kind, opposite = (np.asarray(part) for part in (neighbors.atom, neighbors.kind, neighbors.opposite))
    # Opposite places count in rows of all atoms.
    width = opposite.shape[1]
    opposite = np.where(opposite >= 0, opposite // width * n + opposite % width, -1).astype(opposite.dtype)
    parts = {"atom": atom[:, :n], "kind": kind[:, :n], "opposite": opposite[:, :n], "reference": neighbors.reference[:n]}
    return with_fields(
        neighbors, **parts, shorter=tuple(other and _cut_list(other, n) for other in neighbors.shorter), count=None
    )


class Question(NamedTuple):
    """What is asked of a program: its name in `PROGRAMS`, the structure, and the potential."""

    program: str
    shaped: Shaped
    potential: Potential

    @property
    def key(self) -> Any:
        """What questions share that one call answers."""
        return self.program, *self.shaped.key, jax.tree.structure(self.potential)


def shaped(system: System) -> Shaped:
    """Return a structure that has a list of neighbours, filled up."""
    n, neighbors = len(system), system.neighbors
    assert isinstance(neighbors, Neighbors)
    whole = fill(with_fields(system, neighbors=neighbors), rounded(n, LEAST_SHAPE))
    leaves, structure = jax.tree.flatten(whole)
    return Shaped(tuple(np.asarray(leaf) for leaf in leaves), structure, n)


def shaped_by_pairs(like: Shaped | None, system: Any, pairs: Pairs, *, radius: float, skin: float) -> Shaped:
    """Return what `shaped` does for a structure with the list of some pairs.

    Args:
        like: the same structure with another list, of which all else is taken; None for the first.
    """
    n = len(system.positions)
    capacity = rounded(int(np.bincount(pairs.i, minlength=n).max(initial=0)), LEAST_CAPACITY)
    width = rounded(n, LEAST_SHAPE)
    lengths = (np.asarray(radius), np.asarray(skin))
    reference = np.zeros((width, system.positions.shape[1]))
    reference[:n] = system.positions
    arrays: list[Any] = [*places_of(*pairs[:3], width, capacity), reference, *lengths]
    if like is None:
        neighbors = with_fields(Neighbors(*arrays, np.asarray(0)), count=np.asarray(n))  # type: ignore[call-arg]
        whole = fill(with_fields(system, neighbors=None), width)
        leaves, structure = jax.tree.flatten(with_fields(whole, neighbors=neighbors))
        return Shaped(tuple(np.asarray(leaf) for leaf in leaves), structure, n)
    # All leaves in front are the system's own, and two behind are the list's counts.
    moved = like.at(system.positions, system.cell).leaves
    own = len(moved) - len(arrays) - 2
    return like._replace(leaves=(*moved[:own], *arrays, *moved[-2:]))


def cheap_reach(pairs: Pairs, n: int, least: float, most: float) -> float:
    """Return the largest reach, of at most `most`, that takes no more places in a shape than `least` does."""
    capacity = rounded(int(np.bincount(pairs.i[pairs.distance < least], minlength=n).max(initial=0)), LEAST_CAPACITY)
    counts = np.bincount(pairs.i, minlength=n)
    order = np.lexsort((pairs.distance, pairs.i))
    crowded = np.flatnonzero(counts > capacity)
    starts = np.cumsum(counts) - counts
    return float(min(pairs.distance[order[starts[crowded] + capacity]].min(initial=most), most))


def rounded(count: int, least: int) -> int:
    """Return the count that one is filled up to: a power of two, or one and a half of it; multiples of eight beyond eight."""
    power = max(least, 1 << (count - 1).bit_length()) if count > 1 else least
    between = 3 * power // 4
    return between if count <= between and between >= least and between % 8 == 0 else power


def answers(questions: Sequence[Question]) -> list[Any]:
    """Return the answers to questions of one key, `PLACES` at most, each for its own atoms, as arrays of NumPy."""
    first = questions[0]
    stacked = [np.empty((PLACES, *leaf.shape), leaf.dtype) for leaf in first.shaped.leaves]
    for k, question in enumerate(questions):
        for places, leaf in zip(stacked, question.shaped.leaves, strict=True):
            places[k] = leaf
    potential: Any = first.potential
    several = any(question.potential is not potential for question in questions)
    if several:
        rows = [question.potential for question in questions]
        rows += [potential] * (PLACES - len(rows))
        potential = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *rows)
    systems = jax.tree.unflatten(first.shaped.structure, stacked)
    results = _run(systems, potential, np.int32(len(questions)), program=first.program, several=several)
    leaves, structure = jax.tree.flatten(results)
    arrays = [np.asarray(leaf) for leaf in leaves]
    program = PROGRAMS[first.program]
    return [
        program.cut(jax.tree.unflatten(structure, [array[k] for array in arrays]), question.shaped.size)
        for k, question in enumerate(questions)
    ]


@functools.partial(jax.jit, static_argnames=("program", "several"))
def _run(systems: System, potential: Potential, count: Any, *, program: str, several: bool) -> Any:
    # Traced once, though its results are asked for twice.
    function = jax.jit(PROGRAMS[program].function)

    def of(k: Any) -> tuple[System, Potential]:
        take = lambda leaf: leaf[k]  # noqa: E731
        return jax.tree.map(take, systems), jax.tree.map(take, potential) if several else potential

    shapes = jax.eval_shape(lambda: function(*of(0)))
    nothing = jax.tree.map(lambda shape: jnp.zeros((PLACES, *shape.shape), shape.dtype), shapes)

    def step(k: Any, results: Any) -> Any:
        return jax.tree.map(lambda rows, row: rows.at[k].set(row), results, function(*of(k)))

    return jax.lax.fori_loop(0, count, step, nothing)


class Program(NamedTuple):
    """A function of a structure and a potential, and how its results are cut to the atoms that a structure has."""

    function: Callable[[System, Potential], Any]
    cut: Callable[[Any, int], Any]


def _cut_slopes(slopes: Slopes, n: int) -> Slopes:
    return slopes._replace(positions=slopes.positions[..., :n, :])


def _cut_stiffness(stored: LocalStiffness, n: int) -> LocalStiffness:
    return jax.tree.map(lambda leaf: leaf[..., :n], stored)  # type: ignore[no-any-return]


def _slopes_by_parameters(system: System, potential: Potential, *, deforms: bool) -> Slopes:
    flat, unravel = ravel_pytree(potential)
    slopes = lambda direction: jax.jvp(  # noqa: E731
        lambda theta: traced_slopes(system, theta, deforms=deforms), (potential,), (unravel(direction),)
    )[1]
    return jax.vmap(slopes)(jnp.eye(flat.size, dtype=flat.dtype))  # type: ignore[no-any-return]


PROGRAMS = {
    "slopes": Program(functools.partial(traced_slopes, deforms=False), _cut_slopes),
    "slopes and stress": Program(functools.partial(traced_slopes, deforms=True), _cut_slopes),
    "second derivatives": Program(lambda system, potential: sound_stiffness(potential, system), _cut_stiffness),
    "slopes by parameters": Program(functools.partial(_slopes_by_parameters, deforms=False), _cut_slopes),
    "slopes and stress by parameters": Program(functools.partial(_slopes_by_parameters, deforms=True), _cut_slopes),
}
"""The programs by name."""
