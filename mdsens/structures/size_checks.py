"""Whether a file is there and can hold what it announces: ASE's readers make room for as many atoms as a header says."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mdsens.common.errors import InputError

CHUNK = 2**20
MAX_DIGITS = 18
"""Digits of a count."""
MAX_SHELX_LINE = 1000
"""Letters of a line; ASE searches each in a time that grows as their square."""
MAX_RATIO, MAX_UNPACKED = 100, 100 * 2**20
"""A compressed file that is larger than `MAX_UNPACKED` bytes, and so many times larger than it was, is no structure."""

_COUNTS = {
    "extxyz": rb":[A-Z]:(\d+)",
    "jsv": rb"^\[\w+\]\s+(\d+)",
    "lammps-data": rb"^\s*(\d+)\s+(?:atom|bond|angle|dihedral|improper)",
    "lammps-dump-text": rb"ITEM: NUMBER OF ATOMS\s+(\d+)",
    "vasp": rb"\A(?:.*\n){5,6}?\s*([\d \t]+?)\s*\n",
    "vasp-xdatcar": rb"\A(?:.*\n){5,6}?\s*([\d \t]+?)\s*\n",
}
"""Where they are in ASE's formats that trust them."""


def check_size(path: Path, kind: str) -> None:
    """Of a file in one of ASE's formats.

    Raises:
        InputError: it announces more than it has bytes, is small only because it is compressed, or would be read without end.
    """
    from ase.io.formats import get_compression, open_with_compression

    size = path.stat().st_size
    if get_compression(path.name)[1] is not None:
        limit, size = max(MAX_UNPACKED, MAX_RATIO * size), 0
        with open_with_compression(str(path), "rb") as file:
            while chunk := file.read(CHUNK):
                if (size := size + len(chunk)) > limit:
                    raise InputError(
                        f"{str(path)!r} unpacks to more than {limit / 2**20:.0f} MB: unpack it first, and look at it."
                    )
    if kind not in (*_COUNTS, "xyz", "res"):
        return
    with open_with_compression(str(path), "rb") as file:
        if kind == "res" and any(len(line) > MAX_SHELX_LINE for line in file):
            raise InputError(f"{str(path)!r} has lines of more than {MAX_SHELX_LINE} letters, which no file of SHELX has.")
        if kind in ("xyz", "extxyz"):
            _check(path, _of_frames(file), size)
            file.seek(0)
        if kind in _COUNTS:
            # Of many structures all of the file, of one its head.
            head = file.read() if kind == "lammps-dump-text" else file.read(CHUNK)
            _check(path, (one[1] for one in re.finditer(_COUNTS[kind], head, re.MULTILINE)), size)


def _of_frames(file: Any) -> Iterator[bytes]:
    """An xyz file's structures are a count, a comment, and as many lines."""
    while (line := file.readline().strip()).isdigit():
        yield line
        next(itertools.islice(file, int(line) + 1, int(line) + 1), None)


def _check(path: Any, announced: Any, size: Any) -> None:
    for words in announced:
        if any(len(word) > MAX_DIGITS for word in words.split()) or sum(map(int, words.split())) > size:
            raise InputError(f"{str(path)!r} announces {words.decode()[:40]} of something, more than its {size} bytes can hold.")
