"""LAMMPS's data files and text dumps, in all of its units and atom styles (docs.lammps.org/read_data.html, dump.html)."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdsens.common.errors import InputError
from mdsens.structures.masses import contradiction, is_element, nearest_element
from mdsens.structures.system import System

GRAM = 6.02214076e23
"""A gram [amu]."""
UNITS = {
    "metal": (1.0, 1.0),
    "real": (1.0, 1.0),
    "electron": (0.529177210903, 1.0),
    "si": (1e10, 1e3 * GRAM),
    "cgs": (1e8, GRAM),
    "micro": (1e4, 1e-12 * GRAM),
    "nano": (10.0, 1e-18 * GRAM),
    "lj": (1.0, 1.0),
}
"""Length [Å] and mass [amu] of LAMMPS's units; those called lj are no units at all."""
_UNITS = re.compile(rf"\bunits?\b[\s=:\"'{{]*({'|'.join(UNITS)})\b", re.IGNORECASE)


class Layout(NamedTuple):
    """Where the type and the first coordinate stand in a line of `Atoms`, and how many columns it has without image flags."""

    kind: int
    x: int
    columns: int | None


STYLES = (
    {"atomic": Layout(1, 2, 5), "spin": Layout(1, 2, 9), "tdpd": Layout(1, 2, None), "hybrid": Layout(1, 2, None)}
    | dict.fromkeys(("charge", "dpd", "mdpd"), Layout(1, 3, 6))
    | dict.fromkeys(("molecular", "bond", "angle"), Layout(2, 3, 6))
    | dict.fromkeys(("ellipsoid", "sphere", "peri", "body", "edpd", "rheo", "template"), Layout(1, 4, 7))
    | dict.fromkeys(("electron", "sph", "rheo/thermal"), Layout(1, 5, 8))
    | dict.fromkeys(("line", "tri", "bpm/sphere"), Layout(2, 5, 8))
    | {"full": Layout(2, 4, 7), "dipole": Layout(1, 3, 9), "dielectric": Layout(1, 3, 13)}
    | {"smd": Layout(1, 10, 13), "wavepacket": Layout(1, 8, 11)}
)
STYLES_BY_COLUMNS = {5: ("atomic",), 6: ("charge", "molecular"), 7: ("full", "ellipsoid"), 9: ("spin",)}
"""Styles that a file without their name may have, by the number of columns."""
MOLECULAR_STYLES = ("molecular", "full")
_SECTION = re.compile(r"[A-Z][A-Za-z/]*\d*(?: [A-Z][A-Za-z]*\d*)*")
_BOX = re.compile(r"([^A-Za-z]*(?:[eE][^A-Za-z]+)*)\s*(xlo xhi|ylo yhi|zlo zhi|xy xz yz|avec|bvec|cvec|abc origin)")


class Types(NamedTuple):
    """The types of atoms, and what a file knows of them."""

    of_atoms: list[str]
    labels: dict[int, str]
    masses: dict[int, float]
    number: int


def read_data(
    path: Path,
    species: Sequence[str] | None = None,
    *,
    units: str | None = None,
    atom_style: str | None = None,
    style: str | None = None,
    sort_by_id: bool = True,
    read_image_flags: bool = True,
) -> System:
    """The structure of a data file.

    Raises:
        InputError: types without names, or with names that contradict their masses; a layout, units or ids that are not clear.
    """
    header, sections, told = _sections(path)
    length, mass = _units(path, units, told)
    counts = {what: int(number) for number, what in re.findall(r"^\s*(\d+)\s+([a-z ]+?)\s*$", header, re.MULTILINE)}
    rows, hint = sections.get("Atoms", ([], ""))
    if len(rows) != counts["atoms"] or not rows:
        raise InputError(f"{str(path)!r} has {len(rows)} lines of atoms and announces {counts['atoms']}: it may be cut off.")
    labels = {int(row[0]): row[1] for row in sections.get("Atom Type Labels", ([], ""))[0]}
    numbers = {label: kind for kind, label in labels.items()}
    masses = {
        numbers[row[0]] if row[0] in numbers else int(row[0]): mass * float(row[1]) for row in sections.get("Masses", ([], ""))[0]
    }
    chosen = _layout(path, rows, atom_style or style, hint, counts, numbers)
    kinds = Types([row[chosen.kind] for row in rows], labels, masses, counts["atom types"])
    named, weights = _label_atoms(path, kinds, species, check=told != "lj")
    ids = _ids(path, [row[0] for row in rows])
    cell = length * _box(path, header)
    positions = length * np.array([row[chosen.x : chosen.x + 3] for row in rows], dtype=float)
    if read_image_flags and chosen.columns is not None and len(rows[0]) == chosen.columns + 3:
        positions = positions + np.array([row[-3:] for row in rows], dtype=float) @ cell
    order = np.argsort(ids, kind="stable") if sort_by_id else np.arange(len(ids))
    return _system(positions, cell, (True,) * 3, named, weights, order)


def _sections(path: Path) -> tuple[str, dict[str, tuple[list[list[str]], str]], str | None]:
    """The header; lines of words and the comment behind its name, by section; the units that the header names."""
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "rb") as file:
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    header: list[str] = []
    sections: dict[str, tuple[list[list[str]], str]] = {}
    rows: list[list[str]] | None = None
    told = _UNITS.search(lines[0])
    for line in lines[1:]:
        body, _, comment = line.partition("#")
        body = body.strip()
        if rows is None:
            told = told or _UNITS.search(comment)
        if _SECTION.fullmatch(body):
            rows = []
            if body in sections:
                raise InputError(f"{str(path)!r} has the section {body} twice: remove one.")
            sections[body] = (rows, comment.strip())
        elif body and rows is None:
            header.append(body)
        elif body and rows is not None:
            rows.append(body.split())
    return "\n".join(header), sections, told[1].lower() if told else None


def _units(path: Path, asked: str | None, told: str | None) -> tuple[float, float]:
    """Length [Å] and mass [amu] of a file's units; what is asked for goes before what the file says."""
    if asked is None and told == "lj":
        raise InputError(f'{str(path)!r} is in LAMMPS\'s reduced units lj: say units="lj" to take its numbers as they are.')
    if (units := asked or told or "metal") not in UNITS:
        raise InputError(f"units= wants one of LAMMPS's, {', '.join(UNITS)}, not {units!r}.")
    return UNITS[units]


def _layout(path: Path, rows: Any, asked: str | None, hint: str, counts: Any, labels: Any) -> Layout:
    """The columns of a style that is asked for or named in the file, or that alone fits the lines."""
    widths = {len(row) for row in rows}
    hinted = (hint.split() or [""])[0]
    name = (asked or "").split()[0] if asked else hinted if hinted in STYLES else None
    if name is not None and name not in STYLES:
        raise InputError(f"atom_style= wants one of LAMMPS's, {', '.join(STYLES)}, not {name!r}.")
    candidates = [STYLES[name]] if name else list(dict.fromkeys(STYLES[one] for one in _guesses(widths)))
    fitting = [one for one in candidates if _fits(one, rows, widths, counts, labels)]
    if name is None and len(fitting) > 1 and (counts.get("bonds") or counts.get("ellipsoids") or counts.get("bodies")):
        fitting = [one for one in fitting if (one in [STYLES[one] for one in MOLECULAR_STYLES]) == bool(counts.get("bonds"))]
    if len(fitting) == 1:
        return fitting[0]
    if name is not None:
        raise InputError(f"{str(path)!r} does not have the columns of the atom style {name}, unlike what it or atom_style= says.")
    which = "could be of several atom styles" if fitting else "is of an atom style that its columns do not tell"
    raise InputError(f'{str(path)!r} {which}: say which, atom_style="charge", or write "Atoms # charge" in the file.')


def _guesses(widths: set[int]) -> Iterator[str]:
    for columns in widths if len(widths) == 1 else ():
        for count in (columns, columns - 3):
            yield from STYLES_BY_COLUMNS.get(count, ())


def _fits(layout: Layout, rows: Any, widths: set[int], counts: Any, labels: Any) -> bool:
    if len(widths) > 1 and layout.columns is not None:
        return False
    width, columns = min(widths), layout.columns or layout.x + 3
    if width < columns or (layout.columns is not None and width not in (columns, columns + 3)):
        return False
    if layout.columns is not None and width == columns + 3 and not _are_integers(rows, -3):
        return False
    kinds = {row[layout.kind] for row in rows}
    if not all(kind in labels or (kind.isdigit() and 1 <= int(kind) <= counts["atom types"]) for kind in kinds):
        return False
    if layout == STYLES["spin"]:
        spins = np.array([[_number(word, np.nan) for word in row[5:8]] for row in rows])
        return bool(np.allclose(np.linalg.norm(spins, axis=1), 1.0, atol=1e-3))
    if layout == STYLES["ellipsoid"]:  # a flag or diameter, and a density or mass, which LAMMPS wants positive
        return all(_number(row[2], 0.0) >= 0.0 and _number(row[3], 0.0) > 0.0 for row in rows)
    if layout in (STYLES["molecular"], STYLES["full"]):
        return all(re.fullmatch(r"-?\d+", row[1]) for row in rows)
    return True


def _are_integers(rows: Any, start: int) -> bool:
    return all(re.fullmatch(r"[+-]?\d+", word) for row in rows for word in row[start:])


def _number(word: str, default: float) -> float:
    try:
        return float(word)
    except ValueError:
        return default


def _label_atoms(path: Path, kinds: Types, species: Any, *, check: bool) -> tuple[list[str], np.ndarray | None]:
    """Labels and masses of atoms, by the names of their types."""
    numbers = {label: kind for kind, label in kinds.labels.items()}
    of_atoms = [numbers[kind] if kind in numbers else int(kind) for kind in kinds.of_atoms]
    if species is None and not kinds.labels:
        guess = [nearest_element(kinds.masses[k]) for k in sorted(kinds.masses)] if check and kinds.masses else ["Si", "C"]
        example = ", ".join(f'"{one}"' for one in guess[:8])
        raise InputError(
            f"{str(path)!r} is of LAMMPS's atom types, which are numbers: name them, for instance "
            f"ms.read(path, species=[{example}])."
        )
    names = dict(kinds.labels)
    if species is not None:
        given = [species] if isinstance(species, str) else [str(label) for label in species]
        if len(given) < max(kinds.number, *of_atoms):
            raise InputError(
                f"{str(path)!r} has {max(kinds.number, *of_atoms)} atom types and species= names {len(given)}: name each one."
            )
        names = dict(enumerate(given, start=1))
        for kind, label in kinds.labels.items():
            if is_element(label) and is_element(names[kind]) and label != names[kind]:
                raise InputError(
                    f"{str(path)!r} calls type {kind} {label!r}, and species= says {names[kind]!r}: leave species= out."
                )
    if missing := sorted(set(of_atoms) - set(names)):
        raise InputError(f"{str(path)!r} names no type {missing[0]}, which atoms have: name all of them, species=[...].")
    if check and (wrong := contradiction((names[kind], mass) for kind, mass in kinds.masses.items() if kind in names)):
        raise InputError(f"{str(path)!r} gives {wrong}: correct species=, or the mass in the file.")
    weights = None
    if kinds.masses:
        if missing := sorted(set(of_atoms) - set(kinds.masses)):
            raise InputError(f"{str(path)!r} has no mass of type {missing[0]}, which atoms have: it may be cut off.")
        weights = np.array([kinds.masses[kind] for kind in of_atoms])
    return [names[kind] for kind in of_atoms], weights


def _ids(path: Path, words: Sequence[str]) -> np.ndarray:
    ids = np.array([int(word) for word in words])
    if len(set(ids.tolist())) < len(ids):
        double = next(one for one, count in Counter(ids.tolist()).items() if count > 1)
        raise InputError(f"{str(path)!r} has the atom {double} twice: it may be several files in one, or damaged.")
    return ids


def _box(path: Path, header: str) -> np.ndarray:
    """Rows are the cell vectors, in the file's units."""
    found = {}
    for line in header.splitlines():
        if match := _BOX.fullmatch(line):
            found[match[2]] = [float(word) for word in match[1].split()]
    if "avec" in found:
        return np.array([found[name] for name in ("avec", "bvec", "cvec")])
    if missing := [name for name in ("xlo xhi", "ylo yhi", "zlo zhi") if len(found.get(name, ())) != 2]:
        raise InputError(f"{str(path)!r} has no line {missing[0]!r}, the box's bounds: add it.")
    cell = np.diag([found[name][1] - found[name][0] for name in ("xlo xhi", "ylo yhi", "zlo zhi")])
    cell[1, 0], cell[2, 0], cell[2, 1] = found.get("xy xz yz", (0.0, 0.0, 0.0))
    return cell


def _system(positions: Any, cell: Any, pbc: Any, labels: Any, masses: Any, order: np.ndarray) -> System:
    return System(
        positions[order],
        cell=cell,
        pbc=pbc,
        species=[labels[k] for k in order],
        masses=None if masses is None else masses[order],
    )


class _Frame(NamedTuple):
    units: str | None
    bounds: list[str]
    flags: list[str]
    columns: list[str]
    start: int
    atoms: int


def read_dump(path: Path, species: Sequence[str] | None = None, index: Any = -1, *, units: str | None = None) -> list[System]:
    """Structures of a text dump; `index` is a number or a slice.

    Raises:
        InputError: types without names, or with names that contradict their masses; bounds, units or ids that are not clear.
    """
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "rb") as file:
        frames = list(_frames(path, file))
        wanted = frames[index] if isinstance(index, slice) else [frames[index]]
        return [_read_frame(path, file, frame, species, units) for frame in wanted]


def _frames(path: Path, file: Any) -> Iterator[_Frame]:
    """Where the structures of a dump stand; the units are said once, at the beginning."""
    units: str | None = None
    count, bounds, flags = 0, [], []
    while line := file.readline():
        item, *words = line.decode("utf-8", errors="replace").removeprefix("ITEM: ").split()
        if item == "UNITS":
            units = file.readline().decode().strip()
        elif item == "NUMBER":
            count = int(file.readline())
        elif item == "BOX":
            bounds, flags = [file.readline().decode() for _ in range(3)], words[1:]
        elif item == "ATOMS":
            start = file.tell()
            if sum(1 for _ in itertools.islice(file, count)) < count or not bounds:
                raise InputError(f"{str(path)!r} ends within a structure: it may be cut off.")
            yield _Frame(units, bounds, flags, words, start, count)


def _read_frame(path: Path, file: Any, frame: _Frame, species: Any, units: str | None) -> System:
    length, mass = _units(path, units, frame.units)
    file.seek(frame.start)
    rows = [line.decode("utf-8", errors="replace").split() for line in itertools.islice(file, frame.atoms)]
    if not rows or any(len(row) != len(frame.columns) for row in rows):
        raise InputError(f"{str(path)!r} has lines of atoms of other lengths than {len(frame.columns)} words, or none.")
    column = {name: [row[k] for row in rows] for k, name in enumerate(frame.columns)}
    origin, cell, pbc = _bounds(path, frame)
    positions = None
    for names, scaled in (("x y z", False), ("xu yu zu", False), ("xs ys zs", True), ("xsu ysu zsu", True)):
        if positions is None and all(name in column for name in names.split()):
            found = np.array([column[name] for name in names.split()], dtype=float).T
            positions = length * (origin + found @ cell if scaled else found)
    if positions is None:
        raise InputError(f"{str(path)!r} has no columns x, y and z: write them, as `dump ... custom ... x y z`.")
    labels, masses = _dump_labels(path, column, species, mass, check=(frame.units or units) != "lj")
    ids = _ids(path, column["id"]) if "id" in column else np.arange(len(rows))
    return _system(positions, length * cell, pbc, labels, masses, np.argsort(ids, kind="stable"))


def _dump_labels(path: Path, column: Any, species: Any, unit: float, *, check: bool) -> tuple[list[str], np.ndarray | None]:
    """Labels and masses of a dump's atoms."""
    masses = unit * np.array(column["mass"], dtype=float) if "mass" in column else None
    labels: list[str] | None = column.get("element", column.get("typelabel"))
    types = column.get("type")
    if labels is not None and species is None and types is not None and set(labels) == {"C"} and len(set(types)) > 1:
        raise InputError(
            f"{str(path)!r} calls all types C, which LAMMPS does where no elements were given: name them, species=[...]."
        )
    if labels is None or species is not None:
        if types is None:
            raise InputError(f"{str(path)!r} has neither elements nor types: write them, as `dump ... custom ... element`.")
        if not all(kind.isdigit() for kind in types):
            raise InputError(f"{str(path)!r} has types with names, {types[0]!r}, and no elements: write them too.")
        by_type = {} if masses is None else {int(kind): float(one) for kind, one in zip(types, masses, strict=True)}
        said, (labels, _) = labels, _label_atoms(path, Types(types, {}, by_type, 0), species, check=check)
        if said is not None and set(said) != {"C"} and said != labels:
            raise InputError(f"{str(path)!r} names elements itself, and species= contradicts them: leave it out.")
    elif masses is not None and check and (wrong := contradiction(zip(labels, masses.tolist(), strict=True))):
        raise InputError(f"{str(path)!r} gives {wrong}: name the types, species=[...], or correct the file.")
    return labels, masses


def _bounds(path: Path, frame: _Frame) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Origin, cell and periodicity, in the file's units; bounds are those of the box that holds a tilted one."""
    rows = np.array([line.split() for line in frame.bounds], dtype=float)
    flags = [word for word in frame.flags if re.fullmatch("[pfsm]{2}", word)]
    if len(flags) != 3:
        raise InputError(
            f"{str(path)!r} does not say along which directions it is periodic: write it there, ITEM: BOX BOUNDS pp pp pp."
        )
    pbc = [flag == "pp" for flag in flags]
    if "abc" in frame.flags:
        return rows[:, 3], rows[:, :3], pbc
    xy, xz, yz = rows[:, 2] if rows.shape[1] == 3 else np.zeros(3)
    low, high = rows[:, 0], rows[:, 1]
    low = low - [min(0.0, xy, xz, xy + xz), min(0.0, yz), 0.0]
    high = high - [max(0.0, xy, xz, xy + xz), max(0.0, yz), 0.0]
    cell = np.diag(high - low)
    cell[1, 0], cell[2, 0], cell[2, 1] = xy, xz, yz
    return low, cell, pbc
