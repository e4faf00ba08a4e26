"""Elastic constants of sheets per area: graphene against LAMMPS, in and out of a box; the order of Voigt's components."""

import functools

import jax
import numpy as np
import pytest
from ase.build import bulk
from lammps_reference import shipped

import mdsens as ms
from mdsens.observables import elastic_constants, moduli
from mdsens.potentials.base import parameter_paths


def graphene(pbc, order=(0, 1, 2), vacuum=20.0):
    a = 2.49205
    cell = np.array([[a, 0.0, 0.0], [-a / 2, a * np.sqrt(0.75), 0.0], [0.0, 0.0, vacuum]])
    places = np.array([[0.0, 0.0, 0.5], [1 / 3, 2 / 3, 0.5]]) @ cell
    order = list(order)
    system = ms.System(places[:, order], cell=cell[order][:, order], pbc=np.array(pbc)[order], species="C")
    assert np.linalg.det(system.cell) > 0.0
    return system


@pytest.fixture(scope="module")
def carbon():
    return ms.Tersoff.from_file(shipped("BNC.tersoff"))


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=["z", "x", "y"])
def test_graphene_has_the_constants_that_lammps_finds(carbon, order):
    expected = np.array([[356.38, 23.18, 0.0], [23.18, 356.38, 0.0], [0.0, 0.0, 166.60]])
    for pbc in ([True, True, False], [True, True, True]):
        found = np.asarray(elastic_constants(graphene(pbc, order), carbon, sheet=True))
        # LAMMPS's by differences of its stress, of five digits, at its lattice constant of six.
        np.testing.assert_allclose(found, expected, atol=0.02)
    assert float(ms.observables.young_modulus(graphene(pbc, order), carbon, sheet=True)) == pytest.approx(
        (356.38**2 - 23.18**2) / 356.38, rel=1e-4
    )
    assert float(ms.observables.poisson_ratio(graphene([True, True, False], order), carbon)) == pytest.approx(
        23.18 / 356.38, rel=1e-3
    )


@pytest.mark.slow
def test_moduli_of_a_sheet_in_a_box_are_refused_with_the_remedy(carbon):
    box = graphene([True, True, True])
    observables = ms.observables
    for modulus in (
        observables.bulk_modulus,
        functools.partial(observables.bulk_modulus, average="voigt"),
        observables.young_modulus,
        observables.poisson_ratio,
        observables.compliance,
        observables.linear_compressibility,
        observables.universal_anisotropy,
    ):
        with pytest.raises(ms.InputError, match="sheet=True"):
            modulus(box, carbon)
    constants = np.asarray(elastic_constants(box, carbon))
    assert np.isnan(jax.jit(moduli.bulk)(constants))
    np.testing.assert_allclose(constants[0, 0] * 20.0 / 10.0, 356.38, atol=0.02)  # GPa Å is 0.1 N/m


@pytest.mark.slow
def test_constants_of_a_sheet_have_derivatives(carbon):
    eq = ms.relax(graphene([True, True, False]), carbon, cell="free", fmax=1e-11)
    names = parameter_paths(carbon)
    name = next(one for one in names if one.startswith("lam1") and one.endswith("C-C-C"))
    slope = jax.tree.leaves(ms.jacobian(elastic_constants, eq))[names.index(name)]

    def at(change):
        leaves, structure = jax.tree.flatten(carbon)
        leaves[names.index(name)] = leaves[names.index(name)] + change
        changed = jax.tree.unflatten(structure, leaves)
        again = ms.relax(eq.system, changed, cell="free", fmax=1e-11, check_minimum=False)
        return np.asarray(elastic_constants(again.system, changed))

    h = 3e-4
    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    assert np.abs(slope - difference).max() < 1e-6 * np.abs(difference).max()


def test_components_of_stress_are_in_voigts_order():
    # A crystal of no symmetry, strained one component after the other: -dE/dε by differences.
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    cell = bulk("Ar", "fcc", a=1.5, cubic=True).cell.array @ (
        np.eye(3) + np.array([[0.02, 0.03, 0.0], [0.0, -0.01, 0.05], [0.01, 0.0, 0.0]])
    )
    system = ms.System(np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0.0]]) @ cell, cell=cell, pbc=True)
    pairs = {"xx": (0, 0), "yy": (1, 1), "zz": (2, 2), "yz": (1, 2), "xz": (0, 2), "xy": (0, 1)}

    def energy(i, j, size):
        strain = np.zeros((3, 3))
        strain[i, j] = strain[j, i] = size if i == j else 0.5 * size
        deformation = np.eye(3) + strain
        places = np.asarray(system.positions) @ deformation
        return float(potential.energy(ms.System(places, cell=cell @ deformation, pbc=True)))

    h = 1e-4
    slopes = [(energy(i, j, h) - energy(i, j, -h)) / (2 * h) for i, j in pairs.values()]
    expected = 160.21766208 * np.array(slopes) / np.linalg.det(cell)
    np.testing.assert_allclose(ms.observables.stress(system, potential), expected, atol=1e-5 * np.abs(expected).max())
    assert np.ptp(np.sort(expected[3:])[[0, 1]]) > 1e-2 * np.abs(expected).max()
