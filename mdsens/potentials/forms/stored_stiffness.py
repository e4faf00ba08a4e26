"""Second derivatives of atoms' energies in the vectors to their neighbours, ∂²E_i/∂d_ik ∂d_il [eV/Å²], as they are stored.

Each form has `product`, the whole Hessian's product with displacements of atoms `(dim, N)`, and `diagonal`, the mean of the
Hessian's diagonal entries of each atom; each but a sum has `response`, the changes of ∂E_i/∂d by changes of the vectors d that
are opposite from both sides of a pair, for arrays of JAX or NumPy.
"""

import functools
import operator
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
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

Bonds = Float[Array, "dim capacity atoms"]
"""One vector for each place of a list."""


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

    @staticmethod
    def numbers(dim: int, capacity: int, atoms: int) -> int:
        """Return the count of its numbers."""
        return (dim + 2) * capacity * atoms

    def product(self, v: Float[Array, "dim atoms"], neighbors: Neighbors) -> Float[Array, "dim atoms"]:
        def of_places(direction: Array, along: Array, across: Array, atom: Array) -> tuple[Array, ...]:
            # One component after another: for all together, compilers would store what is cheaper to gather again.
            moved = [differences(x, atom) for x in v]
            along = fence(along * sum(n * d for n, d in zip(direction, moved, strict=True)), neighbors)
            return tuple(from_differences(along * n + across * d, atom) for n, d in zip(direction, moved, strict=True))

        return _summed(over_places(of_places, self.direction, self.along, self.across, neighbors.atom))

    def response(self, moved: Bonds) -> Bonds:
        stretch = (self.direction * moved).sum(axis=0)
        return self.along * stretch * self.direction + self.across * moved

    def diagonal(self, neighbors: Neighbors) -> Float[Array, " atoms"]:
        return 2.0 * jnp.sum(self.along / len(self.direction) + self.across, axis=0)

    def blocks(self) -> Float[Array, "dim dim capacity atoms"]:
        """Return the stiffness of each pair as a matrix."""
        unity = np.eye(len(self.direction), dtype=self.direction.dtype)[..., None, None]
        return self.along * self.direction[:, None] * self.direction[None] + self.across * unity


def pair_stiffness(d: Array, r: Array, slope: Array, curvature: Array) -> PairStiffness:
    """Return the stiffness for vectors `(dim, capacity, N)` of lengths r, and a pair's first and second derivatives in r."""
    across = slope / r
    return PairStiffness(d / r, curvature - across, across)


class SiteStiffness(eqx.Module):
    """All second derivatives of each site's energy."""

    blocks: Float[Array, "capacity dim capacity dim atoms"]

    @staticmethod
    def numbers(dim: int, capacity: int, atoms: int) -> int:
        """Return the count of its numbers."""
        return (dim * capacity) ** 2 * atoms

    def site_blocks(self) -> Float[Array, "capacity dim capacity dim atoms"]:
        return self.blocks

    def product(self, v: Float[Array, "dim atoms"], neighbors: Neighbors) -> Float[Array, "dim atoms"]:
        moved = fence(at_neighbors(v, neighbors) - jnp.where(neighbors.used, v[:, None, :], 0.0), neighbors)
        capacity, dim = self.blocks.shape[:2]
        slopes = sum(self.blocks[:, :, k, b] * moved[b, k] for k in range(capacity) for b in range(dim))
        image = fence(jnp.swapaxes(slopes, 0, 1), neighbors)
        return from_neighbors(image, neighbors) - jnp.sum(image, axis=1)

    def response(self, moved: Bonds) -> Bonds:
        xp: Any = np if isinstance(self.blocks, np.ndarray) else jnp
        capacity, dim, _, _, n = self.blocks.shape
        flat = xp.swapaxes(moved, 0, 1).reshape(capacity * dim, n)
        answer = xp.einsum("abn,bn->an", self.blocks.reshape(capacity * dim, capacity * dim, n), flat)
        return xp.swapaxes(answer.reshape(capacity, dim, n), 0, 1)  # type: ignore[no-any-return]  # of NumPy or JAX

    def diagonal(self, neighbors: Neighbors) -> Float[Array, " atoms"]:
        traces = jnp.trace(self.blocks, axis1=1, axis2=3) / self.blocks.shape[1]
        places = jnp.arange(len(traces))
        return jnp.sum(traces, axis=(0, 1)) + from_neighbors(traces[places, places], neighbors)


class EmbeddedStiffness(eqx.Module):
    """Pairs, and a term of rank one for each atom, which a function of the density adds.

    Attributes:
        pairs: ½ φ + F' f, the mean of both sides.
        slope: ∂ρ_i/∂r_ik = f'.
        other: ∂ρ_k/∂r_ik, that of the neighbour's density.
        weight: F''.
    """

    pairs: PairStiffness
    slope: Float[Array, "capacity atoms"]
    other: Float[Array, "capacity atoms"]
    weight: Float[Array, " atoms"]

    @staticmethod
    def numbers(dim: int, capacity: int, atoms: int) -> int:
        """Return the count of its numbers."""
        return PairStiffness.numbers(dim, capacity, atoms) + 2 * capacity * atoms + atoms

    def site_blocks(self) -> Float[Array, "capacity dim capacity dim atoms"]:
        """Return all second derivatives of each site, many more numbers than are stored."""
        slope = jnp.swapaxes(self.slope * self.pairs.direction, 0, 1)
        places = jnp.arange(len(slope))
        together = self.weight * slope[:, :, None, None] * slope
        return together.at[places, :, places].add(jnp.moveaxis(self.pairs.blocks(), 2, 0))

    def product(self, v: Float[Array, "dim atoms"], neighbors: Neighbors) -> Float[Array, "dim atoms"]:
        def changes(n: Array, slope: Array, atom: Array) -> Array:
            # Each side has its own; `differences` are for what both share.
            along = sum(c * (x.at[atom].get(**IN_BOUNDS) - x) for c, x in zip(n, v, strict=True))
            return jnp.sum(slope * along, axis=0)

        def forces(n: Array, slope: Array, other: Array, atom: Array) -> tuple[Array, ...]:
            tension = fence(0.5 * (change * slope + change.at[atom].get(**IN_BOUNDS) * other), neighbors)
            return tuple(from_differences(tension * component, atom) for component in n)

        atom, n = neighbors.atom, self.pairs.direction
        change = fence(self.weight * jnp.sum(over_places(changes, n, self.slope, atom), axis=0), neighbors)
        return self.pairs.product(v, neighbors) + _summed(over_places(forces, n, self.slope, self.other, atom))

    def response(self, moved: Bonds) -> Bonds:
        change = self.weight * (self.slope * (self.pairs.direction * moved).sum(axis=0)).sum(axis=0)
        return self.pairs.response(moved) + change * self.slope * self.pairs.direction

    def diagonal(self, neighbors: Neighbors) -> Float[Array, " atoms"]:
        dim = len(self.pairs.direction)
        others = jnp.sum(self.weight[neighbors.atom] * self.other**2, axis=0) / dim
        whole = self.weight * jnp.sum(jnp.sum(self.slope * self.pairs.direction, axis=1) ** 2, axis=0) / dim
        return self.pairs.diagonal(neighbors) + whole + others


class SumStiffness(eqx.Module):
    """The stiffnesses of the terms of a sum, each on its own list."""

    terms: "tuple[LocalStiffness, ...]"

    def product(self, v: Float[Array, "dim atoms"], neighbors: Neighbors) -> Float[Array, "dim atoms"]:
        return functools.reduce(operator.add, (term.product(v, own) for term, own in self.listed(neighbors)))

    def diagonal(self, neighbors: Neighbors) -> Float[Array, " atoms"]:
        return functools.reduce(operator.add, (term.diagonal(own) for term, own in self.listed(neighbors)))

    def listed(self, neighbors: Neighbors) -> "list[tuple[LocalStiffness, Neighbors]]":
        return [(term, own or neighbors) for term, own in zip(self.terms, neighbors.shorter, strict=True)]


def _summed(parts: tuple[Array, ...]) -> Array:
    """Return the sums over chunks of components `(chunks, N)` that `over_places` made."""
    return jnp.stack([jnp.sum(part, axis=0) for part in parts])


LocalStiffness = PairStiffness | SiteStiffness | EmbeddedStiffness | SumStiffness


SingleStiffness = PairStiffness | SiteStiffness | EmbeddedStiffness


def terms_of(stored: LocalStiffness, neighbors: Neighbors) -> Iterator[tuple[SingleStiffness, Neighbors]]:
    """Yield the terms of a sum, each with its own list; what is no sum is its only term."""
    if isinstance(stored, SumStiffness):
        for term, own in stored.listed(neighbors):
            yield from terms_of(term, own)
    else:
        yield stored, neighbors
