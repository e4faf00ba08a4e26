"""A preconditioner for periodic solids: long waves, at which Krylov methods are slow, are solved on a coarse grid by Fourier.

    M = D⁻¹ + P C⁻¹ Pᵀ

D is the mean of the diagonal of the Hessian A of each atom; P interpolates displacements linearly from a grid whose cells
hold a few atoms each; C is what PᵀAP would be if the solid were the same everywhere, so that a Fourier transform inverts it.
The number of iterations then hardly grows with the number of atoms. An additive two-level method (Dryja, Widlund 1987; see
Smith, Bjørstad, Gropp, "Domain Decomposition", 1996, chapter 2), with the coarse operator's circulant approximation.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from mdsens.structures.system import System

ATOMS_PER_NODE = {2: 4, 3: 8}
"""Atoms for each node of the grid, by dimension."""

SPACING = 8
"""Nodes between two impulses by which the coarse operator is probed."""

MIN_ATOMS = 1000
"""Atoms below which the grid would save nothing."""

MIN_STIFFNESS_SHARE = 1e-9
"""Stiffness, as a share of that of the stiffest wave, below which a wave of the grid is left to D."""


class CoarseGrid(eqx.Module):
    """Linear interpolation between a periodic grid and the atoms.

    Attributes:
        node, weight: `(2^dim, N)`, the nodes around each atom and their shares.
        member, share: `(capacity, nodes)`, the same seen from the nodes.
        shape: nodes along each cell vector.
    """

    node: Int[Array, "corners atoms"]
    weight: Float[Array, "corners atoms"]
    member: Int[Array, "capacity nodes"]
    share: Float[Array, "capacity nodes"]
    shape: tuple[int, ...] = eqx.field(static=True)

    def to_atoms(self, field: Float[Array, "dim nodes"]) -> Float[Array, "dim atoms"]:
        """Return P field."""
        return jnp.stack([jnp.sum(self.weight * row[self.node], axis=0) for row in field])

    def to_nodes(self, vectors: Float[Array, "dim atoms"]) -> Float[Array, "dim nodes"]:
        """Return Pᵀ vectors."""
        return jnp.stack([jnp.sum(self.share * row[self.member], axis=0) for row in vectors])


def coarse_grid(system: System) -> CoarseGrid | None:
    """Return the grid of a system [host]; None where it is too small or not periodic in all directions."""
    n, dim = system.positions.shape
    if n < MIN_ATOMS or not all(system.pbc):
        return None
    cell = np.asarray(system.cell, dtype=float)
    lengths = np.linalg.norm(cell, axis=1)
    spacing = (np.prod(lengths) * ATOMS_PER_NODE[dim] / n) ** (1.0 / dim)
    counts = lengths / spacing
    # Few nodes, or a multiple of the distance between impulses.
    shape = tuple(max(2, round(m)) if m < 1.5 * SPACING else SPACING * round(m / SPACING) for m in counts.tolist())
    place = np.asarray(system.positions, dtype=float) @ np.linalg.inv(cell)
    place = (place - np.floor(place)) * shape
    first = np.minimum(np.floor(place).astype(np.int64), np.array(shape) - 1)
    beyond = place - first
    corners = np.array(list(np.ndindex(*(2,) * dim)))
    node = np.ravel_multi_index(tuple(((first[None] + corners[:, None]) % shape).transpose(2, 0, 1)), shape)
    weight = np.prod(np.where(corners[:, None] == 1, beyond, 1.0 - beyond), axis=2)
    member, share = _invert_interpolation(node, weight, int(np.prod(shape)))
    dtype = system.positions.dtype
    return CoarseGrid(
        jnp.asarray(node, jnp.int32), jnp.asarray(weight, dtype), jnp.asarray(member, jnp.int32), jnp.asarray(share, dtype), shape
    )


def _invert_interpolation(node: np.ndarray, weight: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the atoms around each node, and their shares."""
    atoms = np.broadcast_to(np.arange(node.shape[1]), node.shape).ravel()
    order = np.argsort(node, axis=None, kind="stable")
    held = np.bincount(node.ravel(), minlength=count)
    place = np.arange(node.size) - np.repeat(np.cumsum(held) - held, held)
    where = (place, node.ravel()[order])
    member, share = np.zeros((held.max(), count), dtype=np.int64), np.zeros((held.max(), count))
    member[where], share[where] = atoms[order], weight.ravel()[order]
    return member, share


class TwoLevelPreconditioner(eqx.Module):
    """r ↦ M r on `(dim, N)`.

    Attributes:
        grid: the coarse level.
        relaxation: D⁻¹, zero for atoms on which nothing acts.
        inverse: C⁻¹ of each wave of the grid, `(*waves, dim, dim)`.
    """

    grid: CoarseGrid
    relaxation: Float[Array, " atoms"]
    inverse: Complex[Array, "..."]

    def __call__(self, r: Float[Array, "dim atoms"]) -> Float[Array, "dim atoms"]:
        grid, dim = self.grid, len(r)
        axes = tuple(range(1, dim + 1))
        waves = jnp.fft.rfftn(grid.to_nodes(r).reshape(dim, *grid.shape), axes=axes)
        waves = jnp.stack([sum(self.inverse[..., a, b] * waves[b] for b in range(dim)) for a in range(dim)])
        field = jnp.fft.irfftn(waves, s=grid.shape, axes=axes)
        return self.relaxation * r + grid.to_atoms(field.reshape(dim, -1))


def two_level(grid: CoarseGrid, product: Callable[[Array], Array], diagonal: Float[Array, " atoms"]) -> TwoLevelPreconditioner:
    """Return the preconditioner of a Hessian by its product on `(dim, N)` and the mean diagonal entry of each atom; pure JAX."""
    return TwoLevelPreconditioner(grid, 1.0 / jnp.where(diagonal > 0.0, diagonal, jnp.inf), _inverse(_symbol(grid, product)))


def _symbol(grid: CoarseGrid, product: Callable[[Array], Array]) -> Array:
    """Return the Fourier transform of the mean response of the grid to an impulse, `(*waves, dim, dim)`, Hermitian."""
    dim, shape = len(grid.shape), grid.shape
    period = tuple(SPACING if m % SPACING == 0 else m for m in shape)
    impulses = np.zeros(shape)
    impulses[tuple(slice(None, None, p) for p in period)] = 1.0
    impulse = jnp.asarray(impulses.ravel(), grid.weight.dtype)

    def response(direction: Array) -> Array:
        answer = grid.to_nodes(product(grid.to_atoms(direction[:, None] * impulse))).reshape(dim, *shape)
        for axis, (m, p) in enumerate(zip(shape, period, strict=True)):
            answer = answer.reshape(*answer.shape[: axis + 1], m // p, p, *answer.shape[axis + 2 :]).mean(axis=axis + 1)
        # Around the impulse, half of it before, which is at the end of a periodic array.
        for axis, (m, p) in enumerate(zip(shape, period, strict=True)):
            before, after = jnp.split(answer, [p - p // 2], axis=axis + 1)
            gap = jnp.zeros((*answer.shape[: axis + 1], m - p, *answer.shape[axis + 2 :]), answer.dtype)
            answer = jnp.concatenate([before, gap, after], axis=axis + 1)
        return answer

    stencil = jax.lax.map(response, jnp.eye(dim, dtype=grid.weight.dtype))
    symbol = jnp.fft.rfftn(stencil, axes=tuple(range(2, dim + 2)))
    symbol = jnp.moveaxis(symbol, (1, 0), (-2, -1))
    return 0.5 * (symbol + jnp.conj(jnp.swapaxes(symbol, -1, -2)))


def _inverse(symbol: Array) -> Array:
    """Return the inverse of each matrix; zero for the uniform wave and those that are not clearly positive."""
    dim = symbol.shape[-1]
    trace = jnp.real(jnp.trace(symbol, axis1=-2, axis2=-1))
    floor = MIN_STIFFNESS_SHARE * jnp.max(trace)
    minors = [jnp.real(jnp.linalg.det(symbol[..., :k, :k])) for k in range(1, dim + 1)]
    positive = (trace > floor) & jnp.all(
        jnp.stack([minor > (MIN_STIFFNESS_SHARE * trace) ** k for k, minor in enumerate(minors, 1)]), axis=0
    )
    positive = positive.at[(0,) * dim].set(False)
    safe = jnp.where(positive[..., None, None], symbol, jnp.eye(dim))
    return jnp.where(positive[..., None, None], jnp.linalg.inv(safe), 0.0)
