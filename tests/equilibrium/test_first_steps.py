"""Where the first steps of a descent are made on the host and where they are compiled, the same equilibrium is found."""

import numpy as np
import pytest
from ase.build import bulk

import mdsens as ms
from mdsens.common.compilation import plan_compilation
from mdsens.equilibrium import first_steps


def rattled(missing=0):
    atoms = bulk("Si", cubic=True) * (2, 1, 1)
    del atoms[missing]
    atoms.rattle(0.15, seed=3)
    return ms.System.from_ase(atoms)


@pytest.fixture
def nothing_known():
    first_steps._steps.clear()
    yield
    first_steps._steps.clear()


@pytest.mark.parametrize("options", [{}, {"cell": "free"}, {"solver": ms.LBFGS(), "polish": False}], ids=str)
def test_where_steps_are_made_changes_nothing(silicon, monkeypatch, nothing_known, options):
    ends, compiled = [], []
    for steps in (0, 5, 200):
        monkeypatch.setattr(first_steps, "HOST_STEPS", steps)
        monkeypatch.setattr(
            first_steps,
            "solve_filled",
            lambda *a, original=first_steps.solve_filled, **o: compiled.append(a[1]) or original(*a, **o),
        )
        first_steps._steps.clear()
        compiled.clear()
        ends.append(ms.relax(rattled(), silicon, fmax=1e-9, **options))
        # L-BFGS is compiled unless all of its steps fitted; Newton's method goes its own way.
        assert any(isinstance(solver, ms.LBFGS) for solver in compiled) == (steps < 200)
        monkeypatch.undo()
    for end in ends[:2]:
        assert end.energy == pytest.approx(ends[2].energy, rel=1e-12)
        np.testing.assert_allclose(end.system.cell, ends[2].system.cell, rtol=0.0, atol=1e-7)
        np.testing.assert_allclose(end.system.positions, ends[2].system.positions, rtol=0.0, atol=1e-7)


def test_many_steps_with_one_kind_of_structure_are_compiled(silicon, nothing_known, monkeypatch):
    monkeypatch.setattr(first_steps, "HOST_STEPS", 20)
    left = []
    for missing in range(4):
        ms.relax(rattled(missing), silicon)
        left.append(dict(first_steps._steps))
    assert list(left[0].values()) != list(left[-1].values()) == [20]


@pytest.mark.parametrize("often", [False, True])
def test_under_a_plan_nothing_depends_on_what_came_before(silicon, nothing_known, often):
    ends = []
    for missing in (0, 1, 0):
        with plan_compilation(often):
            ends.append(ms.relax(rattled(missing), silicon, solver=ms.LBFGS(), polish=False, fmax=1e-9))
        first_steps._steps = dict.fromkeys(first_steps._steps, first_steps.HOST_STEPS)
    assert np.array_equal(ends[0].system.positions, ends[2].system.positions) and ends[0].energy == ends[2].energy


def test_a_start_without_finite_forces_says_so(nothing_known):
    wall = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    with pytest.raises(ms.MdsensError):
        ms.relax(ms.System([[0.0, 0.0, 0.0], [1e-80, 0.0, 0.0], [1.0, 0.0, 0.0]]), wall)
    near = ms.relax(ms.System([[0.0, 0.0, 0.0], [0.3, 0.0, 0.0], [1.4, 0.5, 0.0]]), wall)
    assert near.converged
