"""mdsens potentials inside ASE: the same numbers, fit for its optimisers."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms, FixBondLength
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from helpers import refused

import mdsens as ms
from mdsens.calculator import Calculator


@pytest.fixture
def atoms(silicon):
    atoms = bulk("Si", cubic=True) * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * np.arange(9).reshape(3, 3) / 8), scale_atoms=True)
    atoms.calc = Calculator(silicon)
    return atoms


def test_numbers_are_those_of_the_potential(atoms, silicon):
    system = ms.System.from_ase(atoms)
    # Sums over lists of another length: rounding.
    np.testing.assert_allclose(atoms.get_potential_energy(), silicon.energy(system), rtol=1e-13)
    np.testing.assert_allclose(atoms.get_potential_energies(), silicon.energies(system), rtol=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), silicon.forces(system), atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(), silicon.stress(system), atol=1e-13)


def test_forces_and_stress_are_ases_differences_of_the_energy(atoms):
    # Central differences over 1e-4 Å and 1e-4 strain.
    some = [0, 5]
    np.testing.assert_allclose(atoms.get_forces()[some], calculate_numerical_forces(atoms, eps=1e-4, iatoms=some), atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-4), atol=1e-6)


def test_the_list_is_kept_while_it_is_complete(atoms, silicon):
    def list_of(move):
        move()
        np.testing.assert_allclose(atoms.get_potential_energy(), silicon.energy(ms.System.from_ase(atoms)), rtol=1e-12)
        return atoms.calc._system.neighbors.reference

    first = list_of(lambda: None)
    assert list_of(lambda: atoms.rattle(0.01, seed=2)) is first
    second = list_of(lambda: atoms.positions.__iadd__(0.5 * np.eye(len(atoms), 3)))
    assert second is not first
    third = list_of(lambda: atoms.set_cell(1.01 * atoms.cell.array))
    assert third is not second
    assert list_of(lambda: atoms.positions.__isub__(atoms.cell[0])) is not third  # wrapping


def test_ase_relaxes_silicon_to_its_lattice_constant(silicon):
    atoms = bulk("Si", a=5.6)
    atoms.rattle(0.05, seed=0)
    atoms.calc = Calculator(silicon)
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=100)
    # Four digits are known of the potential's lattice constant (5.43095 Å): fmax leaves less than that.
    np.testing.assert_allclose(atoms.get_volume() * 4.0, 5.4310**3, rtol=1e-4)
    np.testing.assert_allclose(atoms.get_potential_energy() / 2, -4.3366, atol=1e-4)


def test_constraints_are_left_to_ase(atoms):
    free = atoms.get_forces()
    atoms.set_constraint([FixAtoms([3]), FixBondLength(0, 1)])
    np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), free)
    assert not atoms.get_forces()[3].any()


def test_other_species_and_clusters():
    bound = ms.LennardJones(epsilon=0.0104, sigma=3.4, cutoff=8.5, onset=7.0)
    pair = Atoms("Ar2", positions=[[0, 0, 0], [3.4 * 2 ** (1 / 6), 0, 0]], calculator=Calculator(bound))
    np.testing.assert_allclose(pair.get_forces(), 0.0, atol=1e-3)
    with pytest.raises(PropertyNotImplementedError):
        pair.get_stress()
    pair += Atoms("Ar", positions=[[0, 3.7, 0]])
    np.testing.assert_allclose(pair.get_potential_energy(), bound.energy(ms.System.from_ase(pair)))


def test_single_precision_follows_the_potential(atoms, silicon):
    energy = atoms.get_potential_energy()
    atoms.calc = Calculator(silicon.astype("float32"))
    assert atoms.get_forces().dtype == np.float64
    np.testing.assert_allclose(atoms.get_potential_energy(), energy, rtol=1e-5)


def test_what_cannot_be_calculated_is_refused(atoms):
    refused(lambda: Calculator("silicon"), "potential")
    mixed = ms.LennardJones(epsilon={"A-A": 1.0}, sigma=1.0, cutoff=2.5, onset=2.0)
    atoms.calc = Calculator(mixed)
    for _ in range(2):
        refused(atoms.get_forces, "Si-Si")
