"""Volumes and elastic dipoles of defects: a vacancy in a Lennard-Jones crystal against its relaxed cell."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from differences import richardson
from helpers import refused

import mdsens as ms
from mdsens import observables

GPA = 160.21766208
LJ = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)


@pytest.fixture(scope="module")
def argon_states(argon_vacancy):
    """A vacancy and the crystal around it, at the same lattice constant."""
    return {"defect": argon_vacancy.system, "bulk": ms.relax(ms.System.from_ase(bulk("Ar", "fcc", a=1.55)), LJ).system}


def swollen(system, factor):
    return ms.relax(
        eqx.tree_at(lambda s: (s.positions, s.cell), system, (factor * system.positions, factor * system.cell)), LJ
    ).system


def test_a_vacancy_contracts_by_what_its_dipole_tensor_says(argon_states):
    defect, crystal = argon_states["defect"], argon_states["bulk"]
    dipole = observables.dipole_tensor(argon_states, LJ)
    np.testing.assert_allclose(dipole, dipole[0, 0] * np.eye(3), atol=1e-8)  # cubic
    h = 1e-4
    pressures = [float(observables.pressure(swollen(crystal, 1.0 + k * h), LJ)) for k in (-1, 0, 1)]
    bulk_modulus = -(pressures[2] - pressures[0]) / (6.0 * h)
    by_elasticity = float(jnp.trace(dipole)) * GPA / (3.0 * bulk_modulus)
    # The cell of the vacancy, relaxed to the crystal's pressure by Newton's method with the crystal's modulus.
    cell = defect
    for _ in range(4):
        excess = float(observables.pressure(cell, LJ)) - pressures[1]
        cell = swollen(cell, 1.0 + excess / (3.0 * bulk_modulus))
    assert abs(float(observables.pressure(cell, LJ)) - pressures[1]) < 1e-6 * bulk_modulus
    contraction = float(cell.volume - defect.volume)
    assert contraction < 0.0
    # One site in 108 is empty, and softens the crystal by a few times that share.
    assert by_elasticity == pytest.approx(contraction, rel=0.05)
    formation = observables.formation_volume({"defect": cell, "bulk": crystal}, LJ)
    assert float(formation) == pytest.approx(float(crystal.volume) + contraction)

    shear = 0.4 * bulk_modulus  # of no influence on the volume
    constants = np.diag([2.0 * shear] * 3 + [shear] * 3)
    constants[:3, :3] += bulk_modulus - 2.0 / 3.0 * shear
    for given in (constants, lambda system, potential: constants):
        assert float(observables.relaxation_volume(given)(argon_states, LJ)) == pytest.approx(by_elasticity)


@pytest.mark.slow
def test_the_dipole_tensor_is_the_energys_derivative_in_a_strain(argon_states):
    """P = -dE/dε of the defect, the crystal's own taken off, which holds exactly; the shears by -dE/dγ."""
    cells = float(argon_states["defect"].volume / argon_states["bulk"].volume)
    # Two atoms near the vacancy held off their places, so that no component is zero by symmetry.
    frozen = np.zeros(len(argon_states["defect"]), bool)
    frozen[:2] = True
    moved = np.asarray(argon_states["defect"].positions).copy()
    moved[:2] += [[0.05, 0.02, -0.01], [-0.02, 0.03, 0.04]]
    defect = argon_states["defect"]
    defect = ms.relax(ms.System(moved, cell=defect.cell, pbc=True, species=defect.symbols, frozen=frozen), LJ).system

    def energy(system, i, j, size):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * size
        strain[j, i] += 0.5 * size
        places = (system.positions @ (np.eye(3) + strain), system.cell @ (np.eye(3) + strain))
        return ms.relax(eqx.tree_at(lambda s: (s.positions, s.cell), system, places), LJ, check_minimum=False).energy

    h, expected = 1e-3, np.zeros((3, 3))
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        excess = {k: energy(defect, i, j, k * h) - cells * energy(argon_states["bulk"], i, j, k * h) for k in (-2, -1, 1, 2)}
        expected[i, j] = expected[j, i] = -(8 * (excess[1] - excess[-1]) - (excess[2] - excess[-2])) / (12 * h)
    found = observables.dipole_tensor({"defect": defect, "bulk": argon_states["bulk"]}, LJ)
    np.testing.assert_allclose(found, expected, atol=1e-7 * np.abs(expected).max())
    assert np.abs(expected).min() > 1e-3 * np.abs(expected).max()


def test_relaxation_volume_of_an_anisotropic_crystal_is_its_strain_under_the_dipole(argon_states):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    constants = root @ root.T + np.eye(6)
    bent = swollen(argon_states["defect"], 1.0)
    bent = {**argon_states, "defect": bent.with_positions(bent.positions + 0.01 * rng.normal(size=bent.positions.shape))}
    dipole = np.asarray(observables.dipole_tensor(bent, LJ))
    strain = np.linalg.solve(constants, GPA * dipole[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])
    assert float(observables.relaxation_volume(constants)(bent, LJ)) == pytest.approx(strain[:3].sum())


@pytest.mark.slow
def test_the_dipole_tensor_is_differentiated_through_the_relaxation(argon_vacancy, argon_states):
    # At fixed cell the crystal's atoms do not move, by symmetry.
    def dipole(system, potential):
        return observables.dipole_tensor({"defect": system, "bulk": argon_states["bulk"]}, potential)

    J = ms.jacobian(dipole, argon_vacancy).sigma
    difference = richardson(argon_vacancy, "sigma", observable=lambda again: dipole(again.system, again.potential))
    assert np.abs(difference - J).max() < 1e-6 * np.abs(J).max()


def test_defects_that_do_not_compare_are_refused(argon_states):
    states = {**argon_states, "bulk": swollen(argon_states["bulk"], 1.001)}
    refused(lambda: observables.dipole_tensor(states, LJ), "no supercell")
    assert np.isnan(jax.jit(lambda s: observables.dipole_tensor(s, LJ))(states)).all()
    refused(lambda: observables.dipole_tensor({"defect": states["defect"]}, LJ), "'bulk'")
    refused(lambda: observables.relaxation_volume(-np.eye(6)), "positive definite")
    refused(lambda: observables.relaxation_volume(np.ones(3)), "6×6")
    refused(lambda: observables.relaxation_volume(np.eye(3))(argon_states, LJ), "3 dimensions")
