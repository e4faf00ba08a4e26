"""`Coulomb`: the energy of fixed point charges with a cutoff, damped and shifted; no sum over images."""

import math
from numbers import Real
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc
from jaxtyping import Array, Float

from mdsens.common.errors import InputError, did_you_mean
from mdsens.common.units import COULOMB
from mdsens.potentials.forms.neighbor_vectors import handles
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.parameters import PerAtom
from mdsens.potentials.species import Atom, static
from mdsens.structures.neighbors.sums_over_neighbors import sum_over_atoms
from mdsens.structures.system import System

SMOOTHNESS = {"dsf": 1, "wolf": 0}
"""Number of continuous derivatives at the cutoff."""


class Coulomb(PairPotential):
    """The energy U = k [½ Σ_i Σ_{j≠i} q_i q_j v(r_ij) - (s/2 + α/√π) Σ_i q_i²] for r < r_c, k = 1/(4π ε₀).

    With u(r) = erfc(α r)/r: `"dsf"` (damped shifted force) v = u(r) - u(r_c) - (r - r_c) u'(r_c), s = u(r_c) - r_c u'(r_c);
    `"wolf"` v = u(r) - u(r_c), s = u(r_c). Energies are LAMMPS's `coul/dsf` and `coul/wolf`; forces of `coul/wolf` are
    those of `"dsf"` there, here they are minus the gradient of the energy, and jump at the cutoff.

    A cell need not be neutral: each atom's surroundings are made so by charges on its cutoff.

    Args:
        charge: q [e]: a number, `{"Na": 1.0, "Cl": -1.0}`, or one value per atom, shape `(N,)`.
        alpha: damping α [1/Å], static; 0 for none.
        cutoff: r_c [Å], static.
        method: `"dsf"` (C1) or `"wolf"` (C0), static.
        coulomb: k [eV Å/e²], static; smaller by a relative permittivity in a medium.

    D. Wolf, P. Keblinski, S. R. Phillpot, J. Eggebrecht, J. Chem. Phys. 110, 8254 (1999), doi:10.1063/1.478738; C. J. Fennell,
    J. D. Gezelter, J. Chem. Phys. 124, 234104 (2006), doi:10.1063/1.2206581.
    """

    units: ClassVar = {"charge": "e"}

    charge: PerAtom
    alpha: float = static(0.2)
    cutoff: float = static(12.0)
    method: str = static("dsf")
    coulomb: float = static(COULOMB)

    # A constant of each atom adds nothing to second derivatives.
    local_stiffness = PairPotential.local_stiffness

    def __check_init__(self) -> None:
        if self.method not in SMOOTHNESS:
            raise InputError(f"Coulomb has no method {self.method!r}.{did_you_mean(str(self.method), SMOOTHNESS)}")
        check_charges(self)
        if self.no_interaction:
            raise InputError("All charges of Coulomb see each other: leave out no_interaction, or give some the charge 0.")
        if not (isinstance(self.alpha, Real) and 0.0 <= self.alpha < np.inf):
            raise InputError(f"Coulomb's alpha must be zero or a positive number of 1/Å, not {self.alpha!r}.")

    @property
    def smoothness(self) -> float:
        return SMOOTHNESS[self.method]

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        value, slope = self._edge()
        screened = erfc(self.alpha * r) / r - value - (r - self.cutoff) * slope
        return self.coulomb * self.one(self.charge, i) * self.one(self.charge, j) * screened

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        return super().atom_energies(system) + self._self_energies(system)

    def total(self, system: System) -> Float[Array, ""]:
        return super().total(system) + sum_over_atoms(self._self_energies(system), system.neighbors)

    def _edge(self) -> tuple[float, float]:
        """Return u(r_c), and the u'(r_c) that is subtracted."""
        reach, x = self.cutoff, self.alpha * self.cutoff
        value = math.erfc(x) / reach
        slope = -(value + 2.0 * self.alpha / math.sqrt(math.pi) * math.exp(-x * x)) / reach
        return value, slope if self.method == "dsf" else 0.0

    def _self_energies(self, system: System) -> Array:
        value, slope = self._edge()
        charges = jnp.broadcast_to(self.one(self.charge, handles(system)[0]), (len(system),))
        return -self.coulomb * (0.5 * (value - self.cutoff * slope) + self.alpha / math.sqrt(math.pi)) * charges**2


def check_charges(potential: Any) -> None:
    """Raise InputError for settings that no sum of charges can have."""
    name = type(potential).__name__
    if any(np.ndim(leaf) > (not isinstance(potential.charge, dict)) for leaf in jax.tree.leaves(potential.charge)):
        raise InputError(f"{name}'s charge must be one number, a dict by labels, or one value per atom.")
    if isinstance(potential.charge, dict) and any("-" in key for key in potential.charge):
        raise InputError(
            f'{name}\'s charge is keyed by labels, {{"Na": 1.0, "Cl": -1.0}}, not by {next(iter(potential.charge))!r}.'
        )
    for field in ("cutoff", "coulomb"):
        value: float = getattr(potential, field)
        if not (isinstance(value, Real) and 0.0 < value < np.inf):
            raise InputError(f"{name}'s {field} must be a positive number, not {value!r}.")
