"""The rounding error of an observable: what it changes by when atoms move by nearly nothing."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from mdsens.structures.system import System

NUDGE = 1e-7
"""Displacement, as a share of the distance between atoms, that means nothing."""

ROUNDING = 1e-12
"""Share of a number below which its changes are rounding."""


def rounding_of(
    value: Callable[[dict[str, System]], Float[np.ndarray, " numbers"]], systems: dict[str, System]
) -> Float[np.ndarray, " numbers"]:
    """Return how much of a change of each number of an observable, a function of structures by name, is rounding [host]."""
    here = value(systems)
    rounding = ROUNDING * np.abs(here)
    for seed in range(2):
        there = value({name: _nudge(system, np.random.default_rng(seed)) for name, system in systems.items()})
        rounding = np.fmax(rounding, np.abs(there - here))
    return rounding


def _nudge(system: System, rng: np.random.Generator) -> System:
    positions, dim = np.asarray(system.positions), system.dim
    volume = np.ptp(positions, axis=0).max() ** dim if system.cell is None else float(system.volume)
    moved = positions + NUDGE * (volume / len(positions)) ** (1.0 / dim) * rng.normal(size=positions.shape)
    if system.cell is None:
        return system.with_positions(moved)
    strain = rng.normal(size=(dim, dim))
    larger = np.eye(dim) + NUDGE * (strain + strain.T)
    return system.with_positions(moved).deformed(larger)
