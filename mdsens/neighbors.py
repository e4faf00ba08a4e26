"""Neighbour lists: found on the host with vesin, padded with integers for the traced world.

A full list (each pair seen from both sides) with the cell shift of each image, so that triclinic cells, cells smaller
than the cutoff, mixed periodicity and 2-D need nothing special: `d = x[index] - x + shift @ cell`.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mdsens.errors import CoincidingAtoms, InputError

SKIN = 0.1
"""Default skin as a share of the interaction range."""

COINCIDENT = 1e-6
"""Atoms nearer than this share of the interaction range count as coinciding."""


class Neighbors(eqx.Module):
    """All pairs within `radius` at the positions `reference`, `capacity` places an atom; unused places have mask False.

    Complete for interactions of the given range as long as no atom moved more than half of `radius - range`.
    """

    index: Int[Array, "atoms capacity"]
    shift: Int[Array, "atoms capacity dim"]
    mask: Bool[Array, "atoms capacity"]
    reference: Float[Array, "atoms dim"]
    radius: Float[Array, ""]
    skin: Float[Array, ""]

    def is_stale(self, positions: Float[Array, "atoms dim"], interaction_range) -> Bool[Array, ""]:
        """True where an atom moved so far, in the same cell, that a pair within the range could be missing.

        Works on tracers. Positions that are not finite are not stale but worse, which their energy says.
        """
        room = jnp.maximum(0.5 * (self.radius - interaction_range), 0.0)
        moved = jnp.sum((positions - self.reference) ** 2, axis=-1)
        return jnp.max(moved) > room**2

    def reaches(self, interaction_range) -> Bool[Array, ""]:
        """True if the list holds every pair within this range (at its reference positions; works on tracers)."""
        # A range in 32 bits may be rounded up.
        return interaction_range <= self.radius * (1.0 + 1e-6)


def displacements(positions, cell, neighbors: Neighbors) -> Float[Array, "atoms capacity dim"]:
    """Vectors from each atom to its listed neighbours [Å]."""
    d = positions[neighbors.index] - positions[:, None, :]
    if cell is not None:
        d = d + neighbors.shift.astype(positions.dtype) @ cell
    return d


def find_neighbors(positions, cell, pbc, *, radius: float, skin: float) -> Neighbors:
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
    # A fixed order makes the list, and so every sum over it, reproducible bit for bit.
    order = np.lexsort((*shift.T[::-1], j, i))
    i, j, shift = i[order].astype(np.int64), j[order].astype(np.int32), shift[order, :dim]
    counts = np.bincount(i, minlength=n)
    capacity = _capacity(int(counts.max(initial=0)))
    column = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = np.repeat(np.arange(n, dtype=np.int32)[:, None], capacity, axis=1)
    shifts = np.zeros((n, capacity, dim), dtype=np.int32)
    index[i, column] = j
    shifts[i, column] = shift
    return Neighbors(
        index=jnp.asarray(index),
        shift=jnp.asarray(shifts),
        mask=jnp.asarray(np.arange(capacity) < counts[:, None]),
        reference=jnp.asarray(positions),
        radius=jnp.asarray(reach),
        skin=jnp.asarray(float(skin)),
    )


def _capacity(most: int) -> int:
    """Places for an atom's neighbours: one of a few sizes, about a quarter apart, so that compiled code is found again."""
    step = 4 if most <= 16 else 2 ** max(3, math.ceil(math.log2(most)) - 3)
    return max(4, step * math.ceil(most / step))
