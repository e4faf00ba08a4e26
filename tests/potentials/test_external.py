"""Calculators of ASE as potentials: what they compute, and derivatives by differences against exact ones."""

import jax
import jax.numpy as jnp
import lammps_reference
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones as LennardJonesOfASE
from ase.calculators.mixing import SumCalculator
from ase.units import GPa
from helpers import refused

import mdsens as ms
from mdsens.common.differences import central_difference
from mdsens.potentials.wrapped import finite_differences

PARAMETERS = {"epsilon": 0.0104, "sigma": 3.4}


def lennard_jones(epsilon, sigma):
    return LennardJonesOfASE(epsilon=epsilon, sigma=sigma, rc=9.0, ro=7.0, smooth=True)


EXACT = ms.LennardJones(**PARAMETERS, cutoff=9.0, onset=7.0, switch="xplor")


@pytest.fixture(scope="module")
def cluster():
    """Seven atoms, relaxed with the exact potential."""
    rng = np.random.default_rng(0)
    start = 3.8 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]) + rng.uniform(
        0, 1, (7, 3)
    )
    return ms.relax(ms.System.from_ase(Atoms("Ar7", start)), EXACT, fmax=1e-11)


@pytest.fixture(scope="module")
def exact(cluster):
    return ms.sensitivity(cluster)


@pytest.fixture(scope="module")
def wrapped(cluster):
    """The same state in the eyes of ASE's calculator."""
    return ms.relax(cluster.system, ms.from_ase(lennard_jones, PARAMETERS), fmax=1e-10)


def test_energy_forces_and_stress_are_the_calculators():
    atoms = bulk("Ar", cubic=True, a=5.3)
    atoms.rattle(0.1, seed=0)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * np.arange(9).reshape(3, 3) / 8), scale_atoms=True)
    potential, system = ms.from_ase(lennard_jones, PARAMETERS), ms.System.from_ase(atoms)
    atoms.calc = lennard_jones(**PARAMETERS)
    np.testing.assert_allclose(potential.energy(system), atoms.get_potential_energy(), rtol=1e-14)
    np.testing.assert_allclose(potential.forces(system), atoms.get_forces(), atol=1e-15)
    np.testing.assert_allclose(GPa * potential.stress(system), atoms.get_stress(), atol=1e-15)
    assert potential.sigma == 3.4 and potential.energies(system).shape == (4,)


def test_relaxing_with_a_calculator_finds_the_same_cluster(cluster, wrapped):
    moved = cluster.system.with_positions(cluster.system.positions + 0.02 * np.random.default_rng(1).normal(size=(7, 3)))
    eq = ms.relax(moved, wrapped.potential, fmax=1e-9)
    assert abs(eq.energy - cluster.energy) < 1e-13
    np.testing.assert_allclose(
        np.sort(eq.system.to_ase().get_all_distances().ravel()),
        np.sort(cluster.system.to_ase().get_all_distances().ravel()),
        atol=1e-7,
    )


@pytest.mark.slow
def test_sensitivities_are_those_of_the_exact_potential_and_within_their_bound(exact, wrapped):
    found = ms.sensitivity(wrapped)
    certificate, scale = found.certificate, float(np.abs(exact.scaled().positions.sigma).max())
    assert certificate.trusted, certificate.reasons
    assert "central differences" in certificate.linear_solver and "central differences" in str(certificate)
    worst = 0.0
    for name in PARAMETERS:
        difference = getattr(found.scaled().positions, name) - getattr(exact.scaled().positions, name)
        assert np.abs(difference).max() < 1e-6 * scale, name
        worst = max(worst, float(np.linalg.norm(difference)))
    assert worst < certificate.error_bound < 1e-6


def test_gradients_and_one_direction_are_those_of_the_exact_potential(cluster, exact, wrapped):
    def distance(system, potential):
        return jnp.linalg.norm(system.positions[0] - system.positions[1])

    moved = exact.positions.sigma
    slope = jax.jvp(lambda x: distance(cluster.system.with_positions(x), None), (cluster.system.positions,), (moved,))[1]
    np.testing.assert_allclose(ms.gradient(distance, wrapped).sigma, slope, rtol=1e-7)
    along = ms.jvp(wrapped, {"sigma": 1.0, "epsilon": 0.01})
    np.testing.assert_allclose(along, moved + 0.01 * exact.positions.epsilon, atol=1e-7)
    # By the envelope theorem: differences of energies alone.
    energy = lambda system, potential: potential.energy(system)  # noqa: E731
    np.testing.assert_allclose(ms.gradient(energy, wrapped).epsilon, cluster.energy / 0.0104, rtol=1e-9)


@pytest.mark.slow
def test_equilibria_under_jit_and_vmap_call_no_jax_from_inside(cluster, wrapped):
    positions = jax.jit(lambda p: ms.equilibrium_positions(cluster.system, p))
    np.testing.assert_allclose(positions(wrapped.potential), cluster.system.positions, atol=1e-7)
    several = jax.tree.map(lambda leaf: leaf * jnp.array([1.0, 1.001]), wrapped.potential)
    found = jax.vmap(lambda p: ms.equilibrium_positions(cluster.system, p))(several)
    size = lambda x: np.linalg.norm(x - x.mean(axis=0))  # noqa: E731
    np.testing.assert_allclose(size(found[1]) / size(found[0]), 1.001, rtol=1e-6)  # all but the cutoff


@pytest.mark.slow
def test_lammps_gives_sensitivities_by_its_forces(cluster):
    lammps_reference.preload_mpi()
    pytest.importorskip("lammps", exc_type=(ImportError, OSError), reason="LAMMPS cannot be loaded (pip install lammps mpich)")
    from ase.calculators.lammpslib import LAMMPSlib

    def lammps(epsilon, sigma):
        commands = ["pair_style lj/smooth/linear 9.0", f"pair_coeff * * {epsilon!r} {sigma!r}"]
        return LAMMPSlib(lmpcmds=commands, atom_types={"Ar": 1}, keep_alive=True)

    own = ms.LennardJones(**PARAMETERS, cutoff=9.0, switch="shifted_force")
    start = ms.System(cluster.system.positions + 10.0, cell=30.0 * np.eye(3), pbc=False, species="Ar")
    exact = ms.relax(start, own, fmax=1e-10)
    eq = ms.relax(exact.system, ms.from_ase(lammps, PARAMETERS), fmax=1e-8)
    assert abs(eq.energy - exact.energy) < 1e-12
    S, reference = ms.sensitivity(eq), ms.sensitivity(exact)
    assert S.certificate.trusted, S.certificate.reasons
    scale = np.abs(reference.positions.sigma).max()
    assert np.abs(S.positions.sigma - reference.positions.sigma).max() < 1e-8 * scale


@pytest.mark.slow
def test_a_cell_relaxes_by_the_calculators_stress():
    start = ms.System.from_ase(bulk("Ar", a=5.3))
    eq, exact = (ms.relax(start, p, cell="free", fmax=1e-9) for p in (ms.from_ase(lennard_jones, PARAMETERS), EXACT))
    np.testing.assert_allclose(eq.system.cell, exact.system.cell, atol=1e-7)
    grown, reference = (ms.sensitivity(state, wrt=["sigma"]).cell.sigma for state in (eq, exact))
    np.testing.assert_allclose(grown, reference, atol=1e-6)


def test_a_calculator_itself_is_remade_and_never_changed(wrapped):
    calculator = LennardJonesOfASE(epsilon=0.02, sigma=3.4, rc=9.0, ro=7.0, smooth=True)
    potential = ms.from_ase(calculator, {"epsilon": 0.0104})
    np.testing.assert_allclose(potential.energy(wrapped.system), wrapped.energy, rtol=1e-14)
    assert calculator.parameters["epsilon"] == 0.02 and calculator.atoms is None
    assert [path for path in ("epsilon",) if hasattr(potential, path)] and not hasattr(potential, "sigma")


def test_steps_follow_the_noise():
    rng = np.random.default_rng(0)
    for noise in (1e-13, 1e-6):
        noisy = lambda t, noise=noise: np.sin(3.0 * t + np.arange(30.0)) + noise * rng.normal(size=30)  # noqa: E731
        seen = finite_differences.measure_noise(noisy, 1e-4)
        assert 0.5 < seen / noise < 2.0
        step = finite_differences.best_step(noisy, 0.5, seen)
        error = np.linalg.norm(central_difference(noisy, step.length) - 3.0 * np.cos(np.arange(30.0)))
        assert error < 2.0 * (step.truncation + step.noise) < 30.0 * noise**0.8 * np.sqrt(30.0)


class Directed(Calculator):
    """Forces that no energy has."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's form)

    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        x = atoms.positions
        self.results = {"energy": float(np.sum(x**2)), "forces": np.roll(x, 1, axis=1)}


class Unstrained(LennardJonesOfASE):
    """It gives no stress."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's form)


def test_what_cannot_be_wrapped_is_refused(cluster):
    def failing(epsilon):
        raise RuntimeError("no licence")

    refused(lambda: ms.from_ase("lj"), "calculator of ASE", "str")
    refused(lambda: ms.from_ase(lennard_jones, {"eps": 1.0}), "No calculator", "eps")
    refused(lambda: ms.from_ase(failing, {"epsilon": 1.0}), "no licence")
    refused(lambda: ms.from_ase(lennard_jones(1.0, 1.0), {"depth": 1.0}), "'depth'", "function")
    refused(lambda: ms.from_ase(lambda: ms.StillingerWeber), "makes calculators")
    refused(lambda: ms.from_ase(lambda: ms.Calculator(EXACT)), "mdsens's own")
    refused(lambda: ms.from_ase(lambda: SumCalculator([lennard_jones(1.0, 1.0), ms.Calculator(EXACT)])), "mdsens's own")
    refused(lambda: ms.relax(cluster.system, ms.from_ase(Directed)), "gradient of its energy")
    potential = ms.from_ase(lennard_jones, PARAMETERS)
    refused(lambda: potential.energy(ms.System(np.eye(3), species="A")), "'A'")
    refused(lambda: potential.energy(ms.System(np.eye(2), species="Ar")), "plane")
    refused(lambda: ms.hessian(cluster.system, potential), "operator")
    periodic = ms.System.from_ase(bulk("Ar"))
    refused(lambda: ms.relax(periodic, ms.from_ase(Unstrained), cell="free"), "no stress", "fixed cell")
    slope = lambda x: jnp.sum(potential.forces(cluster.system.with_neighbors(potential).with_positions(x)) ** 3)  # noqa: E731
    refused(lambda: jax.hessian(slope)(cluster.system.positions), "Third derivatives")
