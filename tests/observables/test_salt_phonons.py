"""Phonons of ionic crystals: Ewald's sum at a wave vector, and the field of longitudinal waves at Γ."""

import itertools

import jax
import numpy as np
import pytest
from ase.build import bulk
from differences import richardson
from helpers import refused

import mdsens as ms
from mdsens.common.units import COULOMB
from mdsens.observables import dynamical_matrix, gruneisen_parameters, phonon_frequencies
from mdsens.observables.lattice_dynamics import THZ

CHARGE = 0.9


def salt(cutoff=6.0, charge=CHARGE):
    a = {"Na-Na": 0.0, "Cl-Na": 1256.0, "Cl-Cl": 0.0}
    born = ms.Buckingham(A=a, rho=0.317, C=0.0, cutoff=5.0, switch="truncated", onset=None)
    return born + ms.Ewald({"Na": charge, "Cl": -charge}, cutoff=cutoff)


@pytest.fixture(scope="module")
def rock_salt():
    return ms.relax(ms.System.from_ase(bulk("NaCl", "rocksalt", a=5.2)), salt(), cell="isotropic", fmax=1e-11)


def reduced_mass(eq):
    return 1.0 / float(np.sum(1.0 / np.asarray(eq.system.masses)))


@pytest.mark.slow
@pytest.mark.parametrize("direction", [(1, 1, 0), pytest.param((0.3, -0.2, 0.5), marks=pytest.mark.slow)])
def test_longitudinal_and_transverse_modes_of_rock_salt_are_apart_by_the_plasma_frequency(rock_salt, direction):
    """ω_LO² - ω_TO² = 4π k z²/(V μ) in a crystal of rigid ions, along any direction."""
    plain = np.asarray(phonon_frequencies()(rock_salt.system, rock_salt.potential))
    split = np.asarray(phonon_frequencies(direction=direction)(rock_salt.system, rock_salt.potential))
    assert (plain[:3] == 0.0).all() and (split[:3] == 0.0).all()
    np.testing.assert_allclose(plain[3:], plain[3], rtol=1e-12)
    np.testing.assert_allclose(split[3:5], plain[3], rtol=1e-12)
    gap = 4.0 * np.pi * COULOMB * CHARGE**2 / (float(rock_salt.system.volume) * reduced_mass(rock_salt)) * THZ**2
    np.testing.assert_allclose(split[5] ** 2 - plain[3] ** 2, gap, rtol=1e-11)
    # The limit of waves that come from there.
    near = np.asarray(phonon_frequencies(1e-5 * np.array(direction))(rock_salt.system, rock_salt.potential))
    np.testing.assert_allclose(near[3:], split[3:], rtol=1e-8)
    # And that of the field's energy: the trace is that of all pairs' Laplacians, ω_LO² + 2 ω_TO² without Coulomb's.
    r = 0.5 * float(rock_salt.system.volume * 4) ** (1 / 3)
    shells = [np.array(n) for n in itertools.product(range(-2, 3), repeat=3) if sum(n) % 2]
    lengths = [r * np.linalg.norm(n) for n in shells if r * np.linalg.norm(n) < 5.0]
    laplacian = sum(1256.0 * np.exp(-x / 0.317) * (1 / 0.317**2 - 2 / (x * 0.317)) for x in lengths)
    np.testing.assert_allclose(split[5] ** 2 + 2 * plain[3] ** 2, laplacian / reduced_mass(rock_salt) * THZ**2, rtol=1e-10)


@pytest.mark.slow
def test_waves_at_other_wave_vectors_are_those_of_a_supercell_at_gamma(rock_salt):
    """A cell of several, whose own phonons at Γ are those of the wave vectors that repeat in it: plane waves of forces."""
    large = ms.System.from_ase(rock_salt.system.to_ase() * (1, 2, 3))
    q = [[0.0, i / 2, j / 3] for i in range(2) for j in range(3)]
    small = np.sort(np.asarray(phonon_frequencies(q)(rock_salt.system, rock_salt.potential))[1:].ravel())
    found = np.sort(np.asarray(phonon_frequencies()(large, salt(cutoff=9.0))))
    gamma = np.asarray(phonon_frequencies()(rock_salt.system, rock_salt.potential))
    np.testing.assert_allclose(found, np.sort(np.concatenate([gamma, small])), atol=1e-9)


@pytest.mark.slow
def test_the_dynamical_matrix_is_the_differences_of_forces_in_a_low_crystal():
    """At Γ that of forces, which are LAMMPS's; elsewhere both splits of Ewald's sum agree. Four ions, no symmetry."""
    atoms = bulk("NaCl", "rocksalt", a=5.4, cubic=True)[:4]
    atoms.set_cell(np.diag([5.6, 5.6, 3.9]) + 0.2 * np.random.default_rng(1).normal(size=(3, 3)), scale_atoms=False)
    atoms.rattle(0.2, seed=3)
    system, potential = ms.System.from_ase(atoms), salt()
    assert abs(sum(CHARGE if s == "Na" else -CHARGE for s in system.symbols)) < 1e-12
    listed = system.with_neighbors(potential)
    forces = jax.jit(lambda x: potential.forces(listed.with_positions(x)).ravel())
    h, n = 1e-3, system.positions.size
    columns = []
    for k in range(n):
        step = np.zeros(n)
        step[k] = h
        at = {m: np.asarray(forces(system.positions + m * step.reshape(-1, 3))) for m in (-2, -1, 1, 2)}
        columns.append(-(8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h))
    weights = np.repeat(np.asarray(system.masses), 3)
    expected = np.array(columns) / np.sqrt(np.outer(weights, weights))
    found = np.asarray(dynamical_matrix()(system, potential))
    np.testing.assert_allclose(found, expected, atol=1e-8 * np.abs(expected).max())
    q = [0.31, -0.17, 0.44]
    one, other = (np.asarray(dynamical_matrix(q)(system, salt(cutoff=cutoff))) for cutoff in (4.0, 14.0))
    np.testing.assert_allclose(one, other, atol=1e-9 * np.abs(one).max())
    assert np.abs(one.imag).max() > 1e-3 * np.abs(one).max()


@pytest.mark.slow
def test_phonopy_says_the_same_with_its_correction(rock_salt):
    """Born charges z and ε∞ = 1 at Γ, with force constants from a supercell's Ewald sum."""
    phonopy = pytest.importorskip("phonopy", reason="phonopy is not installed (pip install phonopy)")
    from phonopy.structure.atoms import PhonopyAtoms

    system = rock_salt.system
    unit = PhonopyAtoms(symbols=system.symbols, cell=system.cell, positions=system.positions, masses=system.masses)
    phonon = phonopy.Phonopy(unit, supercell_matrix=2 * np.eye(3, dtype=int), primitive_matrix=np.eye(3))
    phonon.generate_displacements(distance=1e-3)
    charges = np.array([CHARGE if s == "Na" else -CHARGE for s in system.symbols])
    phonon.nac_params = {"born": charges[:, None, None] * np.eye(3), "dielectric": np.eye(3), "factor": COULOMB}
    phonon.forces = [
        np.asarray(rock_salt.potential.forces(ms.System(s.positions, cell=s.cell, pbc=True, species=s.symbols)))
        for s in phonon.supercells_with_displacements
    ]
    phonon.produce_force_constants()
    phonon.run_qpoints([[0, 0, 0]], nac_q_direction=[1, 1, 0])
    expected = phonon.qpoints.frequencies[0] * THZ / phonon.unit_conversion_factor
    found = np.asarray(phonon_frequencies(direction=[1, 1, 0])(system, rock_salt.potential))
    np.testing.assert_allclose(found[3:], expected[3:], rtol=2e-5)  # its displacements of 1e-3 Å are not the limit


@pytest.mark.slow
def test_sound_in_a_salt_comes_out_at_any_wave_vector(rock_salt):
    """ν/q of acoustic waves is that of the elastic constants, to q = 1e-7."""
    system, potential = rock_salt.system, rock_salt.potential
    q = np.array([[t, t, 0.0] for t in (1e-7, 1e-5, 1e-3)])
    speeds = np.asarray(phonon_frequencies(q)(system, potential))[:, :3] / q[:, :1]
    np.testing.assert_allclose(speeds[0], speeds[1], rtol=1e-7)
    np.testing.assert_allclose(speeds[1], speeds[2], rtol=1e-4)
    c = np.asarray(ms.observables.elastic_constants(system, potential))
    density = float(np.sum(system.masses) / system.volume)
    k = 2.0 * np.pi * np.linalg.norm(np.array([1, 1, 0]) @ np.linalg.inv(system.cell).T) / 1.0
    # Along a cubic axis: C44 twice, C11; [1 1 0] in the primitive reciprocal lattice is such.
    gpa = 160.21766208
    expected = np.sqrt(np.array([c[3, 3], c[3, 3], c[0, 0]]) / gpa / density) * THZ * k
    np.testing.assert_allclose(speeds[0], expected, rtol=1e-6)


@pytest.mark.slow
def test_derivatives_of_bands_with_charges_are_differences_of_relaxed_structures(rock_salt):
    observable = phonon_frequencies([[0.0, 0.0, 0.0], [0.21, 0.1, -0.3]], direction=[1, 0, 0])
    eq = ms.relax(rock_salt.system, rock_salt.potential, fmax=1e-12)
    found = ms.jacobian(observable, eq)
    at_state = lambda again: observable(again.system, again.potential)  # noqa: E731
    expected = richardson(eq, "Buckingham.rho", observable=at_state, same_contacts=False)  # the sum has two lists
    np.testing.assert_allclose(found.terms[0].rho, expected, atol=1e-6 * np.abs(expected).max())
    h = 1e-4

    def at(charge):
        again = ms.relax(eq.system, salt(charge=charge), fmax=1e-12, check_minimum=False)
        return np.asarray(observable(again.system, again.potential))

    expected = (8 * (at(CHARGE + h) - at(CHARGE - h)) - (at(CHARGE + 2 * h) - at(CHARGE - 2 * h))) / (12 * h)
    both = found.terms[1].charge
    np.testing.assert_allclose(both["Na"] - both["Cl"], expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.slow
def test_gruneisen_parameters_with_charges_are_differences_in_the_volume(rock_salt):
    q = [[0.0, 0.0, 0.0], [0.21, 0.1, -0.3]]
    system, potential = rock_salt.system, rock_salt.potential
    found = np.asarray(gruneisen_parameters(q, direction=[1, 0, 0])(system, potential))

    def squares(strain):
        grown = ms.System(system.positions * (1 + strain), cell=system.cell * (1 + strain), pbc=True, species=system.symbols)
        return np.asarray(phonon_frequencies(q, direction=[1, 0, 0])(grown, potential)) ** 2

    h, here = 1e-4, squares(0.0)  # two bands are near each other
    slope = (8 * (squares(h) - squares(-h)) - (squares(2 * h) - squares(-2 * h))) / (12 * h)
    moving = here > 1e-6
    np.testing.assert_allclose(found[moving], (-slope / (6.0 * np.where(moving, here, 1.0)))[moving], rtol=1e-6)
    assert (found[~moving] == 0.0).all()


@pytest.mark.slow
def test_directions_that_are_none_are_refused(rock_salt):
    for direction in ([0, 0, 0], [[1, 0, 0]], [np.nan, 0, 0]):
        refused(lambda direction=direction: phonon_frequencies(direction=direction), "direction")
    refused(lambda: phonon_frequencies(direction=[1, 0])(rock_salt.system, rock_salt.potential), "direction has 2 components")
