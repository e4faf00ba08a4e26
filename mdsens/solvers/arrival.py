"""The judgement whether a point solves a condition, in the units of the condition itself."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.implicit.trees import PyTree
from mdsens.solvers.solver import Problem

RELATIVE_TOLERANCE = {"float64": 1e-11, "float32": 1e-5}
"""Residual of a component of F that counts as zero, relative to |∂F/∂z| times the size of z, by precision."""

PROBE_SHARE = 10.0
"""Share of z, in roots of the precision, over which |∂F/∂z| is measured."""

MAX_ROUNDING_SHARE = 1e-6
"""Largest such residual, relative to the same, where z = T(z) holds to the last digit."""

ROUNDING_SHARE = 1e-3
"""Share of the change at the start up to which a change T(z) - z may be rounding."""


class Judgement(NamedTuple):
    """The judgement of a point.

    Attributes:
        arrived: whether each component of F counts as zero.
        aim: size at which those that do not would.
        lost: whether a change T(z) - z is lost in the rounding of z.
    """

    arrived: Array
    aim: Array
    lost: Array


def judge(problem: Problem, z: PyTree, start: PyTree, args: Any, is_change: bool) -> Judgement:
    """Judge a point that was reached from `start`. Pure JAX.

    A component counts as zero beside |∂F/∂z| L, with L the size, here or at the start, of the part of z that it depends on: so
    each component of F may have any factor, and z any unit.
    """
    flat, unravel = ravel_pytree(z)
    eps = jnp.finfo(flat.dtype).eps
    length, sign = _lengths(z, start), jnp.where(flat < 0.0, -1.0, 1.0).astype(flat.dtype)
    share = PROBE_SHARE * eps**0.5
    value = ravel_pytree(problem.residual(z, args))[0]

    def change(k: int, towards: float) -> Array:
        random = jax.random.uniform(jax.random.key(k), flat.shape, flat.dtype, 0.1, 1.0)
        probe = problem.residual(unravel(flat + towards * share * sign * random * length), args)
        # A probe may leave the domain of F.
        return jnp.nan_to_num(jnp.abs(ravel_pytree(probe)[0] - value), nan=0.0, posinf=0.0) / share

    whole = jnp.maximum(change(0, 1.0), change(1, -1.0))
    size = RELATIVE_TOLERANCE.get(str(flat.dtype), 1e-2) * whole
    if is_change:
        # No change is known better than z; that will do where it would be larger anywhere else near z.
        seen = whole - 4.0 * eps * length / share
        size = jnp.maximum(size, jnp.minimum(4.0 * eps * jnp.abs(flat), MAX_ROUNDING_SHARE * seen))
    good = jnp.abs(value) <= size
    first = jnp.max(jnp.abs(ravel_pytree(problem.residual(start, args))[0]))
    rounding = eps * jnp.max(jnp.abs(flat))
    before = eps * jnp.max(jnp.abs(ravel_pytree(start)[0]))
    lost = jnp.asarray(is_change) & (rounding > jnp.maximum(ROUNDING_SHARE * first, 10.0 * before)) & (first > 0.0)
    return Judgement(jnp.all(good), jnp.min(jnp.where(good, jnp.inf, size)), lost)


judge_on_host = eqx.filter_jit(judge)


def _lengths(z: PyTree, start: PyTree) -> Array:
    """Return, for each component, the size of the leaf that it belongs to."""
    largest = lambda leaf: jnp.max(jnp.abs(leaf), initial=0.0)  # noqa: E731
    spread = lambda a, b: jnp.full_like(a, jnp.maximum(largest(a), largest(b)))  # noqa: E731
    return ravel_pytree(jax.tree.map(spread, z, start))[0]
