"""Pair potentials of two species against LAMMPS, their derivatives, elastic networks, and what they refuse."""

import numpy as np
import pytest
from ase.build import bulk
from differences import checked_energy_forces_virial, energy_forces_virial
from lammps_reference import evaluate

import mdsens as ms

CUTOFF, ONSET = 5.0, 4.1
SHEAR = np.eye(3) + np.array([[0.03, 0.08, -0.05], [0.0, -0.02, 0.1], [0.04, 0.0, 0.05]])


def pairs(*values):
    return dict(zip(("Cl-Cl", "Cl-Na", "Na-Na"), values, strict=True))


def rock_salt():
    """8 atoms of a sheared, rattled crystal far from the origin, in a cell no larger than the cutoff."""
    atoms = bulk("NaCl", "rocksalt", a=5.2, cubic=True)
    positions = atoms.positions + 0.12 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    return ms.System(positions @ SHEAR + 30.0, cell=atoms.cell.array @ SHEAR, pbc=True, species=atoms.get_chemical_symbols())


def lammps(style, *parameters, own=False):
    """`pair_style` and the `pair_coeff` of each pair, or only of each species with itself where LAMMPS mixes the others."""
    yield f"pair_style {style}"
    for k, (a, b) in enumerate(((1, 1), (1, 2), (2, 2))):
        if a == b or not own:
            values = [list(value.values())[k // 2 if own else k] if isinstance(value, dict) else value for value in parameters]
            yield f"pair_coeff {a} {b} {' '.join(repr(float(value)) for value in values)}"


CUT = {"cutoff": CUTOFF, "switch": "truncated"}
SWITCHED = {"cutoff": CUTOFF, "onset": ONSET}
EPSILON, SIGMA = pairs(0.3, 0.5, 0.2), pairs(2.9, 2.4, 2.1)
N, M = pairs(11.3, 12.0, 9.5), pairs(6.0, 5.2, 4.7)
OWN_EPSILON, OWN_SIGMA, OWN_N, OWN_M = ({"Cl": x, "Na": y} for x, y in ((0.3, 0.2), (2.9, 2.1), (11.3, 9.5), (6.0, 4.7)))
D0, ALPHA, R0 = pairs(0.4, 0.7, 0.2), pairs(1.1, 1.4, 0.9), pairs(3.8, 2.6, 3.5)
A, RHO, C, D, LENGTH = (
    pairs(1200.0, 900.0, 420.0),
    pairs(0.33, 0.31, 0.29),
    pairs(72.0, 6.9, 1.05),
    pairs(145.0, -8.7, 0.5),
    SIGMA,
)
STRENGTH = pairs(8.0, -5.0, 6.0)
CONTACT = {key: 1.4 * value for key, value in SIGMA.items()}


CASES = {
    "Morse": lambda: (ms.Morse(D0=D0, alpha=ALPHA, r0=R0, **CUT), lammps(f"morse {CUTOFF}", D0, ALPHA, R0)),
    "Born-Mayer-Huggins": lambda: (
        ms.BornMayerHuggins(A=EPSILON, rho=RHO, sigma=SIGMA, C=C, D=D, **CUT),
        lammps(f"born {CUTOFF}", EPSILON, RHO, SIGMA, C, D),
    ),
    "Yukawa": lambda: (ms.Yukawa(strength=STRENGTH, kappa=0.7, **CUT), lammps(f"yukawa 0.7 {CUTOFF}", STRENGTH)),
    "Mie, mixed": lambda: (
        ms.Mie(epsilon=OWN_EPSILON, sigma=OWN_SIGMA, n=OWN_N, m=OWN_M, mixing="arithmetic", **CUT),
        [*lammps(f"mie/cut {CUTOFF}", OWN_EPSILON, OWN_SIGMA, OWN_N, OWN_M, own=True), "pair_modify mix arithmetic"],
    ),
    "Weeks-Chandler-Andersen": lambda: (
        ms.WeeksChandlerAndersen(epsilon=EPSILON, sigma=SIGMA),
        [
            *lammps("lj/cut 4.0", EPSILON, SIGMA, {key: 2 ** (1 / 6) * value for key, value in SIGMA.items()}),
            "pair_modify shift yes",
        ],
    ),
    "ZBL": lambda: (
        ms.ZBL(coulomb=14.399645, **SWITCHED),
        lammps(f"zbl {ONSET} {CUTOFF}", pairs(17, 17, 11), pairs(17, 11, 11)),
    ),
}


def deviation(found, expected) -> float:
    """Largest difference, relative to the largest number expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_a_pair_potential_agrees_with_lammps_and_its_derivatives_with_differences(make):
    (potential, commands), system = make(), rock_salt()
    expected = evaluate(system, *commands)
    energy, forces, virial = checked_energy_forces_virial(potential, system)
    assert deviation(energy, expected.energy) < 1e-9
    assert deviation(forces, expected.forces) < 1e-9
    assert deviation(virial, expected.virial) < 1e-9


OTHERS = {
    "Lennard-Jones, force switched": lambda: (
        ms.LennardJones(epsilon=EPSILON, sigma=SIGMA, switch="force_switch", **SWITCHED),
        lammps(f"lj/gromacs {ONSET} {CUTOFF}", EPSILON, SIGMA),
    ),
    "Buckingham": lambda: (ms.Buckingham(A=A, rho=RHO, C=C, **CUT), lammps(f"buck {CUTOFF}", A, RHO, C)),
    "Mie": lambda: (ms.Mie(epsilon=EPSILON, sigma=SIGMA, n=N, m=M, **CUT), lammps(f"mie/cut {CUTOFF}", EPSILON, SIGMA, N, M)),
    **{
        f"Lennard-Jones, {rule}": lambda rule=rule: (
            ms.LennardJones(epsilon=OWN_EPSILON, sigma=OWN_SIGMA, mixing=rule, **CUT),
            [*lammps(f"lj/cut {CUTOFF}", OWN_EPSILON, OWN_SIGMA, own=True), f"pair_modify mix {rule}"],
        )
        for rule in ("arithmetic", "geometric", "sixthpower")
    },
    "harmonic spheres": lambda: (
        ms.SoftSphere(diameter={"Cl": 4.0, "Na": 2.9}, epsilon=EPSILON),
        lammps(
            "harmonic/cut",
            {key: e / (2 * s**2) for (key, e), s in zip(EPSILON.items(), (4.0, 3.45, 2.9), strict=True)},
            pairs(4.0, 3.45, 2.9),
        ),
    ),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_forms_of_the_same_agree_with_lammps(make):
    (potential, commands), system = make(), rock_salt()
    expected = evaluate(system, *commands)
    energy, forces, virial = energy_forces_virial(potential, system)
    assert deviation(energy, expected.energy) < 1e-9
    assert deviation(forces, expected.forces) < 1e-9
    assert deviation(virial, expected.virial) < 1e-9
