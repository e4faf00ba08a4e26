"""Stillinger-Weber's potential of several species against LAMMPS, its derivatives against differences, its files."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from differences import checked_energy_forces_virial, energy_forces_virial, scaled_errors
from helpers import refused
from lammps_reference import evaluate, shipped

import mdsens as ms
from mdsens.potentials.base import total_energy
from mdsens.potentials.forms.neighbor_vectors import handles, neighbor_vectors

SHEAR = np.eye(3) + np.array([[0.03, 0.08, -0.05], [0.0, -0.02, 0.1], [0.04, 0.0, 0.05]])
COLUMNS = ("epsilon", "sigma", "a", "lam", "gamma", "costheta0", "A", "B", "p", "q", "tol")


def deviation(found, expected) -> float:
    """Largest difference, relative to the largest number expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def crystal(*labels, a):
    """A sheared, rattled zinc-blende cell with the species in random places: atoms see their own images."""
    atoms, rng = bulk("Si", a=a, cubic=True), np.random.default_rng(0)
    positions = atoms.positions + 0.015 * a * rng.normal(size=atoms.positions.shape)
    species = rng.permutation((list(labels) * 4)[: len(atoms)])
    return ms.System(positions @ SHEAR + 30.0, cell=atoms.cell.array @ SHEAR, pbc=True, species=species.tolist())


def written(path, entries) -> str:
    """A `.sw` file of `{(i, j, k): {name: number}}`."""
    lines = (" ".join([*triplet, *(repr(float(entry[name])) for name in COLUMNS)]) for triplet, entry in entries.items())
    path.write_text("\n".join(lines))
    return str(path)


def everything_different() -> dict:
    """Entries in which all that may differ does, exponents too; what LAMMPS does not use is nonsense."""
    rng = np.random.default_rng(1)
    typical = {"epsilon": 1.5, "sigma": 1.7, "a": 1.8, "lam": 25.0, "gamma": 1.2, "costheta0": -0.3, "A": 7.5, "B": 0.7}
    entries = {}
    for i, j, k in itertools.product(("Ga", "N"), repeat=3):
        entry = {name: value * rng.uniform(0.9, 1.1) for name, value in typical.items()}
        entry |= {"p": 4.0 + 0.5 * (i == j), "q": float(i == j), "tol": 0.0}
        if j != k:
            entry |= {"sigma": 0.5, "a": 1.1, "gamma": 7.0, "A": 55.0, "B": 3.0, "p": 11.0, "q": 13.0, "tol": 0.1}
        for twin, same in (((i, k, j), ("epsilon", "lam", "costheta0")), ((j, i, i), ("epsilon", "sigma", "a", "A", "B"))):
            if twin in entries and (j == k) == (twin[1] == twin[2]):
                entry |= {name: entries[twin][name] for name in same}
        entries[i, j, k] = entry
    return entries


CASES = {
    "GaN": (lambda folder: shipped("GaN.sw"), ("Ga", "N"), 4.5, 1e-9),
    "everything different": (lambda folder: written(folder / "x.sw", everything_different()), ("Ga", "N"), 4.5, 1e-9),
    "CdTe": (lambda folder: shipped("CdTe.sw"), ("Cd", "Te"), 6.5, 1e-9),
    # λε of i-j-k and i-k-j are the same to seven digits, and which of them LAMMPS takes depends on the order of atoms.
    "CdTeZn": (lambda folder: shipped("CdTeZnSeHgS0.sw"), ("Cd", "Te", "Zn"), 6.3, 2e-7),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[pytest.mark.slow] if "Te" in name else []) for name, case in CASES.items()]
)
def test_energy_forces_and_virial_agree_with_lammps(case, tmp_path):
    make, elements, a, tolerance = case
    file, system = make(tmp_path), crystal(*elements, a=a)
    energy, forces, virial = energy_forces_virial(ms.StillingerWeber.from_file(file, elements), system)
    expected = evaluate(system, "pair_style sw", f"pair_coeff * * {file} {' '.join(system.labels)}")
    assert deviation(energy, expected.energy) < tolerance
    assert deviation(forces, expected.forces) < tolerance
    assert deviation(virial, expected.virial) < tolerance


def test_second_derivatives_of_a_site_are_finite_where_places_are_unused(tmp_path):
    potential = ms.StillingerWeber.from_file(written(tmp_path / "x.sw", everything_different()))
    system = crystal("Ga", "N", a=4.5).with_neighbors(potential)
    d, inside = neighbor_vectors(system, 0.9 * potential.range)
    i, j = (jax.tree.map(lambda x: x[..., 0], handle) for handle in handles(system))
    assert 4 < inside[0].sum() < len(inside[0])
    # One vector of all parameters and vectors to neighbours, so that mixed derivatives are in it too.
    start, unravel = jax.flatten_util.ravel_pytree((potential, d[0]))

    @jax.jit
    def derivatives(v):
        energy = lambda v: (lambda p, d: p.site_energy(d, i, j, inside[0]))(*unravel(v))  # noqa: E731
        return jax.jacrev(jax.grad(energy))(v), jax.jacfwd(jax.grad(energy))(v)

    reverse, forward = derivatives(start)
    assert np.isfinite(reverse).all() and np.isfinite(forward).all()
    np.testing.assert_allclose(forward, reverse, atol=1e-12 * float(jnp.abs(reverse).max()))


@pytest.mark.slow
def test_derivatives_of_the_energy_agree_with_differences(tmp_path):
    file = written(tmp_path / "x.sw", everything_different())
    checked_energy_forces_virial(ms.StillingerWeber.from_file(file), crystal("Ga", "N", a=4.5))


@pytest.mark.slow
def test_sensitivities_of_a_vacancy_agree_with_differences():
    atoms = bulk("GaN", "zincblende", a=4.5, cubic=True)
    atoms.positions += 0.01 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    del atoms[1]
    eq = ms.relax(ms.System.from_ase(atoms), ms.StillingerWeber.from_file(shipped("GaN.sw")), fmax=1e-12)
    errors = scaled_errors(eq, ms.sensitivity(eq))
    assert len(errors) == 33 and max(errors.values()) < 1e-6, errors


def test_leaves_are_what_the_energy_depends_on():
    potential = ms.StillingerWeber.from_file(shipped("GaN.sw"))
    of_bonds, of_angles = ["Ga-Ga-Ga", "Ga-N-N", "N-N-N"], ["Ga-Ga-Ga", "Ga-Ga-N", "Ga-N-N", "N-Ga-Ga", "N-Ga-N", "N-N-N"]
    for name in ("sigma", "a", "A", "B"):
        assert list(getattr(potential, name)) == of_bonds
    assert list(potential.lam) == list(potential.costheta0) == of_angles
    assert list(potential.epsilon) == ["Ga-Ga-Ga", "Ga-Ga-N", "Ga-N-N", "N-Ga-N", "N-N-N"]
    assert list(potential.gamma) == ["Ga-Ga-Ga", "Ga-N-N", "N-Ga-Ga", "N-N-N"]
    assert (potential.p, potential.q) == (4.0, 0.0) and float(potential.range) == 1.6 * 2.1


def test_entries_are_accepted_in_either_order():
    potential = ms.StillingerWeber.from_file(shipped("GaN.sw"))
    other = potential.parameters() | {
        "sigma": {"N-N-N": 1.3, "N-Ga-Ga": 1.695, "Ga-Ga-Ga": 2.1},
        "lam": {("Ga-N-Ga" if key == "Ga-Ga-N" else key): value for key, value in potential.lam.items()},
    }
    again = ms.StillingerWeber(**other, p={"Ga-Ga-Ga": 4, "N-Ga-Ga": 4, "N-N-N": 4}, q=0)
    assert jax.tree.structure(again.parameters()) == jax.tree.structure(potential.parameters())
    assert jax.tree.leaves(again) == jax.tree.leaves(potential)
    assert again.p == (("Ga-Ga-Ga", 4), ("Ga-N-N", 4), ("N-N-N", 4))


@pytest.mark.parametrize("name", ["Si.sw", "GaN.sw", "CdTe.sw", "CdTeZnSeHgS0.sw"])
def test_all_files_of_lammps_are_read(name):
    potential = ms.StillingerWeber.from_file(shipped(name))
    assert np.isfinite(jax.tree.leaves(potential)).all()


BAD = {
    "differs from both sides": ({("N", "Ga", "Ga"): {"A": 7.0}}, ["Ga-N-N", "N-Ga-Ga", "different A"]),
    "differs by the order": ({("N", "Ga", "N"): {"lam": 7.0}}, ["N-Ga-N", "N-N-Ga", "different lam epsilon"]),
    "a shortened cutoff": ({("Ga", "N", "N"): {"tol": 0.1}}, ["tol"]),
    "a negative length": ({("N", "N", "N"): {"sigma": -1.0}}, ["line ", "sigma of N-N-N", "positive", "-1.0"]),
}


@pytest.mark.parametrize(("changes", "words"), BAD.values(), ids=BAD)
def test_a_file_that_contradicts_itself_is_refused(changes, words, tmp_path):
    entries = {key: entry | changes.get(key, {}) for key, entry in everything_different().items()}
    refused(lambda: ms.StillingerWeber.from_file(written(tmp_path / "bad.sw", entries)), "bad.sw", *words)


def test_an_entry_too_few_or_too_many_is_refused(tmp_path):
    entries = everything_different()
    nitride = ms.StillingerWeber.from_file(written(tmp_path / "GaN.sw", entries))
    fields = nitride.parameters()
    refused(lambda: ms.StillingerWeber(**fields | {"sigma": {"Ga-N-Ga": 1.0}}), "sigma['Ga-Ga-N']", "no effect")
    refused(lambda: ms.StillingerWeber(**fields | {"sigma": {"Ga-N-N": 1.0, "N-Ga-Ga": 1.0}}), "sigma", "'Ga-N-N'", "twice")
    refused(lambda: ms.StillingerWeber(**fields | {"sigma": {"Ga-N": 1.0}}), "sigma['Ga-N']", "triplet")
    refused(lambda: ms.StillingerWeber(**fields, p="four"), "p", "a number", "'four'")
    system = crystal("Ga", "N", a=4.5)
    refused(lambda: nitride.energy(crystal("Ga", "As", a=4.5)), "StillingerWeber.", "As", "add")
    lacking = {key: value for key, value in fields["lam"].items() if key != "Ga-Ga-N"}
    refused(lambda: ms.StillingerWeber(**fields | {"lam": lacking}, p=4, q=0).energy(system), "lam", "'Ga-Ga-N'")
    refused(lambda: ms.StillingerWeber(**fields, p={"Ga-Ga-Ga": 4.0}, q=0).energy(system), "StillingerWeber.p", "'Ga-N-N'")
    del entries["N", "Ga", "N"]
    refused(lambda: ms.StillingerWeber.from_file(written(tmp_path / "few.sw", entries)), "N-Ga-N", "elements=")


@pytest.mark.slow
def test_zeros_are_of_atoms_that_do_not_see_each_other(tmp_path):
    """Ga-Ga and N-N without any number, as in files of sheets whose sublattices interact with each other only."""
    entries = everything_different()
    for key in entries:
        if key[1] == key[2] == key[0]:
            entries[key] = dict.fromkeys(entries[key], 0.0)
        elif key[0] in key[1:]:
            # An angle one leg of which is none; the other order says something else of it.
            entries[key] = entries[key] | {"lam": 0.0, "costheta0": 0.1 * (key[0] == key[1])}
    file, system = written(tmp_path / "sheet.sw", entries), crystal("Ga", "N", a=4.5)
    potential = ms.StillingerWeber.from_file(file)
    energy, forces, virial = energy_forces_virial(potential, system)
    expected = evaluate(system, "pair_style sw", f"pair_coeff * * {file} {' '.join(system.labels)}")
    assert deviation(energy, expected.energy) < 1e-9
    assert deviation(forces, expected.forces) < 1e-9
    assert deviation(virial, expected.virial) < 1e-9
    by_all = jax.jit(jax.jacfwd(jax.grad(lambda p: total_energy(p, system.with_neighbors(potential)))))(potential)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(by_all))
    none = {key: dict.fromkeys(entry, 0.0) for key, entry in entries.items()}
    refused(lambda: ms.StillingerWeber.from_file(written(tmp_path / "none.sw", none)), "none.sw", "sigma", "positive")
