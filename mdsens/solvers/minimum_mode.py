"""Saddle points of first order: up along the lowest mode, down along all others."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.common.suggestions import NameSuggester
from mdsens.implicit.krylov import CG
from mdsens.implicit.linear_system import Matvec, NullSpace, linear_system
from mdsens.implicit.root import linearise
from mdsens.implicit.trees import PyTree
from mdsens.solvers.solver import Problem, Solver

NEGATIVE_SHARE = 1e-6
"""Share of the largest curvature below minus which a curvature is negative."""

FIRST_ROUNDS = 10
"""Restarts of Lanczos at the start, where the mode is unknown."""

GROW_ERROR, SHRINK_ERROR = 0.2, 0.6
"""Error of the predicted force, as a share of it, below which steps grow and above which they shrink."""

MIN_RADIUS_SHARE = 1e-8
"""Share of `max_step` below which steps are given up."""


class MinimumModeState(NamedTuple):
    """The state of `MinimumMode`.

    Attributes:
        residual: the gradient where the curvatures are those of a saddle point, else one that is too large to be accepted.
        mode, curvature: the lowest mode outside the known null space, raveled, of unit length; its curvature.
        direction: the way up, the mode or, in a convex region, what led here.
        index: how many curvatures were seen to be negative.
        radius: largest change of a component in the next step.
    """

    z: PyTree
    residual: PyTree
    gradient: PyTree
    mode: Array
    curvature: Array
    direction: Array
    index: Array  # type: ignore[assignment]  # hides the tuple's method
    radius: Array
    failed: Array


class MinimumMode(NameSuggester, Solver, eqx.Module):
    """Minimum-mode following: a saddle point with one negative curvature of the function whose gradient F is.

    Where the lowest curvature is negative a step goes up along its mode and down along all others, each as far as Newton's
    method would, so that the end is superlinear. Elsewhere it goes straight up along the direction that led there, at first
    `mode`. The mode comes from a few Lanczos steps that start from the last one. Steps shrink where the force does not change
    as the curvature predicts.

    G. Henkelman, H. Jónsson, J. Chem. Phys. 111, 7010 (1999), the force reversed along the mode; R. Malek, N. Mousseau,
    Phys. Rev. E 62, 7723 (2000), the mode by Lanczos and the way out of a basin along a direction kept.

    A point where F vanishes is accepted only if exactly one of the curvatures that Lanczos saw is negative: never a minimum,
    even if it is the start. Lanczos may overlook a further negative one, in large systems: the caller who must know counts
    them. In a basin without a way out the solve climbs until `max_steps`.

    Attributes:
        mode: first direction up, of the structure of z, with its sign; None for the lowest mode at the start, which in a large
            system may be any soft one.
        max_step: largest change of a component in one step.
        lanczos_steps: products with the Hessian for the mode, in each step.
        seed: of the start of Lanczos.

    Raises:
        InputError: settings out of their range; in a solve, a mode of another structure than the unknown, or one that is zero
            outside the known null space.
    """

    mode: Any = eqx.field(default=None, converter=lambda mode: jax.tree.map(jnp.asarray, mode))
    max_step: float = 0.1
    lanczos_steps: int = 20
    seed: int = 0

    follows: ClassVar = "gradient"

    def __check_init__(self) -> None:
        if not (self.max_step > 0.0 and self.lanczos_steps >= 2):
            raise InputError(
                f"MinimumMode needs a positive max_step and lanczos_steps >= 2, not {self.max_step!r} and {self.lanczos_steps!r}."
            )

    def init(self, problem: Problem, z: PyTree, data: Any) -> MinimumModeState:
        flat, _ = ravel_pytree(z)
        product, _ = linearise(problem.residual, z, (data,), problem.operator)
        null_space = problem.null_space(z, data)
        noise = _unit(null_space.project(jax.random.normal(jax.random.key(self.seed), flat.shape, flat.dtype)))
        first = jnp.zeros_like(flat) if self.mode is None else _unit(null_space.project(self._raveled(z)))
        known = jnp.any(first != 0.0)
        # The first direction may by symmetry be blind to the lowest mode.
        mode = jnp.where(known, _unit(first + 0.1 * noise), noise)
        start = (mode, jnp.zeros(self._size(flat), flat.dtype))
        modes = jax.lax.fori_loop(0, FIRST_ROUNDS, lambda _, modes: self._lowest(product, null_space, modes[0]), start)
        gradient = problem.residual(z, data)
        up = jnp.where(known, first, _uphill(modes[0], ravel_pytree(gradient)[0]))
        lost = jnp.asarray(False) if self.mode is None else ~known
        radius = jnp.asarray(self.max_step, flat.dtype)
        return self._state(z, gradient, modes=modes, direction=up, radius=radius, failed=lost)

    def terminate(self, state: MinimumModeState) -> Array:
        return state.failed

    def step(self, problem: Problem, state: MinimumModeState, data: Any) -> MinimumModeState:
        flat, _ = ravel_pytree(state.z)
        product, unravel = linearise(problem.residual, state.z, (data,), problem.operator)
        null_space = problem.null_space(state.z, data)
        move = self._move(problem, state, product, null_space)
        z = unravel(flat + move)
        gradient = problem.residual(z, data)
        expected, before, after = product(move), *(ravel_pytree(g)[0] for g in (state.gradient, gradient))
        error = jnp.linalg.norm(after - before - expected)
        error = error / jnp.maximum(jnp.linalg.norm(expected), jnp.linalg.norm(before))
        # Written so that NaN is no good step.
        good = error < 1.0
        length = jnp.max(jnp.abs(move))
        radius = jnp.where(error < SHRINK_ERROR, state.radius, 0.5 * jnp.minimum(state.radius, length))
        radius = jnp.where(error < GROW_ERROR, jnp.minimum(2.0 * radius, self.max_step), radius)
        failed = state.failed | ~(radius > MIN_RADIUS_SHARE * self.max_step) | ~(length > 0.0)

        z, gradient = jax.tree.map(lambda new, old: jnp.where(good, new, old), (z, gradient), (state.z, state.gradient))
        product, _ = linearise(problem.residual, z, (data,), problem.operator)
        null_space = problem.null_space(z, data)
        # In a convex region what will be the lowest mode may have begun as the direction.
        start = null_space.project(state.direction + _uphill(state.mode, state.direction))
        modes, direction = self._lowest(product, null_space, start), _unit(null_space.project(state.direction))
        return self._state(z, gradient, modes=modes, direction=direction, radius=radius, failed=failed)

    def _move(self, problem: Problem, state: MinimumModeState, product: Matvec, null_space: NullSpace) -> Array:
        gradient = null_space.project(ravel_pytree(state.gradient)[0])
        up = state.direction
        farthest = state.radius / jnp.max(jnp.abs(up))
        convex = state.index == 0
        newton = jnp.vdot(gradient, up) / jnp.where(convex, 1.0, jnp.abs(state.curvature))
        along = jnp.where(convex, farthest, jnp.minimum(newton, farthest)) * up

        def across(vector: Array) -> Array:
            return vector - up * jnp.vdot(up, vector)

        downhill = -across(gradient + null_space.project(product(along)))
        # The forcing term of superlinear convergence, forces being held against that at a step's distance; nothing is asked for
        # in a convex region, where what is perpendicular would lead back down the valley's side.
        far = jnp.abs(state.curvature) * self.max_step
        left = problem.norm(state.gradient) / jnp.where(far > 0.0, far, 1.0)
        goal = jnp.minimum(0.5, jnp.sqrt(left)) * jnp.linalg.norm(downhill)
        folded = linear_system(lambda u: across(product(u)), lambda u: across(product(u)), None, null_space, gradient)
        rest, indefinite = CG().prepare(folded)(downhill, jnp.where(convex, jnp.inf, goal))
        # At a further negative curvature: as far as a step may go.
        steep = jnp.where(jnp.any(rest != 0.0), rest, downhill)
        length = jnp.max(jnp.abs(steep))
        steep = steep * state.radius / jnp.where(length > 0.0, length, 1.0)
        return _within(along + jnp.where(indefinite, steep, _within(rest, state.radius)), state.radius)

    def _size(self, flat: Array) -> int:
        return min(self.lanczos_steps, flat.size)

    def _lowest(self, product: Matvec, null_space: NullSpace, start: Array) -> tuple[Array, Array]:
        """Return `(mode, curvatures)` of the Krylov space of a start, by Lanczos steps with full reorthogonalisation."""
        steps = self._size(start)
        fresh = jax.random.normal(jax.random.key(self.seed + 1), (steps, start.size), start.dtype)

        def rest(vectors: Array, w: Array) -> Array:
            for _ in range(2):
                w = w - vectors.T @ (vectors @ w)
            return w

        def step(k: Array, carry: Any) -> tuple[Any, ...]:
            vectors, diagonal, off = carry
            w = null_space.project(product(vectors[k]))
            diagonal = diagonal.at[k].set(jnp.vdot(vectors[k], w))
            size, w = jnp.linalg.norm(w), rest(vectors, w)
            length = jnp.linalg.norm(w)
            # An invariant space: the search goes on outside it, as long as anything is there.
            closed = length <= 1e3 * jnp.finfo(w.dtype).eps * size
            other = rest(vectors, null_space.project(fresh[k]))
            other = jnp.where(jnp.linalg.norm(other) > 1e-6 * jnp.linalg.norm(fresh[k]), _unit(other), 0.0)
            vectors = vectors.at[k + 1].set(jnp.where(closed, other, _unit(w)))
            return vectors, diagonal, off.at[k].set(jnp.where(closed, 0.0, length))

        vectors = jnp.zeros((steps + 1, start.size), start.dtype).at[0].set(_unit(start))
        empty = jnp.zeros(steps, start.dtype)
        vectors, diagonal, off = jax.lax.fori_loop(0, steps, step, (vectors, empty, empty))
        vectors = vectors[:steps]
        # Where nothing was left a curvature that is nobody's must not be the lowest.
        diagonal = jnp.where(jnp.any(vectors != 0.0, axis=1), diagonal, jnp.max(jnp.abs(diagonal)) + jnp.max(off))
        values, shares = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(off[:-1], 1) + jnp.diag(off[:-1], -1))
        mode = vectors.T @ shares[:, 0]
        return _unit(jnp.where(jnp.vdot(mode, start) < 0.0, -mode, mode)), values

    def _state(
        self, z: PyTree, gradient: PyTree, *, modes: tuple[Array, Array], direction: Array, radius: Array, failed: Array
    ) -> MinimumModeState:
        mode, values = modes
        stiffest = jnp.max(jnp.abs(values))
        index = jnp.sum(values < -NEGATIVE_SHARE * stiffest)
        slope, unravel = ravel_pytree(gradient)
        direction = jnp.where(index == 0, direction, _uphill(mode, slope))
        # A residual that vanishes elsewhere than at a saddle point of first order: the driver sees one that does not, of the
        # size of a force at a step's distance.
        along = jnp.vdot(direction, slope)
        force = jnp.maximum(jnp.abs(along), jnp.where(stiffest > 0.0, stiffest * self.max_step, 1.0))
        residual = jnp.where(index == 1, slope, slope + (force - along) * direction)
        return MinimumModeState(z, unravel(residual), gradient, mode, values[0], direction, index, radius, failed)

    def _raveled(self, z: PyTree) -> Array:
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (self.mode, z)]
        if jax.tree.structure(self.mode) != jax.tree.structure(z) or shapes[0] != shapes[1]:  # type: ignore[operator]
            raise InputError(f"MinimumMode's mode has the shape {shapes[0]}, the unknown {shapes[1]}: they must be the same.")
        return ravel_pytree(jax.tree.map(lambda m, x: m.astype(x.dtype), self.mode, z))[0]


def _uphill(mode: Array, gradient: Array) -> Array:
    """Return the mode with the sign that goes up."""
    return jnp.where(jnp.vdot(mode, gradient) < 0.0, -mode, mode)


def _unit(vector: Array) -> Array:
    length = jnp.linalg.norm(vector)
    return vector / jnp.where(length > 0.0, length, 1.0)


def _within(move: Array, radius: Array | float) -> Array:
    """Return the move, shortened so that no component is larger than the radius."""
    return move * jnp.minimum(1.0, radius / jnp.maximum(jnp.max(jnp.abs(move)), radius))
