"""Masses of labels: those of elements and isotopes; a label of any other kind has the mass that it is given."""

from collections.abc import Iterable

import numpy as np

ISOTOPES = {"D": ("H", 2.01410177812), "T": ("H", 3.01604928)}
"""Symbols of isotopes: their element and mass [amu] (M. Wang et al., Chin. Phys. C 45, 030003 (2021))."""

MASS_TOLERANCE = 0.6
"""Difference [amu] up to which a mass is an element's: files round to whole numbers."""
OTHER_MASS_TOLERANCE, OWN_MASS_DIFFERENCE = 0.005, 0.05
"""A mass that is so near to another element's, and so far from its own, is the other's [amu]."""


def is_element(label: str) -> bool:
    """Whether a label is a chemical symbol; ASE's X is nobody's."""
    from ase.data import atomic_numbers

    return atomic_numbers.get(label, 0) > 0


def element_of(label: str) -> str:
    """The element of an element's or isotope's label, "X" for all others."""
    return label if is_element(label) else ISOTOPES[label][0] if label in ISOTOPES else "X"


def mass_of(label: str) -> float | None:
    """The mass of an element or isotope [amu], None for other labels."""
    from ase.data import atomic_masses, atomic_numbers

    if label in ISOTOPES:
        return ISOTOPES[label][1]
    return float(atomic_masses[atomic_numbers[label]]) if is_element(label) else None


def default_masses(labels: Iterable[str]) -> np.ndarray | None:
    """The masses of atoms by their labels, None where one has none of its own."""
    labels = list(labels)
    known = {label: mass_of(label) for label in set(labels)}
    return None if None in known.values() else np.array([known[label] for label in labels], dtype=float)


def nearest_element(mass: float) -> str:
    """The element whose mass is nearest."""
    from ase.data import atomic_masses, chemical_symbols

    return chemical_symbols[1 + int(np.argmin(np.abs(atomic_masses[1:] - mass)))]


def contradiction(masses: Iterable[tuple[str, float]]) -> str | None:
    """Which of some labels' masses is another element's, in words; None where labels stand for no elements, as A and B do."""
    masses = dict.fromkeys(masses)
    if any(mass_of(label) is None for label, _ in masses):
        return None
    for label, mass in masses:
        if _is_of_another(label, mass):
            return f"{label!r} the mass {mass:.6g}, which is not its own ({nearest_element(mass)} is nearest)"
    return None


def _is_of_another(label: str, mass: float) -> bool:
    own, nearest = mass_of(label), nearest_element(mass)
    near = mass_of(nearest)
    assert own is not None and near is not None
    if abs(near - mass) < OTHER_MASS_TOLERANCE and abs(own - mass) > OWN_MASS_DIFFERENCE:
        return True
    return abs(own - mass) > MASS_TOLERANCE and nearest != element_of(label)
