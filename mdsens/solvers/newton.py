"""Newton's method near a minimum, each step a linear solve of the implicit core."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from mdsens.errors import InputError
from mdsens.implicit.linear import CG, linear_solve


class NewtonState(NamedTuple):
    z: Any
    residual: Any
    failed: Any


@dataclasses.dataclass(frozen=True)
class Newton:
    """z ← z - A⁻¹F(z), outside the known null space. For the last stretch: from fmax 1e-3 to 1e-12 in a few steps.

    A step is given back, and the solve fails, if it moves a component by more than `max_step`, meets a negative
    curvature, or does not lower the norm of the residual; then another solver must come nearer first.

    Attributes:
        rtol: tolerance of a step's linear system; the residual falls by about this factor each step.
        max_step: [Å].
    """

    rtol: float = 1e-5
    max_step: float = 0.1

    def __post_init__(self):
        if not (0.0 < self.rtol < 1.0 and self.max_step > 0.0):
            raise InputError(f"Newton needs 0 < rtol < 1 and max_step > 0, not {self.rtol} and {self.max_step}.")

    def init(self, problem, z, data) -> NewtonState:
        return NewtonState(z, problem.residual(z, data), jnp.asarray(False))

    def step(self, problem, state: NewtonState, data) -> NewtonState:
        flat, unravel = ravel_pytree(state.z)
        _, product = jax.linearize(lambda v: ravel_pytree(problem.residual(unravel(v), data))[0], flat)
        move, _ = linear_solve(
            product,
            -ravel_pytree(state.residual)[0],
            solver=CG(rtol=self.rtol, fail_rtol=0.5),
            symmetric=True,
            gauge=problem.gauge(state.z, data),
        )
        z = unravel(flat + move)
        residual = problem.residual(z, data)
        good = (jnp.max(jnp.abs(move)) <= self.max_step) & (problem.norm(residual) < problem.norm(state.residual))
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), (z, residual), (state.z, state.residual))
        return NewtonState(*kept, ~good)
