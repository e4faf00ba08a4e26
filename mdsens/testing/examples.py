"""A small example of every potential, with a structure that suits it: what contract and gradients are tested on.

A new potential is one more entry, `"Name": builder`, its builder returning `(potential, system)`: a few atoms of all its species
that relax to a minimum without symmetry, in a periodic cell where the potential can be periodic.
"""

import itertools
from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.build import bulk

from mdsens.potentials import (
    EAM,
    LennardJones,
    Potential,
    SoftSphere,
    StillingerWeber,
    Tersoff,
    ZhouJohnsonWadley,
    reparameterised,
)
from mdsens.structures import random_packing
from mdsens.system import System

Example = tuple[Potential, System]


def crystal(atoms: Atoms, *, missing: int = 0, labels=None, squeezed: float = 1.0) -> System:
    """A crystal with a vacancy; `labels` are dealt out in turn where they are not the atoms' own."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell * squeezed, scale_atoms=True)
    del atoms[missing]
    species = atoms.get_chemical_symbols() if labels is None else list(itertools.islice(itertools.cycle(labels), len(atoms)))
    return System(atoms.positions, cell=atoms.cell.array, pbc=True, species=species)


def _lennard_jones() -> Example:
    potential = LennardJones(
        epsilon={"A-A": 1.0, "A-B": 1.1, "B-B": 0.9}, sigma={"A-A": 1.0, "A-B": 0.97, "B-B": 0.94}, cutoff=1.9, onset=1.5
    )
    return potential, crystal(bulk("Ar", "fcc", a=1.52, cubic=True) * 2, missing=7, labels="AAB")


def _soft_sphere() -> Example:
    diameters = {"A": 1.0, "B": 0.6}
    return SoftSphere(diameter=diameters, epsilon=1.0), random_packing(16, diameters, seed=2)


def _stillinger_weber() -> Example:
    return StillingerWeber.silicon(), crystal(bulk("Si", cubic=True) * (2, 1, 1), missing=3)


def _tersoff() -> Example:
    return Tersoff.silicon(), crystal(bulk("Si", cubic=True) * (2, 1, 1), missing=3)


def _tables() -> Example:
    """Tables of a Gupta-like copper, (1 - x²)³ bringing them to zero at the cutoff."""
    cutoff, points = 4.5, 120
    r, rho = np.linspace(0.0, cutoff, points), np.linspace(0.0, 60.0, points)
    fade = (1.0 - (r / cutoff) ** 2) ** 3
    density = 2.0 * np.exp(-2.0 * (r / 2.556 - 1.0)) * fade
    pairs = 0.7 * r * np.exp(-9.0 * (r / 2.556 - 1.0)) * fade
    potential = EAM(
        F={"Cu": -0.9 * np.sqrt(rho + 1.0) + 0.01 * rho},
        rho={"Cu": density},
        phi={"Cu-Cu": pairs},
        drho=float(rho[1]),
        dr=float(r[1]),
        cutoff=cutoff,
    )
    return potential, crystal(bulk("Cu", cubic=True) * 2, missing=5)


def _zhou() -> Example:
    potential = ZhouJohnsonWadley.published("Cu", onset=3.6, cutoff=4.4)
    return potential, crystal(bulk("Cu", cubic=True) * 2, missing=5)


def _sum() -> Example:
    potential, system = _stillinger_weber()
    return potential + LennardJones(epsilon=0.02, sigma=2.1, cutoff=5.0, onset=4.0), system


def _reparameterised() -> Example:
    potential, system = _lennard_jones()
    rules = {"epsilon": "log", "sigma.B-B": ("ratio", "sigma.A-A"), "sigma.A-B": "fixed", "epsilon.B-B": ("tied", "epsilon.A-A")}
    return reparameterised(potential, rules), system


EXAMPLES: dict[str, Callable[[], Example]] = {
    "LennardJones": _lennard_jones,
    "SoftSphere": _soft_sphere,
    "StillingerWeber": _stillinger_weber,
    "Tersoff": _tersoff,
    "EAM": _tables,
    "ZhouJohnsonWadley": _zhou,
    "Sum": _sum,
    "Reparameterised": _reparameterised,
}
"""Builders by the name of the class."""
