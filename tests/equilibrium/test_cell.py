"""Relaxing cells: pressure, stress, masks, and the derivatives of positions and cell through them."""

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from differences import at
from helpers import refused

import mdsens as ms
from mdsens.derivatives.verification import check_sensitivity
from mdsens.mechanics.unknown import cell_freedom, reference_at
from mdsens.potentials.base import parameter_paths

FLOOR = 1e-6
GPA = 160.21766208


def rattled(atoms, seed=0, size=0.02):
    atoms = atoms.copy()
    atoms.rattle(size, seed=seed)
    return ms.System.from_ase(atoms)


@pytest.fixture(scope="module")
def diamond(silicon):
    return ms.relax(rattled(bulk("Si", cubic=True)), silicon, cell="free", fmax=1e-11)


@pytest.fixture(scope="module")
def argon():
    return ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)


def worst(eq, sensitivity, **options):
    checks = list(check_sensitivity(eq, sensitivity, **options))
    assert not any(check.note for check in checks), checks
    return max(check.error for check in checks)


# Exact identities


@pytest.mark.slow
def test_silicon_relaxes_to_its_lattice_constant(diamond):
    np.testing.assert_allclose(diamond.system.cell, 5.430949777 * np.eye(3), atol=2e-8)
    assert diamond.stress_error < 1e-9 and diamond.spectrum.index == 0


@pytest.mark.slow
def test_scaling_of_length_and_energy(diamond):
    """U = ε f(x/σ) at zero pressure: dX/dσ = X/σ, dh/dσ = h/σ, nothing moves with ε."""
    S, eq = ms.sensitivity(diamond), diamond
    sigma = float(eq.potential.sigma)
    np.testing.assert_allclose(S.cell.sigma, eq.system.cell / sigma, atol=1e-9)
    np.testing.assert_allclose(S.positions.sigma, eq.system.positions / sigma, atol=1e-9)
    np.testing.assert_allclose(S.cell.epsilon, 0.0, atol=1e-9)
    np.testing.assert_allclose(S.positions.epsilon, 0.0, atol=1e-9)
    assert S.certificate.trusted, S.certificate.reasons


@pytest.mark.slow
def test_repeating_the_cell_repeats_the_sensitivity(diamond, silicon):
    small = ms.sensitivity(diamond)
    large = ms.relax(ms.System.from_ase(diamond.system.to_ase() * (2, 1, 1)), silicon, cell="free", fmax=1e-11)
    S = ms.sensitivity(large)
    np.testing.assert_allclose(S.cell.lam, small.cell.lam * np.array([[2.0], [1.0], [1.0]]), atol=1e-8)


def test_a_list_of_a_cell_that_strains_lasts_for_half_of_its_skin(argon):
    """And not at all where the cell shrinks by more than the skin, since images come nearer with it."""
    skin = 0.4
    system = ms.System.from_ase(bulk("Ar", "fcc", a=1.6, cubic=True)).with_neighbors(argon, skin=skin)
    reference = reference_at(system, cell_freedom(system, "free", 0.0))
    start = reference.start

    def stale(share, squeeze=0.0):
        moved = start.positions.at[2, 0].add(share * 0.5 * skin)
        strain = jnp.einsum("kab,ab->k", reference.freedom.directions, -squeeze * jnp.eye(3)) * reference.freedom.length
        return bool(reference.is_stale(start._replace(positions=moved, strain=strain), argon.ranges))

    assert not stale(0.98) and stale(1.02)
    # At 0.9 of all lengths a pair at the list's 2.9 comes to 2.61, with 0.11 to spare, at 0.86 it is inside the range of 2.5.
    assert not stale(0.0, 0.1) and stale(1.0, 0.1) and stale(0.0, 0.14)


def test_the_unknown_of_a_strained_state_leads_back_to_it(diamond):
    reference = diamond.reference
    z = diamond.unknown._replace(strain=jnp.linspace(-0.1, 0.2, 6))
    there = reference.place(z)
    again = reference.unknown_of(there)
    np.testing.assert_allclose(again.strain, z.strain, atol=1e-12)
    np.testing.assert_allclose(again.positions, z.positions, atol=1e-12)


def test_the_stress_that_is_left_is_the_slope_of_the_energy(salt):
    """Of a descent that was stopped: the largest ∂(U + pV)/∂ε_ab / V by differences of energies of strained cells."""
    system, potential = salt
    pressure = 2.0
    stopped = ms.relax(
        system, potential, cell="free", pressure=pressure, solver=ms.FIRE(), polish=False, max_steps=3, throw=False
    )
    assert not stopped.converged
    positions, cell = np.asarray(stopped.system.positions), np.asarray(stopped.system.cell)

    def energy(strain):
        deformation = np.eye(3) + strain
        there = ms.System(positions @ deformation, cell=cell @ deformation, pbc=True, species=stopped.system.symbols)
        return float(potential.energy(there)) + pressure / GPA * float(there.volume)

    slopes, h = np.zeros((3, 3)), 1e-4
    for a in range(3):
        for b in range(3):
            unit = np.zeros((3, 3))
            unit[a, b] += 0.5
            unit[b, a] += 0.5
            up, down, far, deep = (energy(k * h * unit) for k in (1, -1, 2, -2))
            slopes[a, b] = (8 * (up - down) - (far - deep)) / (12 * h)
    left = np.abs(slopes).max() / float(stopped.system.volume) * GPA
    np.testing.assert_allclose(stopped.stress_error, left, rtol=1e-6)


@pytest.mark.slow
def test_the_stress_that_may_be_left_decides_where_it_is_the_smaller(salt):
    """Forces alone end a descent long before its stress is what smax asks for."""
    options = {"cell": "free", "solver": ms.FIRE(), "polish": False, "check_minimum": False}
    loose = ms.relax(*salt, fmax=1e-2, **options)
    tight = ms.relax(*salt, fmax=1e-2, smax=1e-4, **options)
    assert loose.stress_error > 1e-3 and tight.stress_error <= 1e-4 and tight.steps > loose.steps
    # And where it is the larger, forces decide.
    np.testing.assert_allclose(ms.relax(*salt, fmax=1e-2, smax=1e3, **options).stress_error, loose.stress_error, rtol=1e-12)


# Derivatives against structures relaxed again, by ourselves and by ASE


@pytest.mark.slow
def test_hexagonal_crystal_under_pressure(argon):
    """An hcp crystal has a c/a ratio of its own."""
    system = rattled(bulk("X", "hcp", a=1.1, c=1.79) * (2, 1, 1))
    eq = ms.relax(system, argon, cell="free", pressure=2.0 * GPA, fmax=1e-11)
    assert worst(eq, ms.sensitivity(eq)) < FLOOR


@pytest.mark.slow
def test_two_species_at_ten_gigapascal(squeezed_salt):
    eq, potential = squeezed_salt, squeezed_salt.potential
    np.testing.assert_allclose(potential.stress(eq.system), [-10, -10, -10, 0, 0, 0], atol=1e-8)
    assert worst(eq, ms.sensitivity(eq)) < FLOOR


@pytest.mark.slow
def test_triclinic_cell_under_a_stress(salt):
    """A true stress, not hydrostatic: the condition's derivative is not symmetric."""
    system, potential = salt
    stress = [-3.0, -1.0, -2.0, 0.3, -0.2, 0.1]
    eq = ms.relax(system, potential, cell="free", pressure=stress, fmax=1e-11)
    np.testing.assert_allclose(potential.stress(eq.system), stress, atol=1e-8)
    # A pair lies some 1e-5 from an edge of the switch, where third derivatives jump: larger steps would go across.
    assert worst(eq, ms.sensitivity(eq), step=1e-5) < FLOOR


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["isotropic", [True, False, True, False, False, False]])
def test_shapes_that_stay_fixed(salt, cell):
    system, potential = salt
    eq = ms.relax(system, potential, cell=cell, pressure=1.0, fmax=1e-11)
    deformation = np.linalg.solve(system.cell, eq.system.cell)
    if cell == "isotropic":
        np.testing.assert_allclose(deformation, deformation[0, 0] * np.eye(3), atol=1e-12)
    else:
        np.testing.assert_allclose(deformation - np.diag(np.diag(deformation)), 0.0, atol=1e-12)
        assert abs(deformation[1, 1] - 1.0) < 1e-12 and abs(deformation[0, 0] - 1.0) > 1e-3
        np.testing.assert_allclose(potential.stress(eq.system)[np.array([0, 2])], [-1, -1], atol=1e-8)
    assert worst(eq, ms.sensitivity(eq)) < FLOOR


@pytest.mark.slow
def test_cell_of_a_plane():
    """2-D: a binary crystal of discs under pressure."""
    potential = ms.LennardJones(
        epsilon={"A-A": 1.0, "A-B": 1.4, "B-B": 0.6}, sigma={"A-A": 1.0, "A-B": 0.85, "B-B": 0.8}, cutoff=2.5, onset=1.8
    )
    positions = np.array([[0.0, 0.0], [0.62, 0.71]])
    system = ms.System(positions, cell=[[1.25, 0.1], [0.0, 1.3]], pbc=True, species=["A", "B"])
    eq = ms.relax(system, potential, cell="free", pressure=0.5, fmax=1e-11)
    np.testing.assert_allclose(potential.stress(eq.system), [-0.5, -0.5, 0.0], atol=1e-9)
    assert worst(eq, ms.sensitivity(eq)) < FLOOR


@pytest.mark.slow
def test_slab_strains_in_its_plane_only(argon):
    from ase.build import fcc100

    atoms = fcc100("Ar", (1, 1, 4), a=1.55, vacuum=3.0)
    eq = ms.relax(rattled(atoms), argon, cell="free", fmax=1e-11)
    np.testing.assert_array_equal(eq.system.cell[2], ms.System.from_ase(atoms).cell[2])
    assert abs(float(eq.system.cell[0, 0]) / 1.55 * np.sqrt(2) - 1.0) > 1e-3
    assert worst(eq, ms.sensitivity(eq)) < FLOOR


@pytest.mark.slow
def test_derivatives_agree_with_structures_that_ase_relaxed(squeezed_salt):
    """Energies, forces and stresses are ours (held against LAMMPS elsewhere), the relaxation of the cell is ASE's."""
    from mdsens.potentials.ase_calculator import Calculator

    eq, potential = squeezed_salt, squeezed_salt.potential
    S, step = ms.sensitivity(eq), 2e-3

    def lengths(change):
        atoms = eq.system.to_ase()
        atoms.calc = Calculator(at(potential, "sigma.A-B", change))
        BFGS(FrechetCellFilter(atoms, scalar_pressure=10.0 / GPA), logfile=None).run(fmax=1e-9, steps=500)
        return atoms.cell.cellpar()[:3]

    values = {k: lengths(k * step) for k in (-2, -1, 1, 2)}
    difference = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
    cell, dcell = np.asarray(eq.system.cell), np.asarray(S.cell.sigma["A-B"])
    exact = np.sum(cell * dcell, axis=1) / np.linalg.norm(cell, axis=1)
    np.testing.assert_allclose(difference, exact, atol=1e-6)


def test_observables_see_the_cell_move(diamond, silicon):
    """dV/dσ = 3 V/σ by the adjoint, and by the forward road for all entries of the cell together."""
    volume, dV = ms.value_and_gradient(lambda system, potential: system.volume, diamond)
    np.testing.assert_allclose(dV.sigma, 3.0 * volume / silicon.sigma, rtol=1e-9)
    cell = ms.jacobian(lambda system, potential: system.cell, diamond)
    np.testing.assert_allclose(cell.lam, ms.sensitivity(diamond).cell.lam, atol=1e-9)
    direction = eqx.tree_at(lambda p: p.lam, jax.tree.map(jnp.zeros_like, silicon), jnp.ones(()))
    dX, dh = ms.jvp(diamond, direction, return_cell=True)
    np.testing.assert_allclose(dh, cell.lam, atol=1e-9)
    assert dX.shape == (8, 3)


@pytest.mark.slow
def test_one_expression_of_two_states(diamond, silicon):
    """The energy of transition from diamond to β-tin under pressure, with both cells free."""
    tin = ms.System(
        [[0, 0, 0], [0, 2.45, 0.65], [2.45, 2.45, 1.3], [2.45, 0, 1.95]], cell=[4.9, 4.9, 2.6], pbc=True, species="Si"
    )
    beta = ms.relax(tin, silicon, cell="isotropic", fmax=1e-11, check_minimum=False)
    states = {"diamond": diamond, "beta": beta}

    def difference(states, potential):
        return sum(sign * potential.energy(states[name]) / len(states[name]) for name, sign in (("beta", 1), ("diamond", -1)))

    value, slope = ms.value_and_gradient(difference, states)
    np.testing.assert_allclose(value, beta.energy / 4 - diamond.energy / 8, rtol=1e-12)
    np.testing.assert_allclose(slope.epsilon, value / silicon.epsilon, rtol=1e-9)
    np.testing.assert_allclose(slope.sigma, 0.0, atol=1e-9)


@pytest.mark.slow
def test_free_cell_is_kept_in_files(diamond, tmp_path):
    S = ms.sensitivity(diamond, wrt=["lam"])
    path = ms.save(tmp_path / "cell.h5", diamond, S)
    eq, again = ms.load(path)
    assert (eq.cell, eq.load, eq.stress_error) == ("free", 0.0, diamond.stress_error)
    np.testing.assert_array_equal(again.cell.lam, S.cell.lam)
    assert again.cell.sigma is None and again.certificate == S.certificate
    np.testing.assert_array_equal(ms.sensitivity(eq, wrt=["lam"]).cell.lam, S.cell.lam)


def test_the_load_is_what_was_asked_for_and_none_at_a_fixed_cell(squeezed_salt, silicon, tmp_path):
    crystal = ms.System.from_ase(bulk("Si", a=5.2))
    fixed = ms.relax(crystal, silicon)
    # It stands under many GPa, which is no load that anything balances.
    assert fixed.load is None and float(ms.observables.pressure(fixed.system, silicon)) > 10.0
    assert squeezed_salt.load == 10.0 and squeezed_salt.again().load == 10.0 and fixed.again().load is None
    for eq, load in ((fixed, None), (squeezed_salt, 10.0)):
        path = ms.save(tmp_path / f"{load}.h5", eq)
        assert ms.load(path)[0].load == load
        # Files of version 0.1 have the key "pressure".
        with h5py.File(path, "a") as file:
            attributes = file["equilibrium"].attrs
            del attributes["load"], file["h5md/creator"].attrs["checksum"]
            attributes["pressure"] = "0.0" if load is None else "10.0"
        assert ms.load(path)[0].load == load


# What acts from outside


@pytest.mark.slow
def test_pressure_against_compliance(squeezed_salt):
    """dV/dp = -V/K and dL/dp = -βL, by the free cell's own operator and by the relaxed elastic constants."""
    eq = squeezed_salt
    slope = ms.pressure_derivative(ms.observables.volume, eq)
    compliance = np.asarray(ms.observables.compliance(eq.system, eq.potential))
    np.testing.assert_allclose(-slope / eq.system.volume, compliance[:3, :3].sum(), rtol=1e-8)
    cell = ms.pressure_derivative(lambda system, potential: system.cell, eq)
    strain = np.linalg.solve(eq.system.cell, cell)
    np.testing.assert_allclose(-np.diag(strain), ms.observables.linear_compressibility(eq.system, eq.potential), rtol=1e-8)


def test_stress_under_strain_is_birchs_matrix(squeezed_salt):
    fixed = ms.relax(squeezed_salt.system, squeezed_salt.potential, fmax=1e-10)
    constants = ms.observables.elastic_constants(fixed.system, fixed.potential)
    np.testing.assert_allclose(ms.strain_derivative(ms.observables.stress, fixed), constants, rtol=1e-8, atol=1e-7)


# What must be refused or said


def test_what_acts_on_the_wrong_cell_is_refused(squeezed_salt):
    fixed = ms.relax(squeezed_salt.system, squeezed_salt.potential)
    refused(lambda: ms.pressure_derivative(ms.observables.volume, fixed), '"free"')
    refused(lambda: ms.strain_derivative(ms.observables.stress, squeezed_salt), '"fixed"')


@pytest.mark.slow
def test_a_pressure_at_which_the_crystal_is_unstable(argon):
    system = ms.System.from_ase(bulk("Ar", "fcc", a=1.55))
    with pytest.raises(ms.ConvergenceError, match="flew apart"):
        ms.relax(system, argon, cell="free", pressure=-30.0 * GPA)
    state = ms.relax(system, argon, cell="free", pressure=-30.0 * GPA, throw=False)
    assert state.status is ms.Status.UNSTABLE_CELL


@pytest.mark.slow
def test_a_cell_that_collapses():
    """Spheres that can pass through each other have no strength against a pressure."""
    spheres = ms.SoftSphere(diameter=1.0, epsilon=1.0)
    with pytest.raises(ms.ConvergenceError, match="collapsed"):
        ms.relax(ms.System.from_ase(bulk("X", "fcc", a=1.35) * 2), spheres, cell="free", pressure=20.0 * GPA)


@pytest.mark.slow
def test_an_unstable_shape_is_a_saddle(argon):
    """A simple cubic crystal of central forces has no strength against shear, which symmetry hides from forces."""
    with pytest.raises(ms.ConvergenceError, match="saddle"):
        ms.relax(ms.System.from_ase(bulk("Ar", "sc", a=1.05)), argon, cell="free")


def test_a_gas_has_no_cell_of_its_own(argon):
    with pytest.raises(ms.ConvergenceError, match="cell"):
        ms.relax(ms.System.from_ase(bulk("Ar", "fcc", a=6.0)), argon, cell="free")


@pytest.mark.slow
def test_a_wire_without_other_cell_vectors(argon):
    """ASE's form of a wire: nothing across."""
    wire = ms.System([[0.0, 0, 0], [0.3, 0.1, 1.1]], cell=[[0, 0, 0], [0, 0, 0], [0, 0, 2.2]], pbc=[False, False, True])
    eq = ms.relax(wire, argon, cell="free", fmax=1e-11, check_minimum=False)
    assert eq.stress_error < 1e-9 and abs(float(eq.system.cell[2, 2]) - 2.2) > 1e-3


@pytest.mark.slow
def test_frozen_atoms_ride_with_a_free_cell(argon):
    frozen = ms.System([[0.0, 0, 0]], cell=bulk("Ar", "fcc", a=1.5).cell.array, pbc=True, frozen=[True])
    free = ms.System([[0.0, 0, 0]], cell=bulk("Ar", "fcc", a=1.5).cell.array, pbc=True)
    cells = [ms.relax(system, argon, cell="free", fmax=1e-10).system.cell for system in (frozen, free)]
    np.testing.assert_allclose(*cells, atol=1e-9)


def test_masks_and_stresses_of_a_wrong_shape_are_refused(silicon, argon):
    system = ms.System.from_ase(bulk("Si", cubic=True))
    refused(lambda: ms.relax(system, silicon, cell="relaxed"), '"free"')
    refused(lambda: ms.relax(system, silicon, cell=[True, False]), "mask", "(6,)")
    refused(lambda: ms.relax(system, silicon, cell=[[1, 1, 0], [0, 1, 0], [0, 0, 1]]), "symmetric")
    refused(lambda: ms.relax(system, silicon, cell=[0.5] * 6), "True and False")
    refused(lambda: ms.relax(system, silicon, cell=[False] * 6), "no strain", '"fixed"')
    refused(lambda: ms.relax(system, silicon, cell="free", pressure=[1.0, 2.0]), "(3, 3)", "(6,)")
    refused(lambda: ms.relax(system, silicon, cell="free", pressure=np.nan), "finite")
    refused(lambda: ms.relax(system, silicon, cell="free", pressure="high"), "number")
    refused(lambda: ms.relax(system, silicon, cell="isotropic", pressure=[1, 2, 3, 0, 0, 0]), "isotropic")
    refused(lambda: ms.relax(system, silicon, pressure=1.0), "free")
    refused(lambda: ms.relax(system, silicon, cell="free", smax=-1.0), "smax")
    refused(lambda: ms.relax(system, silicon, smax=1e-3), "smax")
    refused(lambda: ms.relax(silicon, system), "System")
    cluster = ms.System([[0, 0, 0], [1, 0, 0]])
    refused(lambda: ms.relax(cluster, argon, cell="free"), "periodic")
    wire = ms.System([[0, 0, 0]], cell=np.diag([1.1, 5, 5]), pbc=[True, False, False])
    refused(lambda: ms.relax(wire, argon, cell=[True, True, False, False, False, False]), "yy", "periodic")
    refused(lambda: ms.relax(wire, argon, cell="free", pressure=1.0), "volume")


def test_names_of_parameters_are_all_there(diamond):
    assert len(parameter_paths(ms.sensitivity(diamond).cell)) == 8
