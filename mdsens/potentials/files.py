"""Reading potential files. Nothing in a file is ever evaluated as code."""

import re
from pathlib import Path

import numpy as np

from mdsens.errors import InputError

_SW_COLUMNS = ("epsilon", "sigma", "a", "lam", "gamma", "costheta0", "A", "B", "p", "q", "tol")
MAX_BYTES = 64 * 2**20


def read_text(path) -> str:
    """The text of a small file.

    Raises:
        InputError: no such file, too large, or not text.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {str(path)!r}.")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{str(path)!r} has {path.stat().st_size} bytes, too many for a potential file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{str(path)!r} is not a text file.") from None


def read_sw(path, element: str | None = None) -> dict:
    """The parameters of one element from a LAMMPS `.sw` file (units metal), by LAMMPS's names.

    An entry is three elements and eleven numbers, over one or several lines; `#` starts a comment.
    """
    text = read_text(path)
    units = re.search(r"UNITS:\s*(\w+)", text)
    if units and units[1] != "metal":
        raise InputError(f"{str(path)!r} is in LAMMPS's units {units[1]}, and mdsens reads units metal (eV, Å): convert it.")
    words = [word for line in text.splitlines() for word in line.split("#")[0].split()]
    size = 3 + len(_SW_COLUMNS)
    if not words or len(words) % size:
        raise InputError(
            f"{str(path)!r} is not a Stillinger-Weber file, or is cut off: "
            f"{len(words)} words are not entries of {size} (three elements, {len(_SW_COLUMNS)} numbers)."
        )
    entries = {}
    for start in range(0, len(words), size):
        triplet, numbers = tuple(words[start : start + 3]), words[start + 3 : start + size]
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            raise InputError(f"{str(path)!r}, entry {'-'.join(triplet)}: {' '.join(numbers)!r} are not numbers.") from None
        if not np.isfinite(values).all():
            raise InputError(f"{str(path)!r}, entry {'-'.join(triplet)}: a number is not finite.")
        if triplet in entries:
            raise InputError(f"{str(path)!r} has the entry {'-'.join(triplet)} twice: remove one.")
        entries[triplet] = dict(zip(_SW_COLUMNS, values, strict=True))
    elements = [triplet[0] for triplet in entries if len(set(triplet)) == 1]
    if not elements:
        raise InputError(f"{str(path)!r} has no entry of one element, only {', '.join(map('-'.join, entries))}.")
    if element is None:
        if len(elements) != 1:
            raise InputError(f"{str(path)!r} has the elements {', '.join(elements)}: choose one with element=.")
        element = elements[0]
    if element not in elements:
        raise InputError(f"{str(path)!r} has no element {element!r}; it has {', '.join(elements)}.")
    entry = entries[(element,) * 3]
    if entry.pop("tol") > 0.0:
        raise InputError(f"{str(path)!r} sets tol > 0, LAMMPS's shortened cutoff, which mdsens does not use: set it to 0.")
    return entry
