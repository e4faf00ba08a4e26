"""Units: ASE's (eV, Å, amu), with moduli in GPa."""

import re

EV_PER_CUBIC_ANGSTROM = 160.21766208
"""1 eV/Å³ in GPa (CODATA 2014, as in `ase.units`)."""

NEWTON_PER_METRE = 0.1 * EV_PER_CUBIC_ANGSTROM
"""1 eV/Å² in N/m."""

COULOMB = 14.399645468667815
"""1 / (4π ε₀) in eV Å / e² (CODATA 2022). As a number: SciPy's follows its version, and so would energies."""


def stress_unit(dim: int) -> float:
    """Return 1 eV/Å^dim in the unit of stresses: GPa in 3-D, eV/Å² in 2-D."""
    return EV_PER_CUBIC_ANGSTROM if dim == 3 else 1.0


_SIGNS = {"Angstrom": "Å", "degrees": "°"}
_RAISED = str.maketrans("0123456789.", "⁰¹²³⁴⁵⁶⁷⁸⁹·")
_FACTOR = re.compile(r"\(([^)]*)\)(-?\d+)|([^\W\d]+)(-?\d+)?")


def unit_text(unit: str | None) -> str:
    """Return a unit of a file, `"GPa (eV Angstrom)-1"`, as a person writes it, `"GPa/(eV Å)"`; empty for pure numbers."""
    above: list[str] = []
    below: list[str] = []
    for inner, power, name, exponent in _FACTOR.findall(unit or ""):
        for part, own in [(name, exponent)] if name else [factor[2:] for factor in _FACTOR.findall(inner)]:
            raised = int(own or 1) * int(power or 1)
            size = str(abs(raised)).translate(_RAISED) if abs(raised) > 1 else ""
            (above if raised > 0 else below).append(_SIGNS.get(part, part) + size)
    under = f"/({' '.join(below)})" if len(below) > 1 else f"/{below[0]}" if below else ""
    return (" ".join(above) or ("1" if below else "")) + under


def with_unit(name: str, unit: str | None) -> str:
    """Return `"energy [eV]"`."""
    return f"{name} [{text}]" if (text := unit_text(unit)) else name


def derivative_unit(unit: str | None, of: str | None) -> str | None:
    """Return the unit of a derivative, from those of function and variable, as files have it; None where one is unknown."""
    if unit is None or of is None:
        return None
    return f"{unit} ({of})-1".strip() if of else unit
