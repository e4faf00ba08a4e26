"""`Watch`: a look at atoms that fall into each other, where an energy has no wall at short distance."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common.errors import CoincidingAtoms
from mdsens.mechanics.evaluation import place
from mdsens.mechanics.landscape import LandscapeLike
from mdsens.mechanics.unknown import Unknown
from mdsens.potentials.base import Potential, total_energy
from mdsens.potentials.learned.snap import SNAP
from mdsens.potentials.sums import with_pair_list
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.system import System

NEAR_SHARE = 0.6
"""Distance of two atoms, as a share of the least distance at the start, below which their energy is looked at."""

PROBED_SHARES = (1.0, 0.8, 0.6, 0.4, 0.25)
"""Shares of their distance at which their energy is looked at."""


class Pair(NamedTuple):
    """Two neighbours: their distance [Å], their indices, and the vector from i to j [Å]."""

    distance: float
    i: int
    j: int
    vector: np.ndarray


class Watch:
    """A function `watch(z, data)` that looks at the nearest atoms of a state on the way [host].

    Raises:
        CoincidingAtoms: the two nearest atoms came much nearer, and the energy falls the more the nearer they come.
    """

    def __init__(self, z: Unknown | Array, data: LandscapeLike) -> None:
        self.start = _nearest_pair(place(z, data.reference))

    def __call__(self, z: Unknown | Array, data: LandscapeLike) -> None:
        system, potential = place(z, data.reference), data.potential
        pair = None if self.start is None else _nearest_pair(system)
        if self.start is None or pair is None or not pair.distance < NEAR_SHARE * self.start.distance:
            return
        if _is_falling(system, potential, pair):
            raise CoincidingAtoms(np.asarray(system.positions), _explanation(system, potential, pair, self.start.distance))


def _nearest_pair(system: System) -> Pair | None:
    """Return the nearest listed pair; None without a list or a pair."""
    neighbors = with_pair_list(system).neighbors
    if not isinstance(neighbors, Neighbors):
        return None
    positions, atom = np.asarray(system.positions), np.asarray(neighbors.atom)
    d = positions[atom] - positions
    if system.cell is not None:
        d = d + (np.asarray(neighbors.images).T @ np.asarray(system.cell))[np.asarray(neighbors.kind)]
    r = np.where(np.asarray(neighbors.used), np.linalg.norm(d, axis=-1), np.inf)
    place, i = np.unravel_index(np.argmin(r), r.shape)
    return Pair(float(r[place, i]), int(i), int(atom[place, i]), d[place, i]) if 0.0 < r[place, i] < np.inf else None


def _is_falling(system: System, potential: Potential, pair: Pair) -> bool:
    """Return whether the energy becomes lower and lower as both atoms come nearer to their middle."""
    _, i, j, d = pair
    if i == j or (bool(system.frozen[i]) and bool(system.frozen[j])):
        return False
    energies = []
    for share in PROBED_SHARES:
        step = 0.5 * (1.0 - share) * d
        moved = np.array(system.positions)
        moved[i] += step
        moved[j] -= step
        energies.append(float(_energy(potential, system.with_positions(jnp.asarray(moved)))))
    return bool(np.all(np.diff(energies) < 0.0))


def _explanation(system: System, potential: Potential, pair: Pair, start: float) -> str:
    r, i, j, _ = pair
    names = f"Atoms {i} ({system.symbols[i]}) and {j} ({system.symbols[j]})"
    whose = " + ".join(type(part).__name__ for part in potential.parts())
    is_snap = any(isinstance(part, SNAP) for part in potential.parts())
    overlay = ", the overlay that many SNAP files are made for (LAMMPS's hybrid/overlay zbl ... snap)" if is_snap else ""
    return (
        f"{names} fall into each other, {r:.2g} Å apart where the nearest atoms were {start:.2g} Å at first: at short distance "
        f"the energy of {whose} has no wall but falls without bound or into a hole: begin with atoms farther apart, or add a "
        f"wall, potential + ms.ZBL(cutoff=...){overlay}."
    )


_energy = eqx.filter_jit(total_energy)
