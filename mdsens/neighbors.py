"""Neighbour lists: found on the host with vesin, padded with integers for the traced world.

A full list (each pair seen from both sides) with the cell shift of each image, so that triclinic cells, cells smaller
than the cutoff, mixed periodicity and 2-D need nothing special: `d = x[index] - x + shift @ cell`.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from mdsens.errors import CoincidingAtoms, InputError
from mdsens.neighbor_sums import at_neighbors, differences, lattice_vectors
from mdsens.pair_search import pairs_within

SKIN = 0.1
"""Default skin as a share of the interaction range."""

IMAGES = 32
"""Least number of places in a list's table of images: those next to a cell are 27."""

MANY_IMAGES = 1e6
"""In the box around those of a list, which is larger where atoms went far from their cell."""

CACHED = 2**18
"""Numbers of an array up to which all places are treated together; beyond, some at a time, to stay in the cache."""

COINCIDENT = 1e-6
"""Atoms nearer than this share of the interaction range count as coinciding."""


class Neighbors(eqx.Module):
    """All pairs within `radius` at the positions `reference`, `capacity` places an atom.

    Complete for interactions of the given range as long as no atom moved more than half of `radius - range`. Atoms run along
    the last axis, in which order compiled code is fastest; `index`, `shift` and `mask` show the same atom by atom.

    Attributes:
        atom: `(capacity, N)`, the neighbour in each place; the atom itself in unused ones.
        kind: `(capacity, N)`, the periodic image of it, as a column of `images`; 0 in unused places.
        images: `(dim, kinds)`, in cell vectors, the first of them zero.
        opposite: `(capacity, N)`, the place in which the neighbour has this pair, counted in rows of N; -1 in unused places.
        reference: positions for which it was made.
        radius: reach of the list [Å].
        skin: what of it is beyond the interaction's range [Å].
        alive: 0, a number that compilers do not know.
        offset: `(dim, capacity, N)`, added to the vectors from atoms to their neighbours [Å]; None for nothing. What sites'
            energies are differentiated in.
        shorter: lists of the terms of a sum, None for those that use this one; empty without a sum.
    """

    atom: Int[Array, "capacity atoms"]
    kind: Int[Array, "capacity atoms"]
    images: Int[Array, "dim kinds"]
    opposite: Int[Array, "capacity atoms"]
    reference: Float[Array, "atoms dim"]
    radius: Float[Array, ""]
    skin: Float[Array, ""]
    alive: Int[Array, ""]
    offset: Float[Array, "dim capacity atoms"] | None = None
    shorter: "tuple[Neighbors | None, ...]" = ()

    @property
    def used(self) -> Bool[Array, "capacity atoms"]:
        """False in unused places."""
        return self.opposite >= 0

    @property
    def index(self) -> Int[Array, "atoms capacity"]:
        """The neighbours of each atom, itself in unused places."""
        return self.atom.T

    @property
    def shift(self) -> Int[Array, "atoms capacity dim"]:
        """Their periodic images, in cell vectors."""
        return self.images.T[self.kind.T]

    @property
    def mask(self) -> Bool[Array, "atoms capacity"]:
        """False in unused places."""
        return self.used.T

    @property
    def none(self) -> "Neighbors":
        """The same list with all places unused."""
        emptied = eqx.tree_at(lambda n: n.opposite, self, jnp.full_like(self.opposite, -1))
        return emptied.with_shorter(tuple(one and one.none for one in self.shorter))

    def with_shorter(self, shorter: "tuple[Neighbors | None, ...]") -> "Neighbors":
        """The same list with others for the terms of a sum."""
        return eqx.tree_at(lambda n: n.shorter, self, shorter, is_leaf=lambda leaf: isinstance(leaf, tuple))

    def slack(self, interaction_range: Any, stretch: Any = 1.0) -> Float[Array, ""]:
        """What a list reaches beyond the range, if lengths were stretched: the least of all where each term has a range."""
        radii = self.radius
        if jnp.ndim(interaction_range):
            radii = jnp.stack([self.radius if one is None else one.radius for one in self.shorter])
        # Given bonds have no end.
        return jnp.min(jnp.where(jnp.isinf(radii), jnp.inf, radii * stretch - interaction_range))

    def is_stale(self, positions: Float[Array, "atoms dim"], interaction_range: Any) -> Bool[Array, ""]:
        """True where an atom moved so far, in the same cell, that a pair within the range could be missing.

        Works on tracers. Positions that are not finite are not stale but worse, which their energy says.
        """
        room = jnp.maximum(0.5 * self.slack(interaction_range), 0.0)
        moved = jnp.sum((positions - self.reference) ** 2, axis=-1)
        return jnp.max(moved) > room**2

    def reaches(self, interaction_range: Any) -> Bool[Array, ""]:
        """True if the list holds every pair within this range (at its reference positions; works on tracers)."""
        # A range in 32 bits may be rounded up.
        return self.slack(interaction_range, 1.0 + 1e-6) >= 0.0


def widened_like(neighbors: Neighbors, other: Neighbors) -> Neighbors:
    """The same list with at least as many places an atom as another, so that code compiled for it is found again [host]."""
    both = zip(neighbors.shorter, other.shorter, strict=True)
    shorter = tuple(one if one is None or like is None else widened_like(one, like) for one, like in both)
    same = widened(neighbors.with_shorter(shorter) if shorter else neighbors, other.atom.shape[0])
    if (more := other.images.shape[1] - same.images.shape[1]) > 0:
        same = eqx.tree_at(lambda n: n.images, same, jnp.pad(same.images, ((0, 0), (0, more))))
    return same


def widened(neighbors: Neighbors, capacity: int) -> Neighbors:
    """The same list with at least so many places an atom [host]."""
    more = capacity - neighbors.atom.shape[0]
    if more <= 0:
        return neighbors
    n = neighbors.atom.shape[1]
    atom = np.concatenate([neighbors.atom, np.broadcast_to(np.arange(n, dtype=np.int32), (more, n))])
    kind = np.pad(neighbors.kind, ((0, more), (0, 0)))
    opposite = np.pad(neighbors.opposite, ((0, more), (0, 0)), constant_values=-1)
    parts = tuple(map(jnp.asarray, (atom, kind, opposite)))
    return eqx.tree_at(lambda n: (n.atom, n.kind, n.opposite), neighbors, parts)


def padded(neighbors: Neighbors, positions: Any) -> Neighbors:
    """The same list for more atoms, all of them at `positions`, the added ones without neighbours [host]."""
    n, more = neighbors.atom.shape[1], len(positions) - neighbors.atom.shape[1]
    added = np.broadcast_to(np.arange(n, n + more, dtype=np.int32), (neighbors.atom.shape[0], more))
    opposite = np.asarray(neighbors.opposite)
    # They count in rows of all atoms.
    opposite = np.where(opposite >= 0, opposite // n * (n + more) + opposite % n, -1)
    parts = (
        np.concatenate([neighbors.atom, added], axis=1),
        np.pad(neighbors.kind, ((0, 0), (0, more))),
        np.pad(opposite, ((0, 0), (0, more)), constant_values=-1).astype(np.int32),
        positions,
    )
    where = lambda n: (n.atom, n.kind, n.opposite, n.reference)  # noqa: E731
    longer = eqx.tree_at(where, neighbors, tuple(map(jnp.asarray, parts)))
    return longer.with_shorter(tuple(one and padded(one, positions) for one in neighbors.shorter))


def over_places(function: Callable[..., Any], *arrays: Shaped[Array, "*lead capacity atoms"]) -> Any:
    """`function` of some places of all atoms at a time, so that they stay in the cache; results along a new first axis."""
    capacity, n = arrays[0].shape[-2:]
    if capacity * n <= CACHED:
        return jax.tree.map(lambda leaf: leaf[None], function(*arrays))
    places = 8 if capacity % 8 == 0 else 4

    def of_chunk(arguments: tuple[Array, tuple[Array, ...]]) -> Any:
        k, rows = arguments[0], iter(arguments[1])
        # Those of several components would be copied if they were cut beforehand.
        cut = (
            next(rows) if leaf.ndim == 2 else jax.lax.dynamic_slice_in_dim(leaf, k * places, places, axis=leaf.ndim - 2)
            for leaf in arrays
        )
        return function(*cut)

    rows = tuple(leaf.reshape(-1, places, n) for leaf in arrays if leaf.ndim == 2)
    # Evaluated again for a derivative rather than kept.
    return jax.lax.map(jax.checkpoint(of_chunk), (jnp.arange(capacity // places), rows))


def joined(chunks: Shaped[Array, "chunks *lead places atoms"]) -> Shaped[Array, "*lead capacity atoms"]:
    """What `over_places` made of each place, places along one axis again."""
    count, *lead, places, n = chunks.shape
    return jnp.moveaxis(chunks, 0, -3).reshape(*lead, count * places, n)


def bonds(positions: Any, cell: Any, neighbors: Neighbors) -> Float[Array, "dim capacity atoms"]:
    """Vectors from each atom to its listed neighbours [Å]."""
    x = positions.T
    d = at_neighbors(x, neighbors) - jnp.where(neighbors.used, x[:, None, :], 0.0)
    d = d if cell is None else d + lattice_vectors(cell.T, neighbors.kind, neighbors)
    return d if neighbors.offset is None else d + neighbors.offset


def squared_distances(
    components: tuple[Array, ...], cell: Any, neighbors: Neighbors, atom: Array, kind: Array
) -> Float[Array, "places atoms"]:
    """Squares of distances in some places of a list [Å²], in sums over all pairs only (see `neighbor_sums.differences`).

    Args:
        components: of the positions, `(N,)` each.
    """
    columns = [None] * len(components) if cell is None else cell.T

    # One component after another: for all together, compilers would store the vectors.
    def squared(x: Array, column: Array | None) -> Array:
        d = differences(x, atom)
        d = d if column is None else d + lattice_vectors(column, kind, neighbors)
        return d * d

    return functools.reduce(operator.add, map(squared, components, columns))


def displacements(positions: Any, cell: Any, neighbors: Neighbors) -> Float[Array, "atoms capacity dim"]:
    """The same, atom by atom."""
    return bonds(positions, cell, neighbors).T


def find_neighbors(positions: Any, cell: Any, pbc: Any, *, radius: float, skin: float) -> Neighbors:
    """List all pairs within `radius + skin` [Å] of concrete positions.

    Raises:
        InputError: positions that are not finite, or two atoms at the same place; what `pairs_within` refuses.
    """
    if not (np.isfinite(radius) and radius > 0.0):
        raise InputError(f"The range of a potential must be a positive length in Å, not {radius}.")
    if not (np.isfinite(skin) and skin >= 0.0):
        raise InputError(f"The skin of a neighbour list must be zero or a positive length in Å, not {skin!r}.")
    positions = np.asarray(positions)
    n, dim = positions.shape
    points = np.zeros((n, 3))
    points[:, :dim] = positions
    if not np.isfinite(points).all():
        atom = int(np.argmin(np.isfinite(points).all(axis=1)))
        raise InputError(f"The position of atom {atom} is not finite ({positions[atom]}): check the structure.")
    box = np.zeros((3, 3))
    if cell is not None:
        box[:dim, :dim] = np.asarray(cell)
    reach = float(radius) + float(skin)
    i, j, shift, distance = pairs_within(points, box, np.array([*pbc, *[False] * (3 - dim)]), reach)
    if distance.size and (nearest := int(distance.argmin())) >= 0 and distance[nearest] < COINCIDENT * radius:
        raise CoincidingAtoms(
            positions,
            f"Atoms {i[nearest]} and {j[nearest]} coincide (distance {distance[nearest]:.1e}): "
            "remove one of them or move them apart.",
        )
    return neighbors_of(positions, i, j, shift[:, :dim], radius=reach, skin=float(skin))


def neighbors_of(positions: Any, i: Any, j: Any, shift: Any, *, radius: float, skin: float) -> Neighbors:
    """The list of given pairs, each from both sides: atoms `i` and the images `shift` `(pairs, dim)` of their neighbours `j`."""
    n = len(positions)
    # A fixed order makes the list, and so every sum over it, reproducible bit for bit.
    order = np.argsort(_key(i, j, shift, n), kind="stable")
    i, j, shift = i[order].astype(np.int64), j[order].astype(np.int32), shift[order]
    counts = np.bincount(i, minlength=n)
    capacity = places(int(counts.max(initial=0)))
    place = (np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)) * n + i
    images, kinds = _kinds(shift)
    atom = np.tile(np.arange(n, dtype=np.int32), capacity)
    kind = np.zeros(capacity * n, dtype=kinds.dtype)
    opposite = np.full(capacity * n, -1, dtype=np.int32)
    atom[place] = j
    kind[place] = kinds
    # Seen from the other side the pairs are the same, in another order.
    opposite[place[np.argsort(_key(j, i, -shift, n), kind="stable")]] = place
    return Neighbors(
        atom=jnp.asarray(atom.reshape(capacity, n)),
        kind=jnp.asarray(kind.reshape(capacity, n)),
        images=jnp.asarray(images),
        opposite=jnp.asarray(opposite.reshape(capacity, n)),
        reference=jnp.asarray(positions),
        radius=jnp.asarray(radius),
        skin=jnp.asarray(skin),
        alive=jnp.asarray(0),
    )


def _key(i: Any, j: Any, shift: Any, n: int) -> np.ndarray:
    """One number for each pair, in the order of i, then j, then its image."""
    key = i.astype(np.int64) * n + j
    bound = np.abs(shift).max(initial=0)
    for component in shift.T:
        key = key * (2 * bound + 1) + component + bound
    return key


def _kinds(shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(images, kinds)`: the different images `(dim, kinds)`, zero first, and which of them each pair has.

    As many places as one of a few numbers, and the smallest integers that count them.
    """
    bound = np.abs(shift).max(axis=0, initial=0).astype(np.int64)
    sides = tuple(2 * bound + 1)
    if np.prod(sides, dtype=float) <= MANY_IMAGES:
        # Counted in the box that holds them all, since sorting so many is slow.
        number, zero = np.ravel_multi_index(tuple((shift + bound).T), sides), np.ravel_multi_index(tuple(bound), sides)
        counts = np.bincount(number, minlength=zero + 1)
        counts[zero] += 1
        names = np.flatnonzero(counts)
        different = np.stack(np.unravel_index(names, sides), axis=1) - bound
    else:
        different, number = np.unique(np.concatenate([np.zeros_like(shift[:1]), shift]), axis=0, return_inverse=True)
        zero, number = number[0], number[1:]
        names = np.arange(len(different))
    order = np.argsort(names != zero, kind="stable")
    width = max(IMAGES, 1 << (len(names) - 1).bit_length())
    images = np.zeros((len(bound), width), np.int32)
    images[:, : len(names)] = different[order].T
    rank = np.zeros(names.max() + 1, np.int16 if width <= np.iinfo(np.int16).max else np.int32)
    rank[names[order]] = np.arange(len(names))
    return images, rank[number]


def places(most: int) -> int:
    """Places for so many atoms: one of a few numbers, an eighth to a quarter apart, so that compiled code is found again."""
    step = 4 if most <= 16 else 2 ** max(3, math.ceil(math.log2(most)) - 3)
    return max(4, step * math.ceil(most / step))
