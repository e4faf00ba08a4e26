"""Elastic constants against matscipy, jax-md's packings and differences of strained, re-relaxed structures; their derivatives."""

import functools
import pathlib
import warnings

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from differences import FMAX, richardson

import mdsens as ms
from mdsens.common.units import EV_PER_CUBIC_ANGSTROM
from mdsens.observables import elastic_constants, moduli, phonon_frequencies
from mdsens.potentials.base import parameter_paths

DATA = pathlib.Path(__file__).parents[2] / "data"
SHEAR = np.eye(3) + np.array([[0.03, 0.02, -0.015], [0.0, -0.02, 0.03], [0.02, 0.0, 0.01]])
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
ROWS = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])

# The floor of the project: |θ Δ| <= 1e-6 of the largest.
FLOOR = 1e-6


def deviation(found, expected) -> float:
    """Largest difference, relative to the largest number expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def matrix(tensor) -> np.ndarray:
    """Voigt's matrix of a tensor `(3, 3, 3, 3)`."""
    return np.array([[tensor[(*ij, *kl)] for kl in VOIGT] for ij in VOIGT])


def sheared_vacancy(frozen=()):
    """15 atoms in a sheared cell: no symmetry, internal displacements that matter, a stress that is not hydrostatic."""
    atoms = bulk("Si", cubic=True, a=5.431) * (2, 1, 1)
    del atoms[3]
    mask = np.isin(np.arange(len(atoms)), frozen)
    return ms.System(atoms.positions @ SHEAR, cell=atoms.cell.array @ SHEAR, pbc=True, species="Si", frozen=mask)


@pytest.fixture(scope="module")
def sheared(silicon):
    return ms.relax(sheared_vacancy(), silicon, fmax=FMAX)


@pytest.fixture(scope="module")
def sheared_jacobian(sheared):
    return ms.jacobian(elastic_constants, sheared)


@pytest.fixture(scope="module")
def plane():
    """A strained triangular crystal of two species with a vacancy."""
    points = np.array([[i + 0.5 * (j % 2), np.sqrt(0.75) * j] for j in range(4) for i in range(4)]) * 1.1
    cell = np.diag([4.4, 4.4 * np.sqrt(0.75)])
    kept = np.arange(16) != 5
    species = np.array(["A", "B", "A", "A"] * 4)[kept]
    potential = ms.LennardJones(
        epsilon={"A-A": 1.0, "A-B": 1.3, "B-B": 0.7},
        sigma={"A-A": 1.0, "A-B": 0.95, "B-B": 0.9},
        cutoff=1.55,
        switch="truncated",  # between shells
    )
    system = ms.System(points[kept] @ SHEAR[:2, :2], cell=cell @ SHEAR[:2, :2], pbc=True, species=species)
    return ms.relax(system, potential, fmax=FMAX)


def packing(pressure, k):
    with h5py.File(DATA / f"2d_polyuniform_N64_Lp-{pressure}.nc") as file:
        cell = file["box"][k].reshape(2, 2)
        system = ms.System(file["pos"][k].reshape(64, 2) @ cell, cell=cell, pbc=True, species=["A"] * 64)
        return system, ms.SoftSphere(diameter=2 * file["rad"][k], epsilon=1.0), file["Cijkl"][k]


# Values


def test_silicon_has_the_known_constants(silicon):
    system = ms.System.from_ase(bulk("Si", cubic=True, a=5.431))
    C = np.asarray(elastic_constants(system, silicon))
    cubic = np.zeros((6, 6))
    cubic[:3, :3] = 76.42
    np.fill_diagonal(cubic, [151.42] * 3 + [56.45] * 3)
    # The numbers in use for this potential, rounded: the last digits depend on the unit of ε and the lattice constant.
    np.testing.assert_allclose(C, cubic, atol=0.02)
    assert abs(elastic_constants(system, silicon, relaxed=False)[3, 3] - 109.75) < 0.01
    # The primitive cell has one internal displacement where the cubic one has seven, and the same constants.
    primitive = ms.System.from_ase(bulk("Si", a=5.431))
    np.testing.assert_allclose(elastic_constants(primitive, silicon), C, atol=1e-8)


def test_a_lattice_without_internal_displacements_has_only_the_affine_term():
    fcc = ms.System.from_ase(bulk("Ar", "fcc", a=1.5))
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    C = elastic_constants(fcc, potential, definition="thermodynamic")
    affine = elastic_constants(fcc, potential, definition="thermodynamic", relaxed=False)
    # Entries that symmetry makes zero are rounding of the others.
    np.testing.assert_allclose(C, affine, rtol=1e-13, atol=1e-15 * np.abs(C).max())
    # Cauchy's relation of central forces holds for the thermodynamic constants, under pressure too.
    np.testing.assert_allclose(C[0, 1], C[3, 3], rtol=1e-12)


def test_strains_that_displace_nothing_are_no_failed_solve(silicon):
    """By symmetry a normal strain leaves the two atoms of the primitive cell alone, but for rounding."""
    eq = ms.relax(ms.System.from_ase(bulk("Si")), silicon, cell="free", pressure=1.0)
    assert np.isfinite(elastic_constants(eq.system, silicon)).all()


def agrees_with_matscipy(system, potential, calculator, **definitions):
    """Both terms of each definition against the property of matscipy's that has its affine one."""
    elasticity = pytest.importorskip("matscipy.elasticity", reason="matscipy is not installed (pip install matscipy)")
    atoms = system.to_ase()
    atoms.calc = calculator
    stress = atoms.get_stress()
    assert np.abs(stress[:3] - stress[:3].mean()).max() > 0.01 * np.abs(stress).max(), "the stress is hydrostatic"
    tight = {"x0": None, "rtol": 1e-13, "maxiter": None, "M": None, "callback": None, "atol": 0.0}
    nonaffine = elasticity.nonaffine_elastic_contribution(atoms, cg_parameters=tight)
    for definition, name in definitions.items():
        affine = EV_PER_CUBIC_ANGSTROM * matrix(atoms.calc.get_property(name, atoms))
        whole = affine + EV_PER_CUBIC_ANGSTROM * matrix(nonaffine)
        constants = functools.partial(elastic_constants, system, potential, definition=definition.replace("_", "-"))
        # Analytic results on both sides, and a linear solve with a residual of 1e-13 on theirs.
        assert deviation(constants(relaxed=False), affine) < 1e-9
        assert deviation(constants(), whole) < 1e-9


@pytest.mark.slow
def test_stillinger_weber_agrees_with_matscipy_under_shear(sheared):
    manybody = pytest.importorskip("matscipy.calculators.manybody", reason="matscipy is not installed (pip install matscipy)")
    from matscipy.calculators.manybody.explicit_forms.stillinger_weber import Stillinger_Weber_PRB_31_5262_Si as published

    form = manybody.StillingerWeber({**published, "costheta0": 1.0 / 3.0})
    # What its many-body calculators (1.3.1) call Born constants are second derivatives in the symmetric strain ε, not in η.
    agrees_with_matscipy(sheared.system, sheared.potential, manybody.Manybody(**form), energy="born_constants")


@pytest.mark.slow
def test_lennard_jones_agrees_with_matscipy_under_pressure_and_shear():
    pairs = pytest.importorskip("matscipy.calculators.pair_potential", reason="matscipy is not installed (pip install matscipy)")
    atoms = bulk("Ar", "fcc", a=1.5, cubic=True) * 2
    del atoms[7]
    # The hard cutoff lies between shells, where the truncated energy is as smooth as any.
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.45, switch="truncated")
    eq = ms.relax(
        ms.System(atoms.positions @ SHEAR, cell=atoms.cell.array @ SHEAR, pbc=True, species="Ar"), potential, fmax=1e-11
    )
    calculator = pairs.PairPotential({(18, 18): pairs.LennardJonesCut(1.0, 1.0, 2.45)})
    agrees_with_matscipy(eq.system, potential, calculator, thermodynamic="born_constants", stress_strain="birch_coefficients")


@pytest.mark.parametrize("pressure", ["1.0", "4.0"])
def test_jammed_packings_have_the_moduli_that_jax_md_stores(pressure):
    for k in range(10):
        system, potential, stored = packing(pressure, k)
        C = elastic_constants(system, potential, definition="energy")
        # Stored in the order xxxx, yyyy, xyxy, xxyy, xxxy, yyxy.
        assert deviation(C[(0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)], stored) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [(), (2, 9)], ids=["free", "two frozen"])
def test_stress_answers_to_strain_as_birch_says(silicon, frozen):
    eq = ms.relax(sheared_vacancy(frozen), silicon, fmax=FMAX)

    def stress(k, size):
        strain = np.zeros((3, 3))
        strain[VOIGT[k]] += 0.5 * size
        strain[VOIGT[k][::-1]] += 0.5 * size
        deformation = np.eye(3) + strain
        there = ms.System(
            eq.system.positions @ deformation, cell=eq.system.cell @ deformation, pbc=True, species="Si", frozen=eq.system.frozen
        )
        again = ms.relax(there, silicon, fmax=FMAX, check_minimum=False)
        return np.asarray(silicon.stress(again.system))

    h = 1e-4
    differences = np.empty((6, 6))
    for k in range(6):
        s = {n: stress(k, n * h) for n in (-2, -1, 1, 2)}
        differences[:, k] = (8 * (s[1] - s[-1]) - (s[2] - s[-2])) / (12 * h)
    C = np.asarray(elastic_constants(eq.system, silicon))
    assert deviation(C, differences) < FLOOR
    # What tells this definition from the others is far above the floor.
    assert np.abs(C - C.T).max() > 1e-2 * np.abs(C).max()
    # Frozen atoms ride with the strain there too.
    assert deviation(ms.strain_derivative(ms.observables.stress, eq), differences) < FLOOR


def test_the_tensor_turns_with_the_crystal(sheared):
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    system = sheared.system
    turned = ms.System(system.positions @ rotation, cell=system.cell @ rotation, pbc=True, species="Si")
    tensor = np.asarray(elastic_constants(system, sheared.potential))[ROWS[:, :, None, None], ROWS]
    expected = np.einsum("ia,jb,kc,ld,ijkl->abcd", *[rotation] * 4, tensor)
    found = elastic_constants(turned, sheared.potential)
    assert deviation(found, matrix(expected)) < 1e-10
    for modulus in (moduli.bulk, moduli.shear, moduli.universal_anisotropy, lambda C: moduli.stiffnesses(C)[0]):
        np.testing.assert_allclose(modulus(found), modulus(matrix(tensor)), rtol=1e-9)


# Derivatives


def test_derivatives_match_differences_of_relaxed_structures(sheared, sheared_jacobian):
    scaled = {}
    for name, theta, leaf in zip(
        parameter_paths(sheared.potential), jax.tree.leaves(sheared.potential), jax.tree.leaves(sheared_jacobian), strict=True
    ):
        difference = richardson(
            sheared, name, same_contacts=False, observable=lambda again: elastic_constants(again.system, again.potential)
        )
        scaled[name] = float(theta) * np.asarray(leaf), float(theta) * difference
    scale = max(np.abs(found).max() for found, _ in scaled.values())
    errors = {name: float(np.abs(found - difference).max() / scale) for name, (found, difference) in scaled.items()}
    assert max(errors.values()) < FLOOR, errors


def test_constants_are_proportional_to_the_unit_of_energy(sheared, sheared_jacobian):
    # The structure does not depend on ε, so this holds exactly, non-affine displacements and all.
    C = elastic_constants(sheared.system, sheared.potential)
    assert deviation(sheared.potential.epsilon * sheared_jacobian.epsilon, C) < 1e-9


@pytest.mark.slow
def test_packing_derivatives_in_every_diameter_match_differences():
    # 64 diameters are more than nine constants: the adjoint road.
    system, potential, _ = packing("1.0", 3)
    # The packing is soft, and steps are short: they see what forces of 1e-12 leave open.
    fmax = 0.1 * FMAX
    eq = ms.relax(system, potential, fmax=fmax)
    J = ms.jacobian(elastic_constants, eq)
    assert J.diameter.shape == (3, 3, 64)

    def at(change):
        changed = eqx.tree_at(lambda p: p.diameter, potential, potential.diameter.at[5].add(change))
        return np.asarray(elastic_constants(ms.relax(eq.system, changed, fmax=fmax, check_minimum=False).system, changed))

    h = 1e-6  # no contact opens or closes
    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    assert deviation(J.diameter[..., 5], difference) < FLOOR


@pytest.mark.slow
def test_derivatives_in_a_plane_match_differences(plane):
    J = ms.jacobian(elastic_constants, plane)
    for name, found in (("epsilon.A-B", J.epsilon["A-B"]), ("sigma.A-A", J.sigma["A-A"])):
        difference = richardson(plane, name, observable=lambda again: elastic_constants(again.system, again.potential))
        assert deviation(found, difference) < FLOOR, name


@pytest.mark.slow
def test_second_derivatives_match_differences_of_the_first(plane):
    weights = np.random.default_rng(1).normal(size=(3, 3))
    direction = jax.tree.map(lambda theta: 0.1 * theta, plane.potential)

    def g(system, potential):
        return jnp.sum(weights * elastic_constants(system, potential))

    def along(t):
        return jax.tree.map(lambda theta, step: theta + t * step, plane.potential, direction)

    def of_relaxed(t):
        positions = ms.equilibrium_positions(plane.system, along(t), fmax=FMAX)
        return g(plane.system.with_positions(positions), along(t))

    def slope(t):
        again = ms.relax(plane.system, along(t), fmax=FMAX, check_minimum=False)
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, ms.gradient(g, again), direction)))

    h = 1e-3
    difference = (8 * (slope(h) - slope(-h)) - (slope(2 * h) - slope(-2 * h))) / (12 * h)
    _, second = jax.jvp(lambda t: jax.jvp(of_relaxed, (t,), (1.0,))[1], (0.0,), (1.0,))
    np.testing.assert_allclose(second, difference, rtol=FLOOR)


@pytest.mark.slow
def test_the_adjoint_of_a_modulus_agrees_with_the_chain_rule(sheared, sheared_jacobian):
    C = elastic_constants(sheared.system, sheared.potential)
    value, dK = ms.value_and_gradient(ms.observables.bulk_modulus, sheared)
    np.testing.assert_allclose(value, moduli.bulk(C), rtol=1e-12)
    # 1e-8: the residuals of different linear systems, one adjoint and eight forward.
    chain = [jnp.sum(jax.grad(moduli.bulk)(C) * leaf) for leaf in jax.tree.leaves(sheared_jacobian)]
    np.testing.assert_allclose(jax.tree.leaves(dK), chain, rtol=1e-8)


# Moduli


def isotropic(K, G, dim):
    C = np.zeros((dim * (dim + 1) // 2,) * 2)
    C[:dim, :dim] = K - 2 * G / dim
    C[np.arange(dim), np.arange(dim)] += 2 * G
    C[np.arange(dim, len(C)), np.arange(dim, len(C))] = G
    return C


@pytest.mark.parametrize("dim", [2, 3])
def test_an_isotropic_solid_has_two_moduli(dim):
    K, G = 80.0, 30.0
    C = isotropic(K, G, dim)
    young = {2: 4 * K * G / (K + G), 3: 9 * K * G / (3 * K + G)}[dim]
    poisson = {2: (K - G) / (K + G), 3: (3 * K - 2 * G) / (6 * K + 2 * G)}[dim]
    n, m = {2: ([0.6, 0.8], [-0.8, 0.6]), 3: ([1.0, 2.0, 2.0], [2.0, 1.0, -2.0])}[dim]
    for average in moduli.AVERAGES:
        np.testing.assert_allclose([moduli.bulk(C, average), moduli.shear(C, average)], [K, G], rtol=1e-13)
    np.testing.assert_allclose([moduli.young(C), moduli.young(C, along=n)], young, rtol=1e-13)
    np.testing.assert_allclose([moduli.poisson(C), moduli.poisson(C, along=n, across=m)], poisson, rtol=1e-13)
    np.testing.assert_allclose(moduli.linear_compressibility(C), 1 / (dim * K), rtol=1e-13)
    np.testing.assert_allclose(moduli.universal_anisotropy(C), 0.0, atol=1e-13)
    np.testing.assert_allclose(moduli.stiffnesses(C), np.sort([dim * K] + [2 * G] * (len(C) - 1)), rtol=1e-13)


def test_moduli_of_a_cubic_crystal_follow_its_three_constants():
    elasticity = pytest.importorskip("matscipy.elasticity", reason="matscipy is not installed (pip install matscipy)")
    C11, C12, C44 = 151.42, 76.42, 56.45
    C = elasticity.cubic_to_Voigt_6x6(C11, C12, C44)
    E, nu, *_ = elasticity.elastic_moduli(C)
    np.testing.assert_allclose([moduli.young(C, along=n) for n in np.eye(3)], E, rtol=1e-12)
    np.testing.assert_allclose(moduli.poisson(C, along=[1, 0, 0], across=[0, 1, 0]), nu[0, 1], rtol=1e-12)
    np.testing.assert_allclose(moduli.bulk(C), (C11 + 2 * C12) / 3, rtol=1e-13)
    np.testing.assert_allclose(moduli.shear(C, "voigt"), (C11 - C12 + 3 * C44) / 5, rtol=1e-13)
    reuss = 5 * (C11 - C12) * C44 / (4 * C44 + 3 * (C11 - C12))
    np.testing.assert_allclose(moduli.shear(C, "reuss"), reuss, rtol=1e-13)
    # Along a cube's diagonal 1/E = 1/(9 K) + 1/(3 C44).
    K = (C11 + 2 * C12) / 3
    np.testing.assert_allclose(moduli.young(C, along=[1, 1, 1]), 1 / (1 / (9 * K) + 1 / (3 * C44)), rtol=1e-13)
    np.testing.assert_allclose(moduli.stiffnesses(C), sorted([2 * C44] * 3 + [C11 - C12] * 2 + [C11 + 2 * C12]), rtol=1e-13)
    np.testing.assert_allclose(moduli.compliance(C) @ C, np.eye(6), atol=1e-13)
    np.testing.assert_allclose(np.sum(moduli.linear_compressibility(C)), 1 / moduli.bulk(C, "reuss"), rtol=1e-13)


def test_a_stretched_crystal_loses_its_stability():
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    lowest = []
    for a in (1.5, 1.55, 1.8):
        system = ms.System.from_ase(bulk("Ar", "fcc", a=a))
        lowest.append(float(ms.observables.elastic_stability(system, potential)))
        assert moduli.is_stable(elastic_constants(system, potential)) == (lowest[-1] > 0)
    assert lowest[0] > lowest[1] > 0 > lowest[2]


# Refusals


@pytest.mark.slow
def test_bad_requests_are_refused_in_a_sentence(silicon):
    crystal = ms.System.from_ase(bulk("Si", cubic=True, a=5.431))
    wire = ms.System(crystal.positions, cell=crystal.cell, pbc=[True, False, False], species="Si")
    with pytest.raises(ms.InputError, match="periodic in all directions"):
        elastic_constants(wire, silicon)
    with pytest.raises(ms.InputError, match="no sheet"):
        elastic_constants(crystal, silicon, sheet=True)
    rattled = crystal.positions + 0.1 * np.random.default_rng(0).normal(size=crystal.positions.shape)
    for constants in (elastic_constants, phonon_frequencies()):
        with pytest.raises(ms.InputError, match="not relaxed"):
            constants(crystal.with_positions(rattled), silicon)
    with pytest.raises(ms.InputError, match="Did you mean 'energy'"):
        elastic_constants(crystal, silicon, definition="enrgy")
    with pytest.raises(ms.InputError, match="hides its cell"):
        elastic_constants(crystal, ms.JaxMD(lambda R, k: k * jnp.sum(R**2), k=1.0))
    with pytest.raises(ms.InputError, match="Did you mean 'hill'"):
        ms.observables.bulk_modulus(crystal, silicon, average="hil")
    with pytest.raises(ms.InputError, match="vector of 3 numbers"):
        moduli.young(np.eye(6), along=[1, 0])
    with pytest.raises(ms.InputError, match="two directions"):
        moduli.poisson(np.eye(6), along=[1, 0, 0])
    with pytest.raises(ms.InputError, match="right angle"):
        moduli.poisson(np.eye(6), along=[1, 0, 0], across=[1, 1, 0])
    with pytest.raises(ms.InputError, match="6×6"):
        moduli.compliance(np.eye(4))


@pytest.mark.slow
def test_a_state_that_is_no_minimum_has_no_constants(plane):
    shaken = plane.system.positions + 0.2 * np.random.default_rng(0).normal(size=plane.system.positions.shape)
    with pytest.raises(ms.LinearSolveError, match="relax the structure to a minimum first"):
        elastic_constants(plane.system.with_positions(shaken), plane.potential)
    # Traced values cannot raise.
    traced = jax.jit(lambda x: elastic_constants(plane.system.with_positions(x), plane.potential))
    assert jnp.isnan(traced(jnp.asarray(shaken))).all()
    np.testing.assert_allclose(
        traced(plane.system.positions), elastic_constants(plane.system, plane.potential), rtol=1e-9, atol=1e-9
    )


def test_forces_that_are_left_are_told(silicon):
    crystal = ms.System.from_ase(bulk("Si", cubic=True, a=5.431))
    noise = np.random.default_rng(0).normal(size=crystal.positions.shape)
    with pytest.warns(UserWarning, match="Forces are left"):
        near = elastic_constants(crystal.with_positions(crystal.positions + 1e-3 * noise), silicon)
    assert abs(float(near[3, 3]) - 56.45) / 56.45 < 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elastic_constants(crystal.with_positions(crystal.positions + 1e-7 * noise), silicon)
        # Clamped ions need no rest.
        elastic_constants(crystal.with_positions(crystal.positions + 0.1 * noise), silicon, relaxed=False)


@pytest.mark.slow
def test_what_constraints_hold_has_no_constants_of_its_own(silicon, tmp_path):
    crystal = ms.System.from_ase(bulk("Si", cubic=True, a=5.431))
    eq = ms.relax(crystal, silicon, constraints=[ms.constraints.FixedLengths([(0, 1)])])
    ms.save(tmp_path / "held.h5", eq)
    loaded, _ = ms.load(tmp_path / "held.h5")
    for state in (eq, loaded):
        for constants in (elastic_constants, phonon_frequencies()):
            with pytest.raises(ms.InputError, match="held by constraints"):
                constants(state.system, silicon)
    with pytest.raises(ms.InputError, match="held by constraints"):
        ms.jacobian(elastic_constants, eq)
    # Relaxed without, or with the centre of mass alone held, it is the crystal's.
    for constraints in ([], [ms.constraints.FixedCentreOfMass()]):
        again = ms.relax(eq.system, silicon, constraints=constraints)
        assert float(elastic_constants(again.system, silicon)[3, 3]) == pytest.approx(56.45, abs=0.02)
