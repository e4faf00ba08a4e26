"""The repulsive half of Lennard-Jones's potential."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.potentials.checks import check_positive
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.pairs.mixing_rules import check_mixing, pair_coefficients
from mdsens.potentials.parameters import PerAtom
from mdsens.potentials.species import Atom, static

MINIMUM = 2.0 ** (1.0 / 6.0)
"""The distance at which Lennard-Jones's potential has its minimum, in units of σ."""


class WeeksChandlerAndersen(PairPotential):
    """The pair energy φ(r) = 4 ε [(σ/r)¹² - (σ/r)⁶] + ε for r < 2^(1/6) σ, else 0; for one or several species.

    Args:
        epsilon: ε [eV], a number or `{"A-A": ..., "A-B": ..., "B-B": ...}`.
        sigma: σ [Å], likewise; it sets the range too.
        mixing: as for `LennardJones`.

    The second derivative jumps where a contact opens or closes.

    J. D. Weeks, D. Chandler, H. C. Andersen, J. Chem. Phys. 54, 5237 (1971), doi:10.1063/1.1674820.
    """

    units: ClassVar = {"epsilon": "eV", "sigma": "Angstrom"}

    epsilon: PerAtom
    sigma: PerAtom
    mixing: str | None = static(None)

    def __check_init__(self) -> None:
        check_mixing(self, "epsilon", "sigma")
        check_positive(self, "sigma")

    @property
    def range(self) -> Float[Array, ""]:
        # A mean is not beyond the larger of two.
        return MINIMUM * jnp.max(jnp.stack([jnp.max(sigma) for sigma in jax.tree.leaves(self.sigma)]))

    @property
    def smoothness(self) -> float:
        return 1

    def kinks(self, i: Atom, j: Atom) -> tuple[Float[Array, ""], ...]:
        return (MINIMUM * pair_coefficients(self, i, j)[1],)

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        epsilon, sigma = pair_coefficients(self, i, j)
        s6 = (sigma / r) ** 6
        return jnp.where(r < MINIMUM * sigma, epsilon * (4.0 * s6 * (s6 - 1.0) + 1.0), 0.0)
