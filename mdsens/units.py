"""Units: ASE's (eV, Å, amu), with moduli in GPa."""

import math

from scipy import constants

EV_PER_CUBIC_ANGSTROM = 160.21766208
"""1 eV/Å³ in GPa (CODATA 2014, as in `ase.units`)."""

COULOMB = constants.elementary_charge / (4.0 * math.pi * constants.epsilon_0) * 1e10
"""1 / (4π ε₀) = 14.3996 eV Å / e² (CODATA, as in `scipy.constants`)."""


def stress_unit(dim: int) -> float:
    """1 eV/Å^dim in the unit in which stresses are given: GPa in 3-D, eV/Å² in 2-D."""
    return EV_PER_CUBIC_ANGSTROM if dim == 3 else 1.0
