"""Harmonic thermodynamics of a crystal's phonons: free energy, entropy, heat capacity, per cell.

    F = Σ_q w_q Σ_n [hν/2 + kT ln(1 - exp(-hν/kT))],     S = -∂F/∂T,     C = T ∂S/∂T

at the volume of the state. The acoustic modes at Γ, whose frequency is 0, are left out.

A. A. Maradudin et al., Theory of Lattice Dynamics in the Harmonic Approximation (1971), chapter IV.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from mdsens.common.errors import InputError
from mdsens.observables.phonons import checked_mesh, mesh_frequencies, q_mesh
from mdsens.potentials.base import Potential
from mdsens.structures.system import System, as_float_array, is_concrete

EV_PER_THZ = units._hplanck * 1e12 / units._e
"""Energy hν of ν = 1 THz [eV] (CODATA 2014, as in `ase.units`)."""

FREEZE_OUT = 750.0
"""hν/kT above which a mode is not excited: exp(-hν/kT) is 0 there in 64 bits."""


class _SumOverModes(eqx.Module):
    """A sum over the modes of a mesh, at one temperature or at several."""

    temperature: Float[Array, "*temperatures"]
    mesh: int | tuple[int, ...] = eqx.field(static=True)

    def __init__(self, temperature: ArrayLike, mesh: int | Sequence[int] = 1) -> None:
        self.temperature, self.mesh = as_float_array(temperature, "temperature"), checked_mesh(mesh)
        if self.temperature.ndim > 1:
            raise InputError(f"temperature must be one number in K or a list of them, not of shape {self.temperature.shape}.")
        if is_concrete(self.temperature) and not (np.asarray(self.temperature) >= 0.0).all():
            raise InputError(f"The temperature must be zero or more, in K, not {np.min(self.temperature)}.")

    def __call__(self, system: System, potential: Potential) -> Array:
        frequencies, weights = mesh_frequencies(self.mesh, system, potential)
        frequencies = _if_stable(frequencies, self.mesh, system)
        return _sum_over_modes(self.of_mode, frequencies, weights, self.temperature)

    @staticmethod
    def of_mode(x: Array, quantum: Array, thermal: Array) -> Array:
        """Return the share of a mode, from x = hν/kT, hν and kT [eV]."""
        raise NotImplementedError


class harmonic_free_energy(_SumOverModes):
    """`harmonic_free_energy(temperature, mesh)`: Helmholtz free energy of the phonons [eV per cell], `temperature`'s shape.

    It has the zero-point energy, which alone is left at T = 0, but not the energy of the atoms at rest (`energy`).

    Args:
        temperature: [K], one or a list of them.
        mesh: q-points along each reciprocal vector, Γ among them; an int for the same along all periodic ones.

    Raises:
        InputError: a negative temperature, a mesh that makes no sense, and as `phonon_frequencies`; a state with imaginary
            frequencies or with modes that cost no energy beyond the acoustic ones at Γ, which gives NaN inside `jit`.

    Example:
        F = ms.observables.harmonic_free_energy([100.0, 300.0], mesh=8)(eq.system, eq.potential)
    """

    @staticmethod
    def of_mode(x: Array, quantum: Array, thermal: Array) -> Array:
        return 0.5 * quantum + thermal * jnp.log1p(-jnp.exp(-x))


class entropy(_SumOverModes):
    """`entropy(temperature, mesh)`: entropy of the phonons [eV/K per cell]; 0 at T = 0. Otherwise as `harmonic_free_energy`."""

    @staticmethod
    def of_mode(x: Array, quantum: Array, thermal: Array) -> Array:
        return units.kB * (x * jnp.exp(-x) / -jnp.expm1(-x) - jnp.log1p(-jnp.exp(-x)))


class heat_capacity(_SumOverModes):
    """`heat_capacity(temperature, mesh)`: heat capacity at constant volume [eV/K per cell]; 0 at T = 0.

    Towards high temperatures it is k for each mode (Dulong and Petit). Otherwise as `harmonic_free_energy`.
    """

    @staticmethod
    def of_mode(x: Array, quantum: Array, thermal: Array) -> Array:
        return units.kB * x**2 * jnp.exp(-x) / jnp.expm1(-x) ** 2


def _if_stable(frequencies: Array, mesh: int | tuple[int, ...], system: System) -> Array:
    """Return the frequencies; where the state is unstable raise InputError, or return NaN if they are traced."""
    acoustic = system.dim + (system.dim == 3 and sum(system.pbc) == 1)
    free = jnp.sum(frequencies == 0.0, axis=1) - acoustic * (np.arange(len(frequencies)) == 0)
    unstable = jnp.any(frequencies < 0.0, axis=1)
    if is_concrete(frequencies) and (bad := np.asarray(unstable | (free > 0))).any():
        worst = int(np.argmin(np.where(bad, np.min(frequencies, axis=1), np.inf)))
        q, lowest = q_mesh(mesh, system)[0][worst], float(np.min(frequencies[worst]))
        reason = f"frequency {lowest:.3g} THz" if lowest < 0.0 else f"{int(free[worst])} modes that cost no energy"
        raise InputError(
            f"The state is unstable at q = {tuple(map(float, np.round(q, 6)))} ({reason}), so it has no harmonic thermodynamics: "
            "relax a cell in which it can distort that way, or change the volume."
        )
    return jnp.where(jnp.any(unstable | (free > 0)), jnp.nan, frequencies)


@eqx.filter_jit
def _sum_over_modes(
    of_mode: Callable[[Array, Array, Array], Array], frequencies: Array, weights: Any, temperature: Array
) -> Array:
    present = frequencies != 0.0
    quantum = EV_PER_THZ * jnp.where(present, frequencies, 1.0)

    def at(temperature: Array) -> Array:
        thermal = units.kB * temperature
        warm = quantum < FREEZE_OUT * thermal
        x = jnp.where(warm, quantum / jnp.where(warm, thermal, 1.0), FREEZE_OUT)
        return weights @ jnp.sum(jnp.where(present, of_mode(x, quantum, thermal), 0.0), axis=1)

    return at(temperature) if temperature.ndim == 0 else jax.lax.map(at, temperature)
