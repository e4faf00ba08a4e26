"""`Problem`, what is solved, and `Solver`, the base class of what solves it."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mdsens.implicit.linear_system import NullSpace
from mdsens.implicit.trees import PyTree


@dataclasses.dataclass(frozen=True)
class Problem:
    """The condition that is solved. Its functions are compared by identity, so module-level ones find compiled code again.

    Attributes:
        residual: F(z, data), of the structure of z; for a minimisation the gradient.
        norm: size of a residual, the number that is held against the tolerance.
        is_stale: whether `data` is no longer right at z.
        null_space: known null space of ∂F/∂z, for solvers that solve linear systems.
        symmetric: whether ∂F/∂z is.
        focus: `focus(z, data) -> data` on the host: data made for z alone, at each point of a solver with `whole_steps`.
        operator: `operator(z, data) -> (u ↦ ∂F/∂z u)` on z raveled, where there is a faster way than to linearise F.
        evaluate: `evaluate(z, data) -> (F, its norm)` on the host, where there is a way that compiles less.
        whole_step: `whole_step(problem, solver, z, residual, data, tolerance) -> (target, whether to go there)` on the host, in
            the place of `Solver.move`.
        kind: "gradient" where F is one, "change" where it is T(z) - z, None where it is neither. A solver that follows the
            other kind is given -F.
    """

    residual: Callable[..., Any]
    norm: Callable[..., Any] = lambda residual: jnp.max(jnp.stack([jnp.max(jnp.abs(r)) for r in jax.tree.leaves(residual)]))
    is_stale: Callable[..., Any] = lambda z, data: jnp.asarray(False)
    null_space: Callable[..., Any] = lambda z, data: NullSpace()
    symmetric: bool = False
    operator: Callable[..., Any] | None = None
    focus: Callable[[PyTree, Any], Any] | None = None
    evaluate: Callable[[Any, Any], tuple[Any, Any]] | None = None
    whole_step: Callable[..., tuple[Any, Any]] | None = None
    kind: str | None = None

    def seen_by(self, solver: "Solver") -> "Problem":
        """Return the problem with the sign that a solver expects of its residual."""
        if self.kind is None or solver.follows in (None, self.kind):
            return self
        operator = None if self.operator is None else _Negated(self.operator, of_operator=True)
        changed: dict[str, Any] = {
            "residual": _Negated(self.residual),
            "operator": operator,
            "evaluate": None,
            "whole_step": None,
        }
        return dataclasses.replace(self, **changed, kind=solver.follows)


@dataclasses.dataclass(frozen=True)
class _Negated:
    """The function -f of a function f(z, data), or of the linear function that f(z, data) is."""

    function: Callable[..., Any]
    of_operator: bool = False

    def __call__(self, z: PyTree, data: Any) -> Any:
        value = self.function(z, data)
        if self.of_operator:
            return lambda u: -value(u)
        return jax.tree.map(jnp.negative, value)


class State(NamedTuple):
    """The state of a solver without a memory."""

    z: PyTree
    residual: PyTree


class Solver(abc.ABC):
    """A method for F(z) = 0: settings, and what it does at the start and in each step. The driver owns the loop.

    A subclass is a frozen dataclass, so that compiled code is found again for equal settings:

        @dataclasses.dataclass(frozen=True)
        class Halving(ms.solvers.Solver):
            follows = "gradient"

            def init(self, problem, z, data):
                return State(z, problem.residual(z, data))

            def step(self, problem, state, data):
                z = jax.tree.map(lambda x, f: x - 0.5 * f, state.z, state.residual)
                return State(z, problem.residual(z, data))

    A state is a pytree with the fields `z` and `residual` = F(z, data), a NamedTuple say.

    Attributes:
        follows: the meaning that the method gives to the residual: "gradient" for a minimiser, which steps against it,
            "change" for one that steps along it, None for either.
        whole_steps: whether its steps are few and long, each by `move`, so that `data` may be made for each point.
    """

    follows: ClassVar[str | None] = None

    @property
    def whole_steps(self) -> bool:
        return False

    @abc.abstractmethod
    def init(self, problem: Problem, z: PyTree, data: Any) -> Any:
        """Return the state at the start; pure JAX."""

    @abc.abstractmethod
    def step(self, problem: Problem, state: Any, data: Any) -> Any:
        """Return the state after a step; pure JAX."""

    def start(self, z: PyTree, residual: PyTree) -> Any:
        """Return the state at a start whose residual is known already; pure JAX. Methods that ask for more there have none."""
        raise NotImplementedError

    def terminate(self, state: Any) -> Array:
        """Return whether the method cannot go on from a state, which ends the solve; pure JAX."""
        return jnp.asarray(False)

    def move(self, problem: Problem, z: PyTree, residual: PyTree, data: Any, aim: Array | float = 0.0) -> tuple[Array, Array]:
        """Return `(a whole step, flat; whether to take it)`; pure JAX. Only methods of `whole_steps` have one.

        Args:
            aim: size that the residual of a linear system may have.
        """
        raise NotImplementedError
