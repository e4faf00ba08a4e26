"""Checks that a file can hold as many atoms as it announces: ASE's readers make room for all of them beforehand."""

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from mdsens.common.errors import InputError

CHUNK = 2**20
"""Bytes that are read together."""
MAX_DIGITS = 18
"""Digits of a count, at most."""
MAX_SHELX_LINE = 1000
"""Letters of a line, at most; ASE searches each in a time that grows as their square."""
MAX_RATIO, MAX_UNPACKED = 100, 100 * 2**20
"""A file that unpacks to more than `MAX_UNPACKED` bytes, and to more than `MAX_RATIO` times its size, is no structure."""

_COUNTS = {
    "extxyz": rb":[A-Z]:(\d+)",
    "jsv": rb"^\[\w+\]\s+(\d+)",
    "lammps-data": rb"^\s*(\d+)\s+(?:atom|bond|angle|dihedral|improper)",
    "lammps-dump-text": rb"ITEM: NUMBER OF ATOMS\s+(\d+)",
    "vasp": rb"\A(?:.*\n){5,6}?\s*([\d \t]+?)\s*\n",
    "vasp-xdatcar": rb"\A(?:.*\n){5,6}?\s*([\d \t]+?)\s*\n",
}
"""Patterns of the counts in those of ASE's formats whose readers trust them."""


def check_size(path: Path, kind: str) -> None:
    """Raise InputError for a file of ASE's that announces more atoms than it has bytes, unpacks to too much, or never ends."""
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
            _check(path, _frame_counts(file), size)
            file.seek(0)
        if kind in _COUNTS:
            # A file of many structures has counts everywhere, one of a single structure at its head.
            head = file.read() if kind == "lammps-dump-text" else file.read(CHUNK)
            _check(path, (match[1] for match in re.finditer(_COUNTS[kind], head, re.MULTILINE)), size)


def _frame_counts(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the counts of an xyz file, whose structures are a count, a comment, and as many lines."""
    while (line := file.readline().strip()).isdigit():
        yield line
        next(itertools.islice(file, int(line) + 1, int(line) + 1), None)


def _check(path: Path, counts: Iterable[bytes], size: int) -> None:
    for words in counts:
        if any(len(word) > MAX_DIGITS for word in words.split()) or sum(map(int, words.split())) > size:
            raise InputError(f"{str(path)!r} announces {words.decode()[:40]} of something, more than its {size} bytes can hold.")
