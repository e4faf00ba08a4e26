"""Optax's optimisers as solvers."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax

from mdsens.common.errors import InputError
from mdsens.implicit.trees import PyTree
from mdsens.solvers.solver import Problem, Solver


class OptaxState(NamedTuple):
    """The point and the state of the method itself."""

    z: PyTree
    residual: PyTree
    inner: Any


@dataclasses.dataclass(frozen=True)
class Optax(Solver):
    """A solver by a gradient transformation of optax, with the residual for the gradient: `Optax(optax.adam(1e-2))`.

    Attributes:
        transformation: an `optax.GradientTransformation` that needs nothing but gradients (and parameters).
    """

    transformation: Any

    follows: ClassVar = "gradient"

    def __post_init__(self) -> None:
        if not (hasattr(self.transformation, "init") and hasattr(self.transformation, "update")):
            raise InputError("Optax wants a gradient transformation, such as optax.adam(1e-2).")

    def init(self, problem: Problem, z: PyTree, data: Any) -> OptaxState:
        return OptaxState(z, problem.residual(z, data), self.transformation.init(z))

    def step(self, problem: Problem, state: OptaxState, data: Any) -> OptaxState:
        updates, inner = self.transformation.update(state.residual, state.inner, state.z)
        z = jax.tree.map(lambda x, move: x + move.astype(x.dtype), state.z, updates)
        return OptaxState(z, problem.residual(z, data), inner)
