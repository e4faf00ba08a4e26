"""The transition metals of Finnis and Sinclair."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.potentials.checks import check_numbers
from mdsens.potentials.forms.embedded import EmbeddedPotential, square_root
from mdsens.potentials.parameters import Parameter
from mdsens.potentials.species import Atom, static

# d, A, β, c, c₀, c₁, c₂; iron as corrected in 1986: the numbers of 1984 do not give the paper's elastic constants.
_PUBLISHED = {
    "Cr": (3.915720, 1.453418, 1.8, 2.90, 29.1429813, -23.3975027, 4.7578297),
    "Fe": (3.569745, 1.828905, 1.8, 3.40, 1.2371147, -0.3592185, -0.0385607),
    "Mo": (4.114825, 1.887117, 0.0, 3.25, 43.4475218, -31.9332978, 6.0804249),
    "Nb": (3.915354, 3.013789, 0.0, 4.20, -1.5640104, 2.0055779, -0.4663764),
    "Ta": (4.076980, 2.591061, 0.0, 4.20, 1.2157373, 0.0271471, -0.1217350),
    "V": (3.692767, 2.010637, 0.0, 3.80, -0.8816318, 1.4907756, -0.3976370),
    "W": (4.400224, 1.896373, 0.0, 3.25, 47.1346499, -33.7665655, 6.2541999),
}


class FinnisSinclair(EmbeddedPotential):
    """The energy U = Σ_i [½ Σ_{j≠i} V(r_ij) - A √ρ_i],   ρ_i = Σ_{j≠i} f(r_ij)

    f(r) = (r - d)² + β (r - d)³/d for r < d,   V(r) = (r - c)² (c₀ + c₁ r + c₂ r²) for r < c,   else 0

    Args: numbers; of several species `A` a dict by label and the others by the pair.
        d, c: cutoffs of f and of V [Å]. A: [eV/Å]. beta: β, 0 or a softer f at short distances.
        c0, c1, c2: [eV/Å²], [eV/Å³], [eV/Å⁴].
        element: what numbers without species are of; others are warned about. Static.

    The second derivative jumps where a pair passes c or d, and for an atom whose only neighbour passes d the force. With β > 1
    f is negative below d (1 - 1/β), far inside the core; a sum below zero counts as none.

    M. W. Finnis, J. E. Sinclair, Philos. Mag. A 50, 45 (1984), doi:10.1080/01418618408244210; erratum (iron) 53, 161 (1986).
    """

    units: ClassVar = {
        **dict.fromkeys(("d", "c"), "Angstrom"),
        **{"A": "eV Angstrom-1", "beta": "", "c0": "eV Angstrom-2", "c1": "eV Angstrom-3", "c2": "eV Angstrom-4"},
    }

    d: Parameter
    A: Parameter
    beta: Parameter
    c: Parameter
    c0: Parameter
    c1: Parameter
    c2: Parameter
    element: str | None = static(default=None)

    def __check_init__(self) -> None:
        check_numbers(self, positive=("d", "c"), not_negative=("A", "beta"))

    @classmethod
    def published(cls, element: str) -> "FinnisSinclair":
        """Return the potential with the paper's constants of Cr, Fe (of the erratum), Mo, Nb, Ta, V or W.

        Raises:
            InputError: another element.
        """
        if element not in _PUBLISHED:
            raise InputError(f"FinnisSinclair.published has no constants for {element!r}; it has {', '.join(_PUBLISHED)}.")
        return cls(*_PUBLISHED[element], element=element)

    @property
    def range(self) -> Float[Array, ""]:
        return jnp.max(jnp.stack(jax.tree.leaves((self.d, self.c))))

    @property
    def smoothness(self) -> float:
        return 0

    def kinks(self, i: Atom, j: Atom) -> tuple[Float[Array, ""], ...]:
        return self.pair(self.c, i, j), self.pair(self.d, i, j)

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        c, c0, c1, c2 = (self.pair(parameter, i, j) for parameter in (self.c, self.c0, self.c1, self.c2))
        return jnp.where(r < c, (r - c) ** 2 * (c0 + r * (c1 + r * c2)), 0.0)

    def density(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        d, beta = self.pair(self.d, i, j), self.pair(self.beta, i, j)
        return jnp.where(r < d, (r - d) ** 2 * (1.0 + beta * (r - d) / d), 0.0)

    def embedding(self, rho: Float[Array, ""], i: Atom) -> Float[Array, ""]:
        return -self.one(self.A, i) * square_root(rho)
