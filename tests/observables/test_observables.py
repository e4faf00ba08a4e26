"""The catalogue of observables: values against ASE, matscipy and brute force, derivatives against differences, refusals."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from differences import GLASS_STEP, richardson
from helpers import refused
from jax.test_util import check_grads

import mdsens as ms
from mdsens import observables
from mdsens.potentials.base import parameter_paths
from mdsens.structures.packing import random_packing

GPA = 160.21766208
LJ = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)


def scattered(dim=3, n=8, seed=4):
    """Atoms at random places of a small triclinic cell, two species."""
    rng = np.random.default_rng(seed)
    cell = np.diag([3.1, 3.4, 3.9][:dim]) + np.tril(rng.uniform(-0.6, 0.6, (dim, dim)))
    return ms.System(rng.uniform(0, 1, (n, dim)) @ cell, cell=cell, pbc=True, species=["A", "B"] * (n // 2))


def images(system, reach):
    """All vectors between atoms, images included, shape `(N, N, n, dim)`, from far more images than are needed."""
    steps = np.array(list(itertools.product(range(-reach, reach + 1), repeat=system.dim))) @ np.asarray(system.cell)
    x = np.asarray(system.positions)
    return x[None, :, None] - x[:, None, None] + steps


def smooth_in_positions_and_cell(g, system, potential=None):
    """First derivatives in positions and cell together, forward and reverse, against differences."""

    def moved(positions, cell):
        return g(eqx.tree_at(lambda s: (s.positions, s.cell), system, (positions, cell)), potential)

    check_grads(jax.jit(moved), (system.positions, system.cell), order=1, rtol=1e-6, atol=1e-6, eps=1e-5)


# Geometry


@pytest.mark.parametrize("seed", range(2))
def test_geometry_of_a_skewed_cell_agrees_with_ase(seed):
    rng = np.random.default_rng(seed)
    skew = np.array([[1, 0, 0], [3, 1, 0], [-2, 2, 1]])
    system = ms.System(rng.normal(size=(6, 3)) * 6.0, cell=skew @ (3.0 * np.eye(3) + rng.uniform(-0.5, 0.5, (3, 3))), pbc=True)
    atoms = system.to_ase()
    pairs, triplets, quadruplets = [(0, 1), (2, 5)], [(0, 1, 2), (3, 4, 5)], [(0, 1, 2, 3), (5, 2, 4, 0)]
    np.testing.assert_allclose(observables.volume(system, None), atoms.get_volume())
    np.testing.assert_allclose(observables.lattice_constants(system, None), atoms.cell.cellpar())
    lengths = observables.distances(pairs)(system, None)
    np.testing.assert_allclose(lengths, [atoms.get_distance(*pair, mic=True) for pair in pairs])
    np.testing.assert_allclose(lengths, [np.linalg.norm(images(system, 20)[pair], axis=-1).min() for pair in pairs])
    np.testing.assert_allclose(
        observables.angles(triplets)(system, None), [atoms.get_angle(*triplet, mic=True) for triplet in triplets]
    )
    turned = observables.dihedrals(quadruplets)(system, None) % 360.0
    np.testing.assert_allclose(turned, [atoms.get_dihedral(*four, mic=True) for four in quadruplets])


@pytest.mark.parametrize("pbc", [(True, False, False), (True, True, False), (False, False, False)])
def test_images_are_taken_along_periodic_directions_only(pbc):
    # The vectors that are not periodic lean over the others, and must not move atoms along them.
    cell = np.array([[3.0, 0, 0], [7.0, 9.0, 0], [8.0, 1.0, 9.0]])
    system = ms.System(np.random.default_rng(1).uniform(-9, 9, (6, 3)), cell=cell, pbc=pbc)
    pairs = [(0, 1), (2, 3), (4, 5)]
    along = np.array(list(itertools.product(*[range(-20, 21) if flag else (0,) for flag in pbc]))) @ cell
    expected = [
        np.linalg.norm(np.asarray(system.positions)[j] - np.asarray(system.positions)[i] + along, axis=1).min() for i, j in pairs
    ]
    np.testing.assert_allclose(observables.distances(pairs)(system, None), expected)


def test_a_dihedral_is_positive_clockwise():
    quarter = ms.System([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.0], [0, 1.0, 1.0]])
    np.testing.assert_allclose(observables.dihedrals([(0, 1, 2, 3)])(quarter, None), [90.0])


def test_lattice_constants_in_two_dimensions():
    system = ms.System(np.zeros((1, 2)), cell=[[2.0, 0.0], [1.0, np.sqrt(3.0)]], pbc=True)
    np.testing.assert_allclose(observables.lattice_constants(system, None), [2.0, 2.0, 60.0])
    np.testing.assert_allclose(observables.volume(system, None), 2.0 * np.sqrt(3.0))


@pytest.mark.parametrize("dim", [2, 3])
def test_geometry_is_smooth_in_positions_and_cell(dim):
    system = scattered(dim)
    geometry = [observables.volume, observables.lattice_constants, observables.distances([(0, 1), (2, 7)])]
    geometry.append(observables.angles([(0, 1, 2), (5, 3, 7)]))
    if dim == 3:
        geometry.append(observables.dihedrals([(0, 1, 2, 3), (7, 5, 1, 6)]))
    smooth_in_positions_and_cell(lambda s, p: jnp.concatenate([jnp.ravel(g(s, p)) for g in geometry]), system)


def test_right_angles_of_a_cell_are_smooth():
    smooth_in_positions_and_cell(observables.lattice_constants, ms.System(np.zeros((1, 3)), cell=[2.0, 3.0, 4.0], pbc=True))


def bent(degrees):
    turn = jnp.deg2rad(jnp.asarray(degrees, float))
    arm = jnp.stack([jnp.cos(turn), jnp.sin(turn), jnp.zeros_like(turn)])
    return jnp.stack([jnp.asarray([1.0, 0.0, 0.0]), jnp.zeros(3), 1.3 * arm])


@pytest.mark.parametrize("degrees", [1e-3, 90.0, 179.999, 180.0 - 1e-5])
def test_angles_keep_their_digits_near_the_straight_one(degrees):
    slope = jax.grad(lambda t: observables.angles([(0, 1, 2)])(ms.System(bent(t)), None)[0])(degrees)
    np.testing.assert_allclose(observables.angles([(0, 1, 2)])(ms.System(bent(degrees)), None), [degrees], atol=1e-12)
    # An angle of 2e-7 rad is made of coordinates with rounding errors of 1e-16.
    np.testing.assert_allclose(slope, 1.0, atol=1e-8)


def test_the_straight_angle_has_a_value_and_no_derivative():
    chain = ms.System([[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0], [3.0, 1, 0]])
    angle = observables.angles([(0, 1, 2)])
    assert float(angle(chain, None)[0]) == 180.0
    for jacobian in (jax.jacfwd, jax.jacrev):
        assert np.isnan(jacobian(lambda x: angle(chain.with_positions(x), None))(chain.positions)).any()
    assert np.isnan(observables.dihedrals([(0, 1, 2, 3)])(chain, None)).all()


# Neighbourhoods


@pytest.mark.slow
def test_coordination_of_crystals(silicon):
    diamond = ms.System.from_ase(bulk("Si", cubic=True))
    np.testing.assert_allclose(observables.coordination(2.9, 0.5)(diamond, silicon), 4.0)
    fcc = ms.System.from_ase(bulk("Ar", "fcc", a=1.55))
    np.testing.assert_allclose(observables.coordination(1.3, 0.3)(fcc, LJ), 12.0)
    assert float(observables.coordination(1.55 / np.sqrt(2.0), 0.3)(fcc, LJ)[0]) == pytest.approx(6.0)  # a neighbour at half
    salt = ms.System.from_ase(bulk("NaCl", "rocksalt", a=5.6))
    np.testing.assert_allclose(observables.coordination(4.5, 0.5)(salt, None), 18.0)
    np.testing.assert_allclose(observables.coordination(4.5, 0.5, neighbor="Cl")(salt, None), [6.0, 12.0])


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("pair", [None, "A-B", "A-A"])
def test_radial_distribution_agrees_with_a_sum_over_images(dim, pair):
    system, width = scattered(dim), 0.25
    r = np.linspace(0.0, 6.0, 13)
    distances = np.linalg.norm(images(system, 8), axis=-1)
    a, b = pair.split("-") if pair else ("AB", "AB")
    chosen = np.array([[s in a and t in b for t in system.symbols] for s in system.symbols])[..., None] & (distances > 0.0)
    gaussians = np.exp(-0.5 * ((r[:, None] - distances[chosen]) / width) ** 2).sum(axis=1)
    # The shell, smeared: ∫ S_d s^(d-1) exp(-(r - s)² / 2 w²) ds, by the trapezoidal rule.
    s = np.linspace(0.0, 10.0, 100_001)
    sphere = 4.0 * np.pi * s**2 if dim == 3 else 2.0 * np.pi * s
    shell = [np.trapezoid(sphere * np.exp(-0.5 * ((point - s) / width) ** 2), s) for point in r]
    numbers = [sum(symbol in group for symbol in system.symbols) for group in (a, b)]
    expected = float(system.volume) / np.prod(numbers) * gaussians / shell
    # Pairs beyond seven widths are left out.
    np.testing.assert_allclose(observables.radial_distribution(r, width, pair=pair)(system, None), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_radial_distribution_of_an_ideal_gas_is_one(dim):
    n = 1500
    side, r = n ** (1.0 / dim), np.linspace(0.0, 3.0, 7)
    gas = ms.System(np.random.default_rng(0).uniform(0, side, (n, dim)), cell=np.eye(dim) * side, pbc=True)
    found = observables.radial_distribution(r, 0.4)(gas, None)
    # At r = 0 some 1500 pairs count.
    np.testing.assert_allclose(found, 1.0, atol=4.0 / np.sqrt(n))


def test_the_first_peak_of_the_radial_distribution_holds_the_neighbours():
    crystal = ms.System.from_ase(bulk("Ar", "fcc", a=1.55))
    r = np.linspace(0.8, 1.4, 301)
    g = np.asarray(observables.radial_distribution(r, 0.02)(crystal, None))
    assert 4.0 * np.pi / float(crystal.volume) * np.trapezoid(r**2 * g, r) == pytest.approx(12.0, rel=1e-3)


@pytest.mark.parametrize("dim", [2, 3])
def test_neighbourhoods_are_smooth_in_positions_and_cell(dim):
    system = scattered(dim)
    look = [
        observables.coordination(2.2, 1.0, system=system),
        observables.coordination(2.2, 1.0, neighbor="A", system=system),
        observables.radial_distribution(np.linspace(0.5, 3.5, 5), 0.3, system=system),
        observables.radial_distribution([1.0, 2.0], 0.3, pair="A-B", system=system),
    ]
    smooth_in_positions_and_cell(lambda s, p: jnp.concatenate([g(s, p) for g in look]), system)


@pytest.mark.parametrize("change", ["an atom far away", "a strained cell"])
def test_pairs_of_another_structure_are_never_used_silently(change):
    system = scattered()
    moved = system.with_positions(system.positions.at[0].add(2.0))
    if change == "a strained cell":
        moved = eqx.tree_at(lambda s: (s.positions, s.cell), system, (0.8 * system.positions, 0.8 * system.cell))
    for make in (lambda **found: observables.coordination(2.2, 1.0, **found), lambda **found: gr(**found)):
        here = make()(moved, None)
        assert np.isfinite(here).all()  # concrete positions: the pairs are found afresh
        np.testing.assert_array_equal(make(system=system)(moved, None), here)
        np.testing.assert_allclose(eqx.filter_jit(make(system=moved))(moved, None), here)
        assert np.isnan(eqx.filter_jit(make(system=system))(moved, None)).all()


def gr(**found):
    return observables.radial_distribution([1.0, 2.0], 0.3, **found)


@pytest.mark.slow
def test_a_list_that_is_too_short_is_refused_or_nan(argon_vacancy):
    eq = argon_vacancy
    near, far = observables.coordination(1.3, 0.3), observables.coordination(2.9, 0.3)
    assert np.isfinite(ms.jacobian(near, eq).sigma).all()
    refused(lambda: ms.jacobian(far, eq), "3.05 Å", "system=eq.system")
    reached = observables.coordination(2.9, 0.3, system=eq.system)
    assert np.isfinite(ms.jacobian(reached, eq).sigma).all()
    bare = scattered()
    refused(lambda: eqx.filter_jit(near)(bare, LJ), "system=eq.system")
    refused(lambda: eqx.filter_jit(reached)(bare, LJ), "107 atoms", "one of 8")
    shorter = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=1.0, onset=0.8)
    assert np.isnan(eqx.filter_jit(near)(eq.system.with_neighbors(shorter), eq.potential)).all()


# Energies and stress


def test_stress_agrees_with_matscipy(silicon):
    manybody = pytest.importorskip("matscipy.calculators.manybody", reason="matscipy is not installed (pip install matscipy)")
    from matscipy.calculators.manybody.explicit_forms.stillinger_weber import Stillinger_Weber_PRB_31_5262_Si as published

    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.calc = manybody.Manybody(**manybody.StillingerWeber({**published, "costheta0": 1.0 / 3.0}))
    stress = observables.stress(ms.System.from_ase(atoms), silicon)
    np.testing.assert_allclose(stress, atoms.get_stress() * GPA, atol=1e-9)
    np.testing.assert_allclose(observables.pressure(ms.System.from_ase(atoms), silicon), -stress[:3].mean())


def test_stress_is_the_slope_of_the_energy_in_two_dimensions():
    diameters = {"A": 1.0, "B": 0.6}
    system, potential = random_packing(16, diameters, seed=1), ms.SoftSphere(diameter=diameters, epsilon=1.0)

    def strained(strain):
        deformation = jnp.eye(2) + strain
        moved = eqx.tree_at(lambda s: (s.positions, s.cell), system, (system.positions @ deformation, system.cell @ deformation))
        return float(potential.energy(moved))

    h = 1e-6
    for component, (i, j) in enumerate([(0, 0), (1, 1), (0, 1)]):
        step = np.zeros((2, 2))
        step[i, j] += 0.5 * h
        step[j, i] += 0.5 * h
        slope = (strained(step) - strained(-step)) / (2 * h) / float(system.volume)
        assert float(observables.stress(system, potential)[component]) == pytest.approx(slope, abs=1e-7)


@pytest.mark.slow
def test_cohesive_energy(silicon):
    # F. H. Stillinger, T. A. Weber, Phys. Rev. B 31, 5262 (1985): 2 ε an atom, at a lattice constant of 2.5926 σ.
    crystal = ms.System.from_ase(bulk("Si", a=2.5926 * float(silicon.sigma)))
    value, slope = jax.value_and_grad(lambda potential: observables.cohesive_energy()(crystal, potential))(silicon)
    assert float(value) == pytest.approx(2.0 * float(silicon.epsilon), rel=1e-4)
    assert float(slope.epsilon) == pytest.approx(2.0, rel=1e-4)
    assert float(observables.cohesive_energy({"Si": -0.5})(crystal, silicon)) == pytest.approx(float(value) - 0.5)


def test_isolated_atoms_have_the_energy_that_the_potential_gives_them():
    class OnSite(ms.PairPotential):
        own: dict
        cutoff: float = ms.static(2.5)

        def atom_energies(self, system):
            return super().atom_energies(system) + jnp.stack([self.own[label] for label in system.labels])[system.species]

        def pair_energy(self, r, i, j):
            return jnp.exp(-r)

    system = scattered()
    with_own, without = (OnSite({"A": a, "B": b}) for a, b in ((2.0, -3.0), (0.0, 0.0)))
    values = [float(observables.cohesive_energy()(system, potential)) for potential in (with_own, without)]
    assert values[0] == pytest.approx(values[1]) == pytest.approx(-float(without.energy(system)) / 8)


def test_enthalpy_is_energy_and_pressure_times_volume(silicon):
    system = ms.System.from_ase(bulk("Si", cubic=True))
    expected = float(silicon.energy(system)) + 10.0 / GPA * 5.43**3
    assert float(observables.enthalpy(10.0)(system, silicon)) == pytest.approx(expected)
    # Its slope in the volume vanishes where the pressure is the structure's own.
    own = observables.enthalpy(float(observables.pressure(system, silicon)))
    system = system.with_neighbors(silicon, skin=0.5)
    slope = jax.grad(
        lambda s: own(eqx.tree_at(lambda t: (t.positions, t.cell), system, (s * system.positions, s * system.cell)), silicon)
    )(1.0)
    assert abs(float(slope)) < 1e-9


BINARY = ms.LennardJones(
    epsilon={"A-A": 1.0, "A-B": 1.5, "B-B": 0.5}, sigma={"A-A": 1.0, "A-B": 0.8, "B-B": 0.88}, cutoff=2.5, onset=2.0
)


def crystal(symbols, a, structure="fcc"):
    atoms = bulk("NaCl", structure, a=a, cubic=True) if structure == "cesiumchloride" else bulk("Ar", structure, a=a, cubic=True)
    return ms.relax(ms.System(atoms.positions, cell=atoms.cell.array, pbc=True, species=symbols), BINARY, check_minimum=False)


@pytest.fixture(scope="module")
def references():
    return crystal(["A"] * 4, 1.55), crystal(["B"] * 4, 1.36), crystal(["A", "B"], 1.05, "cesiumchloride")


@pytest.mark.slow
def test_formation_energy_balances_the_composition(references, glass):
    a, b, ab = references
    energies = {name: eq.energy / len(eq.system) for name, eq in zip("ab", (a, b), strict=True)}
    heat = observables.formation_energy(a, b)(ab.system, BINARY)
    assert float(heat) == pytest.approx(ab.energy - energies["a"] - energies["b"])
    # 64 A and 16 B: 16 AB and 48 A, a negative amount of neither.
    poor = observables.formation_energy(ab, a)
    assert float(poor(glass.system, BINARY)) == pytest.approx(glass.energy - 16 * ab.energy - 48 * energies["a"])
    # Inside jit the numbers of atoms have no values, and the derivative is that of the energies.
    slope = ms.gradient(poor, glass)
    explicit = [jax.grad(lambda p, eq=eq: p.energy(eq.system))(BINARY).epsilon["A-A"] for eq in (glass, ab, a)]
    assert float(slope.epsilon["A-A"]) == pytest.approx(float(explicit[0] - 16 * explicit[1] - 12 * explicit[2]))


@pytest.mark.slow
def test_formation_energy_refuses_what_does_not_balance(references, glass):
    a, b, ab = references
    refused(lambda: observables.formation_energy(a)(ab.system, BINARY), "species B")
    refused(lambda: observables.formation_energy(ab)(glass.system, BINARY), "64 A, 16 B", "add a reference")
    refused(lambda: observables.formation_energy(a, b, ab)(glass.system, BINARY), "3 references for 2 species")
    refused(lambda: observables.formation_energy(ab, ab)(ab.system, BINARY), "same composition")
    refused(lambda: observables.formation_energy(), "Equilibrium")
    refused(lambda: observables.formation_energy(a.system), "Equilibrium")
    assert np.isnan(eqx.filter_jit(observables.formation_energy(ab))(glass.system, BINARY))


def test_energies_between_states(references, argon_vacancy):
    a, b, ab = references
    states = {"defect": ab.system, "bulk": a.system, "reservoir": b.system}
    heat = observables.formation_energy(a, b)(ab.system, BINARY)
    assert float(observables.defect_formation_energy(states, BINARY)) == pytest.approx(float(heat))
    moved = ab.system.with_positions(ab.system.positions.at[0].add(0.1))
    height = observables.barrier({"saddle": moved, "minimum": ab.system}, BINARY)
    assert float(height) == pytest.approx(float(BINARY.energy(moved)) - ab.energy) and height > 0.0
    refused(lambda: observables.barrier({"saddle": moved}, BINARY), "'minimum'")
    refused(lambda: observables.barrier({"saddle": ab.system, "minimum": moved}, BINARY), "exchanged")
    wider = eqx.tree_at(lambda s: s.cell, moved, 1.01 * moved.cell)
    refused(lambda: observables.barrier({"saddle": wider, "minimum": ab.system}, BINARY), "different cells")
    swapped = eqx.tree_at(lambda s: s.species, moved, moved.species[::-1])
    refused(lambda: observables.barrier({"saddle": swapped, "minimum": ab.system}, BINARY), "same order")
    assert np.isnan(eqx.filter_jit(observables.barrier)({"saddle": wider, "minimum": ab.system}, BINARY))
    refused(lambda: observables.barrier(moved, BINARY), "dict of states")
    refused(lambda: observables.barrier({"saddle": moved, "minimum": a.system}, BINARY), "same atoms")
    refused(lambda: observables.defect_formation_energy({"defect": moved}, BINARY), "reference")


# Through the equilibrium


@pytest.mark.slow
def test_observables_of_a_glass_match_differences(glass):
    system = glass.system
    catalogue = {
        "distances": observables.distances([(0, 1), (5, 70)]),
        "angles": observables.angles([(0, 1, 2), (70, 5, 9)]),
        "dihedrals": observables.dihedrals([(0, 1, 2, 3)]),
        "coordination": observables.coordination(1.3, 0.6),
        "radial distribution": observables.radial_distribution(np.linspace(0.8, 2.0, 7), 0.1, pair="A-B", system=system),
        "stress": observables.stress,
        "cohesive energy": observables.cohesive_energy(),
        "enthalpy": observables.enthalpy(1.0),
    }

    def together(system, potential):
        return {name: jnp.ravel(g(system, potential)) for name, g in catalogue.items()}

    def stacked(system, potential):
        return jnp.concatenate(list(together(system, potential).values()))

    sizes = [value.size for value in together(system, glass.potential).values()]
    slopes = dict(zip(parameter_paths(glass.potential), jax.tree.leaves(ms.jacobian(stacked, glass)), strict=True))
    thetas = dict(zip(parameter_paths(glass.potential), jax.tree.leaves(glass.potential), strict=True))
    ends = np.cumsum(sizes)[:-1]
    for name in ("sigma.A-B", "epsilon.A-A"):
        # A pair that crosses the cutoff is of no account there: the switch has two continuous derivatives.
        value = lambda again: stacked(again.system, again.potential)  # noqa: E731
        difference = richardson(glass, name, same_contacts=False, observable=value, step=GLASS_STEP)
        parts = (np.split(float(thetas[name]) * np.asarray(values), ends) for values in (difference, slopes[name]))
        for what, expected, found in zip(catalogue, *parts, strict=True):
            scale = max(1.0, *(np.abs(expected)))
            assert np.abs(expected - found).max() < 1e-6 * scale, (what, name, np.abs(expected - found).max() / scale)


# What is wrong with an observable


def test_an_observable_that_is_not_finite_is_explained(argon_vacancy):
    eq = argon_vacancy
    here = eq.system.positions[7]

    def explained(g):
        return observables.explain_nonfinite(g, eq.system, eq.potential)

    assert explained(observables.pressure) == ""
    assert (
        explained(lambda s, p: jnp.stack([p.sigma, 0.0 * p.sigma / (p.sigma - p.sigma)]))
        == "Component (1,) of the observable is nan."
    )
    assert explained(lambda s, p: jnp.log(p.sigma - p.sigma)) == "The observable is -inf."
    assert explained(lambda s, p: s.positions * 1j).startswith("The observable is complex128")
    assert explained(lambda s, p: s.species).startswith("The observable is int32")
    assert "computed" in explained(lambda s, p: "energy")
    assert "3.05 Å" in explained(observables.coordination(2.9, 0.3))
    at_a_root = explained(lambda s, p: jnp.stack([s.positions[0, 0], jnp.linalg.norm(s.positions[7] - here)]))
    assert "component (1,)" in at_a_root and "position of atom 7" in at_a_root and "more" not in at_a_root and "nan" in at_a_root
    root_of_a_parameter = explained(lambda s, p: jnp.sqrt(jnp.abs(p.epsilon - 1.0)))
    assert root_of_a_parameter.startswith("The derivative with respect to the parameter epsilon of the observable is")
    of_the_cell = explained(lambda s, p: jnp.sqrt(s.cell[0, 1] ** 2))
    assert "cell" in of_the_cell
    states = {"defect": eq.system, "bulk": eq.system}
    root = observables.explain_nonfinite(
        lambda s, p: jnp.linalg.norm(s["bulk"].positions[3] - eq.system.positions[3]), states, LJ
    )
    assert "atom 3 of the state 'bulk'" in root


# Bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: observables.distances([(1, 1)]), ["different atoms"]),
        (lambda: observables.distances([(0, 1), (2,)]), ["pairs"]),
        (lambda: observables.angles([(0, 1)]), ["triplets"]),
        (lambda: observables.angles([(0, 1, 0)]), ["different atoms"]),
        (lambda: observables.angles([(0.0, 1.0, 2.0)]), ["triplets"]),
        (lambda: observables.dihedrals([]), ["quadruplets"]),
        (lambda: observables.angles([(0, 1, 99)])(scattered(), None), ["angles", "beyond the 8"]),
        (lambda: observables.dihedrals([(0, 1, 2, 3)])(scattered(2), None), ["2-D"]),
        (lambda: observables.lattice_constants(ms.System(np.zeros((1, 3))), None), ["no lattice constants"]),
        (lambda: observables.lattice_constants(ms.System(np.zeros((1, 2)), cell=[1.0, 0.0], pbc=[True, False]), None), ["zero"]),
        (lambda: observables.volume(ms.System(np.zeros((1, 3))), None), ["cell"]),
        (lambda: observables.coordination(-1.0, 0.1), ["lengths in Å"]),
        (lambda: observables.coordination(1.0, 2.1), ["lengths in Å"]),
        (lambda: observables.coordination(1.0, 0.1, neighbor="C")(scattered(), None), ["'C'", "A, B"]),
        (lambda: observables.coordination(1.0, 0.1, system="Si"), ["system="]),
        (lambda: observables.radial_distribution([[1.0]], 0.1), ["grid"]),
        (lambda: observables.radial_distribution([-1.0], 0.1), ["grid"]),
        (lambda: observables.radial_distribution([1.0], 0.0), ["width"]),
        (lambda: observables.radial_distribution([1.0], 0.1, pair="A"), ['"A-B"']),
        (lambda: observables.radial_distribution([1.0], 0.1)(ms.System(np.zeros((1, 3))), None), ["periodic"]),
        (lambda: observables.enthalpy("high"), ["pressure"]),
        (lambda: observables.cohesive_energy({"Si": "low"}), ["isolated="]),
        (lambda: observables.cohesive_energy({"A": 0.0})(scattered(), LJ), ["isolated['B']"]),
    ],
)
def test_bad_input_is_refused_in_a_sentence(make, words):
    refused(make, *words)


@pytest.mark.parametrize(
    "observable",
    [ms.observables.distances([[0, 9]]), ms.observables.distances([[0, -9]]), ms.observables.angles([[0, 1, 9]])],
    ids=["beyond", "before", "an angle's"],
)
def test_an_atom_that_is_not_there_is_no_other_one(observable):
    """Indices that JAX traces are not looked at, and what lies beyond an array would be its last entry."""
    system = ms.System(2.0 * np.random.default_rng(0).uniform(size=(8, 3)))
    assert np.isnan(jax.jit(lambda g, s: g(s, None))(observable, system)).all()
    cluster = ms.relax(
        ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [0.5, 0.9, 0.0]]), ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5)
    )
    (point,) = ms.studies.sweep(cluster.system, cluster.potential, {"sigma": [1.01]}, {"x": observable}).points
    assert "names an atom beyond the 3" in point.reason and not point.values


@pytest.mark.slow
def test_the_jacobian_of_a_scalar_in_scalars_is_its_gradient():
    """Neighbours alone: a = √2 2^(1/6) σ, so that dV/dσ = 3V/σ and dV/dε = 0."""
    potential = ms.LennardJones(epsilon=0.01, sigma=3.4, cutoff=4.6, switch="truncated", onset=None)
    eq = ms.relax(ms.System.from_ase(bulk("Ar", "fcc", a=5.4)), potential, cell="isotropic")
    found = ms.jacobian(ms.observables.volume, eq)
    volume = (2**0.5 * 2 ** (1 / 6) * 3.4) ** 3 / 4
    assert found.sigma.shape == found.epsilon.shape == ()
    np.testing.assert_allclose(found.sigma, 3.0 * volume / 3.4, rtol=1e-8)
    np.testing.assert_allclose(found.epsilon, 0.0, atol=1e-6)
