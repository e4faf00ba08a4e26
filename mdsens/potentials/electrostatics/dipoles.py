"""`InducedDipoles`: dipoles that point charges and one another induce."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import CoincidingAtoms
from mdsens.common.units import COULOMB
from mdsens.potentials.electrostatics.kernels import separations, thole_factors
from mdsens.potentials.electrostatics.self_consistent import SelfConsistent
from mdsens.potentials.parameters import PerAtom
from mdsens.potentials.species import static
from mdsens.structures.system import System, is_concrete

_COINCIDENT = 1e-6
"""Distance [Å] below which atoms count as coinciding."""


class InducedDipoles(SelfConsistent):
    """Induced dipoles μ_i = α_i (E_i + Σ_{j≠i} T_ij μ_j), U = -½ k Σ_i μ_i·E_i, with k = 1/(4π ε₀).

    E_i = Σ_{j≠i} q_j λ₃ d/r³,  T_ij = 3 λ₅ d dᵀ/r⁵ - λ₃ 1/r³,  d = x_i - x_j; λ₃, λ₅: `kernels.thole_factors`.

    U is the energy of polarisation alone, without the point charges' energy among themselves.

    Args:
        polarizability: α [Å³]: a number, `{"A": ..., "B": ...}`, or one value per atom, shape `(N,)`.
        charge: q [e], likewise.
        thole: damping a, smaller for more of it (AMOEBA: 0.39); a large number leaves point dipoles.
        mixing: m of the iteration, static.

    J. Applequist, J. R. Carl, K.-K. Fung, J. Am. Chem. Soc. 94, 2952 (1972), doi:10.1021/ja00764a010; the damping: B. T.
    Thole, Chem. Phys. 59, 341 (1981), doi:10.1016/0301-0104(81)85176-2.
    """

    units: ClassVar = {"polarizability": "Angstrom^3", "charge": "e", "thole": ""}
    positive: ClassVar = ("polarizability", "thole")
    scalars: ClassVar = ("thole",)
    remedy: ClassVar = (
        "the dipoles strengthen one another without bound (the polarisation catastrophe): lower the polarizabilities, damp "
        "more (a smaller thole) or move the atoms apart; if only their signs alternate, mixing=0.5 settles them"
    )

    polarizability: PerAtom
    charge: PerAtom
    thole: Float[Array, ""]
    mixing: float = static(1.0)

    def check(self, system: System) -> None:
        super().check(system)
        if not is_concrete(system.positions):
            return
        d = np.asarray(system.positions)[:, None] - np.asarray(system.positions)
        r = np.linalg.norm(d, axis=-1) + np.where(np.eye(len(system)), np.inf, 0.0)
        i, j = np.unravel_index(r.argmin(), r.shape)
        if r[i, j] < _COINCIDENT:
            raise CoincidingAtoms(
                system.positions, f"Atoms {i} and {j} coincide (distance {r[i, j]:.1e}): remove one of them or move them apart."
            )

    def start(self, system: System) -> Array:
        return jnp.zeros_like(system.positions)

    def map(self, dipoles: Float[Array, "atoms dim"], system: System) -> Float[Array, "atoms dim"]:
        """Return the dipoles [e Å] that the charges' field and the field of `dipoles` induce."""
        external, induced = self.fields(dipoles, system)
        return self.per_atom(self.polarizability, system)[:, None] * (external + induced)

    def functional(self, dipoles: Float[Array, "atoms dim"], system: System) -> Float[Array, ""]:
        """Return k Σ_i μ_i·(μ_i / 2α_i - E_i - ½ Σ_{j≠i} T_ij μ_j)."""
        external, induced = self.fields(dipoles, system)
        strain = dipoles / self.per_atom(self.polarizability, system)[:, None]
        return COULOMB * jnp.sum(dipoles * (0.5 * strain - external - 0.5 * induced))

    def dipoles(self, system: System) -> Float[Array, "atoms dim"]:
        """Return the induced dipoles [e Å]; raises as `state` does."""
        return self.state(system)

    def fields(self, dipoles: Float[Array, "atoms dim"], system: System) -> tuple[Array, Array]:
        """Return `(E, T μ)`, the fields [e/Å²] of the other atoms' charges and of their `dipoles` at each atom. Pure JAX."""
        d, others = separations(system.positions)
        r2 = jnp.where(others, jnp.sum(d * d, axis=-1), 1.0)
        lambda3, lambda5 = thole_factors(r2, self.per_atom(self.polarizability, system), self.thole)
        over_r3 = jnp.where(others, lambda3, 0.0) * r2**-1.5
        over_r5 = jnp.where(others, lambda5, 0.0) * r2**-2.5
        external = jnp.einsum("ij,ijk,j->ik", over_r3, d, self.per_atom(self.charge, system))
        along = jnp.einsum("ijk,jk->ij", d, dipoles)
        return external, 3.0 * jnp.einsum("ij,ijk->ik", over_r5 * along, d) - over_r3 @ dipoles
