"""Positions and charges in equilibrium together: a short-range potential and charge equilibration on one cluster.

Two ways lead to the same equilibrium. Nested: charges are eliminated inside the energy of the positions (`WithCharges`, a
`Potential` like any other). Joint: the unknown is z = (x, q, λ), and the condition ∂L/∂z = 0 of the Lagrangian

    L = U(x) + E(x, q) - λ (Σ q - Q)

whose Hessian, symmetric and indefinite, answers for positions, charges and multiplier in one linear system.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens.equilibrium.positions import equilibrium_positions
from mdsens.implicit import Direct, NullSpace, differentiable_solution
from mdsens.mechanics.unknown import Reference, reference_at
from mdsens.potentials.base import Potential, total_energy
from mdsens.potentials.electrostatics import ChargeEquilibration, InducedDipoles, SelfConsistent, WithCharges
from mdsens.potentials.electrostatics.self_consistent import solve_state
from mdsens.structures.system import System

__all__ = ["ChargeEquilibration", "ChargedEquilibrium", "InducedDipoles", "SelfConsistent", "WithCharges", "relax_with_charges"]
"""The names of `mdsens.electrostatics`."""


JointUnknown = tuple[Array, Array, Array]
"""z = (x, q, λ)."""


def __dir__() -> list[str]:
    return sorted(__all__)


class ChargedEquilibrium(NamedTuple):
    """A state in which positions and charges are in equilibrium together.

    Attributes:
        positions: `(N, dim)` [Å].
        charges: `(N,)` [e].
        potential: λ, the electronegativity that all atoms have in common [V].
        energy: U + E [eV].
    """

    positions: Float[Array, "atoms dim"]
    charges: Float[Array, " atoms"]
    potential: Float[Array, ""]
    energy: Float[Array, ""]


def relax_with_charges(
    system: System, short_range: Potential, equilibration: ChargeEquilibration, *, fmax: float = 1e-10
) -> ChargedEquilibrium:
    """Relax positions and charges of a cluster together, as a JAX function of both models.

    Differentiable in all parameters to any order, forward and reverse, under `jit` and `vmap`, through the joint
    condition above with a direct solver. Rigid motions of the cluster are projected out; frozen atoms stay. Small
    clusters: all pairs are listed, and the linear system is dense.

    Args:
        fmax: largest force that may be left on an atom [eV/Å].

    Raises:
        InputError, ConvergenceError: as `equilibrium_positions`; charges that do not settle.

    Under `jit` and `vmap` what does not converge is NaN.
    """
    model = WithCharges(short_range, equilibration)
    model.check(system)
    # The list and the null space are made from concrete values on the host, though a trace may be under way.
    with jax.ensure_compile_time_eval():
        extent = float(np.linalg.norm(np.ptp(np.asarray(system.positions), axis=0)))
        reference = reference_at(system.with_neighbors(model, skin=extent))
    solution = differentiable_solution(
        lambda _, model: (_settle(reference, model, fmax), reference),
        _condition,
        symmetric=True,
        linear_solver=Direct(),
        null_space=_rigid_null_space,
    )
    z, _ = solution((), model)
    positions, charges, potential = z
    return ChargedEquilibrium(positions, charges, potential, _energy(z, reference, model))


def _settle(reference: Reference, model: WithCharges, fmax: float) -> JointUnknown:
    positions = equilibrium_positions(reference.system, model, fmax=fmax)
    there = reference.system.with_positions(positions)
    charges = solve_state(model.equilibration, there)
    return positions, charges, _common_potential(charges, there, model)


@eqx.filter_jit
def _common_potential(charges: Float[Array, " atoms"], system: System, model: WithCharges) -> Array:
    return jnp.mean(model.equilibration.charge_energy(charges, system)[1])


@eqx.filter_jit
def _energy(z: JointUnknown, reference: Reference, model: WithCharges) -> Array:
    positions, charges, _ = z
    system = reference.system.with_positions(positions)
    return total_energy(model.short_range, system) + model.equilibration.charge_energy(charges, system)[0]


def _condition(z: JointUnknown, reference: Reference, model: WithCharges) -> JointUnknown:
    """Return ∂L/∂(x, q, λ), zero on frozen atoms."""

    def lagrangian(z: JointUnknown) -> Array:
        _, charges, potential = z
        return _energy(z, reference, model) - potential * (jnp.sum(charges) - model.equilibration.total_charge)

    forces, charges, potential = jax.grad(lagrangian)(z)
    return jnp.where(reference.system.frozen[:, None], 0.0, forces), charges, potential


def _rigid_null_space(z: JointUnknown, reference: Reference, model: WithCharges) -> NullSpace:
    """Return the null space of the positions: frozen atoms and rigid motions; charges and multiplier have none."""
    positions, charges, potential = z
    active = jnp.broadcast_to(~reference.system.frozen[:, None], positions.shape)
    basis = reference.motions.basis(positions, active)
    rest = jnp.zeros((charges.size + potential.size, basis.shape[1]), basis.dtype)
    active, _ = ravel_pytree((active, jnp.ones_like(charges, bool), jnp.ones_like(potential, bool)))
    return NullSpace(active, jnp.concatenate([basis, rest]))
