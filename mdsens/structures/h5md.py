"""Structures in H5MD files of other programs (nongnu.org/h5md; de Buyl et al., Comput. Phys. Commun. 185, 1546 (2014))."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mdsens.common.errors import InputError
from mdsens.common.untrusted_hdf5 import open_untrusted
from mdsens.structures.masses import check_masses
from mdsens.structures.size_checks import MAX_RATIO, MAX_UNPACKED
from mdsens.structures.system import System, list_labels

LENGTHS = (
    dict.fromkeys(("", "angstrom", "a", "å", "ang"), 1.0)
    | dict.fromkeys(("nm", "nanometer"), 10.0)
    | dict.fromkeys(("bohr", "a0", "a_0"), 0.529177210903)
    | {"pm": 0.01, "um": 1e4, "cm": 1e8, "m": 1e10}
)
"""Å in the units of a length; one that is not named counts as Å."""
MASSES = dict.fromkeys(("", "u", "amu", "da", "g/mol", "g mol-1"), 1.0) | {"g": 6.02214076e23, "kg": 6.02214076e26}


def creator_of(path: Path) -> str | None:
    """Return the program that wrote an HDF5 file that has particles; None where it has none."""
    with open_untrusted(path, "readable HDF5 file") as file:
        if "h5md/creator" in file:
            return str(file["h5md/creator"].attrs.get("name", "an unknown program"))
        return "an unknown program" if "particles" in file else None


def read_h5md(
    path: Path, species: Sequence[str] | None = None, index: int | slice = -1, *, group: str | None = None
) -> list[System]:
    """Return structures of an H5MD file; `index` is a number or a slice.

    Args:
        species: names of the species in the order of their numbers, where these have none.
        group: which particles, where there are several kinds.

    Raises:
        InputError: no positions, species without names, units that are not known.
    """
    with open_untrusted(path, "readable HDF5 file") as file:
        groups = list(file["particles"]) if "particles" in file else []
        if group is None and len(groups) != 1:
            raise InputError(f"{str(path)!r} has the particles {', '.join(groups) or '(none)'}: say which, group=....")
        if (name := group or groups[0]) not in groups:
            raise InputError(f"{str(path)!r} has no particles {name!r}, but {', '.join(groups)}: correct group=.")
        atoms = file["particles"][name]
        if "position" not in atoms or "box" not in atoms:
            raise InputError(f"{str(path)!r} has no positions and box of the particles {name!r}, which a structure needs.")
        frames = range(_data(path, atoms["position"]).shape[0] if isinstance(atoms["position"], h5py.Group) else 1)
        if isinstance(index, int) and index not in range(-len(frames), len(frames)):
            raise InputError(f"{str(path)!r} holds no structure at index={index}, but {len(frames)}.")
        chosen = frames[index] if isinstance(index, slice) else [frames[index]]
        return [_read_frame(path, atoms, int(k), species) for k in chosen]


def _data(path: Path, element: h5py.Dataset | h5py.Group) -> h5py.Dataset:
    """Return the dataset of an element, which is one itself, or a group with its values through time."""
    data = element["value"] if isinstance(element, h5py.Group) else element
    if not isinstance(data, h5py.Dataset) or data.shape is None or data.is_virtual or data.external:
        raise InputError(f"{str(path)!r} has data from elsewhere, or none, at {element.name}, which mdsens does not read.")
    return data


def _value(path: Path, atoms: h5py.Group, name: str, frame: int, units: dict[str, float] | None = None) -> Any:
    """Return the value of an element in a frame, in Å or amu where `units` is given."""
    element = atoms[name]
    data = _data(path, element)
    through_time = isinstance(element, h5py.Group)
    size = data.nbytes // max(1, data.shape[0] if through_time else 1)
    if size > max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size):
        raise InputError(f"{str(path)!r} announces {size} bytes at {element.name}, more than it can hold.")
    if through_time and data.shape[0] > 1 and frame >= data.shape[0]:
        raise InputError(f"{str(path)!r} has fewer values at {element.name} than positions: it may be cut off.")
    value = data[min(frame, data.shape[0] - 1)] if through_time else data[()]
    if units is None:
        return value
    unit = _text(data.attrs.get("unit", element.attrs.get("unit", "")))
    if unit.lower() not in units:
        raise InputError(f"{str(path)!r} has {element.name} in {unit!r}, which mdsens does not know: convert it to Å and amu.")
    return units[unit.lower()] * np.asarray(value, dtype=float)


def _read_frame(path: Path, atoms: h5py.Group, frame: int, species: Sequence[str] | None) -> System:
    positions = _value(path, atoms, "position", frame, LENGTHS)
    box = atoms["box"]
    boundary = list(map(_text, np.atleast_1d(box.attrs.get("boundary", []))))
    if len(boundary) != positions.shape[1]:
        raise InputError(f"{str(path)!r} does not say along which directions its box is periodic: add the attribute boundary.")
    labels = _labels(path, atoms, frame, species)
    masses = None
    if "mass" in atoms:
        masses = _value(path, atoms, "mass", frame, MASSES)
        check_masses(path, zip(labels, masses.tolist(), strict=True), "correct species=, or the mass in the file")
    return System(
        positions,
        cell=_value(path, box, "edges", frame, LENGTHS) if "edges" in box else None,
        pbc=[kind == "periodic" for kind in boundary],
        species=labels,
        masses=masses,
    )


def _labels(path: Path, atoms: h5py.Group, frame: int, species: Sequence[str] | None) -> list[str]:
    if "species" not in atoms:
        raise InputError(f"{str(path)!r} does not say which species its particles are of: add the element species.")
    codes = _value(path, atoms, "species", frame)
    data = _data(path, atoms["species"])
    names = {code: name for name, code in (h5py.check_enum_dtype(data.dtype) or {}).items()}
    if h5py.check_string_dtype(data.dtype) is not None:
        labels = list(map(_text, codes))
    elif names:
        labels = [names[int(code)] for code in codes]
    else:
        known = sorted({int(code) for code in codes})
        chosen = list_labels(species)
        if len(chosen) != len(known):
            raise InputError(
                f"{str(path)!r} has the species {', '.join(map(str, known))}: name {'them' if len(known) > 1 else 'it'} in this "
                f"order, species=[...]{f', not {len(chosen)}' if chosen else ''}."
            )
        return [chosen[known.index(int(code))] for code in codes]
    if species is not None:
        raise InputError(f"{str(path)!r} names its species itself: leave species= out.")
    return labels


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
