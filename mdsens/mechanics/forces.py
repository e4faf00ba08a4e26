"""The condition F = ∂L/∂z of an equilibrium: the gradient of its energy, or enthalpy with constraints. Pure JAX."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.unknown import CellFreedom, Reference, Unknown, as_unknown
from mdsens.potentials.base import Potential, total_energy


def lagrangian(z: Unknown | Array, landscape: Landscape) -> Float[Array, ""]:
    """Return U + pV of the system at z, plus multipliers times constraints; a stress beyond the pressure as a dead load."""
    reference, potential = landscape
    system, unknown = reference.place(z), as_unknown(z)
    value = total_energy(potential, system)
    if reference.freedom is not None:
        value = value + reference.freedom.pressure * system.volume
        if reference.freedom.tension is not None:
            assert unknown.strain is not None
            value = value - reference.system.volume * _work(reference.freedom, reference.freedom.tension) @ unknown.strain
    if reference.constraints is not None and reference.constraints.count:
        assert unknown.multipliers is not None
        value = value + unknown.multipliers @ reference.constraints.values(system)
    return value


def _work(freedom: CellFreedom, tensor: Array) -> Array:
    """Return the work of a stress along each of the strain's components, per volume."""
    return jnp.einsum("ab,kba->k", tensor, freedom.directions) / freedom.length


def zero_where_held(slope: Unknown | Array, reference: Reference) -> Unknown | Array:
    """Set to zero what belongs to components of positions that do not move."""
    positions = jnp.where(reference.held, 0.0, as_unknown(slope).positions)
    return slope._replace(positions=positions) if isinstance(slope, Unknown) else positions


def gradient(z: Unknown | Array, landscape: Landscape) -> Unknown | Array:
    """Return F(z) = ∂L/∂z on an energy landscape, zero where frozen: the condition of an equilibrium.

    A stress beyond the pressure acts as a true (Cauchy) stress, which is no gradient: V F⁻¹τ in place of V₀τ.
    """
    reference = landscape.reference
    slope = jax.grad(lagrangian)(z, landscape)
    if not reference.symmetric:
        freedom = reference.freedom
        assert freedom is not None and freedom.tension is not None
        volume, deformation = reference.place(z).volume, freedom.deformation(as_unknown(z).strain)
        true = volume * jnp.linalg.solve(deformation, freedom.tension)
        slope = slope._replace(strain=slope.strain + _work(freedom, reference.system.volume * freedom.tension - true))
    return zero_where_held(slope, reference)


def slopes_of_work(z: Unknown | Array, landscape: Landscape, displacement: Unknown | Array) -> Potential:
    """Return ∂⟨F, v⟩/∂θ for one displacement v, potential-shaped.

    It is the derivative in θ of the energy's change along v; for one v that costs less than ∂F/∂θ transposed.
    """
    reference, potential = landscape
    v = zero_where_held(displacement, reference)
    return jax.grad(lambda theta: jax.jvp(lambda x: lagrangian(x, Landscape(reference, theta)), (z,), (v,))[1])(potential)
