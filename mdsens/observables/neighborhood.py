"""Neighbourhoods of atoms: coordination numbers and radial distribution functions.

Both sum over pairs within a reach of their own. Where positions are concrete the pairs are searched; where JAX traces them
(under `mdsens.jacobian` and its like) the pairs are those of `system.neighbors`, if the potential reaches that far, or those
of the structure in the argument `system=`.
"""

import math
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from mdsens.common.errors import InputError
from mdsens.potentials.base import Potential
from mdsens.potentials.forms.neighbor_vectors import neighbor_vectors, pair_list
from mdsens.potentials.forms.switching import quintic
from mdsens.structures.neighbors.neighbor_list import SKIN, Neighbors
from mdsens.structures.neighbors.search import find_neighbors
from mdsens.structures.system import System, is_concrete

TAIL = 7.0
"""Widths from its centre beyond which a Gaussian counts as zero (it is 2e-11 of its height there)."""


class PairList(eqx.Module):
    """All pairs of a structure within a reach and some room, searched on the host."""

    neighbors: Neighbors
    cell: Float[Array, "dim dim"] | None
    inverse: Float[Array, "dim dim"] | None

    def __init__(self, system: System, reach: float) -> None:
        if not isinstance(system, System) or not is_concrete(system.positions, system.cell):
            raise InputError(
                "system= wants a structure with values, such as eq.system: make the observable outside of jit and grad."
            )
        self.neighbors = find_neighbors(system.positions, system.cell, system.pbc, radius=reach, skin=SKIN * reach)
        self.cell = system.cell
        self.inverse = None if system.cell is None else jnp.asarray(np.linalg.pinv(system.cell))

    def covers(self, system: System, reach: float) -> Bool[Array, ""]:
        """Return whether no pair of another structure within the reach can be missing.

        Images follow the cell: a pair that is not listed was farther apart than the list's radius R, and now it is
        farther than R (1 - ‖ε‖) - 2 u, with the deformation ε of the cell and the largest displacement u relative to it.
        """
        reference, strain = self.neighbors.reference, 0.0
        if self.cell is not None and self.inverse is not None and system.cell is not None:
            deformation = self.inverse @ (system.cell - self.cell)
            reference, strain = reference + reference @ deformation, jnp.linalg.norm(deformation)
        moved = jnp.sqrt(jnp.max(jnp.sum((system.positions - reference) ** 2, axis=-1)))
        return self.neighbors.radius * (1.0 - strain) - 2.0 * moved >= reach


def _with_pairs(system: System, potential: Potential, pairs: PairList | None, reach: float, name: str) -> tuple[System, Array]:
    """Return the system with all pairs within the reach listed, and 1, or NaN where pairs are missing or positions not finite."""

    def listing(neighbors: Neighbors) -> System:
        return eqx.tree_at(lambda s: s.neighbors, system, neighbors, is_leaf=lambda leaf: leaf is None)

    if is_concrete(system.positions, system.cell):
        neighbors = find_neighbors(system.positions, system.cell, system.pbc, radius=reach, skin=0.0)
        return listing(neighbors), jnp.ones((), system.positions.dtype)
    state = jax.lax.stop_gradient(system)
    if pairs is not None:
        if (count := len(pairs.neighbors.index)) != len(system):
            raise InputError(
                f"{name} was made for a structure of {count} atoms and is asked about one of {len(system)}: make one for each, "
                "with system=."
            )
        system, complete = listing(pairs.neighbors), pairs.covers(state, reach)
    else:
        listed_range = getattr(getattr(potential, "built_range", None), "value", None)
        if not isinstance(system.neighbors, Neighbors) or (listed_range is not None and listed_range < reach):
            raise InputError(
                f"{name} looks at neighbours up to {reach:.4g} Å, and the list of the traced system does not reach that far: "
                f"give it the structure to find them in, {name}(..., system=eq.system)."
            )
        neighbors = pair_list(state)
        complete = neighbors.reaches(reach) & ~neighbors.is_stale(state.positions, reach)
    sound = complete & jnp.all(jnp.isfinite(state.positions))
    return system, jnp.where(sound, 1.0, jnp.nan).astype(system.positions.dtype)


def _pair_distances(system: System, reach: float) -> tuple[Array, Array]:
    """Return `(r, inside)` of each listed pair, `(N, capacity)`; r is finite and has finite slopes where a pair is not inside."""
    d, inside = neighbor_vectors(system, jnp.asarray(reach))
    return jnp.sqrt(jnp.sum(d * d, axis=-1)), inside


def _code(system: System, label: str, name: str) -> int:
    """Return the code of a species; raise InputError where the system does not have it."""
    if label not in system.labels:
        raise InputError(f"{name} asks for the species {label!r}, and the system has {', '.join(system.labels)}.")
    return system.labels.index(label)


class coordination(eqx.Module):
    """`coordination(radius, width)`: smooth number of neighbours of each atom, shape `(N,)`.

        n_i = Σ_j s(r_ij),   s falling from 1 at radius - width/2 to 0 at radius + width/2 as 1 - 10 x³ + 15 x⁴ - 6 x⁵.

    The idea is of M. Sprik, Faraday Discuss. 110, 437 (1998), whose Fermi function is replaced by a polynomial of finite
    reach with two continuous derivatives.

    Args:
        radius: distance at which a neighbour counts half [Å]; between the first and the second shell.
        width: width of the interval in which s falls [Å].
        neighbor: species of the neighbours that count; by default all.
        system: the structure, where radius + width/2 lies beyond the potential's range.

    Raises:
        InputError: lengths that make no interval, an unknown species, or pairs that cannot be known (see `system`).
    """

    radius: float = eqx.field(static=True)
    width: float = eqx.field(static=True)
    neighbor: str | None = eqx.field(static=True)
    pair_list: PairList | None

    def __init__(self, radius: float, width: float, *, neighbor: str | None = None, system: System | None = None) -> None:
        if not (_is_length(radius) and _is_length(width) and width <= 2.0 * radius):
            raise InputError(
                f"coordination wants a radius and a width of at most twice that, lengths in Å, not {radius!r} and {width!r}."
            )
        self.radius, self.width, self.neighbor = float(radius), float(width), neighbor
        self.pair_list = None if system is None else PairList(system, self.radius + 0.5 * self.width)

    def __call__(self, system: System, potential: Potential) -> Array:
        edge = self.radius + 0.5 * self.width
        code = None if self.neighbor is None else _code(system, self.neighbor, "coordination")
        system, sound = _with_pairs(system, potential, self.pair_list, edge, "coordination")
        r, counted = _pair_distances(system, edge)
        if code is not None:
            counted = counted & (system.species[pair_list(system).index] == code)
        return sound * jnp.sum(jnp.where(counted, quintic(r, self.radius - 0.5 * self.width, edge), 0.0), axis=1)


class radial_distribution(eqx.Module):
    """`radial_distribution(r, width)`: the radial distribution function g(r) on a grid, each pair smeared by a Gaussian.

        g(r) = V / (N_a N_b) Σ_i∈a Σ_j∈b G(r - r_ij) / S(r),    S(r) = ∫_0^∞ 4π s² G(r - s) ds,    in 2-D 2π s,

    with G normalised, of standard deviation `width`. An ideal gas has g = 1 at every r, also near r = 0, since S is the
    smeared shell. Without smearing it is the histogram of M. P. Allen, D. J. Tildesley, Computer Simulation of Liquids
    (2017), section 8.2.

    Args:
        r: the grid of distances [Å], shape `(n,)`; they may be longer than the cell.
        width: standard deviation of the Gaussians [Å].
        pair: `"A-B"`, the species of the pairs that count; by default all.
        system: the structure, where max(r) + 7 width lies beyond the potential's range.

    Raises:
        InputError: a grid or width that makes no sense, a system that is not periodic in all directions, an unknown
            species, or pairs that cannot be known (see `system`).
    """

    r: Float[Array, " n"]
    width: float = eqx.field(static=True)
    reach: float = eqx.field(static=True)
    pair: tuple[str, str] | None = eqx.field(static=True)
    pair_list: PairList | None

    def __init__(self, r: ArrayLike, width: float, *, pair: str | None = None, system: System | None = None) -> None:
        grid = np.asarray(r)
        if grid.ndim != 1 or grid.size == 0 or grid.dtype.kind not in "iuf" or not (np.isfinite(grid) & (grid >= 0.0)).all():
            raise InputError("radial_distribution wants a one-dimensional grid of distances r ≥ 0 in Å: jnp.linspace(0, 6, 100).")
        if not _is_length(width):
            raise InputError(f"The width of radial_distribution must be a positive length in Å, not {width!r}.")
        labels = None if pair is None else tuple(str(pair).split("-"))
        if labels is not None and len(labels) != 2:
            raise InputError(f'The pair of radial_distribution is two species, "A-B", not {pair!r}.')
        self.r, self.width, self.reach = jnp.asarray(grid, float), float(width), float(grid.max() + TAIL * width)
        self.pair = labels
        self.pair_list = None if system is None else PairList(system, self.reach)

    def __call__(self, system: System, potential: Potential) -> Array:
        if not all(system.pbc):
            raise InputError("radial_distribution needs a density, and so a system that is periodic in all directions.")
        codes = None if self.pair is None else [_code(system, label, "radial_distribution") for label in self.pair]
        system, sound = _with_pairs(system, potential, self.pair_list, self.reach, "radial_distribution")
        distance, counted = _pair_distances(system, self.reach)
        normal: Any = float(len(system)) ** 2
        if codes is not None:
            a, b = (system.species == code for code in codes)
            counted, normal = counted & a[:, None] & b[pair_list(system).index], jnp.sum(a) * jnp.sum(b)

        # One r at a time, and the terms of each computed again where a derivative needs them: they would not fit together.
        @jax.checkpoint
        def smeared(r: Array) -> Array:
            return jnp.sum(jnp.where(counted, jnp.exp(-0.5 * ((r - distance) / self.width) ** 2), 0.0))

        r = self.r.astype(distance.dtype)
        sums = jax.lax.map(smeared, r) / (self.width * math.sqrt(2.0 * math.pi))
        return sound * system.volume / normal * sums / self._shell(r, system.dim)

    def _shell(self, r: Array, dim: int) -> Array:
        w, below, at = self.width, norm.cdf(r / self.width), norm.pdf(r / self.width)
        return 4.0 * math.pi * ((r**2 + w**2) * below + r * w * at) if dim == 3 else 2.0 * math.pi * (r * below + w * at)


def _is_length(value: float) -> bool:
    return isinstance(value, Real) and 0.0 < value < np.inf
