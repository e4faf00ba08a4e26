"""Lists of neighbours, found on the host with vesin and padded with integers for the traced world.

A full list (each pair seen from both sides) with the cell shift of each image, so that triclinic cells, cells smaller
than the cutoff, mixed periodicity and 2-D need nothing special: `d = x[index] - x + shift @ cell`.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from mdsens.common.modules import with_fields
from mdsens.implicit.trees import is_traced
from mdsens.structures.neighbors.preparation import Preparation

SKIN = 0.1
"""Default skin as a share of the interaction range."""

IMAGES = 32
"""Least number of places in a list's table of images: those next to a cell are 27."""


class Neighbors(Preparation):
    """The pairs within `radius` at the positions `reference`, with `capacity` places for each atom.

    The list is complete for interactions of the given range as long as no atom moved more than half of `radius - range`.
    Atoms run along the last axis, in which order compiled code is fastest; `index`, `shift` and `mask` show the same by atoms.

    Attributes:
        atom: `(capacity, N)`, the neighbour in each place; the atom itself in unused ones.
        kind: `(capacity, N)`, the periodic image of it, as a column of `images`; 0 in unused places.
        images: `(dim, kinds)`, in cell vectors, the first of them zero.
        opposite: `(capacity, N)`, the place in which the neighbour has this pair, counted in rows of N; -1 in unused places.
        reference: positions for which it was made.
        radius: reach of the list [Å].
        skin: what of it is beyond the interaction's range [Å].
        alive: 0, a number that compilers do not know.
        offset: `(dim, capacity, N)`, added to the vectors from atoms to their neighbours [Å], by which sites' energies are
            differentiated; None for zero.
        shorter: lists of the terms of a sum, None for those that use this one; empty without a sum.
        count: of the atoms whose energies count, the others having only filled up a structure; None for all.
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
    count: Int[Array, ""] | None = None

    @property
    def used(self) -> Bool[Array, "capacity atoms"]:
        """The used places: False in unused ones."""
        # By NumPy, which compiles nothing, where it can be.
        opposite: Any = self.opposite if is_traced(self.opposite) else np.asarray(self.opposite)
        used: Any = opposite >= 0
        return used  # type: ignore[no-any-return]  # of NumPy or JAX

    @property
    def index(self) -> Int[Array, "atoms capacity"]:
        """The neighbours of each atom, itself in unused places."""
        return self.atom.T

    @property
    def shift(self) -> Int[Array, "atoms capacity dim"]:
        """The periodic images of the neighbours, in cell vectors."""
        return self.images.T[self.kind.T]

    @property
    def mask(self) -> Bool[Array, "atoms capacity"]:
        """The used places atom by atom: False in unused ones."""
        return self.used.T

    @property
    def without_pairs(self) -> "Neighbors":
        """The list with all places unused."""
        emptied = eqx.tree_at(lambda n: n.opposite, self, jnp.full_like(self.opposite, -1))
        return emptied.with_shorter(tuple(other and other.without_pairs for other in self.shorter))

    def with_shorter(self, shorter: "tuple[Neighbors | None, ...]") -> "Neighbors":
        """Return the list with others for the terms of a sum."""
        return with_fields(self, shorter=shorter)

    def slack(self, interaction_range: ArrayLike, stretch: ArrayLike = 1.0) -> Float[Array, ""]:
        """Return the reach beyond the range, with lengths stretched; the least one where each term of a sum has a range."""
        radii = self.radius
        if jnp.ndim(interaction_range):
            radii = jnp.stack([self.radius if other is None else other.radius for other in self.shorter])
        # A list of fixed bonds reaches everywhere.
        return jnp.min(jnp.where(jnp.isinf(radii), jnp.inf, radii * stretch - interaction_range))

    def is_stale(self, positions: Float[Array, "atoms dim"], interaction_range: ArrayLike) -> Bool[Array, ""]:
        """Return whether an atom moved so far, in the same cell, that a pair within the range could be missing.

        Works on tracers. Positions that are not finite do not count: their energy shows them.
        """
        room = jnp.maximum(0.5 * self.slack(interaction_range), 0.0)
        moved = jnp.sum((positions - self.reference) ** 2, axis=-1)
        return jnp.max(moved) > room**2

    def reaches(self, interaction_range: ArrayLike) -> Bool[Array, ""]:
        """Return whether the list holds every pair within this range (at its reference positions; works on tracers)."""
        # A range in 32 bits may be rounded up.
        return self.slack(interaction_range, 1.0 + 1e-6) >= 0.0


def widen_like(neighbors: Neighbors, other: Neighbors) -> Neighbors:
    """Return the list with at least the shape of another, so that code compiled for it is found again [host]."""
    pairs = zip(neighbors.shorter, other.shorter, strict=True)
    shorter = tuple(own if own is None or like is None else widen_like(own, like) for own, like in pairs)
    same = widen(neighbors.with_shorter(shorter) if shorter else neighbors, other.atom.shape[0])
    if (more := other.images.shape[1] - same.images.shape[1]) > 0:
        same = eqx.tree_at(lambda n: n.images, same, jnp.pad(same.images, ((0, 0), (0, more))))
    return same


def widen(neighbors: Neighbors, capacity: int) -> Neighbors:
    """Return the list with at least so many places for each atom [host]."""
    more = capacity - neighbors.atom.shape[0]
    if more <= 0:
        return neighbors
    n = neighbors.atom.shape[1]
    atom = np.concatenate([neighbors.atom, np.broadcast_to(np.arange(n, dtype=np.int32), (more, n))])
    kind = np.pad(neighbors.kind, ((0, more), (0, 0)))
    opposite = np.pad(neighbors.opposite, ((0, more), (0, 0)), constant_values=-1)
    return with_fields(neighbors, atom=atom, kind=kind, opposite=opposite)


def pad(neighbors: Neighbors, positions: ArrayLike) -> Neighbors:
    """Return the list for more atoms, all of them at `positions`, the added ones without neighbours [host]."""
    positions, n = np.asarray(positions), neighbors.atom.shape[1]
    more = len(positions) - n
    added = np.broadcast_to(np.arange(n, n + more, dtype=np.int32), (neighbors.atom.shape[0], more))
    opposite = np.asarray(neighbors.opposite)
    # Opposite places count in rows of all atoms.
    opposite = np.where(opposite >= 0, opposite // n * (n + more) + opposite % n, -1)
    return with_fields(
        neighbors,
        atom=np.concatenate([neighbors.atom, added], axis=1),
        kind=np.pad(neighbors.kind, ((0, 0), (0, more))),
        opposite=np.pad(opposite, ((0, 0), (0, more)), constant_values=-1).astype(np.int32),
        reference=positions,
        shorter=tuple(other and pad(other, positions) for other in neighbors.shorter),
    )


def filled(neighbors: Neighbors, count: int) -> Neighbors:
    """Return the list with more atoms, which have no neighbours and whose own energies do not count [host]."""
    n = neighbors.atom.shape[1]

    def counted(listed: Neighbors) -> Neighbors:
        return with_fields(listed, count=np.asarray(n), shorter=tuple(other and counted(other) for other in listed.shorter))

    reference = np.pad(np.asarray(neighbors.reference), ((0, count - n), (0, 0)))
    return counted(neighbors if count == n else pad(neighbors, reference))


def rounded_capacity(least: int) -> int:
    """Return a number of places that is not less: one of a few, an eighth to a quarter apart, so that code is found again."""
    step = 4 if least <= 16 else 2 ** max(3, math.ceil(math.log2(least)) - 3)
    return max(4, step * math.ceil(least / step))
