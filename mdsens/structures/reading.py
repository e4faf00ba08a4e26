"""Structures from files of all formats."""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from mdsens.common.errors import InputError, MdsensError, reason
from mdsens.common.paths import is_file, read_text
from mdsens.common.suggestions import check_keywords
from mdsens.common.untrusted_hdf5 import SIGNATURE
from mdsens.structures import h5md
from mdsens.structures.lammps_files import read_data, read_dump
from mdsens.structures.masses import check_masses, element_of, is_element
from mdsens.structures.size_checks import check_size
from mdsens.structures.system import LABELS, System, holds_atoms, list_labels

OCCUPANCY_TOLERANCE = 1e-3
"""Difference from 1 up to which an occupancy is that of a whole atom."""

XYZ = ("extxyz", "xyz")
"""ASE's names of the xyz formats."""


@overload
def read(path: str | Path, *, species: Sequence[str] | None = None, index: int | None = None, **options: Any) -> System: ...


@overload
def read(path: str | Path, *, species: Sequence[str] | None = None, index: str | slice, **options: Any) -> list[System]: ...


def read(
    path: str | Path, *, species: Sequence[str] | None = None, index: int | str | slice | None = None, **options: Any
) -> System | list[System]:
    """Read a structure file: LAMMPS's data files and dumps, H5MD, and any format that ASE knows.

        system = read("silicon.cif")

    Args:
        path: the file.
        species: names of the atom types 1, 2, ... of a LAMMPS file, of the numbered species of an H5MD or xyz file, or of the
            kinds of atoms of a POSCAR, where the file does not name them itself. Any labels: elements, D and T, "A".
        index: which structures of a file of several (a trajectory, a database): a number for one, with `-1` for the last; a
            slice, or a text such as `":"` for all and `"::10"` for every tenth, for a list of them.
        options: `format=` of ASE's names; of LAMMPS's files `units=` and `atom_style=`, which go before what the file says; of
            H5MD files `group=`; of others those of `ase.io.read`.

    Raises:
        InputError: no such file, no structure in it, more than one structure without `index`, species without names, atoms that
            are there in part only, or a layout, units or masses that are not clear.
    """
    path = Path(path)
    if not is_file(path):
        raise InputError(f"There is no file {str(path)!r}.")
    if path.stat().st_size == 0:
        raise InputError(f"The file {str(path)!r} is empty.")
    selection = _parse_index(index)
    systems = _systems(path, species, selection, options)
    if not systems:
        which = "" if index is None else f" at index={index!r}"
        raise InputError(f"{str(path)!r} holds no structure{which}; it may be cut off.")
    if index is not None and not isinstance(selection, int):
        return systems
    if len(systems) > 1:
        raise InputError(
            f"{str(path)!r} holds {len(systems)} structures where one is wanted: say index=-1 for the last, "
            'index=":" for a list of all.'
        )
    return systems[0]


def _parse_index(index: int | str | slice | None) -> Any:
    """Return the index as a number, a slice, or the selection of a database."""
    from ase.utils import string2index

    if index is None:
        return slice(None)
    try:
        return string2index(index) if isinstance(index, str) else index
    except ValueError:
        raise InputError(f'index wants a number, or a slice such as ":" or "-10:", not {index!r}.') from None


def _systems(path: Path, species: Sequence[str] | None, index: Any, options: dict[str, Any]) -> list[System]:
    """Return the structures of a file; raise InputError for whatever its reader raises."""
    from ase.io.formats import UnknownFileTypeError, filetype

    try:
        head = _head(path)
        if head.startswith(SIGNATURE) and (creator := h5md.creator_of(path)) is not None:
            if creator == "mdsens":
                raise InputError(f"{str(path)!r} is a result of mdsens: eq, S = ms.load({str(path)!r}) reads it.")
            return h5md.read_h5md(path, species, index, **_check_options(h5md.read_h5md, options))
        kind = options.pop("format", None) or _lammps_kind(head)
        # ASE takes some names for addresses of databases.
        kind = kind or filetype(str(path.absolute()))
        check_size(path, kind)
        if kind == "lammps-data":
            systems = [read_data(path, species, **_check_options(read_data, options))]
            return systems[index] if isinstance(index, slice) else [systems[index]]
        if kind == "lammps-dump-text":
            return read_dump(path, species, index, **_check_options(read_dump, options))
        images = _images(path, kind, species, index, options)
    except MdsensError:
        raise
    except UnknownFileTypeError:
        raise InputError(f"{str(path)!r} is not a structure file that ASE knows: give format=..., or convert it.") from None
    except Exception as error:  # readers raise whatever their parsing stumbles over
        # How ASE's formats say that there are fewer.
        if isinstance(error, IndexError | KeyError | StopIteration) and isinstance(index, int):
            raise InputError(f"{str(path)!r} holds no structure at index={index!r}; it may be cut off.") from error
        raise InputError(
            f"{str(path)!r} could not be read as a structure; it may be cut off or of another format ({reason(error)})."
        ) from error
    return [_of_image(path, atoms) for atoms in images]


def _check_options(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options; raise InputError for one that the reader of a format does not have."""
    try:
        check_keywords(function, options)
    except TypeError as error:
        raise InputError(str(error)) from None
    return options


def _head(path: Path) -> bytes:
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "rb") as file:
        return file.read(4096)


def _lammps_kind(head: bytes) -> str | None:
    """Return the kind of a LAMMPS file by its text: ASE goes by names, and takes `.lmp` and `.data` for other programs' files."""
    if all(re.search(rb"^\s*\d+\s+" + what + rb"\s*(#|$)", head, re.MULTILINE) for what in (b"atoms", b"atom types")):
        return "lammps-data"
    return "lammps-dump-text" if re.match(rb"ITEM: (UNITS|TIME|TIMESTEP)\s*$", head, re.MULTILINE) else None


def _images(path: Path, kind: str, species: Sequence[str] | None, index: Any, options: dict[str, Any]) -> list[Any]:
    """Return the images of a file in one of ASE's formats, with the labels that ASE does not take."""
    import ase.io

    place: Any = path.absolute()
    if kind == "lammps-dump-binary" and "specorder" not in options:
        raise InputError(f"{str(path)!r} is a LAMMPS dump without elements, whose types are numbers: write it as text.")
    if kind in XYZ:
        place, kind, species = _labelled_xyz(path, kind, species)
    elif kind == "vasp":
        place, species = _named_vasp(path, species)
    if species is not None:
        raise InputError(
            f"species= is for files that number their species, as those of LAMMPS, and {str(path)!r} names its own: leave it out."
        )
    # Databases know no steps.
    steps = index.step if isinstance(index, slice) else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = ase.io.read(place, slice(None) if steps else index, format=kind, **options)
    for warning in caught:
        if "equivalent" in str(warning.message) and "scaled_positions" in str(warning.message):
            raise InputError(f"{str(path)!r} has two atoms at one place: say which is there, and remove the other.")
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    images = images[index] if steps else images
    images = images if isinstance(images, list) else [images]
    if kind == "proteindatabank":
        _mend_pdb(path, images)
    return images


def _of_image(path: Path, atoms: Any) -> System:
    if len(atoms) == 0:
        raise InputError(f"{str(path)!r} holds no atoms.")
    _check_whole(path, atoms)
    if LABELS not in atoms.arrays and (atoms.numbers == 0).any():
        raise InputError(f"{str(path)!r} has atoms of no species (X): name them in the file.")
    if "mass" in atoms.arrays and not atoms.has("masses"):
        atoms.set_masses(atoms.arrays["mass"])
    if atoms.has("masses"):
        labels = map(str, atoms.arrays.get(LABELS, atoms.get_chemical_symbols()))
        check_masses(path, zip(labels, atoms.get_masses().tolist(), strict=True), "correct the file, with masses in amu")
    others = [type(constraint).__name__ for constraint in atoms.constraints if not holds_atoms(constraint)]
    if others:
        raise InputError(
            f"{str(path)!r} has the constraint {others[0]}, and a System has frozen atoms alone: system, constraints = "
            f"ms.constraints.from_ase(ase.io.read({str(path)!r})) translates it, for relax(..., constraints=constraints)."
        )
    return System.from_ase(atoms)


def _check_whole(path: Path, atoms: Any) -> None:
    """Raise InputError for sites that are occupied in part, or by several species."""
    shares = [atoms.info.get("occupancy", {})] + [
        atoms.arrays[name] for name in ("occupancy", "occupancies") if name in atoms.arrays
    ]
    for sites in shares:
        sites = list(sites.values()) if isinstance(sites, dict) else np.asarray(sites, dtype=float).ravel().tolist()
        # PDB files are often written with zeros for all.
        if not any(isinstance(site, dict) for site in sites) and not any(sites):
            continue
        for site in sites:
            occupants = site if isinstance(site, dict) else {"an atom": site}
            # CIF's "?" and "." say nothing, which means a whole atom.
            numbers = [1.0 if str(value).strip() in ("?", ".") else float(value) for value in occupants.values()]
            if len(occupants) > 1 or any(abs(value - 1.0) > OCCUPANCY_TOLERANCE for value in numbers):
                what = ", ".join(f"{100 * value:.4g} % {label}" for label, value in zip(occupants, numbers, strict=True))
                raise InputError(
                    f"{str(path)!r} has a site that is occupied in part or by several species ({what}): mdsens has whole atoms, "
                    "so choose who is where in a large enough cell."
                )


def _labelled_xyz(path: Path, kind: str, species: Sequence[str] | None) -> tuple[Any, str, Sequence[str] | None]:
    """Return the file, or a copy in which labels that are no elements stand where ASE keeps them; its kind; unused species."""
    lines = read_text(path).splitlines()
    frames = list(_xyz_frames(lines))
    labels = list(dict.fromkeys(lines[k].split()[column] for start, count, column in frames for k in range(start, start + count)))
    # ASE takes elements in any case, and X for no element.
    known = {label: label.capitalize() for label in labels}
    if all(name == "X" or is_element(name) for name in known.values()):
        return path.absolute(), kind, species
    known = {label: name for label, name in known.items() if is_element(name)}
    if all(label.isdigit() for label in labels):
        numbers = sorted(map(int, labels))
        chosen = list_labels(species)
        if len(chosen) < numbers[-1] or numbers[0] < 1:
            types = ", ".join(map(str, numbers))
            raise InputError(f"{str(path)!r} has the numbers {types} for species: name the types 1, 2, ..., species=[...].")
        known, species = {label: chosen[int(label) - 1] for label in labels}, None
    for start, count, column in frames:
        comment = lines[start - 1]
        if "Properties" in comment:
            lines[start - 1] = re.sub(r"(Properties\s*=\s*\"?(?:[^\s\"]*:)?)(?:species|symbols)(?=:S:1)", rf"\1{LABELS}", comment)
        else:
            lines[start - 1] = f"Properties={LABELS}:S:1:pos:R:3"
        for k in range(start, start + count):
            words = lines[k].split()
            words[column] = known.get(words[column], words[column])
            lines[k] = " ".join(words if "Properties" in comment else words[:4])
    return io.StringIO("\n".join(lines) + "\n"), "extxyz", species


def _xyz_frames(lines: list[str]) -> Iterator[tuple[int, int, int]]:
    """Yield the first line of atoms, their number, and the column of their species, of each structure whose atoms have names."""
    at = 0
    while at < len(lines) and lines[at].strip().isdigit():
        count, comment = int(lines[at]), lines[at + 1] if at + 1 < len(lines) else ""
        properties = re.search(r"Properties\s*=\s*\"?([^\s\"]+)", comment)
        fields = properties[1].split(":") if properties else ["species", "S", "1"]
        widths = dict(zip(fields[::3], map(int, fields[2::3]), strict=False))
        name = next((field for field in ("species", "symbols") if field in widths), None)
        if at + 2 + count > len(lines):
            return  # cut off, which ASE says
        if name is not None and "Z" not in widths and "numbers" not in widths:
            yield at + 2, count, sum(list(widths.values())[: list(widths).index(name)])
        at += 2 + count


def _named_vasp(path: Path, species: Sequence[str] | None) -> tuple[Any, Sequence[str] | None]:
    """Return the file, or a copy that names its kinds of atoms on a line of its own; and unused species.

    Files of VASP 4 have no names, but by a custom of ASE's in the comment, which may be anything.
    """
    lines = read_text(path).splitlines()
    counts = lines[5].split("!")[0].split()
    numbered = bool(counts) and all(word.isdigit() for word in counts)
    at = 6 if numbered else 7
    if lines[at].strip()[:1].lower() == "s":
        n = sum(map(int, lines[at - 1].split("!")[0].split()))
        if wrong := {word for line in lines[at + 2 : at + 2 + n] for word in line.split()[3:6]} - {"T", "F"}:
            raise InputError(f"{str(path)!r} has selective dynamics {min(wrong)!r} where T or F is wanted: correct it.")
    if not numbered:
        return path.absolute(), species
    names = _kinds(lines[0], len(counts)) if species is None else list_labels(species)
    if names is None and any(path.with_name(name).exists() for name in ("POTCAR", "OUTCAR")):
        from ase.io.vasp import atomtypes_outpot

        names = atomtypes_outpot(str(path), len(counts))
    if names is None or len(names) != len(counts):
        raise InputError(
            f"{str(path)!r} has {len(counts)} kinds of atoms and no line with their names, as files of VASP 4: "
            "name them, species=[...]."
        )
    if strange := [name for name in names if element_of(name) != name]:
        raise InputError(f"{strange[0]!r} is no chemical element, of which a POSCAR is: correct species=.")
    return io.StringIO("\n".join([*lines[:5], " ".join(names), *lines[5:]]) + "\n"), None


def _kinds(comment: str, count: int) -> list[str] | None:
    """Return the elements that a comment is made of, `"Si C"` or `"Na4 Cl4"`; None where it is anything else."""
    elements = []
    for word in comment.split():
        parts = re.findall(r"[A-Z][a-z]?\d*", word)
        if "".join(parts) != word:
            return None
        elements += [part.rstrip("0123456789") for part in parts]
    return elements if len(elements) == count and all(element_of(name) == name for name in elements) else None


def _mend_pdb(path: Path, images: list[Any]) -> None:
    """Give all models the only cell of a PDB file; one of 1 Å stands for none; alternative places of atoms are refused."""
    lines = read_text(path).splitlines()
    alternatives = {line[16:17] for line in lines if line.startswith(("ATOM", "HETATM"))} - {" ", ""}
    if alternatives:
        raise InputError(
            f"{str(path)!r} has alternative places of atoms ({', '.join(sorted(alternatives))}): keep one of each in the file."
        )
    cells = [line for line in lines if line.startswith("CRYST1")]
    for atoms in images:
        if len(cells) == 1 and not atoms.cell.rank:
            columns = ((6, 15), (15, 24), (24, 33), (33, 40), (40, 47), (47, 54))
            atoms.set_cell([float(cells[0][start:end]) for start, end in columns])
            atoms.pbc = True
        if np.allclose(atoms.cell.array, np.eye(3)):
            atoms.set_cell(np.zeros((3, 3)))
            atoms.pbc = False
