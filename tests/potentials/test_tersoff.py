"""The Tersoff potential against LAMMPS, its derivatives against differences, its files and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.units import GPa
from differences import contacts, scaled_errors
from helpers import refused
from lammps_reference import evaluate, shipped

import mdsens as ms
from mdsens.potentials.forms.neighbor_vectors import handles, neighbor_vectors

SHEAR = np.eye(3) + np.array([[0.03, 0.08, -0.05], [0.0, -0.02, 0.1], [0.04, 0.0, 0.05]])
ENTRY = "Si Si Si  3.0 1.0 0.0 100390 16.217 -.59825\n  .78734 0.0000011 1.73222 471.18 2.85 0.15 2.4799 1830.8"


def crystal(*labels, a=5.431, cubic=True, seed=0):
    """A sheared, rattled diamond crystal with the species in random places: atoms see their own images."""
    atoms, rng = bulk("Si", a=a, cubic=cubic), np.random.default_rng(seed)
    positions = atoms.positions + 0.08 * rng.normal(size=atoms.positions.shape)
    species = rng.permutation(list(labels) * (len(atoms) // len(labels)))
    return ms.System(positions @ SHEAR + 30.0, cell=atoms.cell.array @ SHEAR, pbc=True, species=species.tolist())


def cluster(*labels):
    """A dimer (ζ = 0), or three atoms of which two do not see each other."""
    positions = np.array([[0.0, 0.0, 0.0], [1.9, 0.2, 0.1], [-0.8, 1.7, 0.3]])[: len(labels)]
    return ms.System(positions, species=list(labels))


CASES = {
    "Si": ("Si.tersoff", lambda: crystal("Si")),
    "Si, primitive cell": ("Si.tersoff", lambda: crystal("Si", cubic=False)),
    "Si, three atoms": ("Si.tersoff", lambda: cluster("Si", "Si", "Si")),
    "SiC, random": ("SiC.tersoff", lambda: crystal("Si", "C", a=4.5)),
    "SiC, three atoms": ("SiC.tersoff", lambda: cluster("Si", "C", "C")),
    "SiC, dimer": ("SiC.tersoff", lambda: cluster("C", "Si")),
    "SiC of Erhart and Albe (m = n = 1)": ("SiC_Erhart-Albe.tersoff", lambda: crystal("Si", "C", a=4.5, seed=1)),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request):
    name, make = request.param
    system = make()
    elements = None if len(system.labels) > 1 else "Si"
    return ms.Tersoff.from_file(shipped(name), elements), system, shipped(name)


def deviation(found, expected) -> float:
    """Largest difference, relative to the largest number expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_energy_forces_and_virial_agree_with_lammps(case):
    potential, system, file = case
    expected = evaluate(system, "pair_style tersoff", f"pair_coeff * * {file} {' '.join(system.labels)}")
    assert float(potential.energy(system)) == pytest.approx(expected.energy, rel=1e-9)
    assert deviation(potential.forces(system), expected.forces) < 1e-9
    if system.cell is not None:
        virial = np.asarray(-potential.stress(system) * system.volume * GPa)[np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])]
        assert deviation(virial, expected.virial) < 1e-9


@pytest.mark.slow
def test_second_derivatives_are_finite_and_do_not_depend_on_the_road(case):
    potential, system, _ = case
    system = system.with_neighbors(potential)  # with pairs beyond the cutoff and unused places in it
    # One vector of all parameters, as shares of themselves, and positions, so that mixed derivatives are in it too.
    start, unravel = jax.flatten_util.ravel_pytree((potential, system.positions))
    size = jnp.where(jnp.arange(start.size) < len(jax.tree.leaves(potential)), start, 1.0)
    direction = jnp.asarray(np.random.default_rng(5).normal(size=start.shape))

    def slope(v):
        def energy(v):
            p, x = unravel(start + size * v)
            return p.energy(system.with_positions(x))

        return jax.grad(energy)(v)

    @jax.jit
    def both(v):
        reverse = jax.grad(lambda v: jnp.vdot(slope(v), direction))(v)
        return reverse, jax.jvp(slope, (v,), (direction,))[1]

    reverse, forward = both(jnp.zeros_like(start))
    assert np.isfinite(reverse).all() and np.isfinite(forward).all()
    # The same numbers by two roads: rounding, relative to the largest.
    assert deviation(forward, reverse) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("labels", [("Si", "Si"), ("Si", "Si", "Si"), ("Si",) * 8], ids=len)
def test_the_site_energy_s_hessian_is_finite_where_places_are_unused(labels):
    potential = ms.Tersoff.silicon()
    system = (crystal("Si") if len(labels) == 8 else cluster(*labels)).with_neighbors(potential)
    d, inside = neighbor_vectors(system, potential.range)
    i, j = (jax.tree.map(lambda x: x[..., 0], handle) for handle in handles(system))
    # Two more places that are masked.
    d = jnp.concatenate([d[0], jnp.broadcast_to(jnp.array([1.5, 0.0, 0.0]), (2, 3))])
    mask = jnp.concatenate([inside[0], jnp.zeros(2, bool)])
    j = jax.tree.map(lambda x: jnp.concatenate([x, x[:1], x[:1]]), j)

    def energy(vectors):
        return potential.site_energy(vectors, i, j, mask)

    reverse, forward = jax.jacrev(jax.grad(energy))(d), jax.jacfwd(jax.grad(energy))(d)
    assert np.isfinite(reverse).all() and np.isfinite(forward).all()
    np.testing.assert_allclose(forward, reverse, atol=1e-12 * float(jnp.abs(reverse).max()))
    assert not np.asarray(reverse)[~np.asarray(mask)].any()


@pytest.fixture(scope="module")
def vacancy():
    """63 atoms, pushed out of the symmetric place; neighbours at 2.35 Å and 3.8 Å, far from the edges 2.7 and 3.0 Å."""
    atoms = bulk("Si", a=5.432, cubic=True) * 2
    atoms.positions += 0.03 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    del atoms[20]
    return ms.relax(ms.System.from_ase(atoms), ms.Tersoff.silicon(), fmax=1e-12)


def edge_distance(eq) -> float:
    """How far the nearest pair is from a kink of the cutoff function [Å]."""
    system = eq.system.with_neighbors(eq.potential, skin=1.0)
    d, inside = neighbor_vectors(system, jnp.asarray(4.0))
    r = np.asarray(jnp.linalg.norm(d, axis=-1))[np.asarray(inside)]
    edges = float(eq.potential.R) + float(eq.potential.D) * np.array([-1.0, 1.0])
    return float(np.abs(r[:, None] - edges).min())


@pytest.mark.slow
def test_sensitivities_of_a_vacancy_agree_with_differences(vacancy):
    assert edge_distance(vacancy) > 0.01 and len(contacts(vacancy)) > 63 * 3
    sensitivity = ms.sensitivity(vacancy)
    errors = scaled_errors(vacancy, sensitivity)
    assert set(errors) == {"gamma", "lam3", "c", "d", "costheta0", "n", "beta", "lam2", "B", "R", "D", "lam1", "A"}
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.slow
def test_a_stored_result_brings_the_potential_back(tmp_path):
    potential = ms.Tersoff.from_file(shipped("SiC.tersoff"))
    eq = ms.relax(ms.System(cluster("Si", "C").positions, species=["Si", "C"]), potential, fmax=1e-10)
    ms.save(tmp_path / "eq.h5", eq)
    again, _ = ms.load(tmp_path / "eq.h5")
    assert jax.tree.structure(again.potential) == jax.tree.structure(potential) and again.potential.m == 3
    assert all(a == b for a, b in zip(jax.tree.leaves(again.potential), jax.tree.leaves(potential), strict=True))


def test_exponents_may_differ_by_triplet():
    both = {f"{a}-{b}-{c}": 3 if a == "Si" else 1 for a in ("Si", "C") for b in ("Si", "C") for c in ("Si", "C")}
    potential = ms.Tersoff.from_file(shipped("SiC.tersoff"))
    fields = potential.parameters() | {"lam3": 1.2}
    system = crystal("Si", "C", a=4.5)
    energies = {name: ms.Tersoff(**fields, m=m).energies(system) for name, m in {"both": both, 3: 3, 1: 1}.items()}
    silicon = np.array(system.symbols) == "Si"
    np.testing.assert_allclose(energies["both"], np.where(silicon, energies[3], energies[1]), rtol=1e-13)
    assert hash(ms.Tersoff(**fields, m=both).m) == hash(ms.Tersoff(**fields, m=tuple(both.items())).m)


# Files and refusals


def test_silicon_is_what_the_file_says(tmp_path):
    file = tmp_path / "Si.tersoff"
    file.write_text(f"# UNITS: metal, a comment of many words is no entry\n{ENTRY}  # the end\n")
    found, expected = ms.Tersoff.from_file(file).parameters(), ms.Tersoff.silicon().parameters()
    assert found.keys() == expected.keys()
    for name in expected:
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=2e-5), name


BAD_FILES = {
    "cut off": (lambda good: good[:-8], ["cut off", "17"]),
    "not a number": (lambda good: good.replace("471.18", "nan"), ["Si-Si-Si", "not finite"]),
    "code": (lambda good: good.replace("471.18", "exit()"), ["Si-Si-Si", "not numbers"]),
    "twice": (lambda good: f"{good}\n{good}", ["Si-Si-Si", "twice"]),
    "other units": (lambda good: f"# UNITS: real\n{good}", ["real", "metal"]),
    "a triplet too few": (lambda good: f"{good}\n{good.replace('Si', 'C')}", ["entry", "elements"]),
    "an exponent of two": (lambda good: good.replace("3.0", "2.0"), ["m", "3"]),
    "no width": (lambda good: good.replace("0.15", "0.0"), ["line 1", "D of Si-Si-Si", "positive"]),
    "an attraction without end": (lambda good: good.replace("1.73222", "0.0"), ["line 1", "lam2 of Si-Si-Si", "positive"]),
    "a negative repulsion": (lambda good: good.replace("1830.8", "-1830.8"), ["line 1", "A of Si-Si-Si", "positive or zero"]),
    "absurd": (lambda good: f"# one\n{good.replace('471.18', '1e300')}", ["line 3", "Si-Si-Si", "'1e300'", "absurdly large"]),
    "of another style": (lambda good: f"{good} 2.0", ["line 2", "three elements", "'2.0'"]),
}


@pytest.mark.parametrize(("spoil", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_spoilt_file_is_refused(spoil, words, tmp_path):
    file = tmp_path / "Si.tersoff"
    file.write_text(spoil(ENTRY))
    refused(lambda: ms.Tersoff.from_file(file), *words)
    refused(lambda: ms.Tersoff.from_file(tmp_path / "none.tersoff"), "There is no file")


def test_an_element_that_is_missing_is_named():
    refused(lambda: ms.Tersoff.from_file(shipped("SiC.tersoff"), elements=["Si", "Ge"]), "'Ge'", "Si", "C")
    carbides = ms.Tersoff.from_file(shipped("SiC.tersoff"))
    refused(lambda: carbides.energy(cluster("Si", "O")), "Tersoff.", "O", "add")
    refused(lambda: ms.Tersoff.silicon().energy(cluster("Si", "C")), "one species", "C, Si")


def test_keys_without_effect_are_refused():
    fields = ms.Tersoff.silicon().parameters()
    refused(lambda: ms.Tersoff(**fields | {"A": {"Si-Si-C": 1.0}}), "A['Si-Si-C']", "no effect")
    refused(lambda: ms.Tersoff(**fields | {"gamma": {"Si-C": 1.0}}), "gamma['C-Si']", "triplet")
    refused(lambda: ms.Tersoff(**fields, m=2), "m must be 3 or 1")
    refused(lambda: ms.Tersoff(**fields | {"n": 0.0}), "n must be positive")
