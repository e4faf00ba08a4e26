"""FIRE, a minimiser by dynamics."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.implicit.trees import PyTree, dot
from mdsens.solvers.solver import Problem, Solver


class FireState(NamedTuple):
    """Point, momentum, time step, mixing parameter, and how many steps the power has been positive."""

    z: PyTree
    residual: PyTree
    momentum: PyTree
    dt: Array
    alpha: Array
    n_positive: Array


@suggest_names
@dataclasses.dataclass(frozen=True)
class FIRE(Solver):
    """The fast inertial relaxation engine: damped dynamics of unit masses, stopped whenever it runs uphill.

    It is robust from a rough start.

    E. Bitzek, P. Koskinen, F. Gähler, M. Moseler, P. Gumbsch, Phys. Rev. Lett. 97, 170201 (2006). The algorithm and its
    settings are those of `jax_md.minimize.fire_descent` (velocity Verlet, the force's norm softened by
    `force_softening` = 1e-6 in its square), with one addition: no component moves more than `max_step` in a step.

    Attributes:
        max_step: largest change of a component in one step; None for no limit.
    """

    dt_start: float = 0.1
    dt_max: float = 0.4
    n_min: int = 5
    f_inc: float = 1.1
    f_dec: float = 0.5
    alpha_start: float = 0.1
    f_alpha: float = 0.99
    force_softening: float = 1e-6
    max_step: float | None = 0.2

    follows: ClassVar = "gradient"

    def __post_init__(self) -> None:
        if not 0.0 < self.dt_start <= self.dt_max:
            raise InputError(f"FIRE needs 0 < dt_start <= dt_max, not {self.dt_start} and {self.dt_max}.")
        if not (0.0 < self.f_dec < 1.0 <= self.f_inc):
            raise InputError(f"FIRE needs 0 < f_dec < 1 <= f_inc, not {self.f_dec} and {self.f_inc}.")
        if self.max_step is not None and not self.max_step > 0.0:
            raise InputError(f"FIRE's max_step must be positive, or None for no limit, not {self.max_step}.")

    def init(self, problem: Problem, z: PyTree, data: Any) -> FireState:
        return self.start(z, problem.residual(z, data))

    def start(self, z: PyTree, residual: PyTree) -> FireState:
        rest = jax.tree.map(jnp.zeros_like, z)
        dtype = jnp.result_type(*jax.tree.leaves(z))
        dt, alpha = jnp.asarray(self.dt_start, dtype), jnp.asarray(self.alpha_start, dtype)
        return FireState(z, residual, rest, dt, alpha, jnp.asarray(0))

    def step(self, problem: Problem, state: FireState, data: Any) -> FireState:
        z, residual, momentum, dt, alpha, n_positive = state
        momentum = jax.tree.map(lambda p, f: p - 0.5 * dt * f, momentum, residual)
        move = jax.tree.map(lambda p: dt * p, momentum)
        if self.max_step is not None:
            farthest = jnp.max(jnp.stack([jnp.max(jnp.abs(m)) for m in jax.tree.leaves(move)]))
            shrink = jnp.minimum(1.0, self.max_step / jnp.maximum(farthest, self.max_step))
            move = jax.tree.map(lambda m: shrink * m, move)
        z = jax.tree.map(jnp.add, z, move)
        residual = problem.residual(z, data)
        momentum = jax.tree.map(lambda p, f: p - 0.5 * dt * f, momentum, residual)

        force_norm = jnp.sqrt(dot(residual, residual) + self.force_softening * len(jax.tree.leaves(z)))
        momentum_norm = jnp.sqrt(dot(momentum, momentum))
        power = -dot(residual, momentum)
        momentum = jax.tree.map(lambda p, f: p - alpha * (f * momentum_norm / force_norm + p), momentum, residual)

        n_positive = jnp.where(power >= 0.0, n_positive + 1, 0)
        faster = (power > 0.0) & (n_positive > self.n_min)
        dt = jnp.where(faster, jnp.minimum(dt * self.f_inc, self.dt_max), jnp.where(power < 0.0, dt * self.f_dec, dt))
        alpha = jnp.where(faster, alpha * self.f_alpha, jnp.where(power < 0.0, self.alpha_start, alpha))
        momentum = jax.tree.map(lambda p: jnp.where(power >= 0.0, p, 0.0), momentum)
        return FireState(z, residual, momentum, dt, alpha, n_positive)
