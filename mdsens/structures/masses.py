"""Masses of elements and isotopes by their labels; a label of any other kind has none of its own."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mdsens.common.errors import InputError

ISOTOPES = {"D": ("H", 2.01410177812), "T": ("H", 3.01604928)}
"""Symbols of isotopes: their element and mass [amu] (M. Wang et al., Chin. Phys. C 45, 030003 (2021))."""

MASS_TOLERANCE = 0.6
"""Difference [amu] up to which a mass is an element's: files round to whole numbers."""
OTHER_MASS_TOLERANCE, OWN_MASS_DIFFERENCE = 0.005, 0.05
"""A mass this near to another element's and this far from its own is the other's [amu]."""


def is_element(label: str) -> bool:
    """Return whether a label is a chemical symbol; ASE's X is none."""
    from ase.data import atomic_numbers

    return atomic_numbers.get(label, 0) > 0


def element_of(label: str) -> str:
    """Return the element of a label, of an element or isotope; "X" for all others."""
    return label if is_element(label) else ISOTOPES[label][0] if label in ISOTOPES else "X"


def mass_of(label: str) -> float | None:
    """Return the mass of an element or isotope [amu], None for other labels."""
    from ase.data import atomic_masses, atomic_numbers

    if label in ISOTOPES:
        return ISOTOPES[label][1]
    return float(atomic_masses[atomic_numbers[label]]) if is_element(label) else None


def default_masses(labels: Iterable[str]) -> np.ndarray | None:
    """Return the masses of atoms by their labels, None where a label has none of its own."""
    labels = list(labels)
    known = {label: mass_of(label) for label in set(labels)}
    return None if None in known.values() else np.array([known[label] for label in labels], dtype=float)


def nearest_element(mass: float) -> str:
    """Return the element whose mass is nearest."""
    from ase.data import atomic_masses, chemical_symbols

    return chemical_symbols[1 + int(np.argmin(np.abs(atomic_masses[1:] - mass)))]


def check_masses(path: Path, masses: Iterable[tuple[str, float]], remedy: str) -> None:
    """Raise InputError where a label has the mass of another element; labels that stand for no elements, A and B, may."""
    masses = dict.fromkeys(masses)
    if any(mass_of(label) is None for label, _ in masses):
        return
    for label, mass in masses:
        if _is_of_another(label, mass):
            raise InputError(
                f"{str(path)!r} gives {label!r} the mass {mass:.6g}, which is not its own ({nearest_element(mass)} is nearest): "
                f"{remedy}."
            )


def _is_of_another(label: str, mass: float) -> bool:
    own, nearest = mass_of(label), nearest_element(mass)
    near = mass_of(nearest)
    assert own is not None and near is not None
    if abs(near - mass) < OTHER_MASS_TOLERANCE and abs(own - mass) > OWN_MASS_DIFFERENCE:
        return True
    return abs(own - mass) > MASS_TOLERANCE and nearest != element_of(label)
