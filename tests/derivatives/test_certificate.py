"""One physical state for each thing that a certificate can say against a derivative."""

import numpy as np
import pytest

import mdsens as ms
from mdsens import implicit
from mdsens.equilibrium import constraints


class Spring(ms.PairPotential):
    """½ k (r - l)² between all pairs in reach."""

    stiffness: float
    length: float
    cutoff: float = ms.static(1.8)

    def pair_energy(self, r, i, j):
        return 0.5 * self.stiffness * (r - self.length) ** 2


def reasons(eq, **options):
    certificate = ms.sensitivity(eq, throw=False, **options).certificate
    assert certificate.trusted == (not certificate.reasons)
    return certificate.reasons


def said(sentences, *words):
    return any(all(word in sentence for word in words) for sentence in sentences)


@pytest.fixture(scope="module")
def cluster():
    """Seven Lennard-Jones atoms, a pentagonal bipyramid: enough unknowns that no iteration ends by itself."""
    angles = 0.4 * np.pi * np.arange(5)
    ring = np.stack([0.95 * np.cos(angles), 0.95 * np.sin(angles), 0.0 * angles], axis=1)
    start = np.vstack([ring, [[0, 0, 0.57], [0, 0, -0.55]]])
    return ms.relax(ms.System(start), ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.0, onset=1.5), fmax=1e-12)


def test_a_system_that_is_solved_to_few_digits_is_seen_by_its_residual_and_by_its_adjoint(cluster):
    assert reasons(cluster) == ()
    loose = reasons(cluster, linear_solver=implicit.CG(rtol=1e-3, fail_rtol=1e-1))
    assert said(loose, "linear system", "residual")
    assert said(loose, "forward and adjoint")


def test_an_atom_that_nothing_holds_across_is_at_no_isolated_minimum():
    """Between two springs at their natural length the curvature across them is φ'(r)/r = 0, exactly."""
    line = ms.System([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], frozen=[True, False, True])
    eq = ms.relax(line, Spring(2.0, 1.0), fmax=1e-12)
    assert eq.spectrum.lowest == 0.0
    assert said(reasons(eq), "no isolated minimum") and said(reasons(eq), "loose")


def caged(gap):
    """A soft disc in a cage of three at 120°, which presses it, and a fourth one in a gap between them, `gap` from contact."""
    angles = np.deg2rad([0.0, 120.0, 240.0, 60.0])
    radii = np.array([0.9, 0.9, 0.9, 1.0 + gap])[:, None]
    around = radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    system = ms.System(np.vstack([[0.0, 0.0], around]), frozen=[False, True, True, True, True])
    return ms.relax(system, ms.SoftSphere(diameter=1.0, epsilon=1.0), fmax=1e-12)


@pytest.mark.parametrize("gap", [3e-8, -3e-8])
def test_a_contact_about_to_open_or_close_is_a_kink(gap):
    # By symmetry the disc stays in the middle, but for what a contact of 3e-8 pushes.
    eq = caged(gap)
    assert ms.sensitivity(eq, throw=False).certificate.kink_distance == pytest.approx(3e-8, rel=0.5)
    assert said(reasons(eq), "second derivative jumps")
    assert reasons(caged(0.05)) == ()


def test_an_inequality_that_hardly_presses_or_is_hardly_missed_is_about_to_switch():
    """A dimer whose length is 2^(1/6) σ, and a wall that its free atom leans on, or misses, by 1e-9 of that."""
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=4.0, onset=3.0)
    start = ms.System([[0.0, 0.0], [1.2, 0.0]], frozen=[True, False])
    for offset, about in ((1e-9, True), (-1e-9, True), (1e-2, False), (-1e-2, False)):
        wall = constraints.Wall((1.0, 0.0), 2.0 ** (1.0 / 6.0) + offset, [1])
        eq = ms.relax(start, potential, constraints=[wall, constraints.FixedComponents([1], "y")], fmax=1e-12)
        assert len(eq.constraints.active) == (offset > 0.0)
        assert said(reasons(eq), "inequality") == about, (offset, reasons(eq))
