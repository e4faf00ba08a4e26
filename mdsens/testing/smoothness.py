"""Jumps of an energy and its derivatives along a path on which all distances grow beyond the cutoff."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.potentials.base import Potential, total_energy
from mdsens.potentials.forms.neighbor_vectors import with_derivatives
from mdsens.structures.system import System

POINTS = 480
"""Number of points that are evaluated together."""

INTERVALS = 24
"""Number of intervals that are divided: those with the largest change that their neighbours do not explain."""

ROUNDS = 5
"""Number of divisions by 20, after which what changes evenly is 1e-6 of what it was, and a jump is still a jump."""

ATOMS = 10
"""Number of atoms in the cluster, unless there are more species."""

START = 0.9
"""Scale of distances at the start of the path."""

JUMP = 1e-5
"""Share of the largest value on the path that counts as a jump; published digits often leave smaller ones."""


# These functions run a few times on a few atoms: what they cost is their compilation.
jit_quickly = functools.partial(jax.jit, compiler_options={"xla_llvm_disable_expensive_passes": True})


class _Path(NamedTuple):
    """A cluster whose atoms are pulled away from a centre, all distances growing by one scale.

    Attributes:
        potential: that of the cluster.
        cluster: with a list that holds on the whole path.
        centre: `(dim,)` [Å].
    """

    potential: Potential
    cluster: System
    centre: Array


def jumps(potential: Potential, system: System, spacing: float) -> list[float]:
    """Return the jumps of the energy, its slope and its second derivative, as shares of their largest values.

    The atoms of the system without its periodicity, some of them, are pulled apart evenly from 0.9 of their distances until the
    nearest ones no longer see each other: all pairs pass all cutoffs, switches and kinks.

    Args:
        spacing: smallest distance [Å].
    """
    cluster, centre, chosen = _cluster(system)
    # Of a parameter with a value for each atom the cluster has its own atoms' values.
    potential = jax.tree.map(lambda leaf: leaf[chosen] if leaf.shape == (len(system),) else leaf, potential)
    reach = float(np.asarray(potential.range))
    end = 1.05 * reach / spacing
    shortest = cluster.with_positions(centre + START * (cluster.positions - centre))
    widest = cluster.with_positions(centre + end * (cluster.positions - centre))
    listed = shortest.with_neighbors(potential, skin=float(np.abs(np.asarray(widest.positions)).max()) * 2.0)
    path = _Path(potential, listed.with_positions(cluster.positions), centre)
    scales = np.linspace(START, end, POINTS)
    values = _along(path, scales)
    return [_largest_jump(path, scales, values, k) / (np.abs(values[k]).max() or 1.0) for k in range(3)]


def _cluster(system: System) -> tuple[System, Array, np.ndarray]:
    """Return `(cluster, centre, atoms)`: the atoms nearest to the first one, of all species, without periodicity."""
    x = np.asarray(system.positions)
    if system.cell is not None and any(system.pbc):
        inverse = np.linalg.pinv(np.asarray(system.cell))
        d = x - x[0]
        x = x[0] + d - np.round(d @ inverse * np.array(system.pbc)) @ np.asarray(system.cell)
    order = np.argsort(np.linalg.norm(x - x[0], axis=1), kind="stable")
    symbols = np.array(system.symbols)
    first = [int(order[np.argmax(symbols[order] == label)]) for label in system.labels]
    chosen = np.array(list(dict.fromkeys([*first, *map(int, order)]))[: max(ATOMS, len(first))])
    return System(x[chosen], species=list(symbols[chosen])), jnp.asarray(x[chosen].mean(axis=0)), chosen


@jit_quickly
def _values(path: _Path, scales: Array) -> Array:
    potential, cluster, centre = path

    def energy(scale: Array) -> Array:
        return total_energy(potential, cluster.with_positions(centre + scale * (cluster.positions - centre)))

    return jax.lax.map(lambda scale: jnp.stack(with_derivatives(energy)(scale)), scales, batch_size=INTERVALS)


def _along(path: _Path, scales: np.ndarray) -> Float[np.ndarray, "3 scales"]:
    """Return energy, slope and second derivative at some scales."""
    return np.asarray(_values(path, jnp.asarray(scales))).T


def _largest_jump(path: _Path, scales: np.ndarray, values: np.ndarray, order: int) -> float:
    """Return the largest change of the derivative of an order within the shortest intervals."""
    steps = np.abs(np.diff(values[order]))
    around = 0.5 * (np.concatenate([steps[:1], steps[:-1]]) + np.concatenate([steps[1:], steps[-1:]]))
    chosen = np.argsort(np.abs(steps - around))[-INTERVALS:]
    low, high = scales[chosen], scales[chosen + 1]
    for _ in range(ROUNDS):
        inside = np.linspace(low, high, POINTS // INTERVALS, axis=1)
        steps = np.abs(np.diff(_along(path, inside.ravel())[order].reshape(inside.shape), axis=1))
        worst, rows = steps.argmax(axis=1), np.arange(len(low))
        low, high = inside[rows, worst], inside[rows, worst + 1]
    largest = steps[rows, worst].max()
    return float(largest) if np.isfinite(largest) else np.inf
