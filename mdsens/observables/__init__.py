"""Observables: functions `g(system, potential)` that differentiate through the equilibrium."""

from mdsens.observables.energetics import energy, formation_energy, pressure
from mdsens.observables.geometry import distances
from mdsens.observables.phonons import dynamical_matrix, gruneisen_parameters, phonon_dos, phonon_frequencies, phonon_path
from mdsens.observables.thermodynamics import entropy, harmonic_free_energy, heat_capacity

__all__ = [
    "distances",
    "dynamical_matrix",
    "energy",
    "entropy",
    "formation_energy",
    "gruneisen_parameters",
    "harmonic_free_energy",
    "heat_capacity",
    "phonon_dos",
    "phonon_frequencies",
    "phonon_path",
    "pressure",
]
