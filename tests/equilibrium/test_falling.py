"""Atoms inside of a potential's barrier fall into each other: seen on the way, and named."""

import pytest
from ase.build import bulk
from helpers import refused
from lammps_reference import shipped

import mdsens as ms
from mdsens.solvers import Status

PAIRS = ("Na-Na", "Cl-Na", "Cl-Cl")


def salt(charged):
    a, c = (dict(zip(PAIRS, values, strict=True)) for values in ((423.0, 1256.0, 3488.0), (1.05, 7.0, 73.0)))
    buckingham = ms.Buckingham(A=a, rho=0.317, C=c, cutoff=5.0)
    return buckingham + ms.Ewald({"Na": 1.0, "Cl": -1.0}, cutoff=5.0, accuracy=1e-8) if charged else buckingham


def near(d):
    """Rock salt with a sodium ion d Å from a chlorine ion."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.positions[0] = atoms.positions[1] + [d, 0.05, -0.03]
    return ms.System.from_ase(atoms)


@pytest.mark.slow
@pytest.mark.parametrize("charged", [False, True])
@pytest.mark.parametrize("solver", [None, ms.FIRE()], ids=["L-BFGS", "FIRE"])
def test_an_ion_inside_of_buckingham_s_barrier_is_named(charged, solver):
    """1256 exp(-r/0.317) - 7/r⁶ has its barrier at 0.83 Å; the atoms of a farther start come back."""
    words = ("(Na)", "(Cl)", "0 ", "1 ", "fall into each other", "Buckingham", "without bound", "ms.ZBL")
    message = refused(lambda: ms.relax(near(0.55), salt(charged), solver=solver), *words)
    assert "Atoms 0 (Na) and 1 (Cl)" in message or "Atoms 1 (Cl) and 0 (Na)" in message
    assert ms.relax(near(0.55), salt(charged), solver=solver, throw=False).status is Status.COINCIDING
    assert ms.relax(near(1.4), salt(charged), solver=solver).converged


@pytest.mark.slow
def test_a_snap_file_without_its_overlay_has_a_hole_which_the_overlay_fills():
    files = [shipped(f"W_2940_2017_2.{name}") for name in ("snapcoeff", "snapparam")]
    atoms = bulk("W", cubic=True) * (2, 1, 1)
    atoms.positions[1] = atoms.positions[0] + [1.3, 0.5, 0.2]
    snap, system = ms.SNAP.from_files(*files), ms.System.from_ase(atoms)
    refused(lambda: ms.relax(system, snap), "Atoms 1 (W) and 0 (W)", "hole", "potential + ms.ZBL", "overlay", "SNAP")
    assert ms.relax(system, snap + ms.ZBL(onset=4.0, cutoff=4.8), fmax=1e-6, check_minimum=False).converged


@pytest.mark.slow
def test_atoms_that_meet_where_a_wall_is_are_left_alone():
    """Two soft spheres that a spring of no length pulls together, to a third of where they were."""
    terms = ms.LennardJones(epsilon=1e-4, sigma=1.0, cutoff=2.5) + ms.HarmonicBonds(k=1.0, r0=0.0, bonds=((0, 1),))
    eq = ms.relax(ms.System([[0.0, 0.0, 0.0], [2.4, 0.0, 0.0]]), terms, solver=ms.FIRE())
    assert eq.converged and abs(float(eq.system.positions[1, 0] - eq.system.positions[0, 0])) < 0.8
