"""Structure files that other programs wrote: read right, or refused with what to do. LAMMPS and ASE say what is right."""

import gzip

import ase.io
import h5py
import lammps_reference
import numpy as np
import pytest
from helpers import refused

import mdsens as ms
from mdsens.structures.lammps_files import UNITS

TILTED = np.array([[4.0, 0.0, 0.0], [1.1, 3.7, 0.0], [-0.4, 0.9, 3.3]])
PLACES = np.array([[0.3, 0.1, 0.2], [2.5, 1.0, 0.4], [1.0, 2.2, 2.9]])
KINDS = ["Cu", "Ni", "Cu"]


def lammps_of(*commands):
    """An instance of LAMMPS after some commands; the test is skipped where there is none."""
    lmp, _ = lammps_reference._instance()
    lmp.command("clear")
    for command in commands:
        lmp.command(command)
    return lmp


# LAMMPS's data files

HEADER = """{first}

3 atoms
2 atom types

-0.5 3.5 xlo xhi
0 3.7 ylo yhi
1.0 4.3 zlo zhi
1.1 -0.4 0.9 xy xz yz
{more}
Atoms{hint}

"""

LINES = {
    "atomic": "{id} {type} {x}",
    "charge": "{id} {type} -1 {x}",
    "molecular": "{id} 7 {type} {x}",
    "bond": "{id} 7 {type} {x}",
    "full": "{id} 7 {type} 0.5 {x}",
    "ellipsoid": "{id} {type} 0 1.5 {x}",
    "sphere": "{id} {type} 1.0 1.5 {x}",
    "dipole": "{id} {type} 0.5 {x} 1 0 0",
    "body": "{id} {type} 0 2.5 {x}",
    "line": "{id} 7 {type} 0 1.5 {x}",
    "tri": "{id} 7 {type} 0 1.5 {x}",
    "electron": "{id} {type} 1 0 0.5 {x}",
    "dpd": "{id} {type} 1.5 {x}",
    "peri": "{id} {type} 1.0 1.5 {x}",
    "spin": "{id} {type} {x} 0 0 1 2.0",
}


def data_file(path, style, hint="", first="by hand", more="", images="", ids=(3, 1, 2)):
    lines = [
        LINES[style].format(id=i, type=1 if kind == "Cu" else 2, x=" ".join(map(str, place))) + images
        for i, place, kind in zip(ids, PLACES, KINDS, strict=True)
    ]
    path.write_text(HEADER.format(first=first, more=more, hint=hint) + "\n".join(lines) + "\n")
    return path


def check(system, scale=1.0, order=(1, 2, 0)):
    assert system.symbols == [KINDS[k] for k in order]
    np.testing.assert_allclose(system.positions, scale * PLACES[list(order)], rtol=1e-14)
    np.testing.assert_allclose(system.cell, scale * TILTED, rtol=1e-14)
    assert system.pbc == (True,) * 3


@pytest.mark.parametrize("images", ["", " 0 0 0"], ids=["", "images"])
@pytest.mark.parametrize("style", LINES)
def test_atom_styles_are_read_by_the_name_in_the_file_or_as_an_option(style, images, tmp_path):
    check(ms.read(data_file(tmp_path / "a.lmp", style, f"  # {style}", images=images), species=["Cu", "Ni"]))
    bare = data_file(tmp_path / "b.lmp", style, images=images)
    check(ms.read(bare, species=["Cu", "Ni"], atom_style=style))


@pytest.mark.parametrize("style", ["atomic", "charge", "molecular", "full", "ellipsoid", "sphere", "spin"])
def test_atom_styles_are_told_by_columns_that_fit_no_other(style, tmp_path):
    for images in ("", *([] if style == "spin" else [" 0 0 0"])):
        check(ms.read(data_file(tmp_path / f"{style}.lmp", style, images=images), species=["Cu", "Ni"]))


@pytest.mark.parametrize("style", ["electron", "line", "dipole"])
def test_atom_styles_that_columns_do_not_tell_are_asked_for(style, tmp_path):
    path = data_file(tmp_path / "a.lmp", style)
    path.write_text(path.read_text().replace(" 1 0 0\n", " 1.5 0 0\n"))
    refused(lambda: ms.read(path, species=["Cu", "Ni"]), "atom_style=")


def test_columns_that_fit_several_styles_are_asked_for(tmp_path):
    """Molecule 1 of type 1 or 2, or type 1 with a charge of 1 or 2."""
    path = tmp_path / "a.lmp"
    rows = "1 1 2 0.3 0.1 0.2\n2 1 1 2.5 1.0 0.4\n3 1 2 1.0 2.2 2.9\n"
    path.write_text(HEADER.format(first="", more="", hint="") + rows)
    refused(lambda: ms.read(path, species=["Cu", "Ni"]), "several atom styles", "atom_style=")
    assert ms.read(path, species=["Cu", "Ni"], atom_style="charge").symbols == ["Cu"] * 3
    assert ms.read(path, species=["Cu", "Ni"], atom_style="molecular").symbols == ["Ni", "Cu", "Ni"]
    path.write_text(HEADER.format(first="", more="2 bonds\n1 bond types\n", hint="") + rows)
    assert ms.read(path, species=["Cu", "Ni"]).symbols == ["Ni", "Cu", "Ni"]


def test_a_style_that_the_columns_contradict_is_refused(tmp_path):
    refused(lambda: ms.read(data_file(tmp_path / "a.lmp", "charge", " # full"), species=["Cu", "Ni"]), "full", "atom_style")
    refused(lambda: ms.read(data_file(tmp_path / "b.lmp", "charge"), species=["Cu", "Ni"], atom_style="fall"), "'fall'", "charge")
    refused(lambda: ms.read(data_file(tmp_path / "c.lmp", "charge"), species=["Cu", "Ni"], atomstyle="full"), "atomstyle")


@pytest.mark.parametrize(
    "style", ["atomic", "charge", "dipole", "ellipsoid", "full", "molecular", "sphere", "spin", "line", "dpd"]
)
def test_lammps_finds_the_same_types_and_places(style, tmp_path):
    """Where our columns are those of LAMMPS's own reader."""
    path = data_file(tmp_path / "a.lmp", style, f" # {style}", more="0 bonds\n" if style == "full" else "")
    plane = ["dimension 2"] if style == "line" else []
    try:
        lmp = lammps_of("units metal", f"atom_style {style}", *plane, "atom_modify map array sort 0 0", f"read_data {path}")
    except Exception as error:
        if "Unknown atom style" in str(error) or "Unrecognized atom style" in str(error) or "2d simulation" in str(error):
            pytest.skip(f"this LAMMPS has no {style}")
        raise
    types = np.ctypeslib.as_array(lmp.gather_atoms("type", 0, 1))
    places = np.ctypeslib.as_array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3)
    system = ms.read(path, species=["Cu", "Ni"])
    assert system.symbols == [["Cu", "Ni"][kind - 1] for kind in types]
    # LAMMPS wraps into its box.
    shifts = (np.asarray(system.positions) - places) @ np.linalg.inv(system.cell)
    np.testing.assert_allclose(shifts, np.rint(shifts), atol=1e-12)


NAMED = ["metal", "real", "nano", "electron", "cgs", "si", "micro"]
ANGSTROM = {"metal": 1.0, "real": 1.0, "nano": 10.0, "electron": 0.529177210903, "cgs": 1e8, "si": 1e10, "micro": 1e4}


@pytest.mark.parametrize("units", NAMED)
def test_units_in_the_first_line_are_those_of_the_numbers(units, tmp_path):
    """Lengths by the definitions of nm, bohr, cm, m and µm; the masses of copper and nickel are the same in all."""
    gram = 6.02214076e23
    unit = {"nano": 1e-18 * gram, "cgs": gram, "si": 1e3 * gram, "micro": 1e-12 * gram}.get(units, 1.0)
    more = f"\nMasses\n\n1 {63.546 / unit!r}\n2 {58.693 / unit!r}\n"
    first = f"LAMMPS data file via write_data, version 29 Aug 2024, timestep = 0, units = {units}"
    system = ms.read(data_file(tmp_path / "a.lmp", "atomic", " # atomic", first, more), species=["Cu", "Ni"])
    check(system, ANGSTROM[units])
    np.testing.assert_allclose(system.masses, [58.693, 63.546, 63.546])
    other = "nano" if units == "metal" else "metal"
    bare = data_file(tmp_path / "b.lmp", "atomic", " # atomic")
    check(ms.read(bare, species=["Cu", "Ni"], units=units), ANGSTROM[units])
    # What is asked for goes before what the file says.
    check(ms.read(data_file(tmp_path / "c.lmp", "atomic", "", first), species=["Cu", "Ni"], units=other), ANGSTROM[other])
    assert set(UNITS) == {*NAMED, "lj"}


@pytest.mark.parametrize("first", ["LAMMPS data, units = lj", "lj fluid, units lj", "UNITS: LJ"])
def test_reduced_units_are_taken_where_they_are_asked_for(first, tmp_path):
    path = data_file(tmp_path / "a.lmp", "atomic", first=first, more="\nMasses\n\n1 1.0\n2 1.0\n")
    refused(lambda: ms.read(path, species=["Cu", "Ni"]), "lj", 'units="lj"')
    check(ms.read(path, species=["Cu", "Ni"], units="lj"))
    refused(lambda: ms.read(path, species=["Cu", "Ni"], units="miles"), "'miles'", "metal")


def test_data_files_of_lammps_itself_in_its_units(tmp_path):
    for units, scale in (("nano", 10.0), ("real", 1.0), ("metal", 1.0)):
        lmp = lammps_of(
            f"units {units}",
            "atom_style charge",
            "region box block 0 4 0 5 0 6",
            "create_box 2 box",
            "mass * 1.0" if units == "nano" else "mass 1 63.546",
            *([] if units == "nano" else ["mass 2 58.693"]),
        )
        lmp.create_atoms(2, [1, 2], [2, 1], [0.5, 0.5, 0.5, 1.0, 2.0, 3.0])
        path = tmp_path / f"{units}.data"
        lmp.command(f"write_data {path}")
        system = ms.read(path, species=["A", "B"] if units == "nano" else ["Cu", "Ni"])
        assert system.symbols == (["B", "A"] if units == "nano" else ["Ni", "Cu"])
        np.testing.assert_allclose(system.positions, scale * np.array([[0.5, 0.5, 0.5], [1.0, 2.0, 3.0]]), rtol=1e-14)
        np.testing.assert_allclose(np.diag(system.cell), scale * np.array([4.0, 5.0, 6.0]), rtol=1e-14)


def test_species_that_contradict_the_masses_are_refused(tmp_path):
    def with_masses(first, second):
        return data_file(tmp_path / "a.lmp", "atomic", more=f"\nMasses\n\n1 {first}\n2 {second}\n")

    path = with_masses(63.546, 58.6934)
    check(ms.read(path, species=["Cu", "Ni"]))
    refused(lambda: ms.read(path, species=["Ni", "Cu"]), "'Ni' the mass 63.546", "Cu is nearest")
    refused(lambda: ms.read(path, species=["Cu", "Co"]), "'Co' the mass 58.6934", "Ni is nearest")
    refused(lambda: ms.read(path), 'species=["Cu", "Ni"]')
    refused(lambda: ms.read(with_masses(1.0, 1.0), species=["Cu", "Ni"]), "the mass 1,")
    # Whole numbers, isotopes, and labels that have no mass of their own.
    for masses, species in (((64, 59), ["Cu", "Ni"]), ((62.93, 57.94), ["Cu", "Ni"]), ((1.0, 2.0), ["A", "B"])):
        system = ms.read(with_masses(*masses), species=species)
        np.testing.assert_array_equal(system.masses, np.array(masses)[[1, 0, 0]].astype(float))
    assert ms.read(with_masses(2.014, 1.008), species=["D", "H"]).symbols == ["H", "D", "D"]
    assert ms.read(with_masses(2.014, 1.008), species=["H", "H"]).masses.tolist() == [1.008, 2.014, 2.014]


def test_labels_that_are_no_elements_and_names_of_types(tmp_path):
    path = data_file(tmp_path / "a.lmp", "atomic")
    assert ms.read(path, species=["big", "small"]).symbols == ["small", "big", "big"]
    labels = "\nAtom Type Labels\n\n1 Cu\n2 Ni\n"
    check(ms.read(data_file(tmp_path / "b.lmp", "atomic", more=labels)))
    refused(lambda: ms.read(tmp_path / "b.lmp", species=["Cu", "Co"]), "'Ni'", "'Co'")
    text = (tmp_path / "b.lmp").read_text()
    head, atoms = text.split("Atoms\n")
    rows = [line.split() for line in atoms.split("\n") if line.strip()]
    named = "\n".join(" ".join([row[0], "Cu" if row[1] == "1" else "Ni", *row[2:]]) for row in rows)
    (tmp_path / "c.lmp").write_text(f"{head}Atoms # atomic\n\n{named}\n")
    check(ms.read(tmp_path / "c.lmp"))
    masses = "\nMasses\n\nNi 58.693\nCu 63.546\n"
    (tmp_path / "d.lmp").write_text(f"{head}{masses.lstrip()}\nAtoms # atomic\n\n{named}\n")
    np.testing.assert_allclose(ms.read(tmp_path / "d.lmp").masses, [58.693, 63.546, 63.546])


def test_damaged_data_files_are_refused(tmp_path):
    refused(lambda: ms.read(data_file(tmp_path / "a.lmp", "atomic", ids=(1, 2, 2)), species=["Cu", "Ni"]), "atom 2 twice")
    refused(lambda: ms.read(data_file(tmp_path / "b.lmp", "atomic"), species=["Cu"]), "2 atom types", "names 1")
    text = data_file(tmp_path / "c.lmp", "atomic").read_text()
    (tmp_path / "d.lmp").write_text(text.replace("3 atoms", "4 atoms"))
    refused(lambda: ms.read(tmp_path / "d.lmp", species=["Cu", "Ni"]), "3 lines of atoms", "announces 4")
    (tmp_path / "e.lmp").write_text(text.replace("1.0 4.3 zlo zhi\n", ""))
    refused(lambda: ms.read(tmp_path / "e.lmp", species=["Cu", "Ni"]), "'zlo zhi'")
    (tmp_path / "f.lmp").write_text(text + text[text.index("Atoms") :])
    refused(lambda: ms.read(tmp_path / "f.lmp", species=["Cu", "Ni"]), "Atoms twice")


def test_general_boxes_and_image_flags(tmp_path):
    """The vectors of a box may be anything; flags count them, as LAMMPS says."""
    text = data_file(tmp_path / "a.lmp", "atomic", images=" 1 0 -2").read_text()
    vectors = "0 3.7 1.1 avec\n4 0 0 bvec\n0.9 -0.4 -3.3 cvec\n0 0 0 abc origin\n"
    start, end = text.index("-0.5 3.5"), text.index("1.1 -0.4 0.9 xy xz yz\n")
    (tmp_path / "b.lmp").write_text(text[:start] + vectors + text[end + len("1.1 -0.4 0.9 xy xz yz\n") :])
    cell = np.array([[0, 3.7, 1.1], [4, 0, 0], [0.9, -0.4, -3.3]])
    system = ms.read(tmp_path / "b.lmp", species=["Cu", "Ni"])
    np.testing.assert_allclose(system.cell, cell)
    np.testing.assert_allclose(system.positions, PLACES[[1, 2, 0]] + cell[0] - 2 * cell[2], rtol=1e-14)
    np.testing.assert_allclose(
        ms.read(tmp_path / "b.lmp", species=["Cu", "Ni"], read_image_flags=False).positions, PLACES[[1, 2, 0]], rtol=1e-14
    )


# LAMMPS's dumps


def dump_file(path, commands, units="metal", columns="id type x y z", box=None):
    """Two frames that LAMMPS writes, of atoms in a tilted box."""
    lmp = lammps_of(
        f"units {units}",
        "atom_style atomic",
        f"region box prism {box or '0 4 0 3.7 0 3.3 1.1 -0.4 0.9'}",
        "box tilt large",
        "create_box 2 box",
        "mass 1 63.546",
        "mass 2 58.693",
    )
    lmp.create_atoms(3, [3, 1, 2], [1, 2, 1], PLACES.ravel().tolist())
    lmp.command(f"dump it all custom 1 {path} {columns}")
    for command in commands:
        lmp.command(f"dump_modify it {command}")
    lmp.command("pair_style zero 1.0")
    lmp.command("pair_coeff * *")
    lmp.command("run 0")
    lmp.command("velocity all set 10 0 0")
    lmp.command("fix move all nve")
    lmp.command("run 1")
    lmp.command("undump it")
    return path


@pytest.mark.parametrize("columns", ["x y z", "xu yu zu", "xs ys zs", "xsu ysu zsu"])
def test_dumps_of_lammps_with_types(columns, tmp_path):
    path = dump_file(tmp_path / "a.dump", ["format float %.15g"], columns=f"id type {columns}")
    refused(lambda: ms.read(path, index=0), "species=")
    for k, system in enumerate(ms.read(path, species=["Cu", "Ni"], index=":")):
        assert system.symbols == ["Ni", "Cu", "Cu"] and system.pbc == (True, True, True)
        # Scaled ones have lost digits; wrapped ones may be elsewhere in the crystal.
        shifts = (np.asarray(system.positions) - PLACES[[1, 2, 0]] - [0.01 * k, 0, 0]) @ np.linalg.inv(TILTED)
        np.testing.assert_allclose(shifts, np.rint(shifts), atol=1e-12)
        np.testing.assert_allclose(system.cell, TILTED, rtol=1e-14)
    assert ms.read(path, species=["A", "B"], index=-1).symbols == ["B", "A", "A"]
    refused(lambda: ms.read(path, species=["Cu"], index=0), "2 atom types", "names 1")
    refused(lambda: ms.read(path, species=["Cu", "Ni"], index=5), "index=5")
    refused(lambda: ms.read(path, species=["Cu", "Ni"]), "2 structures")


def test_dumps_with_elements_and_units(tmp_path):
    path = dump_file(tmp_path / "a.dump", ["units yes", "element Cu Ni"], columns="id element x y z")
    assert path.read_text().startswith("ITEM: UNITS\nmetal")
    assert ms.read(path, index=1).symbols == ["Ni", "Cu", "Cu"]
    text = path.read_text()
    path.write_text(text.replace("\nmetal\n", "\nnano\n"))
    first, second = ms.read(path, index=":")  # the units are said once
    np.testing.assert_allclose(second.cell, 10.0 * TILTED, rtol=1e-14)
    np.testing.assert_allclose((second.positions - first.positions)[:, 0], 0.1, atol=1e-5)
    path.write_text(text.replace("\nmetal\n", "\nlj\n"))
    refused(lambda: ms.read(path, index=0), "lj", 'units="lj"')
    np.testing.assert_allclose(ms.read(path, index=0, units="lj").cell, TILTED, rtol=1e-14)
    with gzip.open(tmp_path / "a.dump.gz", "wt") as file:
        file.write(text)
    assert len(ms.read(tmp_path / "a.dump.gz", index=":")) == 2
    path.write_text(text.replace("pp pp pp", "pp ss fm"))
    assert ms.read(path, index=0).pbc == (True, False, False)


def test_dumps_whose_elements_are_lammps_s_default_or_contradict_their_masses(tmp_path):
    path = dump_file(tmp_path / "a.dump", [], columns="id type element x y z")
    assert {line.split()[2] for line in path.read_text().splitlines() if len(line.split()) == 6} == {"C"}
    refused(lambda: ms.read(path, index=0), "all types C", "species=")
    assert ms.read(path, index=0, species=["Cu", "Ni"]).symbols == ["Ni", "Cu", "Cu"]
    path = dump_file(tmp_path / "b.dump", ["element Cu Ni"], columns="id type element mass x y z")
    assert ms.read(path, index=0).masses.tolist() == [58.693, 63.546, 63.546]
    refused(lambda: ms.read(path, index=0, species=["Ni", "Cu"]), "63.546")
    refused(lambda: ms.read(path, index=0, species=["A", "B"]), "leave it out")
    path = dump_file(tmp_path / "c.dump", ["element Ni Cu"], columns="id element mass x y z")
    refused(lambda: ms.read(path, index=0), "the mass", "is nearest", "species=")


def test_damaged_dumps_are_refused(tmp_path):
    path = dump_file(tmp_path / "a.dump", [])
    text = path.read_text()
    lines = text.splitlines()
    for name, changed, words in (
        ("twice", text.replace("\n3 1 ", "\n2 1 "), ["atom 2 twice"]),
        ("cut", "\n".join(lines[:-1]) + "\n", ["cut off"]),
        ("boundary", text.replace("BOX BOUNDS xy xz yz pp pp pp", "BOX BOUNDS xy xz yz"), ["pp pp pp"]),
        ("columns", text.replace("id type x y z", "id type vx vy vz"), ["columns x, y and z"]),
        ("short", text.replace("id type x y z", "id type x y z q"), ["of other lengths"]),
    ):
        assert changed != text, name
        (tmp_path / name).write_text(changed)
        refused(lambda at=tmp_path / name: ms.read(at, species=["Cu", "Ni"], index=":"), *words)


def test_a_tilted_box_in_a_dump_is_that_of_lammps(tmp_path):
    """Its bounds are those of the box around it, whichever way it leans."""
    for box in ("0 4 0 3.7 0 3.3 1.1 0.4 -0.9", "-1 3 1 4.7 -0.5 2.95 -1.1 -0.4 0.9", "0 4 0 3.7 0 3.3 -1.1 1.4 0"):
        path = dump_file(tmp_path / "a.dump", ["format float %.15g"], box=box, columns="id type xs ys zs")
        x0, x1, y0, y1, z0, z1, xy, xz, yz = map(float, box.split())
        cell = np.array([[x1 - x0, 0, 0], [xy, y1 - y0, 0], [xz, yz, z1 - z0]])
        system = ms.read(path, species=["Cu", "Ni"], index=0)
        np.testing.assert_allclose(system.cell, cell, atol=1e-14)
        shifts = (np.asarray(system.positions) - PLACES[[1, 2, 0]]) @ np.linalg.inv(cell)
        np.testing.assert_allclose(shifts, np.rint(shifts), atol=1e-12)


# Files that ASE reads


def cif(sites, columns="label type_symbol fract_x fract_y fract_z occupancy"):
    cell = "".join(f"_cell_length_{a} 3.6\n" for a in "abc") + "".join(
        f"_cell_angle_{a} 90\n" for a in ("alpha", "beta", "gamma")
    )
    names = "".join(f"_atom_site_{name}\n" for name in columns.split())
    return f"data_x\n{cell}_symmetry_space_group_name_H-M 'P 1'\nloop_\n{names}" + "\n".join(sites) + "\n"


PARTIAL = {
    "an alloy": (["Cu1 Cu 0 0 0 0.6", "Ni1 Ni 0 0 0 0.4"], ["60 % Cu", "40 % Ni"]),
    "a half-empty site": (["Cu1 Cu 0 0 0 1", "O1 O 0.5 0.5 0.5 0.5"], ["50 % O"]),
    "a split site": (["Cu1 Cu 0 0 0 0.5(1)", "Cu2 Cu 0.05 0 0 0.5"], ["50 % Cu"]),
    "two whole atoms": (["Cu1 Cu 0 0 0 1.0", "Ni1 Ni 0 0 0 1.0"], ["100 % Cu"]),
}


@pytest.mark.parametrize(("sites", "words"), PARTIAL.values(), ids=PARTIAL)
def test_cif_sites_that_are_not_of_one_whole_atom_are_refused(sites, words, tmp_path):
    (tmp_path / "a.cif").write_text(cif(sites))
    refused(lambda: ms.read(tmp_path / "a.cif"), "occupied in part", *words)


def test_whole_cif_sites_are_read_and_two_on_one_place_are_refused(tmp_path):
    (tmp_path / "a.cif").write_text(cif(["Cu1 Cu 0 0 0 1.0", "Ni1 Ni 0.5 0.5 0.5 ?"]))
    assert ms.read(tmp_path / "a.cif").symbols == ["Cu", "Ni"]
    (tmp_path / "b.cif").write_text(cif(["Cu1 Cu 0 0 0", "Ni1 Ni 0 0 0"], "label type_symbol fract_x fract_y fract_z"))
    refused(lambda: ms.read(tmp_path / "b.cif"), "two atoms at one place")


POSCAR = "{comment}\n1.0\n4 0 0\n0 4 0\n0 0 4\n{names}1 2\n{dynamics}Direct\n0 0 0 {a}\n0.5 0.5 0.5\n0.25 0.25 0.3 {b}\n"


def poscar(path, comment="a comment", names="", dynamics="", a="", b=""):
    path.write_text(POSCAR.format(comment=comment, names=names, dynamics=dynamics, a=a, b=b))
    return path


@pytest.mark.parametrize(
    "comment", ["by Y. C.", "Y. Chen, C. Li", "YC 2020 run", "relaxed by K", "POSCAR", "3 2", "Si", "Cu Ni O"]
)
def test_comments_of_vasp_4_are_no_species(comment, tmp_path):
    path = poscar(tmp_path / "POSCAR", comment)
    refused(lambda: ms.read(path), "2 kinds of atoms", "species=")
    assert ms.read(path, species=["Cu", "O"]).symbols == ["Cu", "O", "O"]
    refused(lambda: ms.read(path, species=["Cu"]), "2 kinds")
    refused(lambda: ms.read(path, species=["Cu", "big"]), "'big'", "element")


@pytest.mark.parametrize("comment", ["Si C", "SiC", "Si1 C2"])
def test_species_in_a_comment_of_vasp_4_by_custom(comment, tmp_path):
    assert ms.read(poscar(tmp_path / "POSCAR", comment)).symbols == ["Si", "C", "C"]
    assert ms.read(poscar(tmp_path / "CONTCAR", "by Y. C.", "Si C\n")).symbols == ["Si", "C", "C"]
    refused(lambda: ms.read(tmp_path / "CONTCAR", species=["Si", "C"]), "leave it out")


def test_selective_dynamics_in_other_words_is_refused(tmp_path):
    path = poscar(tmp_path / "POSCAR", "Si C", "", "Selective dynamics\n", "F F F", ".F. T T")
    refused(lambda: ms.read(path), "'.F.'", "T or F")


XYZ = '2\nLattice="5 0 0 0 5 0 0 0 5" Properties={properties}\n{rows}\n'


@pytest.mark.parametrize("name", ["mass", "masses"])
def test_masses_of_extxyz_are_kept(name, tmp_path):
    rows = "Cu 0 0 0 62.93\nNi 2 2 2 57.94"
    (tmp_path / "a.extxyz").write_text(XYZ.format(properties=f"species:S:1:pos:R:3:{name}:R:1", rows=rows))
    assert ms.read(tmp_path / "a.extxyz").masses.tolist() == [62.93, 57.94]
    (tmp_path / "b.extxyz").write_text(
        XYZ.format(properties=f"species:S:1:pos:R:3:{name}:R:1", rows=rows.replace("62.93", "6522"))
    )
    refused(lambda: ms.read(tmp_path / "b.extxyz"), "'Cu' the mass 6522", "amu")


def test_labels_of_xyz_files_that_are_no_elements(tmp_path):
    path = tmp_path / "a.extxyz"
    path.write_text(2 * XYZ.format(properties="id:I:1:species:S:1:pos:R:3:mass:R:1", rows="1 A 0 0 0 1.5\n2 Si_1 2 2 2 28"))
    for system in ms.read(path, index=":"):
        assert system.symbols == ["A", "Si_1"] and system.masses.tolist() == [1.5, 28.0] and system.pbc == (True,) * 3
        np.testing.assert_array_equal(system.positions, [[0, 0, 0], [2, 2, 2]])
    (tmp_path / "b.xyz").write_text("2\na comment\nA 0 0 0\nsi 1.5 2 3 0.5\n")
    system = ms.read(tmp_path / "b.xyz")
    assert system.symbols == ["A", "Si"] and not system.masses_known and system.cell is None
    np.testing.assert_array_equal(system.positions, [[0, 0, 0], [1.5, 2, 3]])
    (tmp_path / "c.xyz").write_text("2\n\nD 0 0 0\nH 0.7 0 0\n")
    np.testing.assert_allclose(ms.read(tmp_path / "c.xyz").masses, [2.0141017781, 1.008])
    refused(lambda: ms.read(tmp_path / "c.xyz", species=["H"]), "leave it out")
    (tmp_path / "d.xyz").write_text("2\nAtoms. Timestep: 0\n2 0 0 0\n1 0.7 0 0\n")
    refused(lambda: ms.read(tmp_path / "d.xyz"), "numbers 1, 2", "species=")
    assert ms.read(tmp_path / "d.xyz", species=["Cu", "Ni"]).symbols == ["Ni", "Cu"]


def test_labels_survive_a_file_of_extended_xyz(tmp_path):
    system = ms.System(PLACES, cell=TILTED, pbc=True, species=["A", "B", "A"], masses=[1.0, 2.0, 1.0])
    ase.io.write(tmp_path / "a.extxyz", system.to_ase())
    again = ms.read(tmp_path / "a.extxyz")
    assert again.symbols == system.symbols and again.masses.tolist() == [1.0, 2.0, 1.0]


def test_atoms_without_species_are_refused(tmp_path):
    (tmp_path / "a.extxyz").write_text(XYZ.format(properties="element:S:1:pos:R:3", rows="Cu 0 0 0\nNi 2 2 2"))
    refused(lambda: ms.read(tmp_path / "a.extxyz"), "no species")


def pdb(places, cryst="", alternative=" ", occupancy="  1.00"):
    rows = "".join(
        f"ATOM  {k + 1:5d}  CA {alternative}ALA A{1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}{occupancy}{20.0:6.2f}          CU  \n"
        for k, (x, y, z) in enumerate(places)
    )
    return f"{cryst}{rows}END\n"


CRYST = "CRYST1{0:9.3f}{0:9.3f}{0:9.3f}  90.00  90.00  90.00 P 1           1\n"


def test_a_cell_of_an_angstrom_in_a_pdb_file_is_none(tmp_path):
    (tmp_path / "a.pdb").write_text(pdb(PLACES, CRYST.format(1.0)))
    system = ms.read(tmp_path / "a.pdb")
    assert system.cell is None and system.pbc == (False,) * 3 and system.symbols == ["Cu"] * 3
    (tmp_path / "b.pdb").write_text(pdb(PLACES, CRYST.format(12.5)) + pdb(PLACES + 0.1))
    for system in ms.read(tmp_path / "b.pdb", index=":"):
        np.testing.assert_allclose(system.cell, 12.5 * np.eye(3), atol=1e-12)
        assert system.pbc == (True,) * 3
    np.testing.assert_allclose(ms.read(tmp_path / "b.pdb", index=-1).cell, 12.5 * np.eye(3), atol=1e-12)


def test_parts_of_atoms_in_a_pdb_file_are_refused(tmp_path):
    (tmp_path / "a.pdb").write_text(pdb(PLACES, alternative="A"))
    refused(lambda: ms.read(tmp_path / "a.pdb"), "alternative places")
    (tmp_path / "b.pdb").write_text(pdb(PLACES, occupancy="  0.50"))
    refused(lambda: ms.read(tmp_path / "b.pdb"), "50 %")
    (tmp_path / "c.pdb").write_text(pdb(PLACES, occupancy="  0.00"))
    assert len(ms.read(tmp_path / "c.pdb")) == 3


# H5MD


def h5md(path, *, unit="nm", species=(0, 1, 0), creator="another", mass=None, matrix=True, dtype="i4", frames=2):
    with h5py.File(path, "w") as file:
        file.create_group("h5md/creator").attrs["name"] = creator
        atoms = file.create_group("particles/all")
        box = atoms.create_group("box")
        box.attrs["dimension"], box.attrs["boundary"] = 3, ["periodic", "periodic", "none"]
        places = np.array([(PLACES + 0.1 * k) / 10.0 for k in range(frames)])
        values = {"position": (atoms, places)}
        edges = (TILTED if matrix else np.diag(TILTED)) / 10.0
        values["box/edges"] = (atoms, np.array([edges] * frames))
        for name, (group, value) in values.items():
            element = group.create_group(name)
            element["value"], element["step"] = value, np.arange(frames)
            if unit is not None:
                element["value"].attrs["unit"] = unit
        atoms.create_dataset("species", data=list(species), dtype=h5py.string_dtype() if dtype == "str" else dtype)
        if mass is not None:
            atoms["mass"] = mass
    return path


def test_h5md_files_of_other_programs_are_read(tmp_path):
    path = h5md(tmp_path / "a.h5", mass=[63.546, 58.693, 63.546])
    refused(lambda: ms.read(path, index=0), "species 0, 1", "species=")
    for k, system in enumerate(ms.read(path, species=["Cu", "Ni"], index=":")):
        assert system.symbols == KINDS and system.pbc == (True, True, False)
        np.testing.assert_allclose(system.positions, PLACES + 0.1 * k, rtol=1e-14)
        np.testing.assert_allclose(system.cell, TILTED, rtol=1e-14)
        assert system.masses.tolist() == [63.546, 58.693, 63.546]
    refused(lambda: ms.read(path, species=["Cu", "Ni"]), "2 structures")
    refused(lambda: ms.read(path, species=["Ni", "Cu"], index=0), "63.546")
    refused(lambda: ms.read(path, species=["Cu"], index=0), "not 1")
    refused(lambda: ms.read(path, species=["Cu", "Ni"], index=4), "index=4")
    diagonal = h5md(tmp_path / "b.h5", matrix=False, species=("Cu", "Ni", "Cu"), dtype="str", unit="Angstrom", frames=1)
    system = ms.read(diagonal)
    np.testing.assert_allclose(system.cell, np.diag(np.diag(TILTED)) / 10.0)
    assert system.symbols == KINDS
    enumerated = h5md(tmp_path / "c.h5", dtype=h5py.enum_dtype({"Ni": 1, "Cu": 0}, basetype="i4"), unit=None, frames=1)
    assert ms.read(enumerated).symbols == KINDS
    np.testing.assert_allclose(ms.read(enumerated).positions, PLACES / 10.0)
    refused(lambda: ms.read(h5md(tmp_path / "d.h5", unit="furlong"), species=["A", "B"], index=0), "'furlong'")


def test_results_are_named_where_structures_are_wanted_and_the_other_way_round(tmp_path):
    eq = ms.relax(ms.System([[0.0, 0, 0], [1.2, 0.1, 0]]), ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=3.0, onset=2.5))
    ms.save(tmp_path / "a.h5", eq)
    refused(lambda: ms.read(tmp_path / "a.h5"), "ms.load")
    with pytest.raises(ms.StoreError, match=r"another program.*ms\.read"):
        ms.load(h5md(tmp_path / "b.h5"))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["x"] = np.arange(3)
    refused(lambda: ms.read(tmp_path / "c.h5"), "c.h5")
