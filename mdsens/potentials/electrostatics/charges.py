"""`ChargeEquilibration`: charges that flow between atoms until their electronegativities are equal."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.common.units import COULOMB
from mdsens.potentials.electrostatics.kernels import gaussian_coulomb, separations
from mdsens.potentials.electrostatics.self_consistent import SelfConsistent
from mdsens.potentials.parameters import PerAtom
from mdsens.potentials.species import static
from mdsens.structures.system import System


class ChargeEquilibration(SelfConsistent):
    """The energy of QEq: U = min over q with Σ q_i = Q of E(q) = Σ_i (χ_i q_i + ½ η_i q_i²) + k Σ_{i<j} γ_ij q_i q_j.

    k = 1/(4π ε₀), γ_ij = erf(r/c)/r, c² = 2(s_i² + s_j²), that of charges with Gaussian densities of widths s. As a fixed point
    q_i = (λ - χ_i - k Σ_{j≠i} γ_ij q_j) / η_i, where the common potential λ makes the sum of the right-hand sides Q.

    Args:
        electronegativity: χ [V]: a number, `{"A": ..., "B": ...}`, or one value per atom, shape `(N,)`.
        hardness: η, an atom's repulsion of its own charge [V/e], likewise.
        width: s [Å], likewise.
        total_charge: Q [e], a parameter too.
        mixing: m of the iteration, static.

    A. K. Rappé, W. A. Goddard, J. Phys. Chem. 95, 3358 (1991), doi:10.1021/j100161a070, with Gaussian instead of Slater
    densities.
    """

    units: ClassVar = {"electronegativity": "V", "hardness": "V/e", "width": "Angstrom", "total_charge": "e"}
    positive: ClassVar = ("hardness", "width")
    scalars: ClassVar = ("total_charge",)
    remedy: ClassVar = (
        "either charges flow without bound (the hardness is no match for the attraction of neighbours: raise hardness or "
        "width, or move the atoms apart), or only their iteration overshoots, as in large clusters: then a smaller mixing, "
        "say 0.5, settles them"
    )

    electronegativity: PerAtom
    hardness: PerAtom
    width: PerAtom
    total_charge: Float[Any, ""] = 0.0
    mixing: float = static(1.0)

    def start(self, system: System) -> Array:
        n = len(system)
        return jnp.full(n, self.total_charge / n, system.positions.dtype)

    def map(self, charges: Float[Array, " atoms"], system: System) -> Float[Array, " atoms"]:
        """Return the charges [e], Q together, that would balance the potentials of `charges`."""
        softness = 1.0 / self.per_atom(self.hardness, system)
        free = -softness * (self.per_atom(self.electronegativity, system) + self.potentials(charges, system))
        return free + softness * (self.total_charge - jnp.sum(free)) / jnp.sum(softness)

    def functional(self, charges: Float[Array, " atoms"], system: System) -> Float[Array, ""]:
        """Return E(q) - λ (Σ q - Q) [eV], λ being the mean of ∂E/∂q."""
        energy, slope = self.charge_energy(charges, system)
        return energy - jnp.mean(slope) * (jnp.sum(charges) - self.total_charge)

    def charges(self, system: System) -> Float[Array, " atoms"]:
        """Return the charges [e] at equal electronegativity; raises as `state` does."""
        return self.state(system)

    def charge_energy(self, charges: Float[Array, " atoms"], system: System) -> tuple[Array, Array]:
        """Return `(E, ∂E/∂q)` [eV, V] with any charges. Pure JAX."""
        chi, eta = self.per_atom(self.electronegativity, system), self.per_atom(self.hardness, system)
        potentials = self.potentials(charges, system)
        return jnp.sum(charges * (chi + 0.5 * (eta * charges + potentials))), chi + eta * charges + potentials

    def potentials(self, charges: Float[Array, " atoms"], system: System) -> Float[Array, " atoms"]:
        """Return k Σ_{j≠i} γ_ij q_j, the potential [V] of the other atoms' charges at each atom. Pure JAX."""
        d, others = separations(system.positions)
        width = self.per_atom(self.width, system)
        c2 = 2.0 * (width[:, None] ** 2 + width[None, :] ** 2)
        gamma = jnp.where(others, gaussian_coulomb(jnp.sum(d * d, axis=-1), c2), 0.0)
        return COULOMB * gamma @ charges
