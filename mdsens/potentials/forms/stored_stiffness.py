"""Second derivatives of atoms' energies in the vectors to their neighbours, ∂²E_i/∂d_ik ∂d_il [eV/Å²], as they are stored.

`product` is the whole Hessian's, on displacements of atoms `(dim, N)`.
"""

import functools
import operator
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.neighbors.sums_over_neighbors import (
    IN_BOUNDS,
    at_neighbors,
    differences,
    fence,
    from_differences,
    from_neighbors,
)
from mdsens.structures.neighbors.vectors import over_places


class PairStiffness(eqx.Module):
    """½ [(φ'' - φ'/r) n nᵀ + φ'/r] of each pair, n = d/r: five numbers in place of nine.

    Attributes:
        direction: n.
        along: ½ (φ'' - φ'/r).
        across: ½ φ'/r.
    """

    direction: Float[Array, "dim capacity atoms"]
    along: Float[Array, "capacity atoms"]
    across: Float[Array, "capacity atoms"]

    def product(self, v: Float[Array, "dim atoms"], neighbors: Neighbors) -> Float[Array, "dim atoms"]:
        """The Hessian's product with displacements of atoms."""

        def of_places(direction: Array, along: Array, across: Array, atom: Array) -> tuple[Array, ...]:
            # One component after another: for all together, compilers would store what is cheaper to gather again.
            moved = [differences(x, atom) for x in v]
            along = fence(along * sum(n * d for n, d in zip(direction, moved, strict=True)), neighbors)
            return tuple(from_differences(along * n + across * d, atom) for n, d in zip(direction, moved, strict=True))

        return _summed(over_places(of_places, self.direction, self.along, self.across, neighbors.atom))

    def diagonal(self, neighbors: Neighbors) -> Float[Array, " atoms"]:
        """The mean of the Hessian's diagonal entries of each atom."""
        return 2.0 * jnp.sum(self.along / len(self.direction) + self.across, axis=0)

    def blocks(self) -> Float[Array, "dim dim capacity atoms"]:
        """The same as matrices."""
        unity = jnp.eye(len(self.direction), dtype=self.direction.dtype)[..., None, None]
        return self.along * self.direction[:, None] * self.direction[None] + self.across * unity


def pair_stiffness(d: Array, r: Array, slope: Any, curvature: Array) -> PairStiffness:
    """From vectors `(dim, capacity, N)`, their lengths, and first and second derivatives in them."""
    across = slope / r
    return PairStiffness(d / r, curvature - across, across)


class SiteStiffness(eqx.Module):
    """All second derivatives of each site's energy."""

    blocks: Float[Array, "capacity dim capacity dim atoms"]

    def site_blocks(self) -> Float[Array, "capacity dim capacity dim atoms"]:
        return self.blocks

    def product(self, v: Float[Array, "dim atoms"], neighbors: Neighbors) -> Float[Array, "dim atoms"]:
        """The Hessian's product with displacements of atoms."""
        moved = fence(at_neighbors(v, neighbors) - jnp.where(neighbors.used, v[:, None, :], 0.0), neighbors)
        capacity, dim = self.blocks.shape[:2]
        slopes = sum(self.blocks[:, :, k, b] * moved[b, k] for k in range(capacity) for b in range(dim))
        image = fence(jnp.swapaxes(slopes, 0, 1), neighbors)
        return from_neighbors(image, neighbors) - jnp.sum(image, axis=1)

    def diagonal(self, neighbors: Neighbors) -> Float[Array, " atoms"]:
        """The mean of the Hessian's diagonal entries of each atom."""
        traces = jnp.trace(self.blocks, axis1=1, axis2=3) / self.blocks.shape[1]
        places = jnp.arange(len(traces))
        return jnp.sum(traces, axis=(0, 1)) + from_neighbors(traces[places, places], neighbors)


class EmbeddedStiffness(eqx.Module):
    """Pairs, and a term of rank one for each atom: what a function of the density adds.

    Attributes:
        pairs: ½ φ + F' f, the mean of both sides.
        slope: ∂ρ_i/∂r_ik = f'.
        other: ∂ρ_k/∂r_ik, the same of the neighbour.
        weight: F''.
    """

    pairs: PairStiffness
    slope: Float[Array, "capacity atoms"]
    other: Float[Array, "capacity atoms"]
    weight: Float[Array, " atoms"]

    def site_blocks(self) -> Float[Array, "capacity dim capacity dim atoms"]:
        """All of them written out, many more than are stored."""
        slope = jnp.swapaxes(self.slope * self.pairs.direction, 0, 1)
        places = jnp.arange(len(slope))
        together = self.weight * slope[:, :, None, None] * slope
        return together.at[places, :, places].add(jnp.moveaxis(self.pairs.blocks(), 2, 0))

    def product(self, v: Float[Array, "dim atoms"], neighbors: Neighbors) -> Float[Array, "dim atoms"]:
        """The Hessian's product with displacements of atoms."""

        def changes(n: Array, slope: Array, atom: Array) -> Array:
            # Each side has its own; `differences` are for what both share.
            along = sum(c * (x.at[atom].get(**IN_BOUNDS) - x) for c, x in zip(n, v, strict=True))
            return jnp.sum(slope * along, axis=0)

        def forces(n: Array, slope: Array, other: Array, atom: Array) -> tuple[Array, ...]:
            both = fence(0.5 * (change * slope + change.at[atom].get(**IN_BOUNDS) * other), neighbors)
            return tuple(from_differences(both * component, atom) for component in n)

        atom, n = neighbors.atom, self.pairs.direction
        change = fence(self.weight * jnp.sum(over_places(changes, n, self.slope, atom), axis=0), neighbors)
        return self.pairs.product(v, neighbors) + _summed(over_places(forces, n, self.slope, self.other, atom))

    def diagonal(self, neighbors: Neighbors) -> Float[Array, " atoms"]:
        """The mean of the Hessian's diagonal entries of each atom."""
        dim = len(self.pairs.direction)
        others = jnp.sum(self.weight[neighbors.atom] * self.other**2, axis=0) / dim
        whole = self.weight * jnp.sum(jnp.sum(self.slope * self.pairs.direction, axis=1) ** 2, axis=0) / dim
        return self.pairs.diagonal(neighbors) + whole + others


class SumStiffness(eqx.Module):
    """Those of the terms of a sum, each on the list that it has there."""

    terms: tuple[PairStiffness | SiteStiffness | EmbeddedStiffness, ...]

    def product(self, v: Float[Array, "dim atoms"], neighbors: Neighbors) -> Float[Array, "dim atoms"]:
        """The Hessian's product with displacements of atoms."""
        terms = zip(self.terms, neighbors.shorter, strict=True)
        return functools.reduce(operator.add, (term.product(v, one or neighbors) for term, one in terms))

    def diagonal(self, neighbors: Neighbors) -> Float[Array, " atoms"]:
        """The mean of the Hessian's diagonal entries of each atom."""
        terms = zip(self.terms, neighbors.shorter, strict=True)
        return functools.reduce(operator.add, (term.diagonal(one or neighbors) for term, one in terms))


def _summed(parts: tuple[Array, ...]) -> Array:
    """Components `(chunks, N)` of what `over_places` made."""
    return jnp.stack([jnp.sum(part, axis=0) for part in parts])


LocalStiffness = PairStiffness | SiteStiffness | EmbeddedStiffness | SumStiffness
