"""The Morse potential."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.potentials.checks import check_positive
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.parameters import Parameter
from mdsens.potentials.species import Atom, static


class Morse(PairPotential):
    """The pair energy φ(r) = D₀ [exp(-2α(r - r₀)) - 2 exp(-α(r - r₀))] S(r), for one or several species.

    Args (LAMMPS's names): numbers, or dicts `{"A-A": ..., "A-B": ..., "B-B": ...}`.
        D0: well depth D₀ [eV]. alpha: α [1/Å]. r0: distance r₀ of the minimum [Å].
        cutoff: [Å], the same for all pairs; no parameter.
        onset, switch: how the energy comes to zero there, as for `LennardJones`.

    P. M. Morse, Phys. Rev. 34, 57 (1929), doi:10.1103/PhysRev.34.57.
    """

    units: ClassVar = {"D0": "eV", "alpha": "Angstrom-1", "r0": "Angstrom"}

    D0: Parameter
    alpha: Parameter
    r0: Parameter
    cutoff: float = static()
    onset: float | None = static(None)
    switch: str = static("quintic")

    def __check_init__(self) -> None:
        check_positive(self, "alpha", "r0")

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        decay = jnp.exp(-self.pair(self.alpha, i, j) * (r - self.pair(self.r0, i, j)))
        return self.pair(self.D0, i, j) * decay * (decay - 2.0)
