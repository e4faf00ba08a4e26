"""The derivative ∂L/∂z of the energy, or the enthalpy with constraints, in the unknown of a relaxation. Pure JAX."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.mechanics.unknown import CellFreedom, Frame, Unknown, as_unknown
from mdsens.potentials.base import total_energy


def lagrangian(z: Any, data: Any) -> Float[Array, ""]:
    """U + pV of the system at z, plus multipliers times constraints; a stress beyond the pressure as a dead load. Pure JAX."""
    frame, potential = data
    system = frame.place(z)
    value = total_energy(potential, system)
    if frame.freedom is not None:
        value = value + frame.freedom.pressure * system.volume
        if frame.freedom.tension is not None:
            value = value - frame.system.volume * _work(frame.freedom, frame.freedom.tension) @ z.strain
    if frame.constraints is not None and frame.constraints.count:
        value = value + z.multipliers @ frame.constraints.values(system)
    return value


def _work(freedom: CellFreedom, tensor: Array) -> Array:
    """A stress-like tensor seen by the strain's components, per volume."""
    return jnp.einsum("ab,kba->k", tensor, freedom.directions) / freedom.length


def held_still(slope: Any, frame: Frame) -> Any:
    """No condition for what does not move."""
    positions = jnp.where(frame.held, 0.0, as_unknown(slope).positions)
    return slope._replace(positions=positions) if isinstance(slope, Unknown) else positions


def gradient(z: Any, data: Any) -> Any:
    """F(z) = ∂L/∂z at `data = (frame, potential)`, zero where frozen: the condition of an equilibrium. Pure JAX.

    A stress beyond the pressure acts as a true (Cauchy) stress, which is no gradient: V F⁻¹τ in place of V₀τ.
    """
    frame, _ = data
    slope = jax.grad(lagrangian)(z, data)
    if not frame.symmetric:
        freedom = frame.freedom
        volume, deformation = frame.place(z).volume, freedom.deformation(z.strain)
        true = volume * jnp.linalg.solve(deformation, freedom.tension)
        slope = slope._replace(strain=slope.strain + _work(freedom, frame.system.volume * freedom.tension - true))
    return held_still(slope, frame)


def slopes_of_work(z: Any, data: Any, displacement: Any) -> Any:
    """∂⟨F, v⟩/∂θ for one displacement v, potential-shaped. Pure JAX.

    The parameters' derivative of the energy's change along v; for one v that costs less than ∂F/∂θ transposed.
    """
    frame, potential = data
    v = held_still(displacement, frame)
    return jax.grad(lambda theta: jax.jvp(lambda x: lagrangian(x, (frame, theta)), (z,), (v,))[1])(potential)
