"""A check of embedded-atom tables: how far two interpolations of them differ, in a crystal and in a dimer [host]."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np


class Tables(Protocol):
    """The tables and grids of an embedded-atom potential."""

    F: dict[str, Any]
    rho: dict[str, Any]
    phi: dict[str, Any]
    dr: float
    drho: float
    cutoff: float


LENGTH_TOLERANCE = 4e-4
"""Share of the lattice constant by which two interpolations may differ without a word."""

STIFFNESS_TOLERANCE = 0.01
"""Share of the stiffness of a crystal by which they may differ."""

DIMER_TOLERANCE = 0.1
"""Energy by which they may differ for a dimer [eV]."""

DIMER_RANGE = 5.0
"""Energy of a dimer above its lowest up to which it is checked [eV]."""

CONSTANTS = 0.45, 1.3
"""Lattice constants between which a crystal's is sought, as shares of the cutoff."""

STEP = 5e-4
"""Share of the lattice constant over which energies are differenced."""

Slopes = Callable[[Any], Any]
"""Slopes of a table's values, per step of its grid."""

Energy = Callable[[np.ndarray], np.ndarray]
"""Energy of one atom as a function of a length that its neighbours' distances are multiples of."""


class Shells(NamedTuple):
    """The neighbours of an atom: `counts` of one element at each of the distances `lengths`."""

    element: str
    lengths: np.ndarray
    counts: np.ndarray


def coarseness(potential: Tables, lammps_slopes: Slopes) -> str:
    """Return in words what differs between a C2 spline and LAMMPS's cubics; empty where nothing does.

    Compared are FCC crystals of each element, whatever its own structure is, and dimers of each pair.
    """
    sentences = [_compare_crystals(potential, element, lammps_slopes) for element in potential.F]
    sentences += [_compare_dimers(potential, *pair.split("-"), slopes=lammps_slopes) for pair in potential.phi]
    return ", ".join(words for words in sentences if words)


def _compare_crystals(potential: Tables, element: str, slopes: Slopes) -> str:
    """Return in words how lattice constants and curvatures at the lowest energy differ."""
    steps = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    squares = np.sum(steps[np.sum(steps, axis=1) % 2 == 0] ** 2, axis=1)
    squares, counts = np.unique(squares[squares > 0], return_counts=True)
    shells = Shells(element, np.sqrt(0.25 * squares), counts)
    energies = [_energy(potential, element, shells, way) for way in (None, slopes)]
    smooth, lammps = (_minimum(energy, np.linspace(*CONSTANTS, 400) * potential.cutoff) for energy in energies)
    if not np.isfinite(smooth + lammps):
        return ""
    curvatures = []
    for energy, a in zip(energies, (smooth, lammps), strict=True):
        below, here, above = energy(a * np.array([1.0 - STEP, 1.0, 1.0 + STEP]))
        curvatures.append((below - 2.0 * here + above) / a**2)
    stiffer = curvatures[0] / curvatures[1] - 1.0
    if abs(smooth / lammps - 1.0) < LENGTH_TOLERANCE and abs(stiffer) < STIFFNESS_TOLERANCE:
        return ""
    change = f"{abs(stiffer):.1%} {'stiffer' if stiffer > 0.0 else 'softer'}"
    return f"FCC {element} has a = {smooth:.4f} Å for {lammps:.4f} Å and is {change}"


def _minimum(energy: Energy, grid: np.ndarray) -> float:
    """Return where the lowest minimum is; NaN without one on the grid."""
    values = energy(grid)
    inner = np.flatnonzero((values[1:-1] < values[:-2]) & (values[1:-1] <= values[2:])) + 1
    if not len(inner):
        return np.nan
    # Imported here: every session would pay for it.
    from scipy.optimize import minimize_scalar

    k = inner[np.argmin(values[inner])]
    return float(minimize_scalar(lambda a: energy(np.array([a]))[0], bounds=(grid[k - 1], grid[k + 1]), method="bounded").x)


def _compare_dimers(potential: Tables, a: str, b: str, *, slopes: Slopes) -> str:
    """Return in words the largest difference of energies where they are not high."""
    r, one = np.linspace(0.15, 1.0, 1500) * potential.cutoff, np.ones(1)
    smooth, lammps = (
        sum(_energy(potential, centre, Shells(other, one, one), way)(r) for centre, other in ((a, b), (b, a)))
        for way in (None, slopes)
    )
    difference = np.where(lammps < np.min(lammps) + DIMER_RANGE, np.abs(smooth - lammps), 0.0)
    worst = np.argmax(difference)
    if not difference[worst] > DIMER_TOLERANCE:
        return ""
    return f"a dimer {a}-{b} differs by {difference[worst]:.2f} eV at {r[worst]:.2f} Å"


def _energy(potential: Tables, centre: str, shells: Shells, slopes: Slopes | None) -> Energy:
    """Return the energy of an atom amid shells, by the cubics with these slopes, or by C2 splines."""
    around = potential.rho[shells.element]
    around = around[centre] if isinstance(around, dict) else around
    pair, embedding = potential.phi["-".join(sorted((centre, shells.element)))], potential.F[centre]
    end, densest = potential.dr * (len(pair) - 1), potential.drho * (len(embedding) - 1)

    # Imported here: every session would pay for it.
    from scipy.interpolate import CubicHermiteSpline, CubicSpline

    def function(values: Any, step: float) -> Any:
        x, values = step * np.arange(len(values)), np.asarray(values)
        return CubicSpline(x, values) if slopes is None else CubicHermiteSpline(x, values, np.asarray(slopes(values)) / step)

    density, product, embed = function(around, potential.dr), function(pair, potential.dr), function(embedding, potential.drho)

    def energy(a: np.ndarray) -> np.ndarray:
        r = a[:, None] * shells.lengths
        weights = np.where(r < potential.cutoff, shells.counts, 0.0)
        at = np.minimum(r, end)
        rho = np.sum(weights * density(at), axis=1)
        beyond = np.maximum(rho - densest, 0.0) * embed(densest, 1)
        return 0.5 * np.sum(weights * product(at) / r, axis=1) + embed(np.clip(rho, 0.0, densest)) + beyond

    return energy
