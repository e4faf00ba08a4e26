"""Derivatives of many equilibria at once are those of each alone, and their certificates say the same."""

import jax
import numpy as np
import pytest
from ase.build import bulk

import mdsens as ms
from mdsens.derivatives import linear_response
from mdsens.structures.packing import random_packing

DIAMETERS = {"A": 1.0, "B": 0.6}


def vacancies(count, cell="fixed", **options):
    systems = []
    for seed in range(count):
        atoms = bulk("Si", cubic=True) * (2, 1, 1)
        del atoms[seed]
        atoms.rattle(0.05, seed=seed)
        systems.append(ms.System.from_ase(atoms))
    return ms.relax(systems, ms.StillingerWeber.silicon(), cell=cell, **options)


def packings(count):
    systems = [random_packing(32, DIAMETERS, seed=seed) for seed in range(count)]
    return ms.relax(systems, ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0))


def of_several_potentials(count):
    scaled = [jax.tree.map(lambda leaf, k=k: leaf * (1.0 + 0.01 * k), ms.StillingerWeber.silicon()) for k in range(count)]
    atoms = bulk("Si", cubic=True) * (2, 1, 1)
    del atoms[0]
    atoms.rattle(0.05, seed=1)
    return ms.relax(ms.System.from_ase(atoms), scaled)


CASES = {
    "fixed cells": lambda: vacancies(4),
    "free cells": lambda: vacancies(4, "free", pressure=1.0),
    "rattlers": lambda: packings(4),
    "a committee": lambda: of_several_potentials(4),
}


def same_tree(tree, other, rtol=1e-9):
    leaves, others = jax.tree.leaves(tree), jax.tree.leaves(other)
    assert len(leaves) == len(others) and leaves
    for leaf, expected in zip(leaves, others, strict=True):
        # Where energies scale, derivatives vanish but for rounding.
        np.testing.assert_allclose(leaf, expected, rtol=rtol, atol=1e-12 + rtol * float(np.abs(expected).max()))


@pytest.mark.parametrize("name", CASES)
def test_sensitivities_are_those_of_each_alone(name, monkeypatch):
    eqs, asked = CASES[name](), []
    original = linear_response.changes
    monkeypatch.setattr(linear_response, "changes", lambda *a: asked.append(1) or original(*a))
    together = ms.sensitivity(eqs)
    assert not asked
    for eq, found in zip(eqs, together, strict=True):
        alone = ms.sensitivity(eq)
        same_tree(found.positions, alone.positions)
        if eq.cell != "fixed":
            same_tree(found.cell, alone.cell)
        ours, theirs = found.certificate, alone.certificate
        assert (ours.trusted, ours.reasons, ours.rattlers, ours.linear_solver) == (
            theirs.trusted,
            theirs.reasons,
            theirs.rattlers,
            theirs.linear_solver,
        )
        assert ours.error_bound == pytest.approx(theirs.error_bound, rel=0.05)
    assert asked


def test_a_dict_gives_a_dict_of_what_was_selected():
    eqs = dict(zip("abcd", vacancies(4), strict=True))
    found = ms.sensitivity(eqs, wrt=["sigma"])
    assert list(found) == list(eqs)
    assert found["b"].positions.epsilon is None
    same_tree(found["b"].positions.sigma, ms.sensitivity(eqs["b"]).positions.sigma)


def test_derivatives_of_a_list_agree_with_differences_of_structures_relaxed_again():
    eqs, step = vacancies(4, fmax=1e-12), 1e-4
    for eq, found in zip(eqs, ms.sensitivity(eqs), strict=True):
        moved = []
        for sign in (1, -1):
            lam = eq.potential.lam * (1.0 + sign * step)
            potential = ms.StillingerWeber(**{**eq.potential.parameters(), "lam": lam}, p=4.0, q=0.0)
            moved.append(ms.relax(eq.system, potential, fmax=1e-12).system.positions)
        slope = (moved[0] - moved[1]) / (2.0 * step)
        expected = np.asarray(eq.potential.lam * found.positions.lam)
        np.testing.assert_allclose(slope, expected, rtol=0.0, atol=1e-6 * np.abs(expected).max())


def test_observables_of_a_list_are_those_of_each():
    eqs = vacancies(4, "free")
    for found, eq in zip(ms.value_and_gradient(ms.observables.volume, eqs), eqs, strict=True):
        value, slopes = ms.value_and_gradient(ms.observables.volume, eq)
        assert found[0] == pytest.approx(value)
        same_tree(found[1], slopes)
    for found, eq in zip(ms.jacobian(lambda system, potential: system.cell, eqs), eqs, strict=True):
        same_tree(found, ms.jacobian(lambda system, potential: system.cell, eq))
    assert len(ms.gradient(ms.observables.volume, eqs)) == 4


def test_what_has_no_derivative_is_named():
    eqs = vacancies(4)
    failed = ms.relax(
        eqs[1].system.with_positions(eqs[1].system.positions + 0.1 * np.eye(15, 3)), eqs[1].potential, max_steps=1, throw=False
    )
    with pytest.raises(ms.ConvergenceError, match="Equilibrium 2: "):
        ms.sensitivity([*eqs[:2], failed, *eqs[2:]])
    with pytest.raises(ms.InputError, match="Equilibrium 1: "):
        ms.sensitivity([eqs[0], eqs[1].system, eqs[2], eqs[3]])
    with pytest.raises(ms.InputError, match="empty"):
        ms.sensitivity([])
    with pytest.raises(ms.InputError, match="'other'"):
        ms.sensitivity(eqs, wrt=["other"])
