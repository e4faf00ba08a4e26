"""The shipped structures are what data/README.md says."""

import h5py
import numpy as np
import pytest

import mdsens as ms
from mdsens.common.paths import data_file


@pytest.mark.parametrize("name", ["2d_polyuniform_N64_Lp-1.0.nc", "2d_polyuniform_N64_Lp-4.0.nc"])
def test_jammed_packings_are_equilibria_with_the_stored_energy_and_stress(name):
    with h5py.File(data_file(name)) as file:
        cell = file["box"][0].reshape(2, 2)
        positions = file["pos"][0].reshape(64, 2) @ cell
        diameter, energy, stress = 2 * file["rad"][0], file["Energy"][0], file["Stress"][0].reshape(2, 2)
        assert file["Cijkl"].shape[1] == 6
    system = ms.System(positions, cell=cell, pbc=True)
    potential = ms.SoftSphere(diameter=diameter, epsilon=1.0)
    assert np.abs(potential.forces(system)).max() < 1e-12
    # Energies of overlaps of 1e-4 lose a few digits in 1 - r/s.
    np.testing.assert_allclose(potential.energy(system), energy, rtol=1e-10)
    np.testing.assert_allclose(potential.stress(system), [stress[0, 0], stress[1, 1], stress[0, 1]], atol=1e-10)


def test_silicon_is_diamond_cubic():
    system = ms.read(data_file("silicon.cif"))
    assert system.symbols == ["Si"] * 8 and system.pbc == (True, True, True)
    bonds = ms.StillingerWeber.silicon().find_neighbors(system, skin=0.0)
    assert (np.asarray(bonds.mask).sum(axis=1) == 4).all()


def test_a_mineral_with_a_hexagonal_cell_is_read():
    system = ms.read(data_file("cod_1010930.cif"))
    assert system.labels == ("Ni", "Sb") and len(system) == 4
