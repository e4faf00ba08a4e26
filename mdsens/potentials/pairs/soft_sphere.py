"""Soft repulsive spheres, harmonic or Hertzian."""

from numbers import Real
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.parameters import Parameter, PerAtom
from mdsens.potentials.species import Atom, static
from mdsens.structures.system import is_concrete


class SoftSphere(PairPotential):
    """The pair energy φ(r) = (ε/α) (1 - r/s)^α for r < s = (D_i + D_j)/2, else 0.

    Args:
        diameter: D [Å]: a number, `{"A": ..., "B": ...}`, or one value per particle, shape `(N,)`.
        epsilon: energy scale ε [eV], a number or keyed by the pair.
        alpha: exponent, static: 2 for harmonic, 2.5 for Hertzian spheres. Its integer part decides the smoothness:
            with α = 2 the second derivative jumps where a contact opens or closes.

    C. S. O'Hern, L. E. Silbert, A. J. Liu, S. R. Nagel, Phys. Rev. E 68, 011306 (2003), doi:10.1103/PhysRevE.68.011306.
    """

    units: ClassVar = {"epsilon": "eV", "diameter": "Angstrom"}

    diameter: PerAtom
    epsilon: Parameter
    alpha: float = static(2.0)

    def __check_init__(self) -> None:
        if not (isinstance(self.alpha, Real) and self.alpha > 1):
            raise InputError(f"SoftSphere's alpha must be a number larger than 1, for a continuous force, not {self.alpha!r}.")
        diameters = jax.tree.leaves(self.diameter)
        if any(np.ndim(d) > 1 or np.size(d) == 0 for d in diameters):
            raise InputError("SoftSphere's diameter must be one number, a dict by labels, or one value per particle.")
        if is_concrete(diameters) and not all((np.asarray(d) > 0).all() for d in diameters):
            raise InputError("SoftSphere's diameters must be positive.")

    @property
    def range(self) -> Float[Array, ""]:
        return jnp.max(jnp.stack([jnp.max(d) for d in jax.tree.leaves(self.diameter)]))

    @property
    def smoothness(self) -> float:
        return int(np.ceil(self.alpha)) - 1

    def _contact(self, i: Atom, j: Atom) -> Array:
        return 0.5 * (self.one(self.diameter, i) + self.one(self.diameter, j))

    def kinks(self, i: Atom, j: Atom) -> tuple[Float[Array, ""], ...]:
        return (self._contact(i, j),) if self.smoothness < 2 else ()

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        contact = self._contact(i, j)
        touching = r < contact
        overlap = jnp.where(touching, 1.0 - r / contact, 0.5)
        exponent = int(self.alpha) if float(self.alpha).is_integer() else self.alpha
        return jnp.where(touching, self.pair(self.epsilon, i, j) / self.alpha * overlap**exponent, 0.0)
