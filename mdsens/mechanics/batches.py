"""Programs of a potential for many structures of one shape, one after the other in one call.

One after the other, each structure stays in the cache of a core. Structures are filled up to few shapes, each by its own size, so
that what is computed for one depends on no other, bit for bit.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

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


Function = Callable[..., Any]
"""A function of a system and a potential, and of further arrays."""


class Shaped:
    """A structure filled up to one of few shapes, as arrays of NumPy.

    Attributes:
        leaves: its arrays, the first the positions, the second the cell if it has one.
        structure: the tree that they are leaves of.
        size: atoms that it has itself.
        key: what structures share that fit into one call.
    """

    def __init__(self, leaves: tuple[np.ndarray, ...], structure: Any, size: int) -> None:
        self.leaves, self.structure, self.size = leaves, structure, size
        self.key = structure, tuple((leaf.shape, leaf.dtype.str) for leaf in leaves)

    def of(self, system: Any) -> "Shaped":
        """Return the arrays with the atoms and the cell of another structure of the same kind in their place."""
        own = [system.positions, *([] if system.cell is None else [system.cell]), system.species, system.masses, system.frozen]
        leaves = list(self.leaves)
        for k, part in enumerate(map(np.asarray, own)):
            leaves[k] = leaves[k].copy() if part.ndim and len(part) == self.size else part
            if leaves[k] is not part:
                leaves[k][: self.size] = part
        return Shaped(tuple(leaves), self.structure, self.size)

    @property
    def neighbors(self) -> Neighbors:
        """The list between the structure's own atoms, with as many places as it was filled up to."""
        whole = jax.tree.unflatten(self.structure, self.leaves).neighbors
        return _cut_list(whole, self.size)


def _cut_list(neighbors: Neighbors, n: int) -> Neighbors:
    atom, kind, opposite = (np.asarray(part) for part in (neighbors.atom, neighbors.kind, neighbors.opposite))
    # Opposite places count in rows of all atoms.
    width = opposite.shape[1]
    opposite = np.where(opposite >= 0, opposite // width * n + opposite % width, -1).astype(opposite.dtype)
    parts = {"atom": atom[:, :n], "kind": kind[:, :n], "opposite": opposite[:, :n], "reference": neighbors.reference[:n]}
    return with_fields(
        neighbors, **parts, shorter=tuple(other and _cut_list(other, n) for other in neighbors.shorter), count=None
    )


def shaped(system: System) -> Shaped:
    """Return a structure that has a list of neighbours, filled up."""
    n, neighbors = len(system), system.neighbors
    assert isinstance(neighbors, Neighbors)
    whole = fill(with_fields(system, neighbors=neighbors), rounded(n, LEAST_SHAPE))
    leaves, structure = jax.tree.flatten(whole)
    return Shaped(tuple(np.asarray(leaf) for leaf in leaves), structure, n)


def shaped_by_pairs(system: System, pairs: Pairs, *, radius: float, skin: float, spare: int) -> Shaped:
    """Return what `shaped` does for a structure with the list of some pairs.

    Args:
        spare: places for each atom that stay unused, at least.
    """
    n = len(system.positions)
    capacity = rounded(int(np.bincount(pairs.i, minlength=n).max(initial=0)) + spare, LEAST_CAPACITY)
    width = rounded(n, LEAST_SHAPE)
    reference = np.zeros((width, system.positions.shape[1]))
    reference[:n] = system.positions
    arrays: list[Any] = [*places_of(*pairs[:3], width, capacity), reference, np.asarray(radius), np.asarray(skin)]
    neighbors = with_fields(Neighbors(*arrays, np.asarray(0)), count=np.asarray(n))  # type: ignore[call-arg]
    whole = fill(with_fields(system, neighbors=None), width)
    leaves, structure = jax.tree.flatten(with_fields(whole, neighbors=neighbors))
    return Shaped(tuple(np.asarray(leaf) for leaf in leaves), structure, n)


def shaped_together(
    likes: Sequence[Shaped],
    positions: np.ndarray,
    found: Sequence[Pairs],
    reaches: Sequence[float],
    ranges: Sequence[float],
    spare: int,
) -> list[Shaped]:
    """Return what `shaped_by_pairs` does for several structures with equally many atoms, in less time.

    Args:
        likes: the structures with other lists.
        reaches: of their lists.
        ranges: of the interactions.
        spare: places for each atom that stay unused, at least.
    """
    n = positions.shape[1]
    width = rounded(n, LEAST_SHAPE)
    counts = [int(np.bincount(pairs.i, minlength=n).max(initial=0)) for pairs in found]
    results: list[Any] = [None] * len(likes)
    groups: dict[int, list[int]] = {}
    for k, count in enumerate(counts):
        groups.setdefault(rounded(count + spare, LEAST_CAPACITY), []).append(k)
    for capacity, chosen in groups.items():
        sizes = [len(found[k].i) for k in chosen]
        offset = np.repeat(np.arange(len(chosen)) * width, sizes)
        i, j, shift = (np.concatenate([found[k][part] for k in chosen]) for part in range(3))
        atom, kind, images, opposite = places_of(i + offset, j + offset, shift, len(chosen) * width, capacity)
        whole = len(chosen) * width
        opposite = np.where(opposite >= 0, opposite // whole * width + opposite % width, -1).astype(np.int32)
        for row, k in enumerate(chosen):
            part = slice(row * width, (row + 1) * width)
            reference = np.zeros((width, positions.shape[2]))
            reference[:n] = positions[k]
            lengths = (np.asarray(reaches[k]), np.asarray(reaches[k] - ranges[k]))
            arrays = (atom[:, part] - np.int32(row * width), kind[:, part], images, opposite[:, part], reference, *lengths)
            results[k] = _with_list(likes[k], arrays)
    return results


def _with_list(like: Shaped, arrays: Sequence[np.ndarray]) -> Shaped:
    # All leaves in front are the system's own, and two behind are the list's counts.
    own = len(like.leaves) - len(arrays) - 2
    return Shaped((*like.leaves[:own], *arrays, *like.leaves[-2:]), like.structure, like.size)


def cheap_reach(pairs: Pairs, n: int, least: float, most: float, spare: int) -> float:
    """Return the largest reach, of at most `most`, that takes no more places in a shape than `least` does."""
    needed = int(np.bincount(pairs.i[pairs.distance < least], minlength=n).max(initial=0))
    capacity = rounded(needed + spare, LEAST_CAPACITY) - spare
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


def _cut_stacked(neighbors: Neighbors, count: int, n: int) -> Neighbors:
    parts = {name: getattr(neighbors, name)[:count, :, :n] for name in ("atom", "kind", "opposite")}
    shorter = tuple(other and _cut_stacked(other, count, n) for other in neighbors.shorter)
    return with_fields(neighbors, **parts, images=neighbors.images[:count], shorter=shorter)


class Stack:
    """The arrays of several structures of one shape, and their potentials, side by side.

    Attributes:
        members: what it was made of: pairs of a shaped structure and a potential.
        several: whether each has a potential of its own.
    """

    def __init__(self, members: Sequence[tuple[Shaped, Potential]], *, shares: bool) -> None:
        self.members, (first, potential) = list(members), members[0]
        self.leaves = [np.zeros((PLACES, *leaf.shape), leaf.dtype) for leaf in first.leaves]
        for k, (one, _) in enumerate(members):
            for places, leaf in zip(self.leaves, one.leaves, strict=True):
                places[k] = leaf
        self.several = not shares
        self.potential: Any = potential
        if self.several:
            rows = [other for _, other in members] + [potential] * (PLACES - len(members))
            self.potential = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *rows)

    def holds(self, members: Sequence[tuple[Shaped, Potential]]) -> bool:
        """Return whether it was made of just these."""
        return len(members) == len(self.members) and all(
            a[0] is b[0] and a[1] is b[1] for a, b in zip(members, self.members, strict=True)
        )

    def neighbors(self, n: int) -> Neighbors:
        """Return the lists, `(k, capacity, n)`, between the n atoms that structures have; of `opposite` its sign is right."""
        return _cut_stacked(jax.tree.unflatten(self.members[0][0].structure, self.leaves).neighbors, len(self.members), n)

    def results(self, function: Function, positions: np.ndarray, cells: np.ndarray | None = None, *more: Any) -> Any:
        """Return what a function gives for the structures at other places, as arrays of NumPy.

        Args:
            function: of a system, a potential, and one entry of each of `more`; traced, and compared by identity.
            positions: `(k, N, dim)` [Å]; all structures have equally many atoms.
            cells: `(k, dim, dim)` [Å]; None for their own.
            more: arrays `(k, ...)`, or trees of them.
        """
        count, n = positions.shape[:2]
        leaves = [np.zeros_like(self.leaves[0]), *self.leaves[1:]]
        leaves[0][:count, :n] = positions
        if cells is not None:
            leaves[1] = leaves[1].copy()
            leaves[1][:count] = cells
        systems = jax.tree.unflatten(self.members[0][0].structure, leaves)
        rest = jax.tree.map(lambda part: np.pad(part, [(0, PLACES - count)] + [(0, 0)] * (part.ndim - 1)), more)
        results = _run(systems, self.potential, rest, np.int32(count), function=function, several=self.several)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], results)


@functools.partial(jax.jit, static_argnames=("function", "several"))
def _run(systems: System, potential: Potential, more: Any, count: Any, *, function: Function, several: bool) -> Any:
    # Traced once, though its results are asked for twice.
    traced = jax.jit(function)

    def of(k: Any) -> tuple[Any, ...]:
        take = lambda leaf: leaf[k]  # noqa: E731
        return jax.tree.map(take, systems), jax.tree.map(take, potential) if several else potential, *jax.tree.map(take, more)

    shapes = jax.eval_shape(lambda: traced(*of(0)))
    nothing = jax.tree.map(lambda shape: jnp.zeros((PLACES, *shape.shape), shape.dtype), shapes)

    def step(k: Any, results: Any) -> Any:
        return jax.tree.map(lambda rows, row: rows.at[k].set(row), results, traced(*of(k)))

    return jax.lax.fori_loop(0, count, step, nothing)


def slopes(system: System, potential: Potential) -> Slopes:
    """Return the energy with its slopes at a fixed cell."""
    return traced_slopes(system, potential, deforms=False)


def slopes_and_stress(system: System, potential: Potential) -> Slopes:
    """Return the energy with all its slopes."""
    return traced_slopes(system, potential, deforms=True)


def stiffness(system: System, potential: Potential) -> LocalStiffness:
    """Return the stored second derivatives."""
    return sound_stiffness(potential, system)


def slopes_by_parameters(system: System, potential: Potential) -> tuple[Slopes, Slopes]:
    """Return the energy with its slopes at a fixed cell, and their derivatives in all parameters."""
    return _with_derivatives(slopes, system, potential)


def slopes_and_stress_by_parameters(system: System, potential: Potential) -> tuple[Slopes, Slopes]:
    """Return the energy with all its slopes, and their derivatives in all parameters."""
    return _with_derivatives(slopes_and_stress, system, potential)


def _with_derivatives(function: Function, system: System, potential: Potential) -> tuple[Slopes, Slopes]:
    flat, unravel = ravel_pytree(potential)
    along = lambda direction: jax.jvp(  # noqa: E731
        lambda theta: function(system, theta), (potential,), (unravel(direction),)
    )
    value, derivatives = jax.vmap(along, out_axes=(None, 0))(jnp.eye(flat.size, dtype=flat.dtype))
    return value, derivatives
