"""Sums of terms whose neighbours are listed in different ways: by distance, by bonds, with waves, not at all."""

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from helpers import refused
from scipy.optimize import brentq, minimize_scalar

import mdsens as ms
from mdsens.common.units import COULOMB

MADELUNG = 1.747564594633


def salt(a):
    """Rock salt's energy for each pair of ions: Madelung's, and Born's repulsion of neighbours over √3 d shells."""
    x = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    r = 0.5 * a * np.linalg.norm(x[np.any(x != 0, axis=1)], axis=1)
    odd = np.sum(x[np.any(x != 0, axis=1)], axis=1) % 2 == 1
    return -MADELUNG * COULOMB / (0.5 * a) + np.sum(np.where(odd & (r < 5.0), 1256.0 * np.exp(-r / 0.317), 0.0))


@pytest.mark.slow
def test_a_salt_relaxes_with_its_cell_to_madelung_s_minimum():
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=1)
    a = {"Na-Na": 0.0, "Cl-Na": 1256.0, "Cl-Cl": 0.0}
    born = ms.Buckingham(A=a, rho=0.317, C=0.0, cutoff=5.0, switch="truncated", onset=None)
    eq = ms.relax(ms.System.from_ase(atoms), born + ms.Ewald({"Na": 1.0, "Cl": -1.0}, cutoff=5.0), cell="free")
    best = minimize_scalar(salt, bracket=(5.0, 5.6), tol=1e-12)
    np.testing.assert_allclose(eq.energy, 4 * best.fun, rtol=1e-11)
    np.testing.assert_allclose(eq.system.cell, best.x * np.eye(3), atol=2e-7)  # where a minimum is flat to rounding


@pytest.mark.slow
def test_a_calculator_and_a_pair_potential_share_a_cell_that_relaxes():
    """Two halves of one argon, one of them ASE's."""
    atoms = bulk("Ar", "fcc", a=5.2, cubic=True)
    atoms.rattle(0.25, seed=1)
    ours = ms.LennardJones(epsilon=0.004, sigma=3.4, cutoff=6.0, switch="truncated", onset=None)
    ases = ms.from_ase(lambda epsilon: LennardJones(epsilon=epsilon, sigma=3.4, rc=6.0), {"epsilon": 0.006})
    eq = ms.relax(ms.System.from_ase(atoms), ours + ases, cell="isotropic")
    x = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    x = 0.5 * x[(x.sum(axis=1) % 2 == 0) & np.any(x != 0, axis=1)]

    def energy(a):
        r = a * np.linalg.norm(x, axis=1)
        return 2.0 * 0.01 * np.sum(np.where(r < 6.0, (3.4 / r) ** 12 - (3.4 / r) ** 6, 0.0))

    best = minimize_scalar(energy, bracket=(5.2, 5.3), tol=1e-12)
    np.testing.assert_allclose(eq.system.cell[0, 0], best.x, atol=1e-6)


def spring(terms):
    """A dimer that a spring holds, 4 Å apart at first."""
    return ms.relax(ms.System([[0.0, 0.0, 0.0], [4.0, 0.3, -0.2]], species=["Ar", "Ar"]), terms)


@pytest.mark.slow
def test_a_spring_in_a_sum_gives_the_length_and_the_derivatives_of_the_formula():
    epsilon, sigma, k, r0 = 0.0103, 3.4, 0.05, 3.0
    lj = ms.LennardJones(epsilon=epsilon, sigma=sigma, cutoff=8.0, switch="truncated", onset=None)
    eq = spring(lj + ms.HarmonicBonds(k=k, r0=r0, bonds=((0, 1),)))

    def slope(r, k=k):
        return 4.0 * epsilon * (-12.0 * sigma**12 / r**13 + 6.0 * sigma**6 / r**7) + k * (r - r0)

    r = brentq(slope, 3.0, 4.0, xtol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(np.diff(eq.system.positions, axis=0)), r, atol=1e-8)  # fmax
    curvature = 4.0 * epsilon * (156.0 * sigma**12 / r**14 - 42.0 * sigma**6 / r**8) + k
    bond = lambda s, p: ms.observables.distances([[0, 1]])(s, p)[0]  # noqa: E731
    found = ms.gradient(bond, eq)
    np.testing.assert_allclose(found.terms[1].k, -(r - r0) / curvature, rtol=1e-8)
    np.testing.assert_allclose(found.terms[1].r0, k / curvature, rtol=1e-8)
    compiled = jax.jit(jax.grad(lambda p: bond(eq.system.with_positions(ms.equilibrium_positions(eq.system, p)), p)))(
        eq.potential
    )
    np.testing.assert_allclose(compiled.terms[1].r0, k / curvature, rtol=1e-8)


@pytest.mark.parametrize("second", ["springs", "Ewald"])
def test_springs_alone_are_terms_too(second):
    """Two springs in a row act as one of both stiffnesses; charges on a dimer in a huge cell as Coulomb's law says."""
    first = ms.HarmonicBonds(k=2.0, r0=3.0, bonds=((0, 1),))
    if second == "springs":
        eq = spring(first + ms.HarmonicBonds(k=6.0, r0=4.0, bonds=((0, 1),)))
        np.testing.assert_allclose(np.linalg.norm(np.diff(eq.system.positions, axis=0)), 3.75, rtol=1e-10)
        return
    atoms = Atoms("NaCl", [[0, 0, 0], [3.0, 0, 0]], cell=60.0 * np.eye(3), pbc=True)
    eq = ms.relax(ms.System.from_ase(atoms), first + ms.Ewald({"Na": 0.1, "Cl": -0.1}, cutoff=20.0, accuracy=1e-8))
    length = brentq(lambda r: 2.0 * (r - 3.0) + COULOMB * 0.01 / r**2, 2.0, 3.0)
    # The dipole's images act on it: 4π p / 3V.
    np.testing.assert_allclose(np.linalg.norm(np.diff(eq.system.positions, axis=0)), length, atol=1e-5)


@pytest.mark.slow
def test_a_crystal_on_springs_strains_as_both_terms_say():
    """FCC argon whose bonds are springs: the energy for each atom is 6 (φ(r) + k/2 (r - r₀)²), neighbours alone."""
    crystal = ms.System.from_ase(bulk("Ar", "fcc", a=5.3, cubic=True) * 2)
    springs = ms.HarmonicBonds(k=0.1, r0=3.9, bonds=ms.HarmonicBonds.at_rest(crystal, 4.0).bonds)
    lj = ms.LennardJones(epsilon=0.0103, sigma=3.4, cutoff=4.6, switch="truncated", onset=None)
    eq = ms.relax(crystal, lj + springs, cell="isotropic")

    def energy(r):
        return 4.0 * 0.0103 * ((3.4 / r) ** 12 - (3.4 / r) ** 6) + 0.05 * (r - 3.9) ** 2

    best = minimize_scalar(energy, bracket=(3.7, 3.9), tol=1e-12)
    np.testing.assert_allclose(eq.system.cell[0, 0] / np.sqrt(8.0), best.x, atol=1e-7)
    np.testing.assert_allclose(eq.energy, 6 * 32 * best.fun, rtol=1e-10)


def test_a_term_that_hides_its_cell_is_not_strained():
    jax_md = pytest.importorskip("jax_md")
    displacement, _ = jax_md.space.periodic(10.6)
    hidden = ms.JaxMD(jax_md.energy.soft_sphere_pair(displacement, sigma=3.4, epsilon=0.1))
    crystal = ms.System.from_ase(bulk("Ar", "fcc", a=5.3, cubic=True) * 2)
    terms = ms.LennardJones(epsilon=0.0103, sigma=3.4, cutoff=5.0) + hidden
    refused(lambda: ms.relax(crystal, terms, cell="free"), "hides its cell")
