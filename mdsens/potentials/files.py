"""Reading potential files. Nothing in a file is ever evaluated as code."""

import itertools
import re
from pathlib import Path

import numpy as np

from mdsens.errors import InputError

_SW_COLUMNS = ("epsilon", "sigma", "a", "lam", "gamma", "costheta0", "A", "B", "p", "q", "tol")
_TERSOFF_COLUMNS = ("m", "gamma", "lam3", "c", "d", "costheta0", "n", "beta", "lam2", "B", "R", "D", "lam1", "A")
MIN_TABLE = 6
"""Values of a table that its interpolation needs."""
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


def read_sw(path, elements=None) -> dict[tuple[str, str, str], dict[str, float]]:
    """The entries of a LAMMPS `.sw` file (units metal) for all triplets of some elements, by LAMMPS's names."""
    entries = _read_complete(path, "Stillinger-Weber", _SW_COLUMNS, elements)
    for (_, j, k), entry in entries.items():
        if entry.pop("tol") > 0.0 and j == k:
            raise InputError(f"{str(path)!r} sets tol > 0, LAMMPS's shortened cutoff, which mdsens does not use: set it to 0.")
    return entries


def read_tersoff(path, elements=None) -> dict[tuple[str, str, str], dict[str, float]]:
    """The entries of a LAMMPS `.tersoff` file (units metal) for all triplets of some elements, by LAMMPS's names."""
    return _read_complete(path, "Tersoff", _TERSOFF_COLUMNS, elements)


def _read_complete(path, kind, columns, elements) -> dict[tuple[str, str, str], dict[str, float]]:
    """The entries of all triplets of the elements asked for."""
    entries = _read_triplets(path, kind, columns)
    elements = _chosen(path, elements, dict.fromkeys(element for triplet in entries for element in triplet))
    wanted = list(itertools.product(elements, repeat=3))
    if missing := [triplet for triplet in wanted if triplet not in entries]:
        raise InputError(
            f"{str(path)!r} has no entry {'-'.join(missing[0])} for the elements {', '.join(elements)}: "
            "choose elements that it is complete for, elements=[...]."
        )
    return {triplet: entries[triplet] for triplet in wanted}


def _chosen(path, elements, known) -> list[str]:
    """The elements asked for, all of them by default."""
    elements = list(known) if elements is None else [elements] if isinstance(elements, str) else list(elements)
    if unknown := [element for element in elements if element not in known]:
        raise InputError(f"{str(path)!r} has no element {unknown[0]!r}; it has {', '.join(known)}.")
    if not elements:
        raise InputError(f"elements= names none of {str(path)!r}; it has {', '.join(known)}.")
    return elements


def _read_triplets(path, kind, columns) -> dict[tuple[str, str, str], dict[str, float]]:
    """Entries of three elements and some numbers, each over one or several lines; `#` starts a comment."""
    text = read_text(path)
    units = re.search(r"UNITS:\s*(\w+)", text)
    if units and units[1] != "metal":
        raise InputError(f"{str(path)!r} is in LAMMPS's units {units[1]}, and mdsens reads units metal (eV, Å): convert it.")
    words = [word for line in text.splitlines() for word in line.split("#")[0].split()]
    size = 3 + len(columns)
    if not words or len(words) % size:
        raise InputError(
            f"{str(path)!r} is not a {kind} file, or is cut off: "
            f"{len(words)} words are not entries of {size} (three elements, {len(columns)} numbers)."
        )
    entries = {}
    for start in range(0, len(words), size):
        triplet, numbers = tuple(words[start : start + 3]), words[start + 3 : start + size]
        values = _numbers(path, f"entry {'-'.join(triplet)}", numbers)
        if triplet in entries:
            raise InputError(f"{str(path)!r} has the entry {'-'.join(triplet)} twice: remove one.")
        entries[triplet] = dict(zip(columns, values.tolist(), strict=True))
    return entries


def _numbers(path, where, words) -> np.ndarray:
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        raise InputError(f"{str(path)!r}, {where}: {' '.join(words)[:160]!r} are not numbers.") from None
    if not np.isfinite(values).all():
        raise InputError(f"{str(path)!r}, {where}: a number is not finite.")
    return values


def read_setfl(path, form: str | None = None, elements=None) -> dict:
    """Tables of an embedded-atom file of LAMMPS's `eam/alloy` or `eam/fs` (DYNAMO setfl).

    Args:
        form: `"alloy"` or `"fs"`; by default whichever the length fits. For one element they are the same.
        elements: some of the file's; all by default.

    Returns:
        `F` by element, `rho` by element (alloy) or by the element that makes the density and the one that it is felt at
        (fs), `phi` = r φ(r) [eV Å] by the pair, and `drho`, `dr` [Å], `cutoff` [Å].
    """
    if form not in (None, "alloy", "fs"):
        raise InputError(f"There is no form {form!r} of an embedded-atom file: 'alloy' or 'fs' (or None, to see by its length).")
    lines = read_text(path).splitlines()
    names, sizes = (lines[k].split() if len(lines) > k else [] for k in (3, 4))
    if not (names and names[0].isdigit() and int(names[0]) == len(names) - 1 > 0 and len(sizes) >= 5):
        raise InputError(
            f"{str(path)!r} is not a setfl file: its fourth line should be the number of elements and their names, "
            "its fifth Nrho, drho, Nr, dr and the cutoff."
        )
    if len(known := names[1:]) != len(set(known)):
        raise InputError(f"{str(path)!r} names an element twice: {', '.join(known)}.")
    n_rho, drho, n_r, dr, cutoff = _numbers(path, "line 5", sizes[:5]).tolist()
    if min(n_rho, n_r) < MIN_TABLE or n_rho % 1 or n_r % 1 or min(drho, dr, cutoff) <= 0.0:
        raise InputError(
            f"{str(path)!r}, line 5: Nrho and Nr must be whole numbers of at least {MIN_TABLE}, drho, dr and the cutoff positive."
        )
    n_rho, n_r, n = int(n_rho), int(n_r), len(known)
    words = [word for line in lines[5:] for word in line.split()]
    lengths = {kind: n * (4 + n_rho + n_r * width) + n_r * n * (n + 1) // 2 for kind, width in (("alloy", 1), ("fs", n))}
    fits = [kind for kind, length in lengths.items() if length == len(words) and form in (None, kind)]
    if not fits:
        expected = " or ".join(f"{length} ({kind})" for kind, length in lengths.items() if form in (None, kind))
        raise InputError(f"{str(path)!r} is cut off or of another form: {len(words)} words after its fifth line, not {expected}.")
    tables, place = {"F": {}, "rho": {}, "phi": {}}, 0

    def take(count, what):
        nonlocal place
        place += count
        return _numbers(path, what, words[place - count : place])

    for element in known:
        place += 4  # atomic number, mass, lattice constant, lattice
        tables["F"][element] = take(n_rho, f"F of {element}")
        densities = [take(n_r, f"the density of {element}") for _ in range(1 if fits[0] == "alloy" else n)]
        tables["rho"][element] = densities[0] if fits[0] == "alloy" else dict(zip(known, densities, strict=True))
    for a, first in enumerate(known):
        for second in known[: a + 1]:
            tables["phi"][f"{first}-{second}"] = take(n_r, f"the pair {first}-{second}")
    chosen = _chosen(path, elements, known)
    pairs = {f"{a}-{b}" for a in chosen for b in chosen}
    rho = {a: tables["rho"][a] for a in chosen}
    return {
        "F": {a: tables["F"][a] for a in chosen},
        "rho": rho if fits[0] == "alloy" else {a: {b: made[b] for b in chosen} for a, made in rho.items()},
        "phi": {pair: table for pair, table in tables["phi"].items() if pair in pairs},
        "drho": drho,
        "dr": dr,
        "cutoff": cutoff,
    }
