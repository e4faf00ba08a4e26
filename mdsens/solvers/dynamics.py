"""Newton's equations with friction, which come to rest where the residual vanishes."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mdsens.common.errors import InputError
from mdsens.implicit.trees import PyTree
from mdsens.solvers.solver import Problem, Solver


class DynamicsState(NamedTuple):
    """The point and its velocity."""

    z: PyTree
    residual: PyTree
    velocity: PyTree


@dataclasses.dataclass(frozen=True)
class DampedDynamics(Solver):
    """Damped dynamics of unit masses, v ← (1 - γ dt) v - dt F(z), z ← z + dt v (semi-implicit Euler).

    One step is a map T of the pair (z, v), whose fixed point is (z*, 0); `map` gives it, for `implicit.custom_fixed_point`.

    Attributes:
        dt: time step.
        friction: γ.
    """

    dt: float = 0.1
    friction: float = 1.0

    follows: ClassVar = "gradient"

    def __post_init__(self) -> None:
        if not (self.dt > 0.0 and 0.0 < self.friction * self.dt <= 1.0):
            raise InputError(
                f"DampedDynamics needs dt > 0 and 0 < friction · dt <= 1, not dt {self.dt}, friction {self.friction}."
            )

    def map(self, residual: Callable[..., Any]) -> Callable[..., Any]:
        """Return `T((z, v), *args)` for `residual(z, *args)`."""

        def step(state: Any, *args: Any) -> tuple[PyTree, PyTree]:
            z, velocity = state
            return self._advance(z, velocity, residual(z, *args))

        return step

    def init(self, problem: Problem, z: PyTree, data: Any) -> DynamicsState:
        return DynamicsState(z, problem.residual(z, data), jax.tree.map(jnp.zeros_like, z))

    def step(self, problem: Problem, state: DynamicsState, data: Any) -> DynamicsState:
        z, velocity = self._advance(state.z, state.velocity, state.residual)
        return DynamicsState(z, problem.residual(z, data), velocity)

    def _advance(self, z: PyTree, velocity: PyTree, residual: Any) -> tuple[PyTree, PyTree]:
        damping = 1.0 - self.friction * self.dt
        velocity = jax.tree.map(lambda v, f: damping * v - self.dt * f, velocity, residual)
        return jax.tree.map(lambda x, v: x + self.dt * v, z, velocity), velocity
