"""Mixing: solvers of z = T(z) that take a share of the change, for residuals of the form F = T(z) - z."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.implicit.trees import PyTree
from mdsens.solvers.solver import Problem, Solver, State


def _check_damping(solver: "Picard | Anderson") -> None:
    if not 0.0 < solver.damping <= 1.0:
        raise InputError(f"{type(solver).__name__}'s damping must lie above 0 and not above 1, not {solver.damping}.")


@dataclasses.dataclass(frozen=True)
class Picard(Solver):
    """The plain fixed-point iteration, z ← z + β (T(z) - z): converges where T contracts, at the rate of its spectral radius.

    Attributes:
        damping: β, 1 for the plain iteration; smaller values tame a map whose eigenvalues lie below -1.
    """

    damping: float = 1.0

    follows: ClassVar = "change"

    def __post_init__(self) -> None:
        _check_damping(self)

    def init(self, problem: Problem, z: PyTree, data: Any) -> State:
        return State(z, problem.residual(z, data))

    def step(self, problem: Problem, state: State, data: Any) -> State:
        z = jax.tree.map(lambda x, change: x + self.damping * change, state.z, state.residual)
        return State(z, problem.residual(z, data))


class AndersonState(NamedTuple):
    """The point, and the last moves and changes of the residual in a ring `(memory, n)`."""

    z: PyTree
    residual: PyTree
    moves: Array
    changes: Array
    step: Array


@dataclasses.dataclass(frozen=True)
class Anderson(Solver):
    """Anderson mixing: a step from the combination of the last few iterates whose residuals cancel best.

    D. G. Anderson, J. ACM 12, 547 (1965), in the form of H. F. Walker, P. Ni, SIAM J. Numer. Anal. 49, 1715 (2011), with
    the least-squares problem in differences, by singular values. It converges for many maps that do not contract.

    Attributes:
        memory: iterates combined.
        damping: β of the step that follows.
        rcond: singular values of the differences below this share of the largest are left out.
    """

    memory: int = 5
    damping: float = 1.0
    rcond: float = 1e-10

    follows: ClassVar = "change"

    def __post_init__(self) -> None:
        _check_damping(self)
        if self.memory < 1:
            raise InputError(f"Anderson's memory must be at least 1, not {self.memory}.")

    def init(self, problem: Problem, z: PyTree, data: Any) -> AndersonState:
        flat = ravel_pytree(z)[0]
        empty = jnp.zeros((self.memory, flat.size), flat.dtype)
        return AndersonState(z, problem.residual(z, data), empty, empty, jnp.asarray(0))

    def step(self, problem: Problem, state: AndersonState, data: Any) -> AndersonState:
        flat, unravel = ravel_pytree(state.z)
        residual = ravel_pytree(state.residual)[0]
        weights = jnp.linalg.lstsq(state.changes.T, residual, rcond=self.rcond)[0]
        mixed = residual - weights @ state.changes
        move = self.damping * mixed - weights @ state.moves
        z = unravel(flat + move)
        new = problem.residual(z, data)
        place = state.step % self.memory
        return AndersonState(
            z,
            new,
            state.moves.at[place].set(move),
            state.changes.at[place].set(ravel_pytree(new)[0] - residual),
            state.step + 1,
        )
