"""The search for all pairs of atoms and images within a radius."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from mdsens.common.errors import CoincidingAtoms, InputError
from mdsens.structures.neighbors.neighbor_list import IMAGES, Neighbors, rounded_capacity
from mdsens.structures.neighbors.pair_search import pairs_within

MAX_BOXED_IMAGES = 1e6
"""Images in the box around those of a list up to which they are counted in it; atoms far from their cell make it large."""

COINCIDENCE = 1e-6
"""Share of the interaction range within which atoms count as coinciding."""


class Pairs(NamedTuple):
    """All pairs of atoms and images within some reach, each from both sides: `i`, `j`, the image of `j` in cell vectors."""

    i: np.ndarray
    j: np.ndarray
    shift: np.ndarray
    distance: np.ndarray

    def within(self, reach: float) -> "Pairs":
        """Return those that are nearer."""
        near = self.distance < reach
        return Pairs(*(part[near] for part in self))


def find_neighbors(positions: ArrayLike, cell: ArrayLike | None, pbc: Sequence[bool], *, radius: float, skin: float) -> Neighbors:
    """List all pairs within `radius + skin` [Å] of concrete positions; raise InputError where positions or lengths allow none."""
    positions = np.asarray(positions)
    pairs = find_pairs(positions, cell, pbc, radius=radius, skin=skin)
    return neighbors_of(positions, *pairs[:3], radius=float(radius) + float(skin), skin=float(skin))


def find_pairs(positions: np.ndarray, cell: ArrayLike | None, pbc: Sequence[bool], *, radius: float, skin: float) -> Pairs:
    """Return the pairs that `find_neighbors` lists."""
    if not (np.isfinite(radius) and radius > 0.0):
        raise InputError(f"The range of a potential must be a positive length in Å, not {radius}.")
    if not (np.isfinite(skin) and skin >= 0.0):
        raise InputError(f"The skin of a neighbour list must be zero or a positive length in Å, not {skin!r}.")
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
    if distance.size and (nearest := int(distance.argmin())) >= 0 and distance[nearest] < COINCIDENCE * radius:
        raise CoincidingAtoms(
            positions,
            f"Atoms {i[nearest]} and {j[nearest]} coincide (distance {distance[nearest]:.1e}): "
            "remove one of them or move them apart.",
        )
    return Pairs(i, j, shift[:, :dim], distance)


def neighbors_of(
    positions: np.ndarray, i: np.ndarray, j: np.ndarray, shift: np.ndarray, *, radius: float, skin: float
) -> Neighbors:
    """Return the list of pairs, each from both sides: atoms `i`, their neighbours `j`, and the images `shift` of these."""
    n = len(positions)
    capacity = rounded_capacity(int(np.bincount(i, minlength=n).max(initial=0)))
    lengths = (np.asarray(radius, float), np.asarray(skin, float), np.asarray(0))
    # Put on the device as they are: `jnp.asarray` compiles a program for each shape.
    return Neighbors(*jax.device_put((*places_of(i, j, shift, n, capacity), np.array(positions), *lengths)))


def places_of(i: np.ndarray, j: np.ndarray, shift: np.ndarray, n: int, capacity: int) -> tuple[np.ndarray, ...]:
    """Return the arrays `atom, kind, images, opposite` of a list of pairs, for n atoms, some of which may have no neighbour."""
    # A fixed order makes the list, and so every sum over it, reproducible bit for bit.
    order = np.argsort(_key(i, j, shift, n), kind="stable")
    i, j, shift = i[order].astype(np.int64), j[order].astype(np.int32), shift[order]
    counts = np.bincount(i, minlength=n)
    place = (np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)) * n + i
    images, kinds = _kinds(shift)
    atom = np.tile(np.arange(n, dtype=np.int32), capacity)
    kind = np.zeros(capacity * n, dtype=kinds.dtype)
    opposite = np.full(capacity * n, -1, dtype=np.int32)
    atom[place] = j
    kind[place] = kinds
    # Seen from the other side the pairs are the same, in another order.
    opposite[place[np.argsort(_key(j, i, -shift, n), kind="stable")]] = place
    return atom.reshape(capacity, n), kind.reshape(capacity, n), images, opposite.reshape(capacity, n)


def _key(i: np.ndarray, j: np.ndarray, shift: np.ndarray, n: int) -> np.ndarray:
    """Return a number for each pair, in the order of i, then j, then its image."""
    key = i.astype(np.int64) * n + j
    bound = np.abs(shift).max(initial=0)
    for component in shift.T:
        key = key * (2 * bound + 1) + component + bound
    return key


def _kinds(shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different images `(dim, kinds)`, zero first, and the column of each pair's image.

    The number of columns is one of a few, and the integers are the smallest that count them.
    """
    bound = np.abs(shift).max(axis=0, initial=0).astype(np.int64)
    sides = tuple(2 * bound + 1)
    if np.prod(sides, dtype=float) <= MAX_BOXED_IMAGES:
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
