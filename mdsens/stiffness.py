"""The condition of an equilibrium, F = ∂L/∂z, and its derivative A = ∂F/∂z as a linear operator with a known null space."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens.frame import Frame, Unknown, as_unknown
from mdsens.gauge import coupled_atoms
from mdsens.implicit.linear_system import Gauge
from mdsens.potentials.base import soundness, total_energy
from mdsens.potentials.pair import PairPotential

STORED_LIMIT = 10**8
"""Numbers in stored stiffnesses of pairs, at most (0.8 GB)."""


def lagrangian(z, data) -> Float[Array, ""]:
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


def _work(freedom, tensor):
    """A stress-like tensor seen by the strain's components, per volume."""
    return jnp.einsum("ab,kba->k", tensor, freedom.directions) / freedom.length


def held_still(slope, frame: Frame):
    """No condition for what does not move."""
    positions = jnp.where(frame.held, 0.0, as_unknown(slope).positions)
    return slope._replace(positions=positions) if isinstance(slope, Unknown) else positions


def gradient(z, data):
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


def rigid_gauge(z, data) -> Gauge:
    """The null space that forces respect by themselves: frozen atoms and free rigid motions."""
    frame, _ = data
    return gauge_of(z, frame, ~frame.held)


def gauge(z, data) -> Gauge:
    """The known null space of the Hessian at a state: rattlers too, on which a general right-hand side may act."""
    frame, _ = data
    return gauge_of(z, frame, coupled(hessian_operator(z, data), z, frame))


@eqx.filter_jit
def known_gauge(z, frame: Frame, rattlers: tuple[int, ...]) -> Gauge:
    """The same as `gauge` where the rattlers are known already."""
    return gauge_of(z, frame, (~frame.held).at[np.array(rattlers, dtype=int)].set(False))


def coupled(product, z, frame: Frame):
    """`(N, dim)`: components of positions that can move and that something acts on."""
    _, unravel = ravel_pytree(z)
    image = coupled_atoms(lambda v: as_unknown(unravel(product(v))).positions, ravel_pytree(z)[0])
    return ~frame.held & image[:, None]


def gauge_of(z, frame: Frame, active) -> Gauge:
    """The null space of rigid motions of the active components `(N, dim)` and of those that are not."""
    basis = frame.motions.basis(as_unknown(z).positions, active)
    more = ravel_pytree(z)[0].size - active.size
    return Gauge(jnp.concatenate([active.ravel(), jnp.ones(more, bool)]), jnp.pad(basis, ((0, more), (0, 0))))


def hessian_operator(z, data):
    """v ↦ ∂F/∂z v on flat vectors, made once and applied many times; pure JAX, differentiable in z and data.

    Stored pair stiffnesses, gathered, for a plain sum over pairs at a fixed cell, where they fit; otherwise the linearised
    gradient.
    """
    frame, potential = data
    pairwise = isinstance(potential, PairPotential) and type(potential).atom_energies is PairPotential.atom_energies
    if pairwise and not isinstance(z, Unknown) and frame.system.neighbors.index.size * z.shape[1] ** 2 <= STORED_LIMIT:
        return _pair_operator(z, data)
    flat, unravel = ravel_pytree(z)
    return jax.linearize(lambda x: ravel_pytree(gradient(unravel(x), data))[0], flat)[1]


def _pair_operator(positions, data):
    frame, potential = data
    shape, system = positions.shape, frame.system
    factor, index = soundness(potential, system.with_positions(positions)), system.neighbors.index
    pairs = factor * potential.pair_stiffness(system.with_positions(factor * positions))
    own = jnp.sum(pairs, axis=1)

    def product(v):
        v = v.reshape(shape)
        image = jnp.einsum("iab,ib->ia", own, v) - jnp.einsum("ikab,ikb->ia", pairs, v[index])
        return jnp.where(frame.held, 0.0, image).ravel()

    return product
