"""Observables: functions `g(system, potential)` that differentiate through the equilibrium."""

from mdsens.observables import moduli
from mdsens.observables.elastic import (
    bulk_modulus,
    compliance,
    elastic_constants,
    elastic_stability,
    linear_compressibility,
    poisson_ratio,
    shear_modulus,
    universal_anisotropy,
    young_modulus,
)
from mdsens.observables.energetics import energy, formation_energy, pressure
from mdsens.observables.geometry import distances

__all__ = [
    "bulk_modulus",
    "compliance",
    "distances",
    "elastic_constants",
    "elastic_stability",
    "energy",
    "formation_energy",
    "linear_compressibility",
    "moduli",
    "poisson_ratio",
    "pressure",
    "shear_modulus",
    "universal_anisotropy",
    "young_modulus",
]
