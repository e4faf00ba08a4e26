"""Readers of embedded-atom tables: LAMMPS's `eam/alloy` and `eam/fs` (DYNAMO's setfl) and `eam` (its funcfl)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mdsens.common.errors import InputError
from mdsens.potentials.lammps_files import Elements, Words, chosen_elements, number, read_text

MIN_TABLE = 6
"""Fewest values that a table can be interpolated from."""
HARTREE_BOHR = 27.2 * 0.529
"""e²/4πε₀ [eV Å], with the digits that funcfl files are made for."""
STEPS = {"F": "drho", "charge": "dr", "rho": "dr"}
"""Tables of a funcfl file, and the step of each."""


Tables = dict[str, Any]
"""The arguments of `EAM` but `interpolation`."""


def read_tables(path: Any, form: str | None = None, elements: Elements = None) -> Tables:
    """Read the tables of an embedded-atom file, or of several files of one element each.

    Args:
        path: a file; of funcfl files, also a list of them.
        form: `"alloy"`, `"fs"` or `"funcfl"`; by default whichever the file looks like. For one element `"alloy"` and
            `"fs"` are the same.
        elements: some of the file's; all by default.

    Returns:
        `F` by element, `rho` by element (alloy) or by the element that makes the density and the one that it is felt at
        (fs), `phi` = r φ(r) [eV Å] by the pair, and `drho`, `dr` [Å], `cutoff` [Å].
    """
    if form not in (None, "alloy", "fs", "funcfl"):
        raise InputError(
            f"There is no form {form!r} of an embedded-atom file: 'alloy', 'fs' or 'funcfl' (or None, to see by the file)."
        )
    if isinstance(path, list | tuple):
        return _read_several(path, form, elements)
    text = read_text(path)
    lines = _head(text)
    if form == "funcfl" or (form is None and not _names(lines) and _is_funcfl(lines)):
        element, file = _funcfl(path, text)
        chosen_elements(path, elements, [element])
        return _tables_of({element: file})
    return _read_setfl(path, text, lines, form, elements)


def _head(text: str) -> list[list[str]]:
    return [line.split("#")[0].split() for line in text.splitlines()[:5]]


def _names(lines: list[list[str]]) -> list[str]:
    """Return the elements of a setfl file, none where it is no such file."""
    count, *names = lines[3] if len(lines) > 4 and lines[3] else [""]
    return names if count == str(len(names)) else []


def _is_funcfl(lines: list[list[str]]) -> bool:
    """Return whether line 2 begins with an atomic number and a mass and line 3 with five numbers; the rest is for people."""
    if len(lines) < 3 or len(lines[1]) < 2 or len(lines[2]) < 5:
        return False
    return lines[1][0].isdecimal() and all(number(word) is not None for word in (lines[1][1], *lines[2][:5]))


def _read_setfl(path: Any, text: str, lines: list[list[str]], form: str | None, elements: Elements) -> Tables:
    known = _names(lines)
    if not known:
        raise InputError(
            f"{str(path)!r} is not a setfl file: its line 4 should be the number of elements and their names, "
            "and its line 5 Nrho, drho, Nr, dr and the cutoff."
        )
    if len(known) != len(set(known)):
        raise InputError(f"{str(path)!r}, line 4: an element is named twice: {', '.join(known)}.")
    if len(lines[4]) > 5 and _is_positive(lines[4][5]):
        raise InputError(
            f"{str(path)!r}, line 5: its sixth number is that of LAMMPS's eam/he, whose embedding energies reach to negative "
            "densities and which mdsens does not have: use another file."
        )
    n_rho, n_r, grid = _grid(path, text, 5)
    words, n = Words.split(path, text, skip=5, comment="#"), len(known)
    # What is left for the elements' own lines, of two to five words, tells the forms apart.
    lengths = {kind: n * (n_rho + n_r * width) + n_r * n * (n + 1) // 2 for kind, width in (("alloy", 1), ("fs", n))}
    lengths = {kind: length for kind, length in lengths.items() if form in (None, kind)}
    kinds = [kind for kind, length in lengths.items() if 2 * n <= len(words) - length <= 5 * n]
    if not kinds:
        expected = " or ".join(f"{length + 4 * n} ({kind})" for kind, length in lengths.items())
        raise InputError(
            f"{str(path)!r} is cut off or of another form: {len(words)} words follow its line 5, which announces {expected}."
        )
    tables: dict[str, dict[str, Any]] = {"F": {}, "rho": {}, "phi": {}}
    by_pair, place = kinds[0] == "fs", 0

    def take(count: int, what: str, *, at_zero: bool = False) -> np.ndarray:
        nonlocal place
        place += count
        return words.numbers(place - count, count, what, at_zero=at_zero)

    for element in known:
        start = place
        take(2, f"atomic number and mass of {element}")
        while place < len(words) and words.lines[place] == words.lines[start]:
            place += 1  # lattice constant and lattice, for people
        tables["F"][element] = take(n_rho, f"F of {element}")
        densities = [take(n_r, f"the density of {element}", at_zero=True) for _ in range(n if by_pair else 1)]
        tables["rho"][element] = dict(zip(known, densities, strict=True)) if by_pair else densities[0]
    for a, first in enumerate(known):
        for second in known[: a + 1]:
            tables["phi"][f"{first}-{second}"] = take(n_r, f"the pair {first}-{second}", at_zero=True)
    if place != len(words):
        raise InputError(f"{str(path)!r} is cut off or of another form: {len(words)} words follow its line 5, not {place}.")
    chosen = chosen_elements(path, elements, known)
    pairs = {f"{a}-{b}" for a in chosen for b in chosen}
    rho = {a: tables["rho"][a] for a in chosen}
    return {
        "F": {a: tables["F"][a] for a in chosen},
        "rho": {a: {b: densities[b] for b in chosen} for a, densities in rho.items()} if by_pair else rho,
        "phi": {pair: table for pair, table in tables["phi"].items() if pair in pairs},
        **grid,
    }


def _is_positive(word: str) -> bool:
    return (value := number(word)) is not None and value > 0.0


def _read_several(paths: Sequence[Any], form: str | None, elements: Elements) -> Tables:
    """Read funcfl files onto one grid; pairs have the product of both charges, as in LAMMPS's `PairEAM::file2array`."""
    if form not in (None, "funcfl") or not paths:
        raise InputError("A list of files is of funcfl files, one for each element; setfl files have all elements in one.")
    files: dict[str, Any] = {}
    for path in paths:
        element, file = _funcfl(path, read_text(path))
        if element in files:
            raise InputError(f"{str(path)!r} is of {element}, like another file of the list: give each element once.")
        files[element] = file
    files = {element: files[element] for element in chosen_elements(", ".join(map(str, paths)), elements, list(files))}
    if len(files) == 1:
        return _tables_of(files)
    # The coarsest steps and the farthest ends; LAMMPS leaves out the last values, and forces there are no gradients.
    grid = {name: max(file[name] for file in files.values()) for name in ("drho", "dr", "cutoff")}
    sizes = {
        step: int(max((len(file[table]) - 1) * file[step] for file in files.values()) / grid[step] + 0.5) + 1
        for step, table in (("drho", "F"), ("dr", "charge"))
    }
    return _tables_of(
        {
            element: grid | {name: _resampled(file[name], file[step], grid[step], sizes[step]) for name, step in STEPS.items()}
            for element, file in files.items()
        }
    )


def _resampled(values: np.ndarray, own: float, step: float, size: int) -> np.ndarray:
    """Return values at 0, step, 2 step, ... by the cubic through the four around each, the last one as far as it goes."""
    x = step * np.arange(size) / own
    k = np.clip(np.floor(x).astype(int), 1, len(values) - 3)
    p = np.minimum(x - k, 2.0)
    return (
        -p * (p - 1.0) * (p - 2.0) / 6.0 * values[k - 1]
        + 0.5 * (p * p - 1.0) * (p - 2.0) * values[k]
        - 0.5 * p * (p + 1.0) * (p - 2.0) * values[k + 1]
        + p * (p * p - 1.0) / 6.0 * values[k + 2]
    )


def _tables_of(files: dict[str, Any]) -> Tables:
    """Return the tables of funcfl files on one grid."""
    names = list(files)
    return {
        "F": {element: file["F"] for element, file in files.items()},
        "rho": {element: file["rho"] for element, file in files.items()},
        "phi": {
            f"{a}-{b}": HARTREE_BOHR * files[a]["charge"] * files[b]["charge"]
            for k, a in enumerate(names)
            for b in names[: k + 1]
        },
        **{name: files[names[0]][name] for name in ("drho", "dr", "cutoff")},
    }


def _funcfl(path: Any, text: str) -> tuple[str, dict[str, Any]]:
    """Read `(element, {F, rho, charge, drho, dr, cutoff})`."""
    lines = _head(text)
    if not _is_funcfl(lines):
        raise InputError(
            f"{str(path)!r} is not a funcfl file: its line 2 should be the atomic number, mass, lattice constant and lattice, "
            "and its line 3 Nrho, drho, Nr, dr and the cutoff."
        )
    by_number = {str(number): symbol for number, symbol in enumerate(chemical_symbols) if number}
    if lines[1][0] not in by_number:
        raise InputError(f"{str(path)!r}, line 2: no element has the atomic number {lines[1][0][:20]}.")
    element = by_number[lines[1][0]]
    n_rho, n_r, grid = _grid(path, text, 3)
    words = Words.split(path, text, skip=3, comment="#")
    if len(words) != n_rho + 2 * n_r:
        raise InputError(
            f"{str(path)!r} is cut off or of another form: {len(words)} words follow its line 3, which announces "
            f"{n_rho + 2 * n_r}."
        )
    return element, grid | {
        "F": words.numbers(0, n_rho, f"F of {element}"),
        "charge": words.numbers(n_rho, n_r, f"the charge of {element}", at_zero=True),
        "rho": words.numbers(n_rho + n_r, n_r, f"the density of {element}", at_zero=True),
    }


def _grid(path: Any, text: str, line: int) -> tuple[int, int, dict[str, float]]:
    """Read Nrho, Nr, and the rest of the line that describes the grids."""
    words = Words.split(path, "\n".join(text.splitlines()[:line]), skip=line - 1, comment="#")
    if len(words) < 5:
        raise InputError(f"{str(path)!r}, line {line}: Nrho, drho, Nr, dr and the cutoff are wanted, not {len(words)} words.")
    n_rho, drho, n_r, dr, cutoff = words.numbers(0, 5, "Nrho, drho, Nr, dr and the cutoff").tolist()
    if min(n_rho, n_r) < MIN_TABLE or n_rho % 1 or n_r % 1:
        raise InputError(f"{words.at(0)}: Nrho and Nr must be whole numbers of at least {MIN_TABLE}.")
    if min(drho, dr, cutoff) <= 0.0:
        raise InputError(f"{words.at(0)}: drho, dr and the cutoff must be positive.")
    return int(n_rho), int(n_r), {"drho": drho, "dr": dr, "cutoff": cutoff}
