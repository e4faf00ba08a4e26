"""Energies and pressure."""

import equinox as eqx
import jax.numpy as jnp

from mdsens.equilibrium import Equilibrium
from mdsens.errors import ConvergenceError, InputError
from mdsens.units import stress_unit


def energy(system, potential):
    """Potential energy [eV]. At a minimum its derivative is the explicit one, ∂U/∂θ."""
    return potential.energy(system)


def pressure(system, potential):
    """Pressure, minus a third of the trace of the stress [GPa]; in 2-D minus half of it [eV/Å²]."""
    normal = potential.stress(system)[: system.dim]
    return -jnp.mean(normal) * stress_unit(system.dim)


class formation_energy(eqx.Module):
    """`formation_energy(reference)`: energy of a structure above that of as many atoms of a relaxed reference [eV].

        E_f = E - (N / N_ref) E_ref,     for a vacancy with the perfect crystal as the reference.

    The reference stays at its own equilibrium: its energy's derivative is exact to first order, since the implicit term
    of an energy vanishes at its minimum.

    Raises:
        InputError: a reference with several species, for which N / N_ref does not balance the composition, or one of
            other species than the structure.
    """

    reference: Equilibrium

    def __check_init__(self):
        if len(self.reference.system.labels) != 1:
            raise InputError("formation_energy wants a reference of one species: with several the composition matters.")
        if not self.reference.converged:
            raise ConvergenceError(f"The reference of a formation energy is no equilibrium: {self.reference.status.value}.")

    def __call__(self, system, potential):
        bulk = self.reference.system
        if system.labels != bulk.labels:
            raise InputError(f"The reference has the species {bulk.labels[0]}, the structure {', '.join(system.labels)}.")
        return potential.energy(system) - len(system) / len(bulk) * potential.energy(bulk)
