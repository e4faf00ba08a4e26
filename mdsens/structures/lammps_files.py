"""LAMMPS's data files and text dumps, in all of its units and atom styles (docs.lammps.org/read_data.html, dump.html)."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from mdsens.common.errors import InputError
from mdsens.common.paths import read_text
from mdsens.structures.masses import check_masses, is_element, nearest_element
from mdsens.structures.system import System, list_labels

GRAM = 6.02214076e23
"""One gram in amu."""
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
"""Length [Å] and mass [amu] of LAMMPS's units; lj has none."""
_UNITS = re.compile(rf"\bunits?\b[\s=:\"'{{]*({'|'.join(UNITS)})\b", re.IGNORECASE)


class Layout(NamedTuple):
    """The columns of the type and of the first coordinate in a line of `Atoms`, and their number without image flags."""

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
"""Those of them whose files have bonds."""
_SECTION = re.compile(r"[A-Z][A-Za-z/]*\d*(?: [A-Z][A-Za-z]*\d*)*")
_BOX = re.compile(r"([^A-Za-z]*(?:[eE][^A-Za-z]+)*)\s*(xlo xhi|ylo yhi|zlo zhi|xy xz yz|avec|bvec|cvec|abc origin)")


class Types(NamedTuple):
    """The types of all atoms; labels and masses that a file gives to types; the number of types."""

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
    """Return the structure of a data file.

    Raises:
        InputError: types without names, or with names that contradict their masses; a layout, units or ids that are not clear.
    """
    header, sections, file_units = _sections(path)
    length, mass = _units(path, units, file_units)
    counts = {what: int(number) for number, what in re.findall(r"^\s*(\d+)\s+([a-z ]+?)\s*$", header, re.MULTILINE)}
    rows, hint = sections.get("Atoms", ([], ""))
    if len(rows) != counts["atoms"] or not rows:
        raise InputError(f"{str(path)!r} has {len(rows)} lines of atoms and announces {counts['atoms']}: it may be cut off.")
    labels = {int(row[0]): row[1] for row in sections.get("Atom Type Labels", ([], ""))[0]}
    numbers = {label: kind for kind, label in labels.items()}
    masses = {
        numbers[row[0]] if row[0] in numbers else int(row[0]): mass * float(row[1]) for row in sections.get("Masses", ([], ""))[0]
    }
    layout = _layout(path, rows, atom_style or style, hint, counts=counts, types=numbers)
    types = Types([row[layout.kind] for row in rows], labels, masses, counts["atom types"])
    atom_labels, weights = _label_atoms(path, types, species, check=file_units != "lj")
    ids = _ids(path, [row[0] for row in rows])
    cell = length * _box(path, header)
    positions = length * np.array([row[layout.x : layout.x + 3] for row in rows], dtype=float)
    if read_image_flags and layout.columns is not None and len(rows[0]) == layout.columns + 3:
        positions = positions + np.array([row[-3:] for row in rows], dtype=float) @ cell
    order = np.argsort(ids, kind="stable") if sort_by_id else np.arange(len(ids))
    return _system(positions, cell, atom_labels, weights, order=order)


def _sections(path: Path) -> tuple[str, dict[str, tuple[list[list[str]], str]], str | None]:
    """Return the header; lines of words and the comment behind its name, by section; the units that the header names."""
    lines = read_text(path).splitlines()
    header: list[str] = []
    sections: dict[str, tuple[list[list[str]], str]] = {}
    rows: list[list[str]] | None = None
    units = _UNITS.search(lines[0])
    for line in lines[1:]:
        body, _, comment = line.partition("#")
        body = body.strip()
        if rows is None:
            units = units or _UNITS.search(comment)
        if _SECTION.fullmatch(body):
            rows = []
            if body in sections:
                raise InputError(f"{str(path)!r} has the section {body} twice: remove one.")
            sections[body] = (rows, comment.strip())
        elif body and rows is None:
            header.append(body)
        elif body and rows is not None:
            rows.append(body.split())
    return "\n".join(header), sections, units[1].lower() if units else None


def _units(path: Path, chosen: str | None, file_units: str | None) -> tuple[float, float]:
    """Return the length [Å] and mass [amu] of a file's units; chosen ones go before those that the file names."""
    if chosen is None and file_units == "lj":
        raise InputError(f'{str(path)!r} is in LAMMPS\'s reduced units lj: say units="lj" to take its numbers as they are.')
    if (units := chosen or file_units or "metal") not in UNITS:
        raise InputError(f"units= wants one of LAMMPS's, {', '.join(UNITS)}, not {units!r}.")
    return UNITS[units]


def _layout(
    path: Path, rows: list[list[str]], chosen: str | None, hint: str, *, counts: dict[str, int], types: dict[str, int]
) -> Layout:
    """Return the columns of a style that is chosen or named in the file, or that alone fits the lines."""
    widths = {len(row) for row in rows}
    hinted = (hint.split() or [""])[0]
    style = (chosen or "").split()[0] if chosen else hinted if hinted in STYLES else None
    if style is not None and style not in STYLES:
        raise InputError(f"atom_style= wants one of LAMMPS's, {', '.join(STYLES)}, not {style!r}.")
    candidates = [STYLES[style]] if style else list(dict.fromkeys(STYLES[guess] for guess in _guesses(widths)))
    fitting = [layout for layout in candidates if _fits(layout, rows, widths, counts, types)]
    if style is None and len(fitting) > 1 and (counts.get("bonds") or counts.get("ellipsoids") or counts.get("bodies")):
        molecular = [STYLES[name] for name in MOLECULAR_STYLES]
        fitting = [layout for layout in fitting if (layout in molecular) == bool(counts.get("bonds"))]
    if len(fitting) == 1:
        return fitting[0]
    if style is not None:
        raise InputError(f"{str(path)!r} does not have the columns of the atom style {style}, which it or atom_style= names.")
    which = "could be of several atom styles" if fitting else "is of an atom style that its columns do not show"
    raise InputError(f'{str(path)!r} {which}: say which, atom_style="charge", or write "Atoms # charge" in the file.')


def _guesses(widths: set[int]) -> Iterator[str]:
    for columns in widths if len(widths) == 1 else ():
        for count in (columns, columns - 3):
            yield from STYLES_BY_COLUMNS.get(count, ())


def _fits(layout: Layout, rows: list[list[str]], widths: set[int], counts: dict[str, int], types: dict[str, int]) -> bool:
    if len(widths) > 1 and layout.columns is not None:
        return False
    width, columns = min(widths), layout.columns or layout.x + 3
    if width < columns or (layout.columns is not None and width not in (columns, columns + 3)):
        return False
    flags = [word for row in rows for word in row[-3:]] if layout.columns is not None and width == columns + 3 else []
    if not all(re.fullmatch(r"[+-]?\d+", word) for word in flags):
        return False
    kinds = {row[layout.kind] for row in rows}
    if not all(kind in types or (kind.isdigit() and 1 <= int(kind) <= counts["atom types"]) for kind in kinds):
        return False
    if layout == STYLES["spin"]:
        spins = np.array([[_number(word, np.nan) for word in row[5:8]] for row in rows])
        return bool(np.allclose(np.linalg.norm(spins, axis=1), 1.0, atol=1e-3))
    if layout == STYLES["ellipsoid"]:  # a flag or diameter, and a density or mass, which LAMMPS wants positive
        return all(_number(row[2], 0.0) >= 0.0 and _number(row[3], 0.0) > 0.0 for row in rows)
    if layout in (STYLES["molecular"], STYLES["full"]):
        return all(re.fullmatch(r"-?\d+", row[1]) for row in rows)
    return True


def _number(word: str, default: float) -> float:
    try:
        return float(word)
    except ValueError:
        return default


def _label_atoms(path: Path, types: Types, species: Sequence[str] | None, *, check: bool) -> tuple[list[str], np.ndarray | None]:
    """Return labels and masses of atoms, by the names of their types."""
    numbers = {label: kind for kind, label in types.labels.items()}
    of_atoms = [numbers[kind] if kind in numbers else int(kind) for kind in types.of_atoms]
    names = dict(types.labels)
    if species is not None:
        chosen = list_labels(species)
        if len(chosen) < max(types.number, *of_atoms):
            raise InputError(
                f"{str(path)!r} has {max(types.number, *of_atoms)} atom types and species= names {len(chosen)}: name each one."
            )
        names = dict(enumerate(chosen, start=1))
        for kind, label in types.labels.items():
            if is_element(label) and is_element(names[kind]) and label != names[kind]:
                raise InputError(
                    f"{str(path)!r} calls type {kind} {label!r}, and species= says {names[kind]!r}: leave species= out."
                )
    elif not names:
        known = check and types.masses
        guess = [nearest_element(types.masses[kind]) for kind in sorted(types.masses)] if known else ["Si", "C"]
        example = ", ".join(f'"{label}"' for label in guess[:8])
        raise InputError(
            f"{str(path)!r} is of LAMMPS's atom types, which are numbers: name them, for instance "
            f"ms.read(path, species=[{example}])."
        )
    if missing := sorted(set(of_atoms) - set(names)):
        raise InputError(f"{str(path)!r} names no type {missing[0]}, which atoms have: name all of them, species=[...].")
    if check:
        masses = ((names[kind], mass) for kind, mass in types.masses.items() if kind in names)
        check_masses(path, masses, "correct species=, or the mass in the file")
    if types.masses and (missing := sorted(set(of_atoms) - set(types.masses))):
        raise InputError(f"{str(path)!r} has no mass of type {missing[0]}, which atoms have: it may be cut off.")
    weights = np.array([types.masses[kind] for kind in of_atoms]) if types.masses else None
    return [names[kind] for kind in of_atoms], weights


def _ids(path: Path, words: Sequence[str]) -> np.ndarray:
    ids = np.array([int(word) for word in words])
    atom, count = Counter(ids.tolist()).most_common(1)[0]
    if count > 1:
        raise InputError(f"{str(path)!r} has the atom {atom} twice: it may be several files in one, or damaged.")
    return ids


def _box(path: Path, header: str) -> np.ndarray:
    """Return the cell, its rows being the cell vectors, in the file's units."""
    lines = filter(None, map(_BOX.fullmatch, header.splitlines()))
    bounds = {line[2]: [float(word) for word in line[1].split()] for line in lines}
    if "avec" in bounds:
        return np.array([bounds[name] for name in ("avec", "bvec", "cvec")])
    sides = ("xlo xhi", "ylo yhi", "zlo zhi")
    if missing := [name for name in sides if len(bounds.get(name, ())) != 2]:
        raise InputError(f"{str(path)!r} has no line {missing[0]!r}, the box's bounds: add it.")
    cell = np.diag([bounds[name][1] - bounds[name][0] for name in sides])
    cell[1, 0], cell[2, 0], cell[2, 1] = bounds.get("xy xz yz", (0.0, 0.0, 0.0))
    return cell


def _system(
    positions: np.ndarray,
    cell: np.ndarray,
    labels: Sequence[str],
    masses: np.ndarray | None,
    pbc: Sequence[bool] = (True,) * 3,
    *,
    order: np.ndarray,
) -> System:
    masses = None if masses is None else masses[order]
    return System(positions[order], cell=cell, pbc=pbc, species=[labels[k] for k in order], masses=masses)


class _Frame(NamedTuple):
    """The head of a structure in a dump, and the place in the file where its atoms start."""

    units: str | None
    bounds: list[str]
    flags: list[str]
    columns: list[str]
    start: int
    atoms: int


def read_dump(
    path: Path, species: Sequence[str] | None = None, index: int | slice = -1, *, units: str | None = None
) -> list[System]:
    """Return structures of a text dump; `index` is a number or a slice. Errors are those of `read_data`."""
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "rb") as file:
        frames = list(_frames(path, file))
        chosen = frames[index] if isinstance(index, slice) else [frames[index]]
        return [_read_frame(path, file, frame, species, units) for frame in chosen]


def _frames(path: Path, file: IO[bytes]) -> Iterator[_Frame]:
    """Yield the heads of a dump's structures; the units stand once, at the beginning."""
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


def _read_frame(path: Path, file: IO[bytes], frame: _Frame, species: Sequence[str] | None, units: str | None) -> System:
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
            coordinates = np.array([column[name] for name in names.split()], dtype=float).T
            positions = length * (origin + coordinates @ cell if scaled else coordinates)
    if positions is None:
        raise InputError(f"{str(path)!r} has no columns x, y and z: write them, as `dump ... custom ... x y z`.")
    labels, masses = _dump_labels(path, column, species, mass, check=(frame.units or units) != "lj")
    ids = _ids(path, column["id"]) if "id" in column else np.arange(len(rows))
    return _system(positions, length * cell, labels, masses, pbc, order=np.argsort(ids, kind="stable"))


def _dump_labels(
    path: Path, column: dict[str, list[str]], species: Sequence[str] | None, unit: float, *, check: bool
) -> tuple[list[str], np.ndarray | None]:
    """Return labels and masses of a dump's atoms."""
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
        by_type = {} if masses is None else {int(kind): float(mass) for kind, mass in zip(types, masses, strict=True)}
        elements, (labels, _) = labels, _label_atoms(path, Types(types, {}, by_type, 0), species, check=check)
        if elements is not None and set(elements) != {"C"} and elements != labels:
            raise InputError(f"{str(path)!r} names elements itself, and species= contradicts them: leave it out.")
    elif masses is not None and check:
        remedy = "name the types, species=[...], or correct the file"
        check_masses(path, zip(labels, masses.tolist(), strict=True), remedy)
    return labels, masses


def _bounds(path: Path, frame: _Frame) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Return origin, cell and periodicity, in the file's units; bounds are those of the straight box around a tilted one."""
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
