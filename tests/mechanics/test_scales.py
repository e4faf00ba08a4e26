"""No unit matters: the same structure in other units of length and energy has the same verdicts and dimensionless numbers."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdsens as ms
from mdsens.derivatives.certificate import explain_doubt
from mdsens.derivatives.verification import check_sensitivity
from mdsens.equilibrium.constraints import Equation, FixedPlane, Wall
from mdsens.mechanics.scales import typical_distance

UNITS = [(1e-10, 1e-10), (1e10, 1e10), (1e-10, 1e10), (1e10, 1e-10), (1e-6, 1e-19)]
SIGMA, EPSILON = 3.4, 0.0104


def lennard_jones(length, energy, cutoff):
    return ms.LennardJones(
        epsilon=EPSILON * energy, sigma=SIGMA * length, cutoff=cutoff * SIGMA * length, onset=0.9 * cutoff * SIGMA * length
    )


def cluster(length, energy):
    """A rattled bipyramid of five atoms, all within the onset."""
    places = np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.87, 0], [0.5, 0.29, 0.82], [0.5, 0.3, -0.8]])
    places = 3.8 * places + 0.05 * np.random.default_rng(0).normal(size=(5, 3))
    return ms.System(length * places, species=["Ar"] * 5), lennard_jones(length, energy, 3.0), {}


def vacancy(length, energy):
    """A rattled crystal with a vacancy, and a cell that may change."""
    atoms = ase.build.bulk("Ar", "fcc", a=5.26, cubic=True) * 2
    del atoms[5]
    atoms.rattle(0.03, seed=3)
    system = ms.System(length * atoms.positions, cell=length * np.asarray(atoms.cell), pbc=True, species=["Ar"] * len(atoms))
    return system, lennard_jones(length, energy, 1.5), {"cell": "free"}


def chain(length, energy):
    """A square of springs on a plane's lattice, strained: Morse bonds between all that are near, in 2-D."""
    places = 1.1 * np.stack(np.meshgrid(np.arange(3.0), np.arange(3.0)), -1).reshape(-1, 2)
    places = places + 0.03 * np.random.default_rng(1).normal(size=places.shape)
    potential = ms.Morse(D0=1.0 * energy, alpha=3.0 / length, r0=1.0 * length, cutoff=2.5 * length, onset=2.2 * length)
    return ms.System(length * places, species=["A"] * 9), potential, {}


def on_a_plane(length, energy):
    """Three frozen atoms of the bipyramid, one that is held in a plane and one behind a wall that presses."""
    system, potential, _ = cluster(length, energy)
    system = ms.System(system.positions, species=["Ar"] * 5, frozen=[True, False, True, True, False])
    return system, potential, {"constraints": [FixedPlane([1], [1.0, 1.0, 0.0]), Wall([0.0, 0.0, 1.0], -2.0 * length, [4])]}


def outcome(system, potential, options, length, energy):
    """`(verdicts, numbers without a unit)`."""
    eq = ms.relax(system, potential, **options)
    S = ms.sensitivity(eq)
    scaled, found = S.scaled(), S.certificate
    verdicts = (eq.status, found.trusted, found.index, found.zero_modes, found.zero_modes_found, found.rattlers)
    numbers = [eq.energy / energy, np.asarray(found.curvatures) * length**2 / energy]
    # A cluster's atoms are free to turn together until they rest: distances do not notice.
    x = np.asarray(eq.system.positions)
    numbers += [np.linalg.norm(x[:, None] - x, axis=-1) / length]
    numbers += [np.linalg.norm(leaf, axis=-1) / length for leaf in jax.tree.leaves(scaled.positions)]
    numbers += [np.asarray(leaf) / length for leaf in jax.tree.leaves(scaled.cell)]
    small = (found.error_bound / length, found.displacement / length, found.mismatch)
    return verdicts, numbers, small, eq, S


@pytest.mark.parametrize(
    "case",
    [
        cluster,
        pytest.param(vacancy, marks=pytest.mark.slow),
        pytest.param(chain, marks=pytest.mark.slow),
        pytest.param(on_a_plane, marks=pytest.mark.slow),
    ],
)
def test_no_unit_changes_a_verdict_or_a_number_without_a_unit(case):
    verdicts, numbers, small, _, S = outcome(*case(1.0, 1.0), 1.0, 1.0)
    assert S.certificate.trusted, S.certificate
    for length, energy in UNITS[-2:] if case is cluster else UNITS:
        other, same, also_small, eq, S = outcome(*case(length, energy), length, energy)
        assert other == verdicts, (length, energy, S.certificate)
        for one, two in zip(numbers, same, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-7, atol=1e-8)
        assert max(small) < 1e-7 and max(also_small) < 1e-7
        if case is cluster:
            # Without an end of the potential a cluster grows with σ, and with nothing else.
            x = np.asarray(eq.system.positions)
            np.testing.assert_allclose(S.scaled().positions.sigma / length, (x - x.mean(axis=0)) / length, atol=1e-7)
            assert all(check.agrees for check in check_sensitivity(eq, S))


@pytest.mark.parametrize("sigma", [0.3, 0.65])
def test_what_starts_far_apart_where_all_is_soft_arrives(sigma):
    """At 3.7 σ a bond is 10⁵ times softer than at rest: what is small there is less than rounding leaves here."""
    start = ms.System([[0.0, 0.0, 0.0], [2.0 ** (1 / 6), 0.0, 0.0]])
    eq = ms.relax(start, ms.LennardJones(epsilon=1.0, sigma=sigma, cutoff=6.0, onset=5.0), max_steps=200)
    x = np.asarray(eq.system.positions)
    np.testing.assert_allclose(np.linalg.norm(x[1] - x[0]), 2.0 ** (1 / 6) * sigma, rtol=1e-10)


def test_forces_that_are_small_in_numbers_only_are_not_trusted():
    """Asked for, a force of 1e-8 is left; but in these units it is none that is small."""
    system, potential, _ = cluster(1e-6, 1e-19)
    eq = ms.relax(system, potential, fmax=1e-8, throw=False)
    assert eq.steps == 0 and eq.converged
    found = ms.sensitivity(eq, throw=False).certificate
    assert not found.trusted and any("relax further" in reason for reason in found.reasons)
    assert ms.relax(system, potential).steps > 0


def test_a_derivative_is_trusted_beside_its_own_size_only():
    """An error of 1e-5 Å says nothing of a derivative of 1e-4 Å, whatever else is exact."""
    sizes, names = np.array([2.0, 1e-4, 1e-12]), ["sigma", "epsilon", "nothing"]
    assert explain_doubt(names, sizes, np.array([1e-3, 1e-8, 1e-10]), 3.0) == ""
    assert "epsilon" in explain_doubt(names, sizes, np.array([1e-3, 1e-4, 1e-10]), 3.0)
    assert "sigma" in explain_doubt(names, sizes, np.array([0.1, 1e-8, 1e-10]), 3.0)
    # In another unit of length.
    assert explain_doubt(names, 1e-9 * sizes, 1e-9 * np.array([1e-3, 1e-8, 1e-10]), 3e-9) == ""
    assert "epsilon" in explain_doubt(names, 1e-9 * sizes, 1e-9 * np.array([1e-3, 1e-4, 1e-10]), 3e-9)


@pytest.mark.parametrize("length", [1e-6, 1e6])
def test_an_unrelaxed_cluster_may_turn_in_any_unit(length):
    """What its forces do to a rotation is no sign that the energy has a geometry of its own."""
    system, potential, _ = cluster(length, 1.0)
    state = ms.relax(system, potential, fmax=1e30, throw=False)
    assert state.steps == 0 and state.spectrum is not None


@pytest.mark.slow
def test_inside_jit_no_unit_matters_either():
    for length, energy in ((1.0, 1.0), (1e-6, 1e-19)):
        system, potential, _ = cluster(length, energy)
        host = np.asarray(ms.relax(system, potential).system.positions)
        traced = np.asarray(jax.jit(lambda p, s=system: ms.equilibrium_positions(s, p))(potential))
        distances = [np.linalg.norm(x[:, None] - x, axis=-1) / length for x in (host, traced)]
        np.testing.assert_allclose(*distances, atol=1e-7)


def distance_of_two(factor):
    return lambda system: factor * (jnp.linalg.norm(system.positions[1] - system.positions[0]) - 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-10, pytest.param(1e-4, marks=pytest.mark.slow), pytest.param(1e6, marks=pytest.mark.slow)])
def test_constraints_have_units_of_their_own(factor):
    """At d = 2 of a pair the multiplier of f (d - 2) is -U'(2) / f, with U' = 4 (-12/2¹³ + 6/2⁷)."""
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=3.5, onset=3.0)
    for start in (1.12, 2.3):
        pair = ms.System(np.array([[0.0, 0.0, 0.0], [start, 0.0, 0.0]]), species=["A", "A"])
        eq = ms.relax(pair, potential, constraints=[Equation(distance_of_two(factor))], check_minimum=False)
        np.testing.assert_allclose(np.linalg.norm(np.diff(eq.system.positions, axis=0)), 2.0, rtol=1e-9)
        np.testing.assert_allclose(eq.multipliers * factor, [-4.0 * (6.0 / 2**7 - 12.0 / 2**13)], rtol=1e-7)


@pytest.mark.slow
def test_one_atom_alone_in_its_cell_is_at_rest():
    """Nothing is free there: all derivatives of places vanish, and both ways to them agree."""
    cell = 2.63 * (np.ones((3, 3)) - np.eye(3))
    potential = lennard_jones(1.0, 1.0, 1.5)
    S = ms.sensitivity(ms.relax(ms.System(np.zeros((1, 3)), cell=cell, pbc=True, species=["Ar"]), potential))
    assert S.certificate.mismatch == 0.0 and not np.any(S.positions.sigma)
    assert not any("nan" in reason for reason in S.certificate.reasons), S.certificate


def test_the_distance_of_neighbours_is_that_of_the_images():
    cell = 2.63 * (np.ones((3, 3)) - np.eye(3))
    potential = lennard_jones(1.0, 1.0, 1.5)
    alone = ms.System(np.zeros((1, 3)), cell=cell, pbc=True, species=["Ar"])
    for system in (alone, alone.with_neighbors(potential)):
        np.testing.assert_allclose(typical_distance(system, potential), 2.63 * np.sqrt(2.0))
    assert typical_distance(ms.System(np.eye(3)[:2] * 5.0, species=["Ar"] * 2), potential) == pytest.approx(5.0 * np.sqrt(2.0))
