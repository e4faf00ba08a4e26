"""The Yukawa potential, a screened Coulomb repulsion."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.potentials.checks import check_positive
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.parameters import Parameter
from mdsens.potentials.species import Atom, static


class Yukawa(PairPotential):
    """The pair energy φ(r) = A exp(-κr)/r S(r), for one or several species.

    Args: numbers, or dicts `{"A-A": ..., "A-B": ..., "B-B": ...}`.
        strength: A [eV Å], of either sign.
        kappa: inverse screening length κ [1/Å].
        cutoff: [Å], the same for all pairs; no parameter.
        onset, switch: how the energy comes to zero there, as for `LennardJones`.

    H. Yukawa, Proc. Phys.-Math. Soc. Jpn. 17, 48 (1935), doi:10.11429/ppmsj1919.17.0_48.
    """

    units: ClassVar = {"strength": "eV Angstrom", "kappa": "Angstrom-1"}

    strength: Parameter
    kappa: Parameter
    cutoff: float = static()
    onset: float | None = static(None)
    switch: str = static("quintic")

    def __check_init__(self) -> None:
        check_positive(self, "kappa", or_zero=True)

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        return self.pair(self.strength, i, j) * jnp.exp(-self.pair(self.kappa, i, j) * r) / r
