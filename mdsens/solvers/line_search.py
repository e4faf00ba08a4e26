"""A line search that looks at the slope only, for minimisers that are given a gradient and no energy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.implicit.trees import PyTree
from mdsens.solvers.solver import Problem

STEEPNESS = 0.9
"""Slope uphill behind a step, as a share of the slope downhill before it, up to which the step is accepted (the curvature
condition of Wolfe on the far side; a point that still lies downhill is always accepted)."""


class Step(NamedTuple):
    """The point after a step, and whether it is another one."""

    z: PyTree
    residual: PyTree
    accepted: Array


def descend(
    problem: Problem, z: PyTree, residual: PyTree, direction: Array, data: Any, *, max_step: float | None, tries: int
) -> Step:
    """Go from z along a direction of descent (flat), and shorten the step by the secant rule while it overshoots.

    Args:
        residual: F(z), the gradient.
        max_step: no component moves farther; None for no limit.
        tries: steps tried before the search gives up and stays at z.
    """
    flat, unravel = ravel_pytree(z)
    if max_step is not None:
        farthest = jnp.max(jnp.abs(direction))
        direction = direction * jnp.minimum(1.0, max_step / jnp.where(farthest > 0.0, farthest, 1.0))
    slope = jnp.vdot(direction, ravel_pytree(residual)[0])

    def at(share: Array) -> tuple[Any, Array, Array]:
        target = unravel(flat + share * direction)
        gradient = problem.residual(target, data)
        return target, gradient, jnp.vdot(direction, ravel_pytree(gradient)[0])

    def go_on(carry: Any) -> Array:
        _, _, _, new, k = carry
        return ~(new <= STEEPNESS * jnp.abs(slope)) & (k < tries)

    def shorten(carry: Any) -> tuple[Any, ...]:
        share, _, _, new, k = carry
        secant = jnp.where(jnp.isfinite(new), slope / (slope - new), 0.0)
        share = share * jnp.clip(secant, 0.1, 0.5)
        return share, *at(share), k + 1

    one = jnp.ones((), flat.dtype)
    _, target, gradient, new, _ = jax.lax.while_loop(go_on, shorten, (one, *at(one), jnp.asarray(1)))
    moved = jnp.any(ravel_pytree(target)[0] != flat)
    accepted = moved & (slope < 0.0) & (new <= STEEPNESS * jnp.abs(slope))
    z, residual = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), (target, gradient), (z, residual))
    return Step(z, residual, accepted)
