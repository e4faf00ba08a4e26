"""Readers of LAMMPS's `.snapcoeff` and `.snapparam` files."""

from typing import Any, NamedTuple

import numpy as np

from mdsens.common.errors import InputError, did_you_mean
from mdsens.potentials.lammps_files import Elements, chosen_elements, numbers_of_line, read_text

FLAGS = ("switchflag", "bzeroflag", "quadraticflag", "chemflag", "bnormflag", "wselfallflag", "switchinnerflag")
LENGTHS = ("rcutfac", "rfac0", "rmin0")
LISTS = ("sinner", "dinner")
"""Settings with one number for each element."""
WORK_SETTINGS = ("chunksize", "parallelthresh")
"""Settings of how LAMMPS divides its work, which change no number."""


def read_snap(coefficients: Any, parameters: Any, elements: Elements = None) -> dict[str, Any]:
    """Return the arguments of `SNAP` from both files (units metal), for some of their elements, by default all."""
    settings = _read_parameters(parameters)
    entries = _read_coefficients(coefficients)
    chosen = chosen_elements(coefficients, elements, list(entries))
    if settings.get("chemflag") and len(chosen) < len(entries):
        raise InputError(
            f"{str(parameters)!r} tells the elements apart (chemflag 1), so that all of {', '.join(entries)} are needed: "
            "leave elements= out."
        )
    for name in LISTS:
        if (values := settings.pop(name, None)) is None:
            continue
        if len(values) != len(entries):
            raise InputError(f"{str(parameters)!r}: {name} has {len(values)} numbers, not one for each of {', '.join(entries)}.")
        settings[name] = tuple((element, value) for element, value in zip(entries, values, strict=True) if element in chosen)
    # Where elements are told apart their order in the file counts.
    entries = {element: entry for element, entry in entries.items() if element in chosen}
    return settings | {
        "coefficients": {element: entry.coefficients for element, entry in entries.items()},
        "weights": {element: entry.weight for element, entry in entries.items()},
        "radii": tuple((element, entry.radius) for element, entry in entries.items()),
    }


class Entry(NamedTuple):
    """The numbers of an element: its radius [Å], its weight, and its coefficients [eV]."""

    radius: float
    weight: float
    coefficients: np.ndarray


def _lines(path: Any) -> list[tuple[int, list[str]]]:
    """Read `(number, words)` of the lines that are not empty; `#` starts a comment."""
    text = read_text(path)
    words = [(number, line.split("#")[0].split()) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, line) for number, line in words if line]


def _read_coefficients(path: Any) -> dict[str, Entry]:
    lines = _lines(path)
    counts = lines[0][1] if lines else []
    if len(counts) != 2 or not all(word.isdecimal() and len(word) < 10 and int(word) > 0 for word in counts):
        raise InputError(
            f"{str(path)!r} is no .snapcoeff file: its first line should be the numbers of elements and of coefficients."
        )
    n_elements, n_coefficients = map(int, counts)
    body = lines[1:]
    if len(body) != (expected := n_elements * (1 + n_coefficients)):
        raise InputError(
            f"{str(path)!r} has {len(body)} lines behind its first, not {expected}: it is cut off or too long for {n_elements} "
            f"element(s), each with a line of its own and {n_coefficients} of coefficients."
        )
    entries = {}
    for start in range(0, len(body), 1 + n_coefficients):
        (number, head), rows = body[start], body[start + 1 : start + 1 + n_coefficients]
        if len(head) != 3:
            raise InputError(
                f"{str(path)!r}, line {number}: an element, its radius and its weight are expected, not {head!r:.80}."
            )
        if head[0] in entries:
            raise InputError(f"{str(path)!r}, line {number}: the element {head[0]} is there twice: remove one.")
        if wrong := [line for line, words in rows if len(words) != 1]:
            raise InputError(f"{str(path)!r}, line {wrong[0]}: one coefficient of {head[0]} is expected in each line.")
        radius, weight = numbers_of_line(path, number, head[1:]).tolist()
        values = [numbers_of_line(path, line, words)[0] for line, words in rows]
        entries[head[0]] = Entry(radius, weight, np.array(values))
    return entries


def _read_parameters(path: Any) -> dict[str, Any]:
    """Read settings by LAMMPS's names."""
    settings, known = {}, ("twojmax", *LENGTHS, *FLAGS, *LISTS, *WORK_SETTINGS)
    for number, (name, *words) in _lines(path):
        if name not in known:
            raise InputError(f"{str(path)!r}, line {number}: SNAP has no parameter {name!r}.{did_you_mean(name, known)}")
        if name in settings:
            raise InputError(f"{str(path)!r}, line {number}: {name} is there twice: remove one.")
        values = numbers_of_line(path, number, words).tolist()
        if name in WORK_SETTINGS:
            continue
        if name not in LISTS and len(values) != 1:
            raise InputError(f"{str(path)!r}, line {number}: {name} has one value, not {len(values)}.")
        if name in FLAGS and values[0] not in (0, 1):
            raise InputError(f"{str(path)!r}, line {number}: {name} must be 0 or 1, not {words[0]}.")
        if name == "twojmax" and not (values[0] % 1 == 0 and values[0] >= 0):
            raise InputError(f"{str(path)!r}, line {number}: twojmax must be a whole number, not {words[0]}.")
        settings[name] = (
            values if name in LISTS else bool(values[0]) if name in FLAGS else int(values[0]) if name == "twojmax" else values[0]
        )
    if missing := [name for name in ("rcutfac", "twojmax") if name not in settings]:
        raise InputError(f"{str(path)!r} does not say {missing[0]}, which SNAP needs: give a whole .snapparam file.")
    return settings
