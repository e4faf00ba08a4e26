"""Phonons against phonopy, against supercells and against differences of re-relaxed structures."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, make_supercell
from differences import FMAX, richardson
from helpers import refused

import mdsens as ms
from mdsens.observables import (
    dynamical_matrix,
    entropy,
    gruneisen_parameters,
    harmonic_free_energy,
    heat_capacity,
    phonon_dos,
    phonon_frequencies,
    phonon_path,
)
from mdsens.observables.lattice_dynamics import THZ, eigenvalues
from mdsens.observables.phonons import q_mesh
from mdsens.observables.thermodynamics import EV_PER_THZ
from mdsens.potentials.base import parameter_paths
from mdsens.structures.system import System

# Γ, X, L of an fcc cell, and a point without symmetry.
Q = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.5], [0.11, 0.27, -0.33]])
# Little enough that second neighbours stay beyond the range of Stillinger-Weber's silicon.
SHEAR = np.eye(3) + np.array([[0.02, 0.03, -0.01], [0.0, 0.01, 0.02], [0.02, 0.0, 0.03]])
GRAINED = ms.LennardJones(
    epsilon={"A-A": 0.01, "A-B": 0.016, "B-B": 0.008},
    sigma={"A-A": 3.4, "A-B": 3.2, "B-B": 3.1},
    cutoff=7.5,
    switch="truncated",
)


@functools.cache
def crystal(name) -> ms.Equilibrium:
    """Relaxed cells; "sheared silicon" and "layers" have internal coordinates that no symmetry holds."""
    if name == "layers":
        # Layers of an fcc crystal, in an order that has no centre of inversion.
        order = "AABABB"
        places = np.array([[k % 2 / 2, k % 2 / 2, k / 6] for k in range(6)])
        cell = 4.95 * np.diag([np.sqrt(0.5), np.sqrt(0.5), 3.0])
        masses = [40.0 if label == "A" else 23.5 for label in order]
        return ms.relax(System(places @ cell, cell=cell, pbc=True, species=list(order), masses=masses), GRAINED, fmax=FMAX)
    if name == "binary":
        atoms = bulk("CsCl", "cesiumchloride", a=3.9)
        system = System(atoms.positions, cell=atoms.cell.array, pbc=True, species=["A", "B"], masses=[40.0, 23.5])
        return ms.relax(system, GRAINED, fmax=FMAX)
    atoms = bulk("Si")
    if name == "sheared silicon":
        atoms.set_cell(atoms.cell.array @ SHEAR, scale_atoms=True)
    return ms.relax(System.from_ase(atoms), ms.StillingerWeber.silicon(), fmax=FMAX)


def state(name) -> tuple[System, ms.Potential]:
    if name == "argon":
        return System.from_ase(bulk("Ar", "fcc", a=5.26)), ms.LennardJones(
            epsilon=0.0103, sigma=3.4, cutoff=6.5, switch="truncated"
        )
    return crystal(name).system, crystal(name).potential


def calculator(name):
    """The same potential in matscipy, whose Hessians are analytic."""
    if "silicon" in name:
        manybody = pytest.importorskip("matscipy.calculators.manybody", reason="matscipy is not installed (pip install matscipy)")
        from matscipy.calculators.manybody.explicit_forms.stillinger_weber import Stillinger_Weber_PRB_31_5262_Si as published

        return manybody.Manybody(**manybody.StillingerWeber({**published, "costheta0": 1.0 / 3.0}))
    pair = pytest.importorskip("matscipy.calculators.pair_potential", reason="matscipy is not installed (pip install matscipy)")
    if name == "argon":
        return pair.PairPotential({(18, 18): pair.LennardJonesCut(0.0103, 3.4, 6.5)})
    numbers = {"A": 55, "B": 17}
    return pair.PairPotential(
        {
            tuple(numbers[label] for label in key.split("-")): pair.LennardJonesCut(
                float(GRAINED.epsilon[key]), float(GRAINED.sigma[key]), 7.5
            )
            for key in GRAINED.epsilon
        }
    )


@functools.cache
def phonopy_of(name, multiple):
    """phonopy with matscipy's force constants in a supercell that holds the whole interaction."""
    phonopy = pytest.importorskip("phonopy", reason="phonopy is not installed (pip install phonopy)")
    from ase import Atoms
    from phonopy.structure.atoms import PhonopyAtoms

    system, _ = state(name)
    symbols = ["Cs" if label == "A" else "Cl" for label in system.symbols] if name == "binary" else system.symbols
    unit = PhonopyAtoms(
        symbols=symbols, cell=np.asarray(system.cell), positions=np.asarray(system.positions), masses=np.asarray(system.masses)
    )
    phonon = phonopy.Phonopy(unit, supercell_matrix=multiple * np.eye(3, dtype=int), primitive_matrix=np.eye(3))
    large = phonon.supercell
    atoms = Atoms(large.symbols, positions=large.positions, cell=large.cell, pbc=True)
    hessian = calculator(name).get_property("hessian", atoms).todense()
    n = len(atoms)
    phonon.force_constants = np.asarray(hessian).reshape(n, 3, n, 3).transpose(0, 2, 1, 3).copy()
    return phonon


@pytest.mark.slow
@pytest.mark.parametrize(("name", "multiple"), [("silicon", 4), ("sheared silicon", 4), ("argon", 5), ("binary", 5)])
def test_frequencies_agree_with_phonopy(name, multiple):
    phonon = phonopy_of(name, multiple)
    # phonopy's masses and charges are of an older CODATA.
    phonon.run_qpoints(Q)
    expected = phonon.qpoints.frequencies * THZ / phonon.unit_conversion_factor
    found = np.asarray(phonon_frequencies(Q)(*state(name)))
    # Away from zero, where phonopy's rounding of ω² is not squared away.
    optical = np.abs(expected) > 1e-3
    assert np.abs(found - expected)[optical].max() < 1e-8
    assert (found[~optical] == 0.0).all()
    assert optical[1:].all()
    assert (~optical[0]).sum() == 3


def folded(system, times):
    """A cell of several of the system's, and the wave vectors that are Γ there."""
    matrix = np.diag(times)
    if system.dim == 3:
        large = System.from_ase(make_supercell(system.to_ase(), matrix))
    else:
        steps = np.stack(np.meshgrid(*map(np.arange, times), indexing="ij"), axis=-1).reshape(-1, system.dim)
        places = (np.asarray(system.positions)[None] + (steps @ np.asarray(system.cell))[:, None]).reshape(-1, system.dim)
        cell, masses = matrix @ np.asarray(system.cell), np.tile(np.asarray(system.masses), len(steps))
        large = System(places, cell=cell, pbc=system.pbc, species=system.symbols * len(steps), masses=masses)
    q = np.stack(np.meshgrid(*[np.arange(count) / count for count in times], indexing="ij"), axis=-1)
    return large, q.reshape(-1, system.dim)


def hexagonal(pbc=(True, True)):
    """A 2-D crystal of soft spheres in a cell smaller than their range."""
    cell = np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)]]) * 0.9
    return System(np.zeros((1, 2)), cell=cell, pbc=pbc, masses=1.0), ms.SoftSphere(diameter=2.0, epsilon=1.0, alpha=2.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sheared silicon", "hexagonal"])
def test_a_supercell_at_gamma_has_the_frequencies_of_its_cell(name):
    system, potential = hexagonal() if name == "hexagonal" else state(name)
    large, q = folded(system, (2, 2, 1)[: system.dim])
    found = np.sort(np.asarray(phonon_frequencies(q)(system, potential)).ravel())
    np.testing.assert_allclose(found, np.asarray(phonon_frequencies()(large, potential)), atol=1e-9 * np.abs(found).max())


class AsSites(ms.SitePotential):
    """A pair potential written as the energy of sites."""

    pair_potential: ms.PairPotential
    cutoff: float = ms.static()

    def site_energy(self, d, i, j, mask):
        pairs = jax.vmap(self.pair_potential.pair_energy, in_axes=(0, None, 0))(jnp.linalg.norm(d, axis=-1), i, j)
        return 0.5 * jnp.sum(jnp.where(mask, pairs, 0.0))


def test_pairs_and_sites_have_the_same_dynamical_matrix():
    system, potential = state("binary")
    pairs = dynamical_matrix(Q)(system, potential)
    sites = dynamical_matrix(Q)(system, AsSites(potential, potential.cutoff))
    assert pairs.shape == (4, 6, 6)
    np.testing.assert_allclose(pairs, sites, atol=1e-13)
    np.testing.assert_allclose(dynamical_matrix(Q[3])(system, potential), pairs[3], atol=1e-15)


# Derivatives


def agrees_with_differences(observable, eq, parameters):
    """Largest error of θ dg/dθ relative to the largest entry of any parameter."""
    names = parameter_paths(eq.potential)
    slopes = dict(zip(names, jax.tree.leaves(ms.jacobian(observable, eq)), strict=True))
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    values = dict(zip(names, map(float, jax.tree.leaves(eq.potential)), strict=True))
    scale = max(np.abs(values[name] * np.asarray(slopes[name])).max() for name in names)
    for name in parameters:
        difference = richardson(eq, name, observable=lambda state: observable(state.system, state.potential))
        error = np.abs(values[name] * (difference - np.asarray(slopes[name]))).max() / scale
        assert error < 1e-8, (name, error)
    return slopes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["silicon", "sheared silicon"])
def test_derivatives_of_bands_match_differences_of_relaxed_structures(name):
    # Silicon has degenerate bands at Γ, X and L; in the sheared cell the atoms move.
    eq = crystal(name)
    slopes = agrees_with_differences(phonon_frequencies(Q), eq, ["sigma", "lam", "costheta0"])
    assert (np.asarray(slopes["sigma"])[0, :3] == 0.0).all()
    moved = np.abs(ms.sensitivity(eq, wrt=["lam"]).scaled().positions.lam).max()
    assert moved < 1e-9 if name == "silicon" else moved > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "observable",
    [
        phonon_dos(2, np.linspace(0.5, 3.0, 6), width=0.1),
        heat_capacity([0.0, 60.0], 2),
        gruneisen_parameters(Q),
    ],
    ids=lambda observable: type(observable).__name__,
)
def test_derivatives_in_a_crystal_of_layers_match_differences(observable):
    agrees_with_differences(observable, crystal("layers"), ["epsilon.A-B", "sigma.A-A"])


def hermitian(rng, n):
    matrix = rng.normal(size=(n, n)) + 1j * rng.normal(size=(n, n))
    return 0.5 * (matrix + matrix.conj().T)


@pytest.mark.slow
def test_degenerate_eigenvalues_have_the_derivatives_of_their_mean():
    # Two clusters, split by the perturbation: to second order their means follow from eigenvalues at a distance.
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(hermitian(rng, 6))[0]
    start = (vectors * [1.0, 1.0, 1.0, 2.0, 3.0, 3.0]) @ vectors.conj().T
    first, second = hermitian(rng, 6), hermitian(rng, 6)

    def means(values):
        return jnp.array([*[jnp.mean(values[:3])] * 3, values[3], *[jnp.mean(values[4:])] * 2])

    def along(t):
        return start + t * first + 0.5 * t**2 * second

    def bands(t):
        return eigenvalues(along(t), jnp.asarray(10.0))[0]

    h = 1e-3
    steps = [np.asarray(means(np.linalg.eigvalsh(along(k * h)))) for k in (-2, -1, 0, 1, 2)]
    slope = (8 * (steps[3] - steps[1]) - (steps[4] - steps[0])) / (12 * h)
    bend = (16 * (steps[3] + steps[1]) - (steps[4] + steps[0]) - 30 * steps[2]) / (12 * h**2)
    # Under jit and scan too, where rules of derivatives may be lost.
    scanned = jax.jit(lambda t: jax.lax.map(bands, t[None])[0])
    for function in (bands, scanned):
        np.testing.assert_allclose(jax.jacfwd(function)(0.0), slope, atol=1e-9)
        np.testing.assert_allclose(jax.jacfwd(jax.jacrev(function))(0.0), bend, atol=1e-6)
        np.testing.assert_allclose(jax.jacfwd(jax.jacfwd(function))(0.0), bend, atol=1e-6)
    assert np.isnan(jax.jacfwd(jax.jacfwd(jax.jacfwd(scanned)))(0.0)).all()


@pytest.mark.slow
def test_second_derivatives_of_degenerate_bands_match_differences():
    # Γ, X, M of a cubic crystal.
    system, potential = state("binary")
    system = system.with_neighbors(potential, skin=0.1)

    def bands(sigma):
        changed = eqx.tree_at(lambda p: p.sigma["A-B"], potential, sigma)
        return phonon_frequencies([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.5, 0.5, 0.0]])(system, changed)

    sigma, h = potential.sigma["A-B"], 1e-5
    slope = jax.jit(jax.jacfwd(bands))
    difference = (slope(sigma + h) - slope(sigma - h)) / (2 * h)
    forward = jax.jit(jax.jacfwd(jax.jacfwd(bands)))(sigma)
    np.testing.assert_allclose(forward, difference, atol=1e-6 * np.abs(difference).max())
    mixed = jax.jit(jax.jacfwd(jax.grad(lambda sigma: jnp.sum(bands(sigma)))))(sigma)
    np.testing.assert_allclose(mixed, jnp.sum(forward), rtol=1e-9)


@pytest.mark.slow
def test_gradients_agree_with_the_jacobian():
    eq = crystal("layers")
    observable = harmonic_free_energy(60.0, 2)
    value, slope = ms.value_and_gradient(observable, eq)
    forward = ms.jacobian(lambda system, potential: observable(system, potential)[None], eq)
    assert value == pytest.approx(float(observable(eq.system, eq.potential)), rel=1e-12)
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(forward), strict=True):
        np.testing.assert_allclose(one, np.asarray(other)[0], rtol=1e-9)


# Grüneisen parameters


def strained_frequencies(eq, strain):
    """Frequencies [THz] after the atoms relaxed in a strained cell."""
    system = eqx.tree_at(
        lambda s: (s.positions, s.cell), eq.system, (eq.system.positions * (1 + strain), eq.system.cell * (1 + strain))
    )
    again = ms.relax(system, eq.potential, fmax=FMAX, check_minimum=False)
    return np.asarray(phonon_frequencies(Q)(again.system, eq.potential))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sheared silicon", "layers"])
def test_gruneisen_parameters_match_differences_of_relaxed_cells(name):
    eq = crystal(name)
    h = 1e-4
    steps = {k: strained_frequencies(eq, k * h) for k in (-2, -1, 1, 2)}
    slope = (8 * (steps[1] - steps[-1]) - (steps[2] - steps[-2])) / (12 * h)
    frequencies = np.asarray(phonon_frequencies(Q)(eq.system, eq.potential))
    # V dν/dV is a third of the derivative in the strain.
    expected = np.divide(-slope, 3.0 * frequencies, out=np.zeros_like(slope), where=frequencies != 0.0)
    found = np.asarray(gruneisen_parameters(Q)(eq.system, eq.potential))
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_gruneisen_parameters_of_degenerate_bands_are_equal():
    system, potential = state("silicon")
    gamma = np.asarray(gruneisen_parameters(Q)(system, potential))
    assert (gamma[0, :3] == 0.0).all()
    for q, cluster in ((0, slice(3, 6)), (1, slice(0, 2)), (1, slice(2, 4)), (2, slice(0, 2)), (2, slice(4, 6))):
        np.testing.assert_allclose(gamma[q, cluster], gamma[q, cluster.start], rtol=1e-9)


# Density of states and thermodynamics


@pytest.mark.slow
def test_density_of_states_counts_the_bands():
    grid = np.linspace(-5.0, 25.0, 601)
    density = np.asarray(phonon_dos(4, grid, width=0.4)(*state("silicon")))
    assert np.trapezoid(density, grid) == pytest.approx(6.0, abs=1e-10)


def test_thermodynamics_agree_with_phonopy():
    system, potential = state("silicon")
    phonon = phonopy_of("silicon", 4)
    phonon.run_mesh([4, 4, 4], is_gamma_center=True)
    temperatures = [0.0, 100.0, 300.0, 1000.0]
    phonon.run_thermal_properties(temperatures=temperatures, cutoff_frequency=1e-3)
    properties = phonon.thermal_properties
    kilojoule = 96.4853905398362
    free, capacity, disorder = (f(temperatures, 4)(system, potential) for f in (harmonic_free_energy, heat_capacity, entropy))
    # phonopy's Boltzmann constant is that of CODATA 2006, larger by 9e-7 of it, which counts several times in the cold.
    np.testing.assert_allclose(np.asarray(free) * kilojoule, properties.free_energy, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(capacity) * kilojoule * 1e3, properties.heat_capacity, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(disorder) * kilojoule * 1e3, properties.entropy, rtol=1e-5)


@pytest.mark.slow
def test_entropy_and_heat_capacity_are_derivatives_of_the_free_energy():
    system, potential = state("silicon")

    def free(temperature):
        return harmonic_free_energy(temperature, 2)(system, potential)

    temperature = jnp.asarray(200.0)
    assert entropy(200.0, 2)(system, potential) == pytest.approx(-float(jax.grad(free)(temperature)), rel=1e-10)
    curvature = float(jax.grad(jax.grad(free))(temperature))
    assert heat_capacity(200.0, 2)(system, potential) == pytest.approx(-200.0 * curvature, rel=1e-10)


def test_limits_of_temperature():
    from ase import units

    system, potential = state("silicon")
    q, weights = q_mesh(2, system)
    zero_point = 0.5 * EV_PER_THZ * float(weights @ np.sum(phonon_frequencies(q)(system, potential), axis=1))
    assert harmonic_free_energy(0.0, 2)(system, potential) == pytest.approx(zero_point, rel=1e-12)
    assert float(heat_capacity(0.0, 2)(system, potential)) == 0.0
    assert float(entropy(1e-3, 2)(system, potential)) == 0.0
    # Dulong and Petit: k for each of 6 bands of 8 wave vectors, less the three acoustic ones at Γ.
    high = float(heat_capacity(1e5, 2)(system, potential))
    assert high == pytest.approx((6 - 3 / 8) * units.kB, rel=1e-5)


def test_a_mesh_has_each_wave_vector_or_its_opposite():
    system, _ = state("silicon")
    q, weights = q_mesh((4, 3, 2), system)
    assert weights.sum() == pytest.approx(1.0)
    assert (q[0] == 0.0).all()
    both = {tuple(np.round(np.mod(sign * one, 1.0), 9)) for one in q for sign in (1, -1)}
    assert len(both) == 24
    assert len(q) == 14


# Paths and pictures


def test_a_path_goes_through_the_special_points():
    system, potential = state("silicon")
    path = phonon_path(system, "GXU,KGL", 60)
    assert path.labels == ("Γ", "X", "U|K", "Γ", "L")
    places = dict(zip(path.labels, path.ticks, strict=True))
    assert places["X"] == pytest.approx(2 * np.pi / 5.43, rel=1e-9)
    assert len(path.q) == pytest.approx(60, abs=5)
    assert (np.diff(path.distances) >= 0.0).all()
    ax = ms.plot.phonons(path, phonon_frequencies(path.q)(system, potential))
    assert [text.get_text() for text in ax.get_xticklabels()] == list(path.labels)
    assert len(ax.lines) >= 6
    assert phonon_path(system).labels[0] == "Γ"
    assert phonon_path(hexagonal()[0], points=20).q.shape[1] == 2


# What is refused


def unstable():
    """A square lattice of spheres, which shears into a hexagonal one."""
    return System(np.zeros((1, 2)), cell=np.eye(2) * 0.9, pbc=True, masses=1.0), ms.SoftSphere(
        diameter=1.0, epsilon=1.0, alpha=2.5
    )


@pytest.mark.slow
def test_an_unstable_state_has_no_thermodynamics():
    system, potential = unstable()
    assert float(jnp.min(phonon_frequencies([0.5, 0.0])(system, potential))) < 0.0
    with pytest.raises(ms.InputError, match=r"unstable at q = \(.*frequency -"):
        harmonic_free_energy(10.0, 4)(system, potential)
    listed = system.with_neighbors(potential)
    traced = jax.jit(lambda x: harmonic_free_energy(10.0, 4)(listed.with_positions(x), potential))
    assert np.isnan(traced(listed.positions))


def test_modes_that_cost_no_energy_have_no_thermodynamics():
    # Two spheres side by side in a wide cell: they touch along one direction only.
    system = System([[0.0, 0.0]], cell=np.diag([0.9, 3.0]), pbc=True, masses=1.0)
    with pytest.raises(ms.InputError, match="unstable at q"):
        entropy(10.0, 2)(system, ms.SoftSphere(diameter=1.0, epsilon=1.0, alpha=2.0))


def test_a_moved_atom_makes_a_stale_list_give_nan():
    system, potential = state("layers")
    listed = system.with_neighbors(potential, skin=0.0)
    traced = jax.jit(lambda x: phonon_frequencies(Q)(listed.with_positions(x), potential))
    assert np.isfinite(traced(listed.positions)).all()
    assert np.isnan(traced(listed.positions.at[0, 0].add(0.1))).all()


@pytest.mark.parametrize(
    ("observable", "sentence"),
    [
        (lambda: phonon_frequencies(np.zeros((2, 2, 3))), "q must be one wave vector"),
        (lambda: phonon_frequencies([np.nan, 0.0, 0.0]), "q is not finite"),
        (lambda: phonon_frequencies([0.0, 0.0]), "q has 2 components, but the system has 3"),
        (lambda: phonon_dos(0, [1.0], 0.1), "mesh must be a positive integer"),
        (lambda: phonon_dos(2.5, [1.0], 0.1), "mesh must be a positive integer"),
        (lambda: phonon_dos((2, 2), [1.0], 0.1), "has 2 entries, but the system has 3"),
        (lambda: phonon_dos(2, 1.0, 0.1), "frequencies must be a list"),
        (lambda: phonon_dos(2, [1.0], 0.0), "width must be a positive number"),
        (lambda: heat_capacity(-1.0), "temperature must be zero or more"),
        (lambda: entropy([[1.0]]), "temperature must be one number"),
    ],
)
def test_bad_settings_are_refused(observable, sentence):
    with pytest.raises(ms.InputError, match=sentence):
        observable()(*state("silicon"))


def test_systems_without_phonons_are_refused():
    system, potential = state("silicon")
    positions, cell = system.positions, system.cell
    slab = System(positions, cell=cell, pbc=(True, True, False), species="Si")
    refused = [
        (phonon_frequencies(), System(positions, species="Si"), "waves in a periodic structure"),
        (phonon_frequencies(), System(positions, cell=cell, pbc=True, species="Si", frozen=[True, False]), "frozen"),
        (phonon_frequencies(), System(positions, cell=cell, pbc=True, species="Si", masses=[0.0, 1.0]), "masses greater"),
        (phonon_frequencies([0.0, 0.0, 0.5]), slab, "not periodic, where there are no waves"),
        (phonon_dos((1, 1, 2), [1.0], 0.1), slab, "several points along a direction that is not periodic"),
        (gruneisen_parameters(), slab, "periodic in all directions"),
    ]
    for observable, other, sentence in refused:
        with pytest.raises(ms.InputError, match=sentence):
            observable(other, potential)
    with pytest.raises(ms.InputError, match="hides its cell"):
        phonon_frequencies()(system, ms.JaxMD(lambda R: jnp.sum(R**2)))
    for path, points, sentence in (("GZ", 10, "none in this lattice"), ("G", 10, "none in this"), ("GX", 1, "at least 2")):
        with pytest.raises(ms.InputError, match=sentence):
            phonon_path(system, path, points)
    with pytest.raises(ms.InputError, match="periodic structure"):
        phonon_path(System(positions, species="Si"))


@pytest.mark.slow
def test_phonons_ask_for_masses_of_labels_that_are_no_elements():
    atoms = bulk("Ar", "fcc", a=1.55)
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    for labels in ("A", "Si1", "big"):
        system = System(atoms.positions, cell=atoms.cell.array, pbc=True, species=labels)
        refused(lambda system=system: phonon_frequencies()(system, potential), "masses", repr(labels), "no element")
    # ω goes as 1/√m.
    heavy, light = (
        phonon_frequencies()(System(atoms.positions, cell=atoms.cell.array, pbc=True, species=label, masses=mass), potential)
        for label, mass in (("A", 4.0), ("Si1", 1.0))
    )
    np.testing.assert_allclose(light, 2.0 * heavy, atol=1e-9)
