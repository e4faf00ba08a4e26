"""Whether an energy and its derivatives are continuous: jumps along a path on which all distances grow beyond the cutoff."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.potentials.base import Potential, total_energy
from mdsens.structures.system import System

POINTS = 480
"""Evaluated together."""

INTERVALS = 24
"""Looked at more closely, in each round those with the largest change that their neighbours do not explain."""

ROUNDS = 5
"""Each makes intervals 20 times shorter: what changes evenly is then 1e-6 of what it was, and a jump is still a jump."""

ATOMS = 10
"""Of the system that form the cluster, at most."""

START = 0.9
"""Scale of distances at the start of the path."""

JUMP = 1e-5
"""Share of the largest value on the path that counts as a jump; published digits often leave smaller ones."""


# These functions run a few times on a few atoms: what they cost is their compilation.
quickly_compiled = functools.partial(jax.jit, compiler_options={"xla_llvm_disable_expensive_passes": True})


def jumps(potential: Potential, system: System, spacing: float) -> list[tuple[float, float]]:
    """`(jump, allowed)` of the energy, its slope and its second derivative, as shares of their largest values.

    The atoms of the system without its periodicity, some of them, are pulled apart evenly from 0.9 of their distances until the
    nearest ones no longer see each other: all pairs pass all cutoffs, switches and kinks.

    Args:
        spacing: smallest distance [Å].
    """
    cluster, centre, kept = _cluster(system)
    # Parameters with a value for each atom are those of the cluster's.
    potential = jax.tree.map(lambda leaf: leaf[kept] if leaf.shape == (len(system),) else leaf, potential)
    reach = float(np.asarray(potential.range))
    end = 1.05 * reach / spacing
    shortest = cluster.with_positions(centre + START * (cluster.positions - centre))
    widest = cluster.with_positions(centre + end * (cluster.positions - centre))
    listed = shortest.with_neighbors(potential, skin=float(np.abs(np.asarray(widest.positions)).max()) * 2.0)
    scales = np.linspace(START, end, POINTS)
    values = _along(potential, listed, cluster.positions, centre, scales)
    found = []
    for k in range(3):
        size = np.abs(values[k]).max() or 1.0
        found.append((_largest_jump(potential, listed, cluster.positions, centre, scales, values[k], k) / size, JUMP))
    return found


def _cluster(system: System) -> tuple[System, Array, np.ndarray]:
    """The atoms nearest to the first one, as they are, without periodicity; all species are among them."""
    x = np.asarray(system.positions)
    if system.cell is not None and any(system.pbc):
        inverse = np.linalg.pinv(np.asarray(system.cell))
        d = x - x[0]
        x = x[0] + d - np.round(d @ inverse * np.array(system.pbc)) @ np.asarray(system.cell)
    order = np.argsort(np.linalg.norm(x - x[0], axis=1), kind="stable")
    symbols = np.array(system.symbols)
    first = [int(order[np.argmax(symbols[order] == label)]) for label in system.labels]
    kept = list(dict.fromkeys([*first, *map(int, order)]))[: max(ATOMS, len(first))]
    return System(x[kept], species=list(symbols[kept])), jnp.asarray(x[kept].mean(axis=0)), np.array(kept)


@quickly_compiled
def _values(potential: Potential, listed: System, positions: Array, centre: Array, scales: Any) -> Array:
    def energy(scale: Array) -> Array:
        return total_energy(potential, listed.with_positions(centre + scale * (positions - centre)))

    def derivatives(scale: Array) -> Array:
        one = jnp.ones_like(scale)
        slope = lambda s: jax.jvp(energy, (s,), (one,))  # noqa: E731
        (value, first), (_, second) = jax.jvp(slope, (scale,), (one,))
        return jnp.stack([value, first, second])

    return jax.lax.map(derivatives, scales, batch_size=INTERVALS)


def _along(potential: Potential, listed: System, positions: Array, centre: Array, scales: Any) -> np.ndarray:
    return np.asarray(_values(potential, listed, positions, centre, jnp.asarray(scales))).T


def _largest_jump(
    potential: Potential, listed: System, positions: Array, centre: Array, scales: Any, values: Any, order: int
) -> float:
    steps = np.abs(np.diff(values))
    around = 0.5 * (np.concatenate([steps[:1], steps[:-1]]) + np.concatenate([steps[1:], steps[-1:]]))
    chosen = np.argsort(np.abs(steps - around))[-INTERVALS:]
    low, high = scales[chosen], scales[chosen + 1]
    for _ in range(ROUNDS):
        inside = np.linspace(low, high, POINTS // INTERVALS, axis=1)
        there = _along(potential, listed, positions, centre, inside.ravel())[order].reshape(inside.shape)
        steps = np.abs(np.diff(there, axis=1))
        worst, rows = steps.argmax(axis=1), np.arange(len(low))
        low, high = inside[rows, worst], inside[rows, worst + 1]
    largest = steps[rows, worst].max()
    return float(largest) if np.isfinite(largest) else np.inf
