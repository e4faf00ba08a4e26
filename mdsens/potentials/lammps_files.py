"""Readers of potential files: text, numbers, and entries of three elements. Nothing in a file is evaluated as code."""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdsens.common.errors import InputError
from mdsens.common.paths import is_file

_SW_COLUMNS = ("epsilon", "sigma", "a", "lam", "gamma", "costheta0", "A", "B", "p", "q", "tol")
_TERSOFF_COLUMNS = ("m", "gamma", "lam3", "c", "d", "costheta0", "n", "beta", "lam2", "B", "R", "D", "lam1", "A")
_OTHER_STYLES = {"Tersoff": {17: "tersoff/mod, another formula", 18: "tersoff/zbl or tersoff/mod/c, other formulas"}}
"""Styles of files with another number of columns."""
_LIKE_TERSOFF = (("gw (Gao and Weber)", r"\.gw\b", r"Gao\W{0,3}(and\W)?Weber"), ("vashishta", r"\.vashishta\b", "Vashishta"))
MAX_BYTES = 64 * 2**20
LARGEST_NUMBER = 1e30
"""Numbers of a potential in eV and Å are far below."""

Elements = str | Sequence[str] | None
Triplet = tuple[str, str, str]


def read_text(path: Any) -> str:
    """Return the text of a small file in LAMMPS's units metal.

    Raises:
        InputError: no such file, too large, not text, or in other units.
    """
    path = Path(path)
    if not is_file(path):
        raise InputError(f"There is no file {str(path)!r}.")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{str(path)!r} has {path.stat().st_size} bytes, too many for a potential file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{str(path)!r} is not a text file.") from None
    if (units := re.search(r"UNITS:\s*(\w+)", text)) and units[1] != "metal":
        line = text.count("\n", 0, units.start()) + 1
        raise InputError(
            f"{str(path)!r}, line {line}: it is in LAMMPS's units {units[1]}, and mdsens reads units metal (eV, Å): convert it."
        )
    return text


@dataclasses.dataclass(frozen=True, eq=False)
class Words:
    """The words of a file, and the line that each stands on."""

    path: str
    words: list[str]
    lines: np.ndarray

    @classmethod
    def split(cls, path: Any, text: str, *, skip: int = 0, comment: str | None = None) -> "Words":
        """Split a text after its first `skip` lines; what follows `comment` in a line is left out."""
        lines = [(line.split(comment)[0] if comment else line).split() for line in text.splitlines()[skip:]]
        numbers = np.arange(skip + 1, skip + 1 + len(lines))
        return cls(str(path), list(itertools.chain.from_iterable(lines)), np.repeat(numbers, [len(line) for line in lines]))

    def __len__(self) -> int:
        return len(self.words)

    def at(self, k: int, what: str = "") -> str:
        """Return the file and the line of a word, for a message."""
        return f"{self.path!r}, line {self.lines[k]}" + (f", {what}" if what else "")

    def numbers(self, start: int, count: int, what: str, *, at_zero: bool = False) -> np.ndarray:
        """Return some words as numbers.

        Args:
            at_zero: whether the first number belongs to the distance zero, where no atoms are: if it is infinite, or as large
                as numbers can be, the cubic through the next four replaces it.

        Raises:
            InputError: naming the line of a word that is no number, or one that is not finite or absurd.
        """
        words = self.words[start : start + count]
        values = [number(word) for word in words]
        smooth = at_zero and all(value is not None and abs(value) <= LARGEST_NUMBER for value in values[1:5])
        if smooth and values[0] is not None and not abs(values[0]) <= LARGEST_NUMBER:
            values[0] = float(np.dot((4.0, -6.0, 4.0, -1.0), np.array(values[1:5], dtype=float)))
        for k, value in enumerate(values):
            if value is None:
                line = self.lines[start + k]
                beside = [word for word, at in zip(words, self.lines[start : start + count], strict=True) if at == line]
                raise InputError(f"{self.at(start + k, what)}: {' '.join(beside)[:160]!r} are not numbers: correct the line.")
            if not np.isfinite(value):
                raise InputError(f"{self.at(start + k, what)}: a number is not finite, {words[k]!r}: correct it.")
            if abs(value) > LARGEST_NUMBER:
                raise InputError(f"{self.at(start + k, what)}: {words[k]!r} is absurdly large for eV and Å: correct it.")
        return np.array(values)


def numbers_of_line(path: Any, line: int, words: list[str]) -> np.ndarray:
    """Return the words of one line as numbers; raises as `Words.numbers` does."""
    return Words(str(path), words, np.full(len(words), line)).numbers(0, len(words), "")


class Entry(dict[str, float]):
    """The numbers of an entry by name, and the line that it begins on."""

    def __init__(self, line: int, names: Iterable[str], values: Iterable[float]) -> None:
        super().__init__(zip(names, values, strict=True))
        self.line = line


def number(word: str) -> float | None:
    """Return the number that a word is, None where it is none."""
    try:
        return None if "_" in word else float(word)
    except ValueError:
        return None


@contextlib.contextmanager
def errors_named(path: Any) -> Iterator[None]:
    """Put the file's name before the message of an InputError that its numbers raise."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from None


def read_sw(path: Any, elements: Elements = None) -> dict[Triplet, Entry]:
    """Read the entries of a LAMMPS `.sw` file (units metal) for all triplets of some elements, by LAMMPS's names."""
    entries = _read_complete(path, "Stillinger-Weber", _SW_COLUMNS, elements)
    for (_, j, k), entry in entries.items():
        if entry.pop("tol") > 0.0 and j == k:
            raise InputError(f"{str(path)!r} sets tol > 0, LAMMPS's shortened cutoff, which mdsens does not use: set it to 0.")
    return entries


def read_tersoff(path: Any, elements: Elements = None) -> dict[Triplet, Entry]:
    """Read the entries of a LAMMPS `.tersoff` file (units metal) for all triplets of some elements, by LAMMPS's names."""
    return _read_complete(path, "Tersoff", _TERSOFF_COLUMNS, elements)


def _other_formula(path: Any) -> str | None:
    """Return a formula whose files have as many columns as Tersoff's, by the file's name or its comments; None for Tersoff's."""
    comments = " ".join(line.partition("#")[2] for line in read_text(path).splitlines())
    for formula, ending, author in _LIKE_TERSOFF:
        if re.search(ending, Path(path).name, re.IGNORECASE) or re.search(author, comments, re.IGNORECASE):
            return formula
    return None


def _read_complete(path: Any, kind: str, columns: Sequence[str], elements: Elements) -> dict[Triplet, Entry]:
    """Read the entries of all triplets of some elements."""
    entries = _read_triplets(path, kind, columns)
    chosen = chosen_elements(path, elements, dict.fromkeys(element for triplet in entries for element in triplet))
    triplets = [(i, j, k) for i in chosen for j in chosen for k in chosen]
    if missing := [triplet for triplet in triplets if triplet not in entries]:
        raise InputError(
            f"{str(path)!r} has no entry {'-'.join(missing[0])} for the elements {', '.join(chosen)}: "
            "choose elements that it is complete for, elements=[...]."
        )
    return {triplet: entries[triplet] for triplet in triplets}


def chosen_elements(path: Any, elements: Elements, known: Collection[str]) -> list[str]:
    """Return the elements to read, all known ones by default; raises InputError for others."""
    elements = list(known) if elements is None else [elements] if isinstance(elements, str) else list(elements)
    if unknown := [element for element in elements if element not in known]:
        raise InputError(f"{str(path)!r} has no element {unknown[0]!r}; it has {', '.join(known)}.")
    if not elements:
        raise InputError(f"elements= names none of {str(path)!r}; it has {', '.join(known)}.")
    return elements


def _read_triplets(path: Any, kind: str, columns: Sequence[str]) -> dict[Triplet, Entry]:
    """Read entries of three elements and some numbers, each over one or several lines; `#` starts a comment."""
    words = Words.split(path, read_text(path), comment="#")
    if str(path).endswith(".sw.mod"):
        raise InputError(f"{str(path)!r} is for LAMMPS's sw/mod, another formula, which mdsens does not have: use a .sw file.")
    if kind == "Tersoff" and (other := _other_formula(path)):
        raise InputError(f"{str(path)!r} is for LAMMPS's {other}, another formula, which mdsens does not have.")
    size = 3 + len(columns)
    entry = f"entries of {size} words (three elements, {len(columns)} numbers)"
    if not len(words):
        raise InputError(f"{str(path)!r} is empty or cut off: a {kind} file has {entry}.")
    count = sum(1 for _ in itertools.takewhile(lambda word: number(word) is not None, words.words[3:]))
    if other := _OTHER_STYLES.get(kind, {}).get(count):
        raise InputError(
            f"{words.at(0)}: an entry of {count} numbers is one of LAMMPS's {other}, which mdsens does not have: "
            f"a {kind} file has {entry}."
        )
    entries = {}
    for start in range(0, len(words), size):
        triplet = tuple(words.words[start : start + 3])
        if not all(re.fullmatch(r"[A-Za-z][\w()+*]*", element) for element in triplet):
            raise InputError(
                f"{words.at(start)}: an entry should begin here, with three elements, not with {' '.join(triplet)!r}: "
                f"a {kind} file has {entry}."
            )
        if start + size > len(words):
            raise InputError(
                f"{words.at(start)}: the last entry is cut off or has columns too few, {len(words) - start} words: "
                f"a {kind} file has {entry}."
            )
        where = f"entry {'-'.join(triplet)}"
        values = words.numbers(start + 3, len(columns), where)
        if triplet in entries:
            raise InputError(f"{words.at(start, where)}: it is there twice: remove one.")
        entries[triplet[0], triplet[1], triplet[2]] = Entry(int(words.lines[start]), columns, values.tolist())
    return entries
