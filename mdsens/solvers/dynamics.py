"""Damped dynamics: Newton's equations with friction come to rest where the residual vanishes."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mdsens.errors import InputError


class DynamicsState(NamedTuple):
    z: Any
    residual: Any
    velocity: Any


@dataclasses.dataclass(frozen=True)
class DampedDynamics:
    """v ← (1 - γ dt) v - dt F(z), z ← z + dt v (semi-implicit Euler, unit masses).

    One step is a map T of the pair (z, v), whose fixed point is (z*, 0); `map` gives it, for `implicit.custom_fixed_point`.

    Attributes:
        dt: time step.
        friction: γ.
    """

    dt: float = 0.1
    friction: float = 1.0

    follows: ClassVar = "gradient"

    def __post_init__(self):
        if not (self.dt > 0.0 and 0.0 < self.friction * self.dt <= 1.0):
            raise InputError(
                f"DampedDynamics needs dt > 0 and 0 < friction · dt <= 1, not dt {self.dt}, friction {self.friction}."
            )

    def map(self, residual: Callable) -> Callable:
        """`T((z, v), *args)` for `residual(z, *args)`."""

        def step(state, *args):
            z, velocity = state
            return self._advance(z, velocity, residual(z, *args))

        return step

    def init(self, problem, z, data) -> DynamicsState:
        return DynamicsState(z, problem.residual(z, data), jax.tree.map(jnp.zeros_like, z))

    def step(self, problem, state: DynamicsState, data) -> DynamicsState:
        z, velocity = self._advance(state.z, state.velocity, state.residual)
        return DynamicsState(z, problem.residual(z, data), velocity)

    def _advance(self, z, velocity, residual):
        kept = 1.0 - self.friction * self.dt
        velocity = jax.tree.map(lambda v, f: kept * v - self.dt * f, velocity, residual)
        return jax.tree.map(lambda x, v: x + self.dt * v, z, velocity), velocity
