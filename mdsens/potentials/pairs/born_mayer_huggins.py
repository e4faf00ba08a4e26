"""The Born-Mayer-Huggins potential."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.potentials.checks import check_positive
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.parameters import Parameter
from mdsens.potentials.species import Atom, static


class BornMayerHuggins(PairPotential):
    """The pair energy φ(r) = [A exp((σ - r)/ρ) - C/r⁶ + D/r⁸] S(r), for one or several species; without Coulomb's energy.

    Args (LAMMPS's names, `pair_style born`): numbers, or dicts `{"A-A": ..., "A-B": ..., "B-B": ...}`.
        A: [eV]. rho: ρ [Å]. sigma: σ [Å]. C: [eV Å⁶]. D: [eV Å⁸], which is negative where dipole-quadrupole
        dispersion attracts.
        cutoff: [Å], the same for all pairs; no parameter.
        onset, switch: how the energy comes to zero there, as for `LennardJones`.

    A and σ are not independent: A exp(σ/ρ) is all that they mean.

    F. G. Fumi, M. P. Tosi, J. Phys. Chem. Solids 25, 31 (1964), doi:10.1016/0022-3697(64)90159-3.
    """

    units: ClassVar = {"A": "eV", "rho": "Angstrom", "sigma": "Angstrom", "C": "eV Angstrom6", "D": "eV Angstrom8"}

    A: Parameter
    rho: Parameter
    sigma: Parameter
    C: Parameter
    D: Parameter
    cutoff: float = static()
    onset: float | None = static(None)
    switch: str = static("quintic")

    def __check_init__(self) -> None:
        check_positive(self, "rho")
        check_positive(self, "sigma", or_zero=True)

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        A, rho, sigma, C, D = (self.pair(parameter, i, j) for parameter in (self.A, self.rho, self.sigma, self.C, self.D))
        return A * jnp.exp((sigma - r) / rho) - C / r**6 + D / r**8
