"""Neighbour lists: found on the host with vesin, padded with integers for the traced world.

A full list (each pair seen from both sides) with the cell shift of each image, so that triclinic cells, cells smaller
than the cutoff, mixed periodicity and 2-D need nothing special: `d = x[index] - x + shift @ cell`.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from mdsens.errors import CoincidingAtoms, InputError
from mdsens.neighbor_sums import at_neighbors, differences

SKIN = 0.1
"""Default skin as a share of the interaction range."""

COINCIDENT = 1e-6
"""Atoms nearer than this share of the interaction range count as coinciding."""


class Neighbors(eqx.Module):
    """All pairs within `radius` at the positions `reference`, `capacity` places an atom.

    Complete for interactions of the given range as long as no atom moved more than half of `radius - range`. Atoms run along
    the last axis, in which order compiled code is fastest; `index`, `shift` and `mask` show the same atom by atom.

    Attributes:
        atom: `(capacity, N)`, the neighbour in each place; the atom itself in unused ones.
        image: `(dim, capacity, N)`, the periodic image of it, in cell vectors.
        opposite: `(capacity, N)`, the place in which the neighbour has this pair, counted in rows of N; -1 in unused places.
        reference: positions for which it was made.
        radius: reach of the list [Å].
        skin: what of it is beyond the interaction's range [Å].
        alive: 0, a number that compilers do not know.
        shorter: lists of the terms of a sum, None for those that use this one; empty without a sum.
    """

    atom: Int[Array, "capacity atoms"]
    image: Int[Array, "dim capacity atoms"]
    opposite: Int[Array, "capacity atoms"]
    reference: Float[Array, "atoms dim"]
    radius: Float[Array, ""]
    skin: Float[Array, ""]
    alive: Int[Array, ""]
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
        return self.image.T

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
    return widened(neighbors.with_shorter(shorter) if shorter else neighbors, other.atom.shape[0])


def widened(neighbors: Neighbors, capacity: int) -> Neighbors:
    """The same list with at least so many places an atom [host]."""
    more = capacity - neighbors.atom.shape[0]
    if more <= 0:
        return neighbors
    n = neighbors.atom.shape[1]
    atom = np.concatenate([neighbors.atom, np.broadcast_to(np.arange(n, dtype=np.int32), (more, n))])
    image = np.pad(neighbors.image, ((0, 0), (0, more), (0, 0)))
    opposite = np.pad(neighbors.opposite, ((0, more), (0, 0)), constant_values=-1)
    parts = tuple(map(jnp.asarray, (atom, image, opposite)))
    return eqx.tree_at(lambda n: (n.atom, n.image, n.opposite), neighbors, parts)


def padded(neighbors: Neighbors, positions: Any) -> Neighbors:
    """The same list for more atoms, all of them at `positions`, the added ones without neighbours [host]."""
    n, more = neighbors.atom.shape[1], len(positions) - neighbors.atom.shape[1]
    added = np.broadcast_to(np.arange(n, n + more, dtype=np.int32), (neighbors.atom.shape[0], more))
    opposite = np.asarray(neighbors.opposite)
    # They count in rows of all atoms.
    opposite = np.where(opposite >= 0, opposite // n * (n + more) + opposite % n, -1)
    parts = (
        np.concatenate([neighbors.atom, added], axis=1),
        np.pad(neighbors.image, ((0, 0), (0, 0), (0, more))),
        np.pad(opposite, ((0, 0), (0, more)), constant_values=-1).astype(np.int32),
        positions,
    )
    where = lambda n: (n.atom, n.image, n.opposite, n.reference)  # noqa: E731
    longer = eqx.tree_at(where, neighbors, tuple(map(jnp.asarray, parts)))
    return longer.with_shorter(tuple(one and padded(one, positions) for one in neighbors.shorter))


def chunk(capacity: int) -> int:
    """A few places that divide a capacity."""
    return 8 if capacity % 8 == 0 else 4


def in_chunks(values: Shaped[Array, "*lead capacity atoms"]) -> Shaped[Array, "chunks *lead places atoms"]:
    """Some places at a time along the first axis."""
    *lead, capacity, n = values.shape
    places = chunk(capacity)
    return jnp.moveaxis(values.reshape(*lead, capacity // places, places, n), len(lead), 0)


def bonds(positions: Any, cell: Any, neighbors: Neighbors) -> Float[Array, "dim capacity atoms"]:
    """Vectors from each atom to its listed neighbours [Å]."""
    x = positions.T
    d = at_neighbors(x, neighbors) - jnp.where(neighbors.used, x[:, None, :], 0.0)
    return _with_images(d, cell, neighbors.image)


def pair_bonds(positions: Any, cell: Any, atom: Array, image: Any) -> Float[Array, "dim places atoms"]:
    """The same for some places, in sums over all pairs only (see `neighbor_sums.differences`)."""
    return _with_images(differences(positions.T, atom), cell, image)


def _with_images(d: Any, cell: Any, image: Any) -> Any:
    if cell is None:
        return d
    # Written out, since a product of matrices this thin is slow.
    return d + jnp.stack([sum(i * v for i, v in zip(image, column, strict=True)) for column in cell.T])


def displacements(positions: Any, cell: Any, neighbors: Neighbors) -> Float[Array, "atoms capacity dim"]:
    """The same, atom by atom."""
    return bonds(positions, cell, neighbors).T


def find_neighbors(positions: Any, cell: Any, pbc: Any, *, radius: float, skin: float) -> Neighbors:
    """List all pairs within `radius + skin` [Å] of concrete positions.

    Raises:
        InputError: positions that are not finite, or two atoms at the same place.
    """
    from vesin import NeighborList

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
    i, j, shift, distance = NeighborList(cutoff=reach, full_list=True).compute(
        points=points, box=box, periodic=[*pbc, *[False] * (3 - dim)], quantities="ijSd"
    )
    if distance.size and (nearest := int(distance.argmin())) >= 0 and distance[nearest] < COINCIDENT * radius:
        raise CoincidingAtoms(
            positions,
            f"Atoms {i[nearest]} and {j[nearest]} coincide (distance {distance[nearest]:.1e}): "
            "remove one of them or move them apart.",
        )
    return neighbors_of(positions, i, j, shift[:, :dim], radius=reach, skin=float(skin))


def neighbors_of(positions: Any, i: Any, j: Any, shift: Any, *, radius: float, skin: float) -> Neighbors:
    """The list of given pairs, each from both sides: atoms `i` and the images `shift` `(pairs, dim)` of their neighbours `j`."""
    n, dim = positions.shape
    # A fixed order makes the list, and so every sum over it, reproducible bit for bit.
    order = np.argsort(_key(i, j, shift, n), kind="stable")
    i, j, shift = i[order].astype(np.int64), j[order].astype(np.int32), shift[order]
    counts = np.bincount(i, minlength=n)
    capacity = places(int(counts.max(initial=0)))
    place = (np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)) * n + i
    atom = np.tile(np.arange(n, dtype=np.int32), capacity)
    image = np.zeros((dim, capacity * n), dtype=_integer(shift))
    opposite = np.full(capacity * n, -1, dtype=np.int32)
    atom[place] = j
    image[:, place] = shift.T
    # Seen from the other side the pairs are the same, in another order.
    opposite[place[np.argsort(_key(j, i, -shift, n), kind="stable")]] = place
    return Neighbors(
        atom=jnp.asarray(atom.reshape(capacity, n)),
        image=jnp.asarray(image.reshape(dim, capacity, n)),
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


def _integer(shift: Any) -> Any:
    """The smallest integers that hold the images."""
    return np.int8 if np.abs(shift).max(initial=0) < 127 else np.int32


def places(most: int) -> int:
    """Places for so many atoms: one of a few numbers, an eighth to a quarter apart, so that compiled code is found again."""
    step = 4 if most <= 16 else 2 ** max(3, math.ceil(math.log2(most)) - 3)
    return max(4, step * math.ceil(most / step))
