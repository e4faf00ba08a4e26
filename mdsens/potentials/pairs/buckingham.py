"""The Buckingham potential."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.potentials.checks import check_positive
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.parameters import Parameter
from mdsens.potentials.species import Atom, static


class Buckingham(PairPotential):
    """The pair energy φ(r) = [A exp(-r/ρ) - C/r⁶] S(r), for one or several species.

    Args (LAMMPS's names): numbers, or dicts `{"A-A": ..., "A-B": ..., "B-B": ...}`.
        A: [eV]. rho: ρ [Å]. C: [eV Å⁶].
        cutoff: [Å], the same for all pairs; no parameter.
        onset, switch: how the energy comes to zero there, as for `LennardJones`.

    With C > 0 it falls to -∞ inside a barrier at short distance: start a relaxation outside of it, or add `ZBL`.

    R. A. Buckingham, Proc. R. Soc. Lond. A 168, 264 (1938), doi:10.1098/rspa.1938.0173.
    """

    units: ClassVar = {"A": "eV", "rho": "Angstrom", "C": "eV Angstrom6"}

    A: Parameter
    rho: Parameter
    C: Parameter
    cutoff: float = static()
    onset: float | None = static(None)
    switch: str = static("quintic")

    def __check_init__(self) -> None:
        check_positive(self, "rho")

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        repulsion = self.pair(self.A, i, j) * jnp.exp(-r / self.pair(self.rho, i, j))
        return repulsion - self.pair(self.C, i, j) / r**6
