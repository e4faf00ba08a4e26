"""mdsens potentials inside ASE: the same numbers, fit for its optimisers."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixBondLength
from ase.filters import FrechetCellFilter
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.phonons import Phonons
from ase.units import GPa
from helpers import refused

import mdsens as ms
from mdsens.potentials.ase_calculator import Calculator


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
    # ASE has eV/Å³, everything here GPa.
    np.testing.assert_allclose(atoms.get_stress(), GPa * silicon.stress(system), atol=1e-13)
    np.testing.assert_allclose(-atoms.get_stress()[:3].mean(), GPa * silicon.pressure(system), atol=1e-13)


def test_forces_and_stress_are_ases_differences_of_the_energy(atoms):
    fd = pytest.importorskip("ase.calculators.fd", reason="ASE has its differences in a module of their own from 3.24")
    # Central differences over 1e-4 Å and 1e-4 strain.
    some = [0, 5]
    np.testing.assert_allclose(atoms.get_forces()[some], fd.calculate_numerical_forces(atoms, eps=1e-4, iatoms=some), atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), fd.calculate_numerical_stress(atoms, eps=1e-4), atol=1e-6)


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


def test_numbers_are_those_of_ases_own_lennard_jones():
    # ASE shares a pair's energy equally too; its smooth cutoff is LAMMPS's CHARMM.
    settings = {"epsilon": 0.0104, "sigma": 3.4}
    atoms = bulk("Ar", cubic=True, a=5.2)
    atoms.rattle(0.1, seed=3)
    other = atoms.copy()
    atoms.calc = ms.Calculator(ms.LennardJones(**settings, cutoff=7.0, onset=5.5, switch="xplor"))
    other.calc = LennardJones(**settings, rc=7.0, ro=5.5, smooth=True)
    np.testing.assert_allclose(atoms.get_potential_energies(), other.get_potential_energies(), rtol=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), atol=1e-14)
    np.testing.assert_allclose(atoms.get_stress(), other.get_stress(), atol=1e-15)


def test_ases_phonons_run_on_it_and_are_ours(silicon, tmp_path):
    crystal = ms.System.from_ase(bulk("Si", a=5.43095))
    phonons = Phonons(crystal.to_ase(), ms.Calculator(silicon), supercell=(3, 3, 3), delta=1e-3, name=tmp_path / "phonon")
    phonons.run()
    phonons.read(symmetrize=0)
    # A point that a supercell of three cells knows exactly.
    energies = phonons.band_structure([[1 / 3, 0.0, 0.0]], verbose=False)[0]
    own = ms.observables.phonon_frequencies([1 / 3, 0.0, 0.0])(crystal, silicon)
    # Forward and backward differences over 1e-3 Å leave 1e-5.
    np.testing.assert_allclose(energies / (units._hplanck * 1e12 * units.J), np.sort(own), rtol=1e-5)


@pytest.mark.slow
def test_ases_nudged_elastic_band_climbs_as_with_ases_own_calculator():
    # An atom through the gap between three that are held.
    settings = {"epsilon": 1.0, "sigma": 1.0}
    gap = 1.6 * np.array([[1.0, 0.0, 0.0], [-0.5, np.sqrt(0.75), 0.0], [-0.5, -np.sqrt(0.75), 0.0]]) / np.sqrt(3)

    def barrier(calculator):
        images = [Atoms("Ar4", [*gap, [0.0, 0.02, z]], constraint=FixAtoms([0, 1, 2])) for z in np.linspace(-0.8, 0.8, 5)]
        band = NEB(images, climb=True, allow_shared_calculator=True)
        for image in images:
            image.calc = calculator
        optimizer = FIRE(band, logfile=None)
        assert optimizer.run(fmax=1e-3, steps=300)
        return [image.get_potential_energy() for image in images], optimizer.nsteps

    own = ms.Calculator(ms.LennardJones(**settings, cutoff=4.0, onset=3.0, switch="xplor"))
    energies, steps = barrier(own)
    expected, as_many = barrier(LennardJones(**settings, rc=4.0, ro=3.0, smooth=True))
    assert steps == as_many and energies[2] > energies[0]
    np.testing.assert_allclose(energies, expected, rtol=1e-9)


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
