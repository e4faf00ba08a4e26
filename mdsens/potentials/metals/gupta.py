"""Metals in the second-moment approximation of tight binding: Gupta's form, with the constants of Cleri and Rosato."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.potentials.checks import check_numbers, check_switch
from mdsens.potentials.forms.embedded import EmbeddedPotential, square_root
from mdsens.potentials.forms.switching import quintic
from mdsens.potentials.parameters import Parameter
from mdsens.potentials.species import Atom, static

# A [eV], ξ [eV], p, q, and the lattice constant [Å] that r₀ is the neighbours' distance of. Not lead: its table does not
# give its lattice constant back.
_PUBLISHED = {
    "Ag": (0.1028, 1.178, 10.928, 3.139, 4.085),
    "Al": (0.1221, 1.316, 8.612, 2.516, 4.050),
    "Au": (0.2061, 1.790, 10.229, 4.036, 4.079),
    "Cu": (0.0855, 1.224, 10.960, 2.278, 3.615),
    "Ir": (0.1156, 2.289, 16.980, 2.691, 3.839),
    "Ni": (0.0376, 1.070, 16.999, 1.189, 3.523),
    "Pd": (0.1746, 1.718, 10.867, 3.742, 3.887),
    "Pt": (0.2975, 2.695, 10.612, 4.004, 3.924),
    "Rh": (0.0629, 1.660, 18.450, 1.867, 3.803),
}


class Gupta(EmbeddedPotential):
    """The energy U = Σ_i [Σ_{j≠i} A exp(-p (r_ij/r₀ - 1)) S(r_ij) - √ρ_i],   ρ_i = Σ_{j≠i} [ξ exp(-q (r_ij/r₀ - 1)) S(r_ij)]²

    Args: numbers, or dicts by the pair (`{"Cu-Cu": ..., "Au-Cu": ..., "Au-Au": ...}`).
        A, xi: repulsion A and hopping ξ [eV]. p, q: how fast both fall. r0: r₀ [Å].
        onset, cutoff: where S = `switching.quintic` falls from 1 to 0 [Å], the same for all pairs; static.
        element: what numbers without species are of; others are warned about. Static.

    S multiplies the hopping, whose squares are summed, so that the energy of a pair alone has two continuous derivatives
    at the cutoff too.

    R. P. Gupta, Phys. Rev. B 23, 6265 (1981), doi:10.1103/PhysRevB.23.6265;
    F. Cleri, V. Rosato, Phys. Rev. B 48, 22 (1993), doi:10.1103/PhysRevB.48.22.
    """

    units: ClassVar = {"A": "eV", "xi": "eV", "p": "", "q": "", "r0": "Angstrom"}

    A: Parameter
    xi: Parameter
    p: Parameter
    q: Parameter
    r0: Parameter
    onset: float = static()
    cutoff: float = static()
    element: str | None = static(default=None)

    def __check_init__(self) -> None:
        check_numbers(self, positive=("r0",), not_negative=("A", "xi", "p", "q"))
        check_switch(self, self.onset, self.cutoff)

    @classmethod
    def published(cls, element: str) -> "Gupta":
        """Return the potential with Cleri and Rosato's constants (table II) of Ag, Al, Au, Cu, Ir, Ni, Pd, Pt or Rh.

        The switch lies between the fifth and the sixth neighbours, so that it leaves the crystal as it is in the paper.

        Raises:
            InputError: another element.
        """
        if element not in _PUBLISHED:
            raise InputError(f"Gupta.published has no constants for {element!r}; it has {', '.join(_PUBLISHED)}.")
        A, xi, p, q, a = _PUBLISHED[element]
        return cls(A=A, xi=xi, p=p, q=q, r0=a / 2**0.5, onset=1.61 * a, cutoff=1.72 * a, element=element)

    @property
    def smoothness(self) -> float:
        return 2

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        return 2.0 * self._decay(r, self.pair(self.A, i, j), self.pair(self.p, i, j), i, j)

    def density(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        return self._decay(r, self.pair(self.xi, i, j), self.pair(self.q, i, j), i, j) ** 2

    def embedding(self, rho: Float[Array, ""], i: Atom) -> Float[Array, ""]:
        return -square_root(rho)

    def _decay(self, r: Float[Array, ""], strength: Any, rate: Any, i: Atom, j: Atom) -> Array:
        return strength * jnp.exp(-rate * (r / self.pair(self.r0, i, j) - 1.0)) * quintic(r, self.onset, self.cutoff)
