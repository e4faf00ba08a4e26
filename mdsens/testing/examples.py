"""A small example of every potential, with a structure that suits it, on which contract and gradients are tested.

A new potential is one more entry, `"Name": builder`, its builder returning `(potential, system)`: a few atoms of all its species
that relax to a minimum without symmetry, in a periodic cell where the potential can be periodic.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

from mdsens import potentials as ms
from mdsens.potentials.base import Potential
from mdsens.potentials.reparameterised import Rule
from mdsens.structures.packing import random_packing
from mdsens.structures.system import System

Example = tuple[Potential, System]

WELLS = {"A-A": 1.0, "A-B": 1.1, "B-B": 0.9}
SWITCHED: dict[str, Any] = {"cutoff": 1.9, "onset": 1.5}


def crystal(atoms: Atoms, *, missing: int = 0, labels: Sequence[str] | None = None, squeezed: float = 1.0) -> System:
    """Return a crystal with a vacancy; `labels`, where given, are dealt out to the atoms in turn."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell * squeezed, scale_atoms=True)
    del atoms[missing]
    species = atoms.get_chemical_symbols() if labels is None else list(itertools.islice(itertools.cycle(labels), len(atoms)))
    return System(atoms.positions, cell=atoms.cell.array, pbc=True, species=species)


def _lennard_jones() -> Example:
    potential = ms.LennardJones(WELLS, sigma={"A-A": 1.0, "A-B": 0.97, "B-B": 0.94}, **SWITCHED)
    return potential, crystal(bulk("Ar", "fcc", a=1.52, cubic=True) * 2, missing=7, labels="AAB")


def _like_lennard_jones(potential: Potential) -> Example:
    return potential, _lennard_jones()[1]


def _harmonic_bonds() -> Example:
    system = crystal(bulk("Ar", "fcc", a=1.5, cubic=True) * (3, 3, 3), missing=7)
    return ms.HarmonicBonds.at_rest(system, cutoff=1.2, k=2.0), system


def _ions(charges: Potential) -> Example:
    """Return rock salt with Buckingham's repulsion, one ion frozen out of its place and a neighbour of it frozen in place."""
    repulsion = ms.Buckingham(A={"Cl-Cl": 3485.0, "Cl-Na": 1256.0, "Na-Na": 424.0}, rho=0.3, C=0.0, cutoff=5.5, onset=4.5)
    atoms = bulk("NaCl", "rocksalt", a=5.4, cubic=True)
    atoms.positions[0] += 0.3
    system = System.from_ase(atoms)
    frozen = np.arange(len(system)) < 2
    return charges + repulsion, System(system.positions, cell=system.cell, pbc=True, species=system.symbols, frozen=frozen)


def _on_silicon(potential: Potential) -> Example:
    """Return a potential as a small correction of Stillinger and Weber's silicon, which keeps the crystal together."""
    return ms.StillingerWeber.silicon() + potential, _silicon()


def _snap() -> Example:
    coefficients = {"Si": 0.005 * np.random.default_rng(0).normal(size=6)}
    return _on_silicon(ms.SNAP(coefficients, weights={"Si": 1.0}, radii=(("Si", 0.5),), rcutfac=4.0, twojmax=2))


def _behler_parrinello() -> Example:
    shape: dict[str, Any] = {"eta": [0.5, 1.0], "Rs": [2.0, 3.0], "angular_eta": [0.05], "zeta": [2], "lam": [1]}
    return _on_silicon(ms.BehlerParrinello.untrained("Si", cutoff=4.0, **shape, hidden=(4,), seed=1))


def _soft_sphere() -> Example:
    diameters = {"A": 1.0, "B": 0.6}
    return ms.SoftSphere(diameter=diameters, epsilon=1.0), random_packing(16, diameters, seed=2)


def _silicon() -> System:
    return crystal(bulk("Si", cubic=True) * (2, 1, 1), missing=3)


def _copper() -> System:
    return crystal(bulk("Cu", cubic=True) * 2, missing=5)


def _tables() -> Potential:
    """Return tables of a Gupta-like copper, which (1 - x²)³ brings to zero at the cutoff."""
    cutoff, points = 4.5, 120
    r, rho = np.linspace(0.0, cutoff, points), np.linspace(0.0, 60.0, points)
    fade = (1.0 - (r / cutoff) ** 2) ** 3
    density = 2.0 * np.exp(-2.0 * (r / 2.556 - 1.0)) * fade
    pairs = 0.7 * r * np.exp(-9.0 * (r / 2.556 - 1.0)) * fade
    energies = -0.9 * np.sqrt(rho + 1.0) + 0.01 * rho
    return ms.EAM({"Cu": energies}, {"Cu": density}, {"Cu-Cu": pairs}, drho=float(rho[1]), dr=float(r[1]), cutoff=cutoff)


def _reparameterised() -> Example:
    potential, system = _lennard_jones()
    same: dict[str, Rule] = {"sigma.A-B": "fixed", "epsilon.B-B": ("tied", "epsilon.A-A")}
    return ms.reparameterised(potential, {"epsilon": "log", "sigma.B-B": ("ratio", "sigma.A-A"), **same}), system


EXAMPLES: dict[str, Callable[[], Example]] = {
    "LennardJones": _lennard_jones,
    "Mie": lambda: _like_lennard_jones(ms.Mie(epsilon=1.0, sigma=0.96, n=11.0, m=5.5, **SWITCHED)),
    "WeeksChandlerAndersen": lambda: _like_lennard_jones(ms.WeeksChandlerAndersen(1.0, {"A-A": 1.05, "A-B": 1.04, "B-B": 1.03})),
    "Morse": lambda: _like_lennard_jones(ms.Morse(WELLS, alpha=5.5, r0=1.09, **SWITCHED)),
    "Buckingham": lambda: _like_lennard_jones(
        ms.Buckingham(A=2.4e5, rho=0.08, C={"A-A": 2.0, "A-B": 2.2, "B-B": 1.9}, **SWITCHED)
    ),
    "BornMayerHuggins": lambda: _like_lennard_jones(ms.BornMayerHuggins(A=1.0, rho=0.08, sigma=0.99, C=2.0, D=0.05, **SWITCHED)),
    "Yukawa": lambda: _like_lennard_jones(ms.Yukawa({"A-A": 1.0, "A-B": 1.2, "B-B": 1.4}, kappa=2.0, **SWITCHED)),
    "ZBL": lambda: _on_silicon(ms.ZBL(onset=2.0, cutoff=3.0)),
    "HarmonicBonds": _harmonic_bonds,
    "Coulomb": lambda: _ions(ms.Coulomb(charge={"Cl": -1.0, "Na": 1.0}, cutoff=5.5)),
    "Ewald": lambda: _ions(ms.Ewald(charge={"Cl": -1.0, "Na": 1.0}, cutoff=5.0, background=True)),
    "SoftSphere": _soft_sphere,
    "StillingerWeber": lambda: (ms.StillingerWeber.silicon(), _silicon()),
    "Tersoff": lambda: (ms.Tersoff.silicon(), _silicon()),
    "EAM": lambda: (_tables(), _copper()),
    "FinnisSinclair": lambda: (ms.FinnisSinclair.published("W"), crystal(bulk("W", cubic=True) * (3, 2, 2), missing=5)),
    "Gupta": lambda: (ms.Gupta(A=0.0855, xi=1.224, p=10.96, q=2.278, r0=2.556, onset=3.6, cutoff=4.4), _copper()),
    "ZhouJohnsonWadley": lambda: (ms.ZhouJohnsonWadley.published("Cu", onset=3.6, cutoff=4.4), _copper()),
    "SNAP": _snap,
    "BehlerParrinello": _behler_parrinello,
    "DeepSets": lambda: _on_silicon(ms.DeepSets.untrained("Si", cutoff=4.0, n_radial=3, hidden=(4,), seed=1)),
    "Sum": lambda: (ms.StillingerWeber.silicon() + ms.LennardJones(epsilon=0.02, sigma=2.1, cutoff=5.0, onset=4.0), _silicon()),
    "Reparameterised": _reparameterised,
}
"""Builders by the name of the class."""
