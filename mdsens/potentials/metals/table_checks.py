"""How far two interpolations of embedded-atom tables are apart, where it matters: in a crystal and in a dimer [host]."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from scipy.interpolate import CubicHermiteSpline, CubicSpline
from scipy.optimize import minimize_scalar


class Tables(Protocol):
    """What an embedded-atom potential is tabulated in."""

    F: dict[str, Any]
    rho: dict[str, Any]
    phi: dict[str, Any]
    dr: float
    drho: float
    cutoff: float


LENGTHS = 4e-4
"""Share of the lattice constant by which two interpolations may differ without a word."""

STIFFNESSES = 0.01
"""Share of the stiffness of a crystal by which they may."""

DIMERS = 0.1
"""Energies of a dimer by which they may [eV]."""

HIGHEST = 5.0
"""Highest energy of a dimer above its lowest at which it is looked at [eV]."""

CONSTANTS = 0.45, 1.3
"""Lattice constants between which a crystal's is sought, as shares of the cutoff."""

STEP = 5e-4
"""Share of the lattice constant over which energies are differenced."""


def coarseness(potential: Tables, lammps_slopes: Callable[[Any], Any]) -> str:
    """What departs between a C2 spline and LAMMPS's cubics, in words; empty where nothing does.

    FCC crystals of each element, whatever its own structure is, and dimers of each pair.

    Args:
        lammps_slopes: of a table's values, per step of its grid.
    """
    found = [_of_crystal(potential, element, lammps_slopes) for element in potential.F]
    for pair in potential.phi:
        a, b = pair.split("-")
        found.append(_of_dimer(potential, a, b, lammps_slopes))
    return ", ".join(words for words in found if words)


def _of_crystal(potential: Tables, element: str, slopes: Any) -> str:
    """The lattice constant at the lowest energy, and the curvature there."""
    steps = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    squares = np.sum(steps[np.sum(steps, axis=1) % 2 == 0] ** 2, axis=1)
    shells, counts = np.unique(squares[squares > 0], return_counts=True)
    energies = [_energy(potential, element, element, np.sqrt(0.25 * shells), counts, slopes, way) for way in (True, False)]
    smooth, lammps = (_lowest(energy, np.linspace(*CONSTANTS, 400) * potential.cutoff) for energy in energies)
    if not np.isfinite(smooth + lammps):
        return ""
    curvatures = []
    for energy, a in zip(energies, (smooth, lammps), strict=True):
        below, here, above = energy(a * np.array([1.0 - STEP, 1.0, 1.0 + STEP]))
        curvatures.append((below - 2.0 * here + above) / a**2)
    stiffer = curvatures[0] / curvatures[1] - 1.0
    if abs(smooth / lammps - 1.0) < LENGTHS and abs(stiffer) < STIFFNESSES:
        return ""
    change = f"{abs(stiffer):.1%} {'stiffer' if stiffer > 0.0 else 'softer'}"
    return f"FCC {element} has a = {smooth:.4f} Å for {lammps:.4f} Å and is {change}"


def _lowest(energy: Callable[[np.ndarray], np.ndarray], grid: np.ndarray) -> float:
    """Where the lowest minimum is; NaN without one on the grid."""
    values = energy(grid)
    inner = np.flatnonzero((values[1:-1] < values[:-2]) & (values[1:-1] <= values[2:])) + 1
    if not len(inner):
        return np.nan
    k = inner[np.argmin(values[inner])]
    found = minimize_scalar(lambda a: energy(np.array([a]))[0], bounds=(grid[k - 1], grid[k + 1]), method="bounded")
    return float(found.x)


def _of_dimer(potential: Tables, a: str, b: str, slopes: Any) -> str:
    """The largest difference of energies where they are not high."""
    r, one = np.linspace(0.15, 1.0, 1500) * potential.cutoff, np.ones(1)
    smooth, lammps = (sum(_energy(potential, *ab, one, one, slopes, way)(r) for ab in ((a, b), (b, a))) for way in (True, False))
    difference = np.where(lammps < np.min(lammps) + HIGHEST, np.abs(smooth - lammps), 0.0)
    worst = np.argmax(difference)
    return f"a dimer {a}-{b} differs by {difference[worst]:.2f} eV at {r[worst]:.2f} Å" if difference[worst] > DIMERS else ""


def _energy(
    potential: Tables, centre: str, around: str, lengths: np.ndarray, counts: np.ndarray, slopes: Any, smooth: bool
) -> Callable[[np.ndarray], np.ndarray]:
    """`energy(a)` of one atom amid shells of `counts` atoms at the distances `lengths · a`."""
    made = potential.rho[around]
    made = made[centre] if isinstance(made, dict) else made
    pair, embedding = potential.phi["-".join(sorted((centre, around)))], potential.F[centre]
    end, densest = potential.dr * (len(pair) - 1), potential.drho * (len(embedding) - 1)

    def function(values: Any, step: float) -> Any:
        x, values = step * np.arange(len(values)), np.asarray(values)
        return CubicSpline(x, values) if smooth else CubicHermiteSpline(x, values, np.asarray(slopes(values)) / step)

    density, product, embed = function(made, potential.dr), function(pair, potential.dr), function(embedding, potential.drho)

    def energy(a: np.ndarray) -> np.ndarray:
        r = a[:, None] * lengths
        weights = np.where(r < potential.cutoff, counts, 0.0)
        at = np.minimum(r, end)
        rho = np.sum(weights * density(at), axis=1)
        within = np.clip(rho, 0.0, densest)
        return (
            0.5 * np.sum(weights * product(at) / r, axis=1) + embed(within) + np.maximum(rho - densest, 0.0) * embed(densest, 1)
        )

    return energy
