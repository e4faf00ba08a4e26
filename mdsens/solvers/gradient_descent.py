"""The plainest minimiser."""

import dataclasses
from typing import Any, ClassVar

import jax

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.implicit.trees import PyTree
from mdsens.solvers.solver import Problem, Solver, State


@suggest_names
@dataclasses.dataclass(frozen=True)
class GradientDescent(Solver):
    """Gradient descent, z ← z - η F(z): converges where η is below 2 / (the largest curvature), slowly where curvatures differ.

    Attributes:
        step_size: η.
    """

    step_size: float = 0.01

    follows: ClassVar = "gradient"

    def __post_init__(self) -> None:
        if not self.step_size > 0.0:
            raise InputError(f"GradientDescent's step_size must be positive, not {self.step_size}.")

    def init(self, problem: Problem, z: PyTree, data: Any) -> State:
        return State(z, problem.residual(z, data))

    def step(self, problem: Problem, state: State, data: Any) -> State:
        z = jax.tree.map(lambda x, slope: x - self.step_size * slope, state.z, state.residual)
        return State(z, problem.residual(z, data))
