"""Observables that differentiate themselves from values, against the same ones in a traced function."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

import mdsens as ms
from mdsens.common import by_values
from mdsens.derivatives import first_order, from_values
from mdsens.observables import bulk_modulus, elastic_constants


def defect(strain=0.01):
    atoms = bulk("Si", cubic=True)
    del atoms[0]
    atoms.rattle(0.02, seed=1)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain * np.array([[1.0, 0.3, 0.0], [0.2, -1.0, 0.0], [0.0, 0.1, 0.5]])), True)
    return ms.System.from_ase(atoms)


@pytest.fixture(scope="module")
def stressed(silicon):
    """A relaxed defect in a cell that is held, under shear."""
    return ms.relax(defect(), silicon)


@pytest.fixture(scope="module")
def free(silicon):
    return ms.relax(defect(), silicon, cell="free")


@pytest.fixture
def both(monkeypatch):
    """A function that returns `(from values, traced)`, after it has seen that both roads were gone."""

    def both_roads(differentiate, *args):
        gone = []
        original = first_order.forward_from_values
        monkeypatch.setattr(first_order, "forward_from_values", lambda *a: gone.append(1) or original(*a))
        from_values = differentiate(*args)
        assert gone
        monkeypatch.setattr(first_order, "has_values", lambda *_: False)
        traced = differentiate(*args)
        assert len(gone) == 1
        monkeypatch.undo()
        return from_values, traced

    return both_roads


def agree(one, other, rtol=1e-9):
    leaves = [jax.tree.leaves(tree) for tree in (one, other)]
    largest = max(np.abs(leaf).max() for leaf in leaves[1])
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=rtol * largest)


@pytest.mark.parametrize("options", [{}, {"definition": "thermodynamic"}, {"definition": "energy"}, {"relaxed": False}], ids=str)
def test_constants_of_a_stressed_state(stressed, both, options):
    agree(*both(ms.value_and_jacobian, lambda system, potential: elastic_constants(system, potential, **options), stressed))


def test_constants_at_a_free_cell_and_what_is_made_of_them(free, both):
    agree(*both(ms.value_and_jacobian, elastic_constants, free))
    agree(*both(ms.value_and_gradient, bulk_modulus, free))

    def ratio(system, potential):
        C = elastic_constants(system, potential)
        return (C[0, 0] - C[0, 1]) / C[3, 3] * system.volume + potential.sigma

    agree(*both(ms.value_and_gradient, ratio, free))


def test_several_states_and_a_structure_that_the_observable_changes(free, stressed, both):
    def softening(states, potential):
        doubled = states["free"].with_positions(states["free"].positions * 1.0)
        return jnp.stack([elastic_constants(states["stressed"], potential)[0, 0], elastic_constants(doubled, potential)[0, 0]])

    agree(*both(ms.value_and_jacobian, softening, {"free": free, "stressed": stressed}))


def test_other_forms_of_second_derivatives(both):
    """Pairs, and a sum with two lists; a plane in `test_elastic`."""
    by_pair = lambda value: {"Ar-Ar": value, "Ar-Kr": 1.1 * value, "Kr-Kr": 1.2 * value}  # noqa: E731
    near = ms.LennardJones(epsilon=by_pair(0.002), sigma=by_pair(3.0), cutoff=5.5)
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.symbols[1] = "Kr"
    potential = ms.LennardJones(epsilon=by_pair(0.01), sigma=by_pair(3.4), cutoff=8.5) + near
    agree(*both(ms.value_and_jacobian, elastic_constants, ms.relax(ms.System.from_ase(atoms), potential, cell="free")))


def test_compiled_parts_of_an_observable_are_traced_as_ever(stressed, both):
    compiled = jax.jit(lambda positions, potential: elastic_constants(stressed.system.with_positions(positions), potential))

    def softest(system, potential):
        return compiled(system.positions, potential)[3, 3]

    agree(*both(ms.value_and_gradient, softest, stressed))


def test_a_derivative_in_the_observable_itself(stressed, both):
    def stiffening(system, potential):
        by_positions = jax.grad(lambda x: elastic_constants(system.with_positions(x), potential, relaxed=False)[0, 0])
        return by_positions(system.positions)[0, 0]

    agree(*both(ms.value_and_gradient, stiffening, stressed), rtol=1e-8)


def test_many_parameters_go_backward(monkeypatch):
    monkeypatch.setattr(first_order, "forward_from_values", None)
    spheres = ms.SoftSphere(diameter=np.linspace(1.0, 1.4, 20), epsilon=1.0, alpha=2.0)
    x = np.random.default_rng(1).uniform(size=(20, 2)) * 4.6
    eq = ms.relax(ms.System(x, cell=np.diag([4.6, 4.6]), pbc=True), spheres)
    assert ms.value_and_gradient(lambda s, p: elastic_constants(s, p)[0, 0], eq)[1].diameter.shape == (20,)


def test_nobody_else_is_asked_for_values(stressed):
    listed = stressed.system.with_neighbors(stressed.potential)
    traced = jax.jit(lambda x: elastic_constants(listed.with_positions(x), stressed.potential))(listed.positions)
    agree(traced, elastic_constants(stressed.system, stressed.potential))
    assert by_values.known_values() is None
    with by_values.asking(True), pytest.raises(by_values.WantsValues):
        jax.eval_shape(lambda x: elastic_constants(listed.with_positions(x), stressed.potential), listed.positions)


def test_a_vector_for_a_gradient_is_refused(stressed):
    with pytest.raises(ms.InputError, match="shape"):
        ms.value_and_gradient(elastic_constants, stressed)


# Energies, forces and stresses


def everything(system, potential):
    parts = [potential.energy(system)[None], potential.forces(system).ravel()]
    if system.cell is not None:
        parts += [potential.stress(system), potential.pressure(system)[None]]
    return jnp.concatenate(parts)


def by_pair(value):
    return {"Ar-Ar": value, "Ar-Kr": 1.1 * value, "Kr-Kr": 1.2 * value}


def two_kinds(cutoff):
    return ms.LennardJones(epsilon=by_pair(0.01), sigma=by_pair(3.4), cutoff=cutoff)


@pytest.mark.parametrize("cell", ["fixed", "free"])
@pytest.mark.parametrize("potential", [two_kinds(8.5), two_kinds(8.5) + two_kinds(5.5)], ids=["pairs", "a sum"])
def test_energies_and_slopes_of_pairs(potential, cell, both):
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.symbols[1] = "Kr"
    atoms.rattle(0.1, seed=2)
    eq = ms.relax(ms.System.from_ase(atoms), potential, cell=cell)
    agree(*both(ms.value_and_jacobian, everything, eq))
    # A single number by more than one, and a state that is not at rest.
    agree(*both(ms.value_and_gradient, lambda s, p: p.energy(s.with_positions(1.01 * s.positions)) ** 2, eq))


def test_energies_and_slopes_of_sites(stressed, free, both):
    agree(*both(ms.value_and_jacobian, everything, stressed))
    agree(*both(ms.value_and_gradient, ms.observables.enthalpy(3.0), free))
    agree(*both(ms.value_and_gradient, ms.observables.pressure, stressed))


def test_a_stress_counts_the_volume_in_which_it_is(silicon, both):
    """At a given pressure it cannot change, whatever the cell does."""
    squeezed = ms.relax(defect(), silicon, cell="free", pressure=5.0)
    slopes, traced = both(ms.jacobian, lambda s, p: p.stress(s), squeezed)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves((slopes, traced))) < 1e-6


def test_a_cluster_has_no_stress(both):
    atoms = [[0.0, 0.0, 0.0], [3.8, 0.0, 0.0], [1.9, 3.3, 0.0], [1.9, 1.1, 3.1]]
    eq = ms.relax(ms.System(atoms, species=["Ar", "Kr", "Ar", "Ar"]), two_kinds(8.5))
    agree(*both(ms.value_and_jacobian, everything, eq))


def test_a_reference_among_the_states(stressed, both):
    crystal = ms.relax(ms.System.from_ase(bulk("Si")), stressed.potential, cell="isotropic")
    agree(*both(ms.value_and_gradient, ms.observables.formation_energy(crystal), stressed))


def test_an_observable_that_is_asked_for_often_is_compiled(stressed, monkeypatch):
    monkeypatch.setattr(from_values, "VALUES_CALLS", 2)
    monkeypatch.setattr(from_values, "_calls", {})
    gone = []
    original = first_order.forward_from_values
    monkeypatch.setattr(first_order, "forward_from_values", lambda *a: gone.append(1) or original(*a))
    found = [ms.value_and_gradient(lambda s, p: p.pressure(s) ** 2, stressed) for _ in range(4)]
    assert len(gone) == 2
    agree(found[0], found[-1])
    # Another size is another program.
    ms.value_and_gradient(lambda s, p: p.pressure(s) ** 2, ms.relax(ms.System.from_ase(bulk("Si")), stressed.potential))
    assert len(gone) == 3


def test_other_atoms_in_the_same_places_are_another_structure(both):
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.symbols[1] = "Kr"
    eq = ms.relax(ms.System.from_ase(atoms), two_kinds(8.5))

    def exchange(system, potential):
        all_alike = eqx.tree_at(lambda s: s.species, system, jnp.zeros_like(system.species))
        return potential.energy(all_alike) - potential.energy(system)

    (value, slope), traced = both(ms.value_and_gradient, exchange, eq)
    assert abs(value) > 0.01
    agree((value, slope), traced)


def test_what_cannot_be_compiled_is_refused_from_the_start(stressed):
    with pytest.raises(ms.InputError, match="cannot be traced"):
        ms.gradient(lambda s, p: p.energy(s) if p.energy(s) < 0.0 else p.sigma, stressed)


@pytest.mark.parametrize("g", [ms.observables.energy, ms.observables.pressure, bulk_modulus])
def test_single_precision_is_traced(g, silicon):
    start, potential = defect(), silicon.astype("float32")
    short = ms.relax(start.astype("float32"), potential, fmax=1e-3)
    slope = ms.gradient(g, short)
    assert slope.sigma.dtype == jnp.float32
    agree(slope, ms.gradient(g, ms.relax(start, silicon)), rtol=2e-2)
