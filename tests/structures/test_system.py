"""Structures: by hand, from and to ASE, from files; and what is refused, with which words."""

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedPlane
from helpers import refused

import mdsens as ms

TRICLINIC = np.array([[4.0, 0.0, 0.0], [1.1, 3.7, 0.0], [-0.4, 0.9, 3.3]])


def salt():
    """Rattled rock salt in a triclinic cell, with atoms far outside it."""
    atoms = bulk("NaCl", "rocksalt", a=5.64) * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    atoms.positions += [7.0, -9.0, 3.0]
    return atoms


# From and to ASE


def with_isotopes():
    atoms = salt()
    masses = atoms.get_masses()
    masses[0], masses[3] = 21.9944, 36.96590
    atoms.set_masses(masses)
    return atoms


def with_fixed_atoms():
    atoms = salt()
    atoms.set_constraint([FixAtoms(indices=[0]), FixAtoms(mask=[False, False, True, False])])
    return atoms


def slab():
    """A periodic sheet whose third cell vector is zero, as ASE makes it."""
    sheet = graphene(vacuum=None)
    assert not sheet.cell[2].any()
    return sheet


ASE_STRUCTURES = {
    "triclinic crystal": salt,
    "isotopes": with_isotopes,
    "frozen atoms": with_fixed_atoms,
    "mixed periodicity": lambda: Atoms("SiC", [[0.0, 0, 0], [9, 9, 9]], cell=TRICLINIC, pbc=[True, False, True]),
    "slab without a third vector": slab,
    "cluster in a box": lambda: Atoms("Ar2", [[0.0, 0, 0], [3, 0, 0]], cell=[10, 11, 12], pbc=False),
    "cluster without a cell": lambda: molecule("CH3OH"),
}


@pytest.mark.parametrize("make", ASE_STRUCTURES.values(), ids=ASE_STRUCTURES)
def test_ase_structures_come_back_as_they_were(make):
    atoms = make()
    again = ms.System.from_ase(atoms).to_ase()
    # Copies, not computations: equal to the last bit.
    np.testing.assert_array_equal(again.positions, atoms.positions)
    np.testing.assert_array_equal(again.cell.array, atoms.cell.array)
    np.testing.assert_array_equal(again.pbc, atoms.pbc)
    np.testing.assert_array_equal(again.get_masses(), atoms.get_masses())
    assert again.get_chemical_symbols() == atoms.get_chemical_symbols()
    fixed = [set(np.concatenate([c.index for c in a.constraints])) if a.constraints else set() for a in (atoms, again)]
    assert fixed[0] == fixed[1]


def test_frozen_atoms_are_those_that_ase_holds_fixed():
    atoms = salt()
    atoms.set_constraint(FixAtoms(indices=[-1, 1]))
    assert np.flatnonzero(ms.System.from_ase(atoms).frozen).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("constraint", "name"),
    [
        (FixBondLength(0, 1), "FixBondLengths"),
        (FixedPlane([0], (1, 0, 0)), "FixedPlane"),
        (FixCartesian([0], mask=(True, False, False)), "FixCartesian"),
    ],
    ids=["bond length", "plane", "one coordinate"],
)
def test_other_constraints_are_refused_by_name(constraint, name):
    atoms = salt()
    atoms.set_constraint([FixAtoms([1]), constraint])
    refused(lambda: ms.System.from_ase(atoms), name, "FixAtoms")


def test_labels_that_are_no_elements_survive_ase():
    system = ms.System(np.eye(3), species=["big", "small", "big"], masses=[2.0, 1.0, 2.0], frozen=[True, False, False])
    atoms = system.to_ase()
    assert set(atoms.get_chemical_symbols()) == {"X"}
    again = ms.System.from_ase(atoms)
    assert again.labels == ("big", "small") and again.symbols == system.symbols
    np.testing.assert_array_equal(again.masses, system.masses)
    np.testing.assert_array_equal(again.frozen, system.frozen)


def test_a_planar_system_lies_in_the_plane_of_ase():
    system = ms.System([[0.0, 0.0], [0.5, 0.9]], cell=[[2.0, 0.0], [0.3, 1.7]], pbc=[True, False])
    atoms = system.to_ase()
    np.testing.assert_array_equal(atoms.positions, [[0, 0, 0], [0.5, 0.9, 0]])
    np.testing.assert_array_equal(atoms.cell.array, [[2, 0, 0], [0.3, 1.7, 0], [0, 0, 0]])
    assert atoms.pbc.tolist() == [True, False, False]


# By hand


@pytest.mark.parametrize("dim", [2, 3])
def test_a_system_by_hand_keeps_what_it_was_given(dim):
    positions = np.arange(4.0 * dim).reshape(4, dim) - 5.0
    cell = TRICLINIC[:dim, :dim]
    system = ms.System(positions, cell=cell, pbc=[True] * (dim - 1) + [False], species=["B", "A", "ghost_7", "A"])
    assert len(system) == 4 and system.dim == dim
    assert system.labels == ("A", "B", "ghost_7") and system.symbols == ["B", "A", "ghost_7", "A"]
    assert system.species.tolist() == [1, 0, 2, 0]
    assert system.pbc == (True,) * (dim - 1) + (False,)
    # Never wrapped: what leaves the cell stays outside.
    np.testing.assert_array_equal(system.positions, positions)
    np.testing.assert_array_equal(system.cell, cell)
    np.testing.assert_array_equal(system.masses, 1.0)
    assert not system.frozen.any() and system.positions.dtype == jnp.float64
    np.testing.assert_allclose(system.volume, abs(np.linalg.det(cell)), rtol=1e-14)  # one determinant


def test_elements_have_their_masses_and_a_row_of_lengths_is_an_orthogonal_cell():
    system = ms.System([[0, 0, 0], [1, 1, 1]], cell=[3.0, 4.0, 5.0], pbc=True, species=["C", "Si"])
    np.testing.assert_allclose(system.masses, [12.011, 28.085])
    np.testing.assert_array_equal(system.cell, np.diag([3.0, 4.0, 5.0]))
    np.testing.assert_allclose(system.volume, 60.0, rtol=1e-15)


def test_a_system_is_a_pytree_whose_positions_can_be_traced():
    system = ms.System(np.eye(3), species=["A", "B", "A"])
    doubled = jax.jit(lambda s: s.with_positions(2 * s.positions))(system)
    assert doubled.labels == system.labels
    np.testing.assert_array_equal(doubled.positions, 2 * np.eye(3))
    inside = jax.jit(lambda x: ms.System(x, cell=3 * jnp.eye(3), pbc=True).positions)(system.positions)
    np.testing.assert_array_equal(inside, np.eye(3))


def test_a_strain_takes_the_cell_and_the_atoms_along():
    F = jnp.array([[1.01, 0.02], [0.02, 0.97]])
    system = ms.System([[0.1, 0.2], [0.5, 0.7]], cell=[1.0, 1.5], pbc=True, frozen=[True, False])
    strained = jax.jit(lambda F: system.deformed(F))(F)
    np.testing.assert_allclose(strained.positions, system.positions @ F, rtol=1e-15)
    np.testing.assert_allclose(strained.cell, system.cell @ F, rtol=1e-15)
    np.testing.assert_array_equal(strained.frozen, system.frozen)
    assert ms.System([[0.1, 0.2]]).deformed(F).cell is None


def test_single_precision_comes_by_name_only():
    short = ms.System(np.eye(3, dtype=np.float32), dtype="float32")
    assert short.positions.dtype == jnp.float32
    assert ms.System(np.eye(3)).astype("float32").positions.dtype == jnp.float32
    assert short.astype("float64").positions.dtype == jnp.float64


# Files


@pytest.mark.parametrize("name", ["salt.cif", "salt.xyz", "salt.extxyz", "POSCAR", "salt.vasp", "salt.traj"])
def test_structure_files_are_read_by_what_they_are(name, tmp_path):
    atoms = salt()
    ase.io.write(tmp_path / name, atoms)
    system = ms.read(tmp_path / name)
    assert sorted(system.symbols) == sorted(atoms.get_chemical_symbols()) and system.pbc == (True,) * 3
    order = np.argsort(system.symbols, kind="stable")
    found = system.to_ase()[order]
    expected = atoms[np.argsort(atoms.get_chemical_symbols(), kind="stable")]
    # extxyz keeps eight decimals; CIF has its own setting of the cell, so that distances are what is compared.
    np.testing.assert_allclose(found.get_all_distances(mic=True), expected.get_all_distances(mic=True), atol=2e-8)
    np.testing.assert_allclose(system.volume, atoms.get_volume(), rtol=1e-8)


def test_a_written_structure_is_read_back_with_its_frozen_atoms(tmp_path):
    atoms = salt()
    atoms.set_constraint(FixAtoms([2]))
    system = ms.System.from_ase(atoms)
    ase.io.write(tmp_path / "frozen.traj", system.to_ase())
    again = ms.read(tmp_path / "frozen.traj")
    np.testing.assert_array_equal(again.positions, system.positions)
    np.testing.assert_array_equal(again.frozen, system.frozen)


def lammps_data(path):
    atoms = salt()
    ase.io.write(path, atoms, format="lammps-data", specorder=["Na", "Cl"], masses=False)
    return atoms


def test_lammps_types_get_the_names_they_are_given(tmp_path):
    atoms = lammps_data(tmp_path / "salt.lammps-data")
    system = ms.read(tmp_path / "salt.lammps-data", species=["Na", "Cl"])
    assert system.symbols == atoms.get_chemical_symbols()
    np.testing.assert_allclose(system.masses, atoms.get_masses())
    # Written with about twelve digits, in LAMMPS's orientation.
    np.testing.assert_allclose(system.to_ase().get_all_distances(mic=True), atoms.get_all_distances(mic=True), atol=1e-8)


@pytest.mark.parametrize("name", ["salt.lmp", "salt.data", "data.salt"])
def test_lammps_data_files_are_known_by_their_usual_names(name, tmp_path):
    atoms = lammps_data(tmp_path / name)
    assert ms.read(tmp_path / name, species=["Na", "Cl"]).symbols == atoms.get_chemical_symbols()


def test_lammps_types_without_names_are_refused(tmp_path):
    path = tmp_path / "salt.lammps-data"
    lammps_data(path)
    refused(lambda: ms.read(path), "species=", "salt.lammps-data")
    refused(lambda: ms.read(path, species=["Na"]), "salt.lammps-data", "2 atom types", "names 1")


def test_species_are_for_files_that_do_not_name_them(tmp_path):
    ase.io.write(tmp_path / "salt.cif", salt())
    refused(lambda: ms.read(tmp_path / "salt.cif", species=["Na", "Cl"]), "species=", "cif")


def test_files_without_a_structure_are_refused(tmp_path):
    refused(lambda: ms.read(tmp_path / "none.cif"), "There is no file", "none.cif")
    refused(lambda: ms.read(tmp_path), "There is no file")
    (tmp_path / "empty.cif").write_text("")
    refused(lambda: ms.read(tmp_path / "empty.cif"), "empty.cif", "empty")
    (tmp_path / "letter.txt").write_text("Dear reader,\nthis is no structure.\n")
    refused(lambda: ms.read(tmp_path / "letter.txt"), "letter.txt", "not a structure file")
    (tmp_path / "letter.cif").write_text("Dear reader,\nthis is no structure.\n")
    refused(lambda: ms.read(tmp_path / "letter.cif"), "letter.cif", "could not be read")
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 4)
    refused(lambda: ms.read(tmp_path / "noise.bin"), "noise.bin")
    (tmp_path / "nobody.xyz").write_text("0\n\n")
    refused(lambda: ms.read(tmp_path / "nobody.xyz"), "no atoms")
    ase.io.write(tmp_path / "two.xyz", [salt(), salt()])
    refused(lambda: ms.read(tmp_path / "two.xyz"), "2 structures", "index=")


@pytest.mark.parametrize("name", ["salt.cif", "salt.xyz", "POSCAR", "salt.traj", "salt.lammps-data"])
@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_files_that_were_cut_off_are_refused(name, kept, tmp_path):
    path = tmp_path / name
    ase.io.write(path, salt())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    species = ["Cl", "Na"] if name.endswith("data") else None
    refused(lambda: ms.read(path, species=species), name, "cut off")


@pytest.mark.parametrize("name", ["set.extxyz", "set.traj", "set.db", "XDATCAR"])
def test_a_file_of_several_structures_is_a_list(name, tmp_path):
    images = [salt() for _ in range(3)]
    for k, atoms in enumerate(images):
        atoms.positions += 0.1 * k
    # XDATCAR keeps neither whole cells nor more digits than eight, in fractions of the cell.
    ase.io.write(tmp_path / name, images, **({"format": "vasp-xdatcar"} if name == "XDATCAR" else {}))
    found = ms.read(tmp_path / name, index=":")
    assert [len(system) for system in found] == [4, 4, 4]
    for index, expected in ((":", [0, 1, 2]), ("1:", [1, 2]), (slice(None, None, 2), [0, 2])):
        for system, k in zip(ms.read(tmp_path / name, index=index), expected, strict=True):
            np.testing.assert_array_equal(system.positions, found[k].positions)
    for k in (0, -1, "1"):
        np.testing.assert_array_equal(ms.read(tmp_path / name, index=k).positions, found[int(k)].positions)
    np.testing.assert_allclose(found[2].positions - found[0].positions, 0.2, atol=1e-7)
    refused(lambda: ms.read(tmp_path / name, index=7), "no structure at index=7")
    refused(lambda: ms.read(tmp_path / name, index="7:"), "no structure at index='7:'")


def test_a_file_of_one_structure_is_a_list_of_one(tmp_path):
    ase.io.write(tmp_path / "one.cif", salt())
    (system,) = ms.read(tmp_path / "one.cif", index=":")
    assert len(system) == 4


def test_a_file_with_a_position_that_is_not_finite_is_refused(tmp_path):
    (tmp_path / "nan.xyz").write_text("2\n\nSi 0 0 0\nSi nan 1 1\n")
    refused(lambda: ms.read(tmp_path / "nan.xyz"), "atom 1", "not finite")


# What is refused

X = np.arange(6.0).reshape(2, 3)
LEFT_HANDED = TRICLINIC[[1, 0, 2]]
FLAT = np.array([[3.0, 0, 0], [0, 3, 0], [3, 3, 0]])

BAD_INPUT = {
    "a position that is not a number": (lambda: ms.System([[0, 0, 0], [0, np.nan, 0]]), ["atom 1", "not finite"]),
    "a position at infinity": (lambda: ms.System([[0, np.inf, 0], [0, 0, 0]]), ["atom 0", "not finite"]),
    "no atoms": (lambda: ms.System(np.zeros((0, 3))), ["positions", "(0, 3)"]),
    "flat positions": (lambda: ms.System(np.zeros(3)), ["positions", "(3,)"]),
    "four dimensions": (lambda: ms.System(np.zeros((2, 4))), ["positions", "(2, 4)"]),
    "ragged positions": (lambda: ms.System([[0, 0, 0], [1, 2]]), ["positions", "numbers"]),
    "words for positions": (lambda: ms.System([["a", "b", "c"]]), ["positions", "numbers"]),
    "single precision": (lambda: ms.System(X.astype(np.float32)), ["positions", "float32", "dtype="]),
    "single-precision cell": (lambda: ms.System(X, cell=np.eye(3, dtype=np.float32), pbc=True), ["cell", "float32"]),
    "cell without pbc": (lambda: ms.System(X, cell=TRICLINIC), ["pbc"]),
    "pbc without cell": (lambda: ms.System(X, pbc=True), ["pbc=True", "cell"]),
    "one direction periodic without cell": (lambda: ms.System(X, pbc=[False, False, True]), ["cell"]),
    "two flags in three dimensions": (lambda: ms.System(X, cell=TRICLINIC, pbc=[True, False]), ["pbc", "3", "2"]),
    "planar cell": (lambda: ms.System(X, cell=np.eye(2), pbc=True), ["cell", "(3, 3)", "(2, 2)"]),
    "cell that is one number": (lambda: ms.System(X, cell=3.0, pbc=True), ["cell", "(3, 3)"]),
    "singular cell": (lambda: ms.System(X, cell=FLAT, pbc=True), ["singular", "dependent"]),
    "periodic along nothing": (lambda: ms.System(X, cell=np.diag([3.0, 3, 0]), pbc=True), ["singular", "zero"]),
    "cell that is not finite": (lambda: ms.System(X, cell=np.diag([3, 3, np.nan]), pbc=True), ["cell", "not finite"]),
    "label with a dash": (lambda: ms.System(X, species=["A", "B-1"]), ["'B-1'", "'-'"]),
    "label without letters": (lambda: ms.System(X, species=["A", ""]), ["''", "empty"]),
    "too few labels": (lambda: ms.System(X, species=["A"]), ["species", "2", "1"]),
    "too many masses": (lambda: ms.System(X, masses=[1.0, 2.0, 3.0]), ["masses", "(2,)", "(3,)"]),
    "words for masses": (lambda: ms.System(X, masses=["heavy", "light"]), ["masses", "numbers"]),
    "frozen as indices": (lambda: ms.System(X, frozen=[0, 1]), ["frozen", "mask", "indices"]),
    "frozen for one atom": (lambda: ms.System(X, frozen=[True]), ["frozen", "(2,)", "(1,)"]),
    "volume without a cell": (lambda: ms.System(X).volume, ["cell", "volume"]),
    "nobody, from ASE": (lambda: ms.System.from_ase(Atoms()), ["positions", "N > 0"]),
    "periodic without a cell, from ASE": (lambda: ms.System.from_ase(Atoms("H", pbc=True)), ["pbc=True", "cell"]),
}


@pytest.mark.parametrize(("call", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_refused_with_a_sentence_that_names_it(call, words):
    refused(call, *words)


def test_a_system_in_64_bits_is_refused_where_jax_has_only_32():
    with jax.enable_x64(False):
        refused(lambda: ms.System(X), "64-bit", "float32")


NOT_REFUSED_YET = {
    "complex positions": (lambda: ms.System(X + 1j), ["positions"]),
    "positions in whole numbers": (lambda: ms.System(X, dtype="int32"), ["dtype", "int32"]),
    "a mass that is not a number": (lambda: ms.System(X, masses=[1.0, np.nan]), ["masses"]),
    "a negative mass": (lambda: ms.System(X, masses=[1.0, -1.0]), ["masses"]),
    "no species": (lambda: ms.System(X, species=None), ["species"]),
    "a negative skin": (lambda: ms.System(X).with_neighbors(ms.SoftSphere(diameter=1.0, epsilon=1.0), skin=-0.5), ["skin"]),
}


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize(("call", "words"), NOT_REFUSED_YET.values(), ids=NOT_REFUSED_YET)
def test_more_bad_input_is_refused_with_a_sentence_that_names_it(call, words):
    refused(call, *words)


def test_a_file_with_several_structures_wants_an_index(tmp_path):
    ase.io.write(tmp_path / "two.xyz", [salt(), salt()])
    refused(lambda: ms.read(tmp_path / "two.xyz"), "2 structures", "index=")


def test_the_vectors_of_a_left_handed_cell_are_reversed():
    atoms = Atoms("Ar4", np.array([[0.0, 0, 0], [1.7, 1.5, 0.2], [-0.3, 2.0, 1.9], [5.0, 0.1, 1.0]]), cell=LEFT_HANDED, pbc=True)
    with pytest.warns(UserWarning, match="left-handed") as caught:
        system = ms.System.from_ase(atoms)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(system.positions, atoms.positions)
    np.testing.assert_allclose(np.linalg.det(system.cell), abs(np.linalg.det(LEFT_HANDED)))
    # The same lattice, so the same distances, by ASE.
    np.testing.assert_allclose(system.to_ase().get_all_distances(mic=True), atoms.get_all_distances(mic=True), atol=1e-12)
    with pytest.warns(UserWarning, match="left-handed"):
        plane = ms.System(X[:, :2], cell=[[0.2, 1], [1, 0]], pbc=[True, False])
    np.testing.assert_array_equal(plane.cell, [[0.2, 1], [-1, 0]])
    assert plane.pbc == (True, False)


def test_isotopes_have_their_own_masses():
    """M. Wang et al., Chin. Phys. C 45, 030003 (2021)."""
    heavy = ms.System(np.eye(3), species=["H", "D", "T"])
    np.testing.assert_allclose(heavy.masses, [1.008, 2.0141017781, 3.0160492820], rtol=1e-8)
    assert heavy.masses_known
    again = ms.System.from_ase(heavy.to_ase())
    assert again.symbols == ["H", "D", "T"] and heavy.to_ase().get_chemical_symbols() == ["H"] * 3
    np.testing.assert_array_equal(again.masses, heavy.masses)


def test_masses_of_other_labels_are_known_only_if_they_are_given():
    plain = ms.System(np.eye(3), species=["Si1", "Si2", "Si1"])
    assert not plain.masses_known and plain.given_masses is None
    for copy in (plain.astype("float64"), ms.System.from_ase(plain.to_ase())):
        assert not copy.masses_known and copy.symbols == plain.symbols
    given = ms.System(np.eye(3), species=["Si1", "Si2", "Si1"], masses=28.085)
    assert given.masses_known and ms.System.from_ase(given.to_ase()).masses_known
    np.testing.assert_array_equal(given.masses, [28.085] * 3)


def test_masses_are_the_elements_only_where_all_labels_are_elements():
    np.testing.assert_allclose(ms.System(np.eye(3), species=["Si", "Si", "C"]).masses, [28.085, 28.085, 12.011])
    np.testing.assert_array_equal(ms.System(np.eye(3), species=["A", "B", "B"]).masses, 1.0)
