"""L-BFGS, a quasi-Newton minimiser with a short memory."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.implicit.trees import PyTree
from mdsens.solvers.line_search import descend
from mdsens.solvers.solver import Problem, Solver

TRIES = 20
"""Steps tried in one line search."""

MIN_STEP_SHARE = 1e-6
"""Share of `first_step` that a step without memory goes at least."""


class LBFGSState(NamedTuple):
    """The point, a ring of the last moves and changes of the gradient `(memory, n)`, and the scale of the newest pair."""

    z: PyTree
    residual: PyTree
    moves: Array
    changes: Array
    scale: Array
    step: Array
    failed: Array


@suggest_names
@dataclasses.dataclass(frozen=True)
class LBFGS(Solver):
    """Minimisation by the inverse Hessian that the last few steps imply.

    J. Nocedal, Math. Comput. 35, 773 (1980); Nocedal, Wright, "Numerical Optimization", algorithm 7.4. The line search
    knows slopes only (`line_search.descend`), and pairs of no positive curvature are left out. If a direction doesn't lead
    downhill the memory is forgotten.

    Attributes:
        memory: number of pairs.
        max_step: largest change of a component in one step; None for no limit.
        first_step: largest change of a component in the first step.
    """

    memory: int = 20
    max_step: float | None = 0.2
    first_step: float = 0.01

    follows: ClassVar = "gradient"

    def __post_init__(self) -> None:
        if not (self.memory >= 1 and self.first_step > 0.0 and (self.max_step is None or self.max_step > 0.0)):
            raise InputError(
                "LBFGS needs memory >= 1 and positive first_step and max_step (or None for no limit), not "
                f"{self.memory}, {self.first_step} and {self.max_step}."
            )

    def init(self, problem: Problem, z: PyTree, data: Any) -> LBFGSState:
        return self.start(z, problem.residual(z, data))

    def start(self, z: PyTree, residual: PyTree) -> LBFGSState:
        flat = ravel_pytree(z)[0]
        empty = jnp.zeros((self.memory, flat.size), flat.dtype)
        return LBFGSState(z, residual, empty, empty, jnp.ones((), flat.dtype), jnp.asarray(0), jnp.asarray(False))

    def terminate(self, state: LBFGSState) -> Array:
        return state.failed

    def step(self, problem: Problem, state: LBFGSState, data: Any) -> LBFGSState:
        gradient = ravel_pytree(state.residual)[0]
        farthest = jnp.max(jnp.abs(gradient))
        longest = self.first_step / jnp.where(farthest > 0.0, farthest, 1.0)
        # Units in which curvatures are far from 1 must not make it too short to be seen.
        rough = -gradient * jnp.clip(1.0, MIN_STEP_SHARE * longest, longest)
        quasi = -_two_loops(gradient, state)
        remembers = jnp.any(state.changes != 0.0)
        known = remembers & (jnp.vdot(quasi, gradient) < 0.0)
        direction = jnp.where(known, quasi, rough)
        new = descend(problem, state.z, state.residual, direction, data, max_step=self.max_step, tries=TRIES)

        move = ravel_pytree(new.z)[0] - ravel_pytree(state.z)[0]
        change = ravel_pytree(new.residual)[0] - gradient
        # A pair without positive curvature would spoil the metric; a step that failed leaves nothing to learn from.
        product, length = jnp.vdot(move, change), jnp.vdot(change, change)
        curved = product > jnp.finfo(move.dtype).eps * length
        # A memory that does not lead downhill, or not far enough for a step, is forgotten: one more try before giving up.
        forget = remembers & ~(known & new.accepted)
        moves, changes = (jnp.where(forget, 0.0, kept) for kept in (state.moves, state.changes))
        place = state.step % self.memory
        return LBFGSState(
            new.z,
            new.residual,
            moves.at[place].set(jnp.where(curved, move, 0.0)),
            changes.at[place].set(jnp.where(curved, change, 0.0)),
            jnp.where(curved, product / jnp.where(length > 0.0, length, 1.0), state.scale),
            state.step + 1,
            ~new.accepted & ~known,
        )


def _two_loops(gradient: Array, state: LBFGSState) -> Array:
    """Return H g by the two-loop recursion over a ring of pairs, H₀ being the scale of the newest; empty pairs count as none."""
    moves, changes, step = state.moves, state.changes, state.step
    memory = len(moves)
    products = jnp.sum(moves * changes, axis=1)
    rho = jnp.where(products > 0.0, 1.0 / jnp.where(products > 0.0, products, 1.0), 0.0)

    def backwards(k: Array, carry: Any) -> tuple[Array, Array]:
        q, alphas = carry
        place = (step - 1 - k) % memory
        alpha = rho[place] * jnp.vdot(moves[place], q)
        return q - alpha * changes[place], alphas.at[place].set(alpha)

    q, alphas = jax.lax.fori_loop(0, memory, backwards, (gradient, jnp.zeros(memory, gradient.dtype)))

    def forwards(k: Array, q: Array) -> Array:
        place = (step + k) % memory
        beta = rho[place] * jnp.vdot(changes[place], q)
        return q + (alphas[place] - beta) * moves[place]

    return jax.lax.fori_loop(0, memory, forwards, state.scale * q)
