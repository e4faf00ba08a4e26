"""jax-md's minimisers as solvers."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mdsens.common.errors import InputError
from mdsens.implicit.trees import PyTree
from mdsens.solvers.solver import Problem, Solver


class JaxMDState(NamedTuple):
    """The point and the state of the method itself."""

    z: PyTree
    residual: PyTree
    inner: Any


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class JaxMD(Solver):
    """A solver by a routine of the form of `jax_md.minimize`: `minimizer(force, shift, **settings) -> (init, apply)`.

        ms.relax(system, potential, solver=ms.solvers.JaxMD(jax_md.minimize.fire_descent, dt_start=0.1))

    It drives any potential, ours too; the driver watches convergence and neighbour lists.
    """

    minimizer: Callable[..., Any]
    settings: tuple[tuple[str, Any], ...]

    follows: ClassVar = "gradient"

    def __init__(self, minimizer: Callable[..., Any], **settings: Any) -> None:
        if not callable(minimizer):
            raise InputError("solvers.JaxMD wants a function such as jax_md.minimize.fire_descent.")
        object.__setattr__(self, "minimizer", minimizer)
        object.__setattr__(self, "settings", tuple(sorted(settings.items())))

    def __repr__(self) -> str:
        # A function's own repr has an address, which no stored result should depend on.
        settings = "".join(f", {name}={value!r}" for name, value in self.settings)
        return f"JaxMD({getattr(self.minimizer, '__name__', type(self.minimizer).__name__)}{settings})"

    def _functions(self, problem: Problem) -> tuple[Any, Any]:
        def force(z: PyTree, data: Any, **_: Any) -> PyTree:
            return jax.tree.map(jnp.negative, problem.residual(z, data))

        def shift(z: PyTree, dz: PyTree, **_: Any) -> PyTree:
            return jax.tree.map(jnp.add, z, dz)

        return self.minimizer(force, shift, **dict(self.settings))

    def _state(self, problem: Problem, inner: Any, data: Any) -> JaxMDState:
        # A minimiser without momentum carries the bare positions; one with forces has just computed them.
        z = getattr(inner, "position", inner)
        force = getattr(inner, "force", None)
        residual = problem.residual(z, data) if force is None else jax.tree.map(jnp.negative, force)
        return JaxMDState(z, residual, inner)

    def init(self, problem: Problem, z: PyTree, data: Any) -> JaxMDState:
        init, _ = self._functions(problem)
        inner = init(z, data=data)
        # jax-md starts from narrow constants; a loop needs the types that a step returns.
        stepped = jax.eval_shape(lambda state: self.step(problem, state, data), self._state(problem, inner, data)).inner
        inner = jax.tree.map(lambda leaf, shape: jnp.asarray(leaf, shape.dtype), inner, stepped)
        return self._state(problem, inner, data)

    def step(self, problem: Problem, state: JaxMDState, data: Any) -> JaxMDState:
        _, apply = self._functions(problem)
        return self._state(problem, apply(state.inner, data=data), data)
