"""Structures from files."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from mdsens.announced import check_announced, is_file
from mdsens.errors import InputError
from mdsens.system import System


@overload
def read(path: str | Path, *, species: Sequence[str] | None = None, index: int | None = None, **options: Any) -> System: ...


@overload
def read(path: str | Path, *, species: Sequence[str] | None = None, index: str | slice, **options: Any) -> list[System]: ...


def read(
    path: str | Path, *, species: Sequence[str] | None = None, index: int | str | slice | None = None, **options: Any
) -> System | list[System]:
    """Read a structure file of any format that ASE knows.

    Args:
        path: the file.
        species: names of the atom types 1, 2, ... of a LAMMPS data file, which may not name them itself.
        index: which structures of a file of several (a trajectory, a database): a number for one, `-1` being the last; a slice,
            or a text such as `":"` for all and `"::10"` for every tenth, for a list of them.
        options: passed to `ase.io.read` (`format`, ...).

    Raises:
        InputError: no such file, no structure in it, more than one structure without `index`, or a LAMMPS data file without
            species.
    """
    path = Path(path)
    if not is_file(path):
        raise InputError(f"There is no file {str(path)!r}.")
    if path.stat().st_size == 0:
        raise InputError(f"The file {str(path)!r} is empty.")
    wanted = _wanted(index)
    systems = _systems(path, species, wanted, options)
    if not systems:
        which = "" if index is None else f" at index={index!r}"
        raise InputError(f"{str(path)!r} holds no structure{which}; it may be cut off.")
    if index is not None and not isinstance(wanted, int):
        return systems
    if len(systems) > 1:
        raise InputError(
            f"{str(path)!r} holds {len(systems)} structures where one is wanted: say index=-1 for the last, "
            'index=":" for a list of all.'
        )
    return systems[0]


def _wanted(index: Any) -> Any:
    """The index as a number, a slice, or the selection of a database."""
    from ase.utils import string2index

    if index is None:
        return slice(None)
    try:
        return string2index(index) if isinstance(index, str) else index
    except ValueError:
        raise InputError(f'index wants a number, or a slice such as ":" or "-10:", not {index!r}.') from None


def _systems(path: Path, species: Any, index: Any, options: Any) -> list[System]:
    """The structures of a file; `index` as ASE takes it."""
    import ase.io
    from ase.io.formats import UnknownFileTypeError, filetype

    if _is_dump_of_types(path):
        raise InputError(
            f"{str(path)!r} is a LAMMPS dump without elements, whose types are numbers: "
            "write it with `dump_modify ... element`, or read its data file with species=."
        )
    if options.setdefault("format", "lammps-data" if _looks_like_lammps_data(path) else None) == "lammps-data":
        options["Z_of_type"] = _lammps_types(species, path)
    elif species is not None:
        raise InputError(f"species= is for LAMMPS data files, and {str(path)!r} does not look like one: leave it out.")
    place = path.absolute()  # ASE takes some names for addresses of databases
    try:
        options["format"] = options["format"] or filetype(str(place))
        check_announced(path, options["format"])
        # Databases know no steps.
        steps = index.step if isinstance(index, slice) else None
        images = ase.io.read(place, slice(None) if steps else index, **options)
        images = images[index] if steps else images
    except InputError:
        raise
    except UnknownFileTypeError:
        raise InputError(f"{str(path)!r} is not a structure file that ASE knows: give format=..., or convert it.") from None
    except (IndexError, KeyError, StopIteration) as error:  # how ASE's formats say so
        if not isinstance(index, int):
            raise _unreadable(path, error) from error
        raise InputError(f"{str(path)!r} holds no structure at index={index!r}; it may be cut off.") from error
    except Exception as error:  # ASE's readers raise whatever their parsing stumbles over
        raise _unreadable(path, error) from error
    images = images if isinstance(images, list) else [images]
    if any(len(atoms) == 0 for atoms in images):
        raise InputError(f"{str(path)!r} holds no atoms.")
    return [System.from_ase(atoms) for atoms in images]


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = f"{type(error).__name__}: {str(error)[:200]}" if str(error) else type(error).__name__
    return InputError(f"{str(path)!r} could not be read as a structure; it may be cut off or of another format ({reason}).")


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(4096).decode("utf-8", errors="replace")


def _looks_like_lammps_data(path: Path) -> bool:
    """By its header: ASE goes by the name alone, and takes `.lmp` and `.data` for other programs' files."""
    head = _head(path)
    return all(re.search(rf"^\s*\d+\s+{what}\s*(#|$)", head, re.MULTILINE) for what in ("atoms", "atom types"))


def _is_dump_of_types(path: Path) -> bool:
    """ASE takes the types of such a dump for atomic numbers."""
    columns = re.search(r"^ITEM: ATOMS (.*)$", _head(path), re.MULTILINE)
    return columns is not None and "element" not in columns[1].split()


def _lammps_types(species: Any, path: Any) -> dict[int, int]:
    from ase.data import atomic_numbers

    if species is None:
        raise InputError(
            f"{str(path)!r} is a LAMMPS data file, whose atom types are numbers: "
            'name them, for instance ms.read(path, species=["Si", "C"]).'
        )
    if unknown := [label for label in species if label not in atomic_numbers]:
        raise InputError(f"{unknown[0]!r} is not a chemical element: give one symbol for each LAMMPS type.")
    return {code + 1: atomic_numbers[label] for code, label in enumerate(species)}
