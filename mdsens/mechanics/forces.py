"""The derivative ∂L/∂z of the energy, or the enthalpy with constraints, in the unknown of a relaxation. Pure JAX."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.unknown import CellFreedom, Reference, Unknown, as_unknown
from mdsens.potentials.base import total_energy


def lagrangian(z: Any, landscape: Landscape) -> Float[Array, ""]:
    """U + pV of the system at z, plus multipliers times constraints; a stress beyond the pressure as a dead load. Pure JAX."""
    reference, potential = landscape
    system = reference.place(z)
    value = total_energy(potential, system)
    if reference.freedom is not None:
        value = value + reference.freedom.pressure * system.volume
        if reference.freedom.tension is not None:
            value = value - reference.system.volume * _work(reference.freedom, reference.freedom.tension) @ z.strain
    if reference.constraints is not None and reference.constraints.count:
        value = value + z.multipliers @ reference.constraints.values(system)
    return value


def _work(freedom: CellFreedom, tensor: Array) -> Array:
    """A stress-like tensor seen by the strain's components, per volume."""
    return jnp.einsum("ab,kba->k", tensor, freedom.directions) / freedom.length


def zero_where_held(slope: Any, reference: Reference) -> Any:
    """No condition for what does not move."""
    positions = jnp.where(reference.held, 0.0, as_unknown(slope).positions)
    return slope._replace(positions=positions) if isinstance(slope, Unknown) else positions


def gradient(z: Any, landscape: Landscape) -> Any:
    """F(z) = ∂L/∂z on an energy landscape, zero where frozen: the condition of an equilibrium. Pure JAX.

    A stress beyond the pressure acts as a true (Cauchy) stress, which is no gradient: V F⁻¹τ in place of V₀τ.
    """
    reference = landscape.reference
    slope = jax.grad(lagrangian)(z, landscape)
    if not reference.symmetric:
        freedom = reference.freedom
        assert freedom is not None and freedom.tension is not None
        volume, deformation = reference.place(z).volume, freedom.deformation(z.strain)
        true = volume * jnp.linalg.solve(deformation, freedom.tension)
        slope = slope._replace(strain=slope.strain + _work(freedom, reference.system.volume * freedom.tension - true))
    return zero_where_held(slope, reference)


def slopes_of_work(z: Any, landscape: Landscape, displacement: Any) -> Any:
    """∂⟨F, v⟩/∂θ for one displacement v, potential-shaped. Pure JAX.

    The parameters' derivative of the energy's change along v; for one v that costs less than ∂F/∂θ transposed.
    """
    reference, potential = landscape
    v = zero_where_held(displacement, reference)
    return jax.grad(lambda theta: jax.jvp(lambda x: lagrangian(x, Landscape(reference, theta)), (z,), (v,))[1])(potential)
