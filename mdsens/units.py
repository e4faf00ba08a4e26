"""Units: ASE's (eV, Å, amu), with moduli in GPa."""

EV_PER_CUBIC_ANGSTROM = 160.21766208
"""1 eV/Å³ in GPa (CODATA 2014, as in `ase.units`)."""

COULOMB = 14.399645468667815
"""1 / (4π ε₀) in eV Å / e² (CODATA 2022). As a number: SciPy's follows its version, and so would energies."""


def stress_unit(dim: int) -> float:
    """1 eV/Å^dim in the unit in which stresses are given: GPa in 3-D, eV/Å² in 2-D."""
    return EV_PER_CUBIC_ANGSTROM if dim == 3 else 1.0
