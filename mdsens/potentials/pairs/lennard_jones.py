"""The Lennard-Jones potential."""

from typing import ClassVar

from jaxtyping import Array, Float

from mdsens.potentials.checks import check_positive
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.pairs.mixing_rules import check_mixing, pair_coefficients
from mdsens.potentials.parameters import PerAtom
from mdsens.potentials.species import Atom, static


class LennardJones(PairPotential):
    """The pair energy φ(r) = 4 ε [(σ/r)¹² - (σ/r)⁶] S(r), for one or several species.

    Args:
        epsilon: well depth ε [eV], a number or `{"A-A": ..., "A-B": ..., "B-B": ...}`.
        sigma: distance σ where φ = 0 [Å], likewise.
        mixing: `"arithmetic"`, `"geometric"` or `"sixthpower"`; epsilon and sigma are then `{"A": ..., "B": ...}`, of species,
            which remain the parameters (`mdsens.potentials.pairs.mixing_rules`).
        cutoff: [Å], the same for all pairs; no parameter.
        onset: where the switch S begins [Å], by default at 0.8 of the cutoff; not used by `"shifted_force"` and `"truncated"`.
        switch: `"quintic"` (C2), `"force_switch"` (C2), `"xplor"` (C1), `"shifted_force"` (C1) or `"truncated"`.

    J. E. Lennard-Jones, Proc. R. Soc. Lond. A 106, 463 (1924), doi:10.1098/rspa.1924.0082.
    """

    units: ClassVar = {"epsilon": "eV", "sigma": "Angstrom"}

    epsilon: PerAtom
    sigma: PerAtom
    cutoff: float = static()
    onset: float | None = static(None)
    switch: str = static("quintic")
    mixing: str | None = static(None)

    def __check_init__(self) -> None:
        check_mixing(self, "epsilon", "sigma")
        check_positive(self, "sigma")

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        epsilon, sigma = pair_coefficients(self, i, j)
        s6 = (sigma / r) ** 6
        return 4.0 * epsilon * s6 * (s6 - 1.0)
