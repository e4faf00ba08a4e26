"""Constraints: KKT points and their derivatives, against structures relaxed again and against an optimiser of SciPy's."""

import ase
import ase.constraints
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import refused

import mdsens as ms
from mdsens.derivatives.verification import check_sensitivity
from mdsens.equilibrium import constraints as c

FLOOR = 1e-6
START = np.array([[0, 0, 0], [1.1, 0, 0], [0.5, 1, 0], [0.5, 0.3, 0.9], [1.4, 1.0, 0.6], [0.4, -0.8, 0.6]])


@pytest.fixture(scope="module")
def argon():
    return ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=4.0, onset=3.0)


@pytest.fixture(scope="module")
def cluster():
    return ms.System(START + 0.03 * np.random.default_rng(0).normal(size=START.shape))


def worst(eq):
    S = ms.sensitivity(eq)
    assert S.certificate.trusted, S.certificate.reasons
    checks = list(check_sensitivity(eq, S))
    assert not any(check.note for check in checks), checks
    return max(check.error for check in checks)


def reached_by_scipy(cluster, potential, equations=(), inequalities=()):
    """Energy by SLSQP, from the same start."""
    shape = cluster.positions.shape
    listed = cluster.with_neighbors(potential, skin=10.0)
    value = jax.jit(jax.value_and_grad(lambda x: potential.energy(listed.with_positions(x.reshape(shape)))))
    found = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(part, dtype=float) for part in value(jnp.asarray(x))),
        np.asarray(cluster.positions).ravel(),
        jac=True,
        method="SLSQP",
        constraints=[
            {"type": kind, "fun": _at(cluster, part)}
            for kind, parts in (("eq", equations), ("ineq", inequalities))
            for part in parts
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.fun


def _at(cluster, part):
    """The constraint's values as a function of raveled positions, for SciPy."""
    values = jax.jit(lambda x: part.values(cluster.with_positions(x.reshape(cluster.positions.shape))))
    return lambda x: np.asarray(values(x))


@pytest.mark.slow
def test_bonds_of_fixed_length(cluster, argon):
    bonds = c.FixedLengths([(0, 1), (2, 4)])
    eq = ms.relax(cluster, argon, constraints=[bonds], fmax=1e-11)
    lengths = lambda s: np.linalg.norm(np.asarray(s.positions[np.array([0, 2])] - s.positions[np.array([1, 4])]), axis=1)  # noqa: E731
    np.testing.assert_allclose(lengths(eq.system), lengths(cluster), atol=1e-12)
    np.testing.assert_allclose(eq.energy, reached_by_scipy(cluster, argon, [bonds.bound(cluster)]), rtol=1e-7)
    # The forces are what multipliers times the bonds' directions balance.
    normals = np.asarray(eq.constraints.normals(eq.system)) / np.asarray(eq.constraints.factors)[:, None]
    np.testing.assert_allclose(np.asarray(argon.forces(eq.system)).ravel(), normals.T @ np.asarray(eq.multipliers), atol=1e-10)
    S = ms.sensitivity(eq)
    for pair in ((0, 1), (2, 4)):
        d, dx = (
            eq.system.positions[pair[1]] - eq.system.positions[pair[0]],
            S.positions.sigma[pair[1]] - S.positions.sigma[pair[0]],
        )
        assert abs(float(d @ dx)) < 1e-10
    assert worst(eq) < FLOOR


@pytest.mark.slow
def test_a_rigid_group_and_a_component_that_stays(cluster, argon):
    eq = ms.relax(cluster, argon, constraints=[c.RigidGroup([0, 1, 2, 3]), c.FixedComponents([5], "z")], fmax=1e-11)
    distances = lambda s: np.linalg.norm(np.asarray(s.positions[:4, None] - s.positions[None, :4]), axis=-1)  # noqa: E731
    np.testing.assert_allclose(distances(eq.system), distances(cluster), atol=1e-12)
    assert float(eq.system.positions[5, 2]) == float(cluster.positions[5, 2])
    assert worst(eq) < FLOOR


@pytest.mark.slow
def test_a_wall_presses_where_it_is_touched(cluster, argon):
    eq = ms.relax(cluster, argon, constraints=[c.Wall((0, 0, 1), 0.2), c.FixedCentreOfMass()], fmax=1e-11)
    active, pushes = list(eq.constraints.active), np.asarray(eq.multipliers[3:])
    assert active and (pushes < 0.0).all()
    np.testing.assert_allclose(eq.system.positions[np.array(active), 2], 0.2, atol=1e-12)
    assert (np.asarray(eq.system.positions[:, 2]) > 0.2 - 1e-12).all()
    assert worst(eq) < FLOOR


@pytest.mark.slow
def test_a_wall_far_away_changes_nothing(cluster, argon):
    eq = ms.relax(cluster, argon, constraints=[c.Wall((0, 0, 1), -20.0)], fmax=1e-11)
    assert eq.constraints.active == () and eq.multipliers is None
    np.testing.assert_allclose(eq.energy, ms.relax(cluster, argon).energy, rtol=1e-10)


def gyration(system):
    arms = system.positions - jnp.mean(system.positions, axis=0)
    return jnp.mean(jnp.sum(arms**2, axis=1)) - 0.8


@pytest.mark.slow
def test_an_equation_of_ones_own(cluster, argon):
    eq = ms.relax(cluster, argon, constraints=[c.Equation(gyration)], fmax=1e-11)
    assert abs(float(gyration(eq.system))) < 1e-11
    np.testing.assert_allclose(eq.energy, reached_by_scipy(cluster, argon, [c.Equation(gyration)]), rtol=1e-7)
    # The multiplier is what the energy changes by as the equation's right-hand side does.
    shifted = ms.relax(cluster, argon, constraints=[c.Equation(lambda s: gyration(s) - 1e-5)], fmax=1e-11)
    np.testing.assert_allclose((shifted.energy - eq.energy) / 1e-5, -eq.multipliers[0], rtol=1e-3)
    assert worst(eq) < FLOOR


@pytest.mark.slow
def test_a_constraint_in_a_cell_that_relaxes():
    """A bond of fixed length across the boundary of a chain that is free to strain."""
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    system = ms.System([[0.0, 0, 0], [1.0, 0.1, 0.1]], cell=[[2.1, 0, 0], [0.3, 1.2, 0], [0, 0.2, 1.3]], pbc=True)
    bond = c.FixedLengths([(0, 1)], [1.05])
    eq = ms.relax(system, potential, constraints=[bond], cell="free", pressure=100.0, fmax=1e-11)
    assert abs(float(bond.bound(eq.system).values(eq.system)[0])) < 1e-12
    assert worst(eq) < FLOOR


@pytest.mark.slow
def test_references_of_constraints_are_kept(cluster, argon):
    """A prediction meets a constraint to its order only: relaxed from there it must hold as it was given."""
    bond = c.FixedLengths([(0, 1), (2, 4)])
    eq = ms.relax(cluster, argon, constraints=[bond, c.RigidGroup([0, 3, 5])], fmax=1e-11)
    guess = ms.extrapolate(eq, ms.LennardJones(epsilon=1.0, sigma=1.02, cutoff=4.0, onset=3.0))
    again = guess.relax(fmax=1e-11)
    lengths = lambda s: np.linalg.norm(np.asarray(s.positions[np.array([0, 2])] - s.positions[np.array([1, 4])]), axis=1)  # noqa: E731
    np.testing.assert_allclose(lengths(again.system), lengths(cluster), atol=1e-11)


@pytest.mark.slow
def test_constraints_are_kept_in_files(cluster, argon, tmp_path):
    parts = [c.Wall((0, 0, 1), 0.2), c.FixedComponents([0], "x"), c.Equation(gyration)]
    eq = ms.relax(cluster, argon, constraints=parts, fmax=1e-11)
    S = ms.sensitivity(eq, wrt=["sigma"])
    path = ms.save(tmp_path / "held.h5", eq, S)
    with pytest.raises(ms.StoreError, match="gyration"):
        ms.load(path)
    with pytest.raises(ms.StoreError, match="gyration"):
        ms.load(path, constraints=[*parts[:2], c.Equation(lambda s: s.positions[0, :1])])
    again, _ = ms.load(path, constraints=parts)
    assert again.constraints.active == eq.constraints.active
    np.testing.assert_array_equal(again.multipliers, eq.multipliers)
    np.testing.assert_allclose(ms.sensitivity(again, wrt=["sigma"]).positions.sigma, S.positions.sigma, atol=1e-12)


@pytest.mark.slow
def test_constraints_of_ase_are_translated_or_refused_by_name():
    atoms = ase.Atoms("Ar5", positions=1.2 * START[:5])
    atoms.set_constraint(
        [
            ase.constraints.FixAtoms([0]),
            ase.constraints.FixCartesian([1], (True, False, True)),
            ase.constraints.FixedPlane([2], (1, 1, 0)),
            ase.constraints.FixedLine([3], (0, 0, 1)),
            ase.constraints.FixBondLengths([(3, 4)]),
        ]
    )
    system, found = c.from_ase(atoms)
    assert system.frozen.tolist() == [True, False, False, False, False]
    assert [type(part).__name__ for part in found] == ["FixedComponents", "FixedPlane", "FixedLine", "FixedLengths"]
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=4.0, onset=3.0)
    eq = ms.relax(system, potential, constraints=found, fmax=1e-9, check_minimum=False)
    moved = np.asarray(eq.system.positions - system.positions)
    assert not moved[0].any() and not moved[1, [0, 2]].any() and not np.abs(moved[3, :2]).max() > 1e-12
    assert abs(moved[2] @ [1, 1, 0]) < 1e-12
    atoms.set_constraint(ase.constraints.FixedMode(np.ones((5, 3))))
    refused(lambda: c.from_ase(atoms), "FixedMode")


# What must be refused


@pytest.mark.slow
def test_constraints_that_depend_on_or_contradict_each_other(cluster, argon):
    twice = [c.FixedLengths([(0, 1)], [1.0]), c.FixedLengths([(0, 1)], [1.2])]
    refused(lambda: ms.relax(cluster, argon, constraints=twice), "depend on each other", "FixedLengths")
    every = [(i, j) for i in range(6) for j in range(i)]
    refused(
        lambda: ms.relax(cluster, argon, constraints=[c.FixedLengths(every), c.FixedLine(None, (0, 0, 1))]), "degrees of freedom"
    )
    held = [c.FixedComponents([0, 1], "xyz"), c.FixedLengths([(0, 1)])]
    refused(lambda: ms.relax(cluster, argon, constraints=held), "nothing that can move")
    with pytest.raises(ms.ConvergenceError, match="cannot be met together"):
        ms.relax(cluster, argon, constraints=[c.Wall((0, 0, 1), 1.0), c.Wall((0, 0, -1), 0.5)])
    state = ms.relax(cluster, argon, constraints=[c.Wall((0, 0, 1), 1.0), c.Wall((0, 0, -1), 0.5)], throw=False)
    assert state.status is ms.Status.CONTRADICTION


@pytest.mark.parametrize(
    ("constraint", "word"),
    [
        (c.FixedLengths([(0, 0)]), "different atoms"),
        (c.FixedLengths([(0, 9)]), "beyond the 6"),
        (c.FixedLengths([(0, 1)], [-1.0]), "positive"),
        (c.FixedComponents([0], "w"), "'xyz'"),
        (c.FixedComponents([9], "x"), "atom 9"),
        (c.FixedPlane([0], (0, 0, 0)), "not zero"),
        (c.RigidGroup([0]), "two atoms"),
        (c.Wall((0, 0, 1), np.nan), "offset"),
        (c.Wall((0, 0, 1), "low"), "numbers"),
        (c.FixedPlane([0], "z"), "numbers"),
        (c.FixedLengths([(0, 1), (2,)]), "numbers"),
        (c.Equation(lambda s: s.volumes), "volumes"),
        (c.Equation(3.0), "function"),
        (c.Equation(lambda s: float(s.positions[0, 0])), "jax.numpy"),
        ("FixAtoms", "constraints.from_ase"),
    ],
)
def test_constraints_that_make_no_sense(cluster, argon, constraint, word):
    refused(lambda: ms.relax(cluster, argon, constraints=[constraint]), word)


@pytest.mark.parametrize("atoms", [[1], (1,), 1, np.array([1]), range(1, 2)], ids=["list", "tuple", "int", "array", "range"])
def test_components_are_held_of_atoms_however_they_are_given(atoms, cluster, argon):
    eq = ms.relax(cluster, argon, constraints=[c.FixedComponents(atoms, "x")], check_minimum=False)
    np.testing.assert_array_equal(eq.system.positions[1, 0], cluster.positions[1, 0])
    assert np.abs(np.asarray(eq.system.positions - cluster.positions)[1, 1:]).min() > 1e-3


def test_lengths_in_a_slab_without_a_third_vector(argon):
    """The bond crosses the boundary: by hand, from x = 3.5 to 0.2 + 4."""
    positions = [[0.2, 0.0, 0.0], [3.5, 0.1, 0.3], [1.9, 1.1, 0.1]]
    sheet = ms.System(positions, cell=np.diag([4.0, 4.0, 0.0]), pbc=[True, True, False])
    bound = c.FixedLengths([(0, 1)]).bound(sheet)
    np.testing.assert_allclose(bound.lengths, [np.sqrt(0.7**2 + 0.1**2 + 0.3**2)], rtol=1e-12)
    assert bound.shift.tolist() == [[-1, 0, 0]]


OBLIQUE = np.array([[4.0, 0.0, 0.0], [1.1, 3.7, 0.0], [-0.4, 0.9, 3.3]])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cell"), [("oblique", OBLIQUE), ("straight", np.diag([4.0, 3.7, 3.3]))])
def test_selective_dynamics_of_a_poscar_holds_coordinates_along_cell_vectors(name, cell, tmp_path, argon):
    """ASE's own relaxation, under the same constraints of the same file, ends at the same place."""
    from ase.optimize import BFGS

    scaled = np.array([[0.02, 0.0, 0.0], [0.31, 0.24, 0.02], [0.1, 0.33, 0.3], [0.35, -0.05, 0.33]])
    atoms = ase.Atoms("Ar4", scaled_positions=scaled, cell=cell, pbc=True)
    atoms.set_constraint(
        [
            ase.constraints.FixAtoms([0]),
            ase.constraints.FixScaled([1], mask=(True, False, False)),
            ase.constraints.FixScaled([2], mask=(False, True, True)),
        ]
    )
    ase.io.write(tmp_path / "POSCAR", atoms, format="vasp", vasp5=True)
    assert "constraints.from_ase(ase.io.read(" in refused(lambda: ms.read(tmp_path / "POSCAR"))
    atoms = ase.io.read(tmp_path / "POSCAR")
    system, found = c.from_ase(atoms)
    assert system.frozen.tolist() == [True, False, False, False]
    eq = ms.relax(system, argon, constraints=found, fmax=1e-9, check_minimum=False)
    atoms.calc = ms.Calculator(argon)
    BFGS(atoms, logfile=None).run(fmax=1e-7, steps=1000)
    if name == "straight":  # in the oblique cell ASE's steps lead from there to another, higher place of rest
        np.testing.assert_allclose(eq.energy, atoms.get_potential_energy(), atol=1e-8)
    fractions = np.asarray(eq.system.positions) @ np.linalg.inv(cell)
    kept = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=bool)
    start = np.asarray(system.positions) @ np.linalg.inv(cell)
    np.testing.assert_allclose(fractions[kept], start[kept], atol=1e-9)
    assert np.abs(fractions - start)[~kept].min() > 1e-5
    # Nothing is left of the forces along the coordinates that are free: -∂U/∂s_k = F · a_k.
    assert np.abs(np.asarray(argon.forces(eq.system)) @ cell.T)[~kept].max() < 1e-7


@pytest.mark.slow
def test_what_is_held_along_cell_vectors_rides_with_a_free_cell(argon):
    positions = np.array([[0.02, 0.0, 0.0], [0.5, 0.5, 0.02], [0.52, 0.0, 0.5], [0.0, 0.48, 0.5]]) @ (0.41 * OBLIQUE)
    system = ms.System(positions, cell=0.41 * OBLIQUE, pbc=True)
    held = [c.FixedScaled([0, 1], [2])]
    eq = ms.relax(system, argon, cell="free", constraints=held, check_minimum=False, throw=False)
    before, after = (np.asarray(s.positions) @ np.linalg.inv(s.cell) for s in (system, eq.system))
    assert np.abs(np.asarray(eq.system.cell - system.cell)).max() > 1e-2
    np.testing.assert_allclose(after[:2, 2], before[:2, 2], atol=1e-9)


def test_more_of_ase_s_constraints_are_translated():
    atoms = ase.Atoms("Ar4", START[:4], cell=np.diag([9.0, 9.0, 9.0]), pbc=True)
    fix = ase.constraints
    atoms.set_constraint([fix.FixCom(), fix.FixCartesian([0, 2]), fix.FixCartesian(1, (True, False, False))])
    system, found = c.from_ase(atoms)
    assert system.frozen.tolist() == [True, False, True, False]
    assert sorted(type(one).__name__ for one in found) == ["FixedCentreOfMass", "FixedComponents"]
    atoms.set_constraint([fix.FixSubsetCom([1, 3])])
    (centre,) = c.from_ase(atoms)[1]
    assert isinstance(centre, c.FixedCentreOfMass) and list(centre.atoms) == [1, 3]
    refused(lambda: c.FixedScaled([0], [3]).bound(system), "below 3")
    refused(lambda: c.FixedScaled([0], [1]).bound(ms.System(START)), "whole cell")
