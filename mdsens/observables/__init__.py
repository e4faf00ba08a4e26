"""Observables: functions `g(system, potential)` that differentiate through the equilibrium."""

from mdsens.observables.energetics import energy, formation_energy, pressure
from mdsens.observables.geometry import distances

__all__ = ["distances", "energy", "formation_energy", "pressure"]
