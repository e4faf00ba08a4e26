"""Checks of an answer and its condition before a derivative counts: a few products each, in jit too.

Where values are concrete a fault is an error with its reason; where JAX traces them the result is NaN, in forward and in
reverse mode alike.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool

from mdsens.common.errors import InputError
from mdsens.implicit.checks import check_condition, check_root, is_root
from mdsens.implicit.linear import PROMISES, broken_promises
from mdsens.implicit.linear_system import Matvec, NullSpace
from mdsens.implicit.trees import PyTree, is_traced

ROOT_TOL = 1e-3
"""‖F‖ relative to the terms it is made of, above which an answer is no root at all: a net for gross errors."""

ROOT_STEP = 1e-6
"""Distance to a root within which an answer always counts as one (where `ROOT_TOL` is asked for)."""

NULL_TOLERANCE = {"float64": 1e-5}
"""What A may leave of a null space that it was said to have, relative to what it makes of any vector."""

KINK_SHARE = 1e-2
"""Share of a slope that its two sides differ by at a kink, at least."""

STEP_RATIO = 4.0
"""Ratio of each of three steps to the next: the two sides' difference falls by its square for a smooth function, by itself at a
kink."""

FAULTS = (
    *PROMISES,
    "The condition has a kink at this root: its slopes on the two sides differ, so that the root has no derivative there.",
)


def faults(
    optimality: Callable[..., Any],
    z: PyTree,
    args: tuple[Any, ...],
    product: Matvec,
    *,
    symmetric: bool,
    null_space: NullSpace | None,
) -> Bool[Array, " faults"]:
    """Return which of `FAULTS` a condition has at an answer. Pure JAX."""
    flat = ravel_pytree(z)[0]
    options: dict[str, Any] = {"symmetric": symmetric, "null_space": NullSpace() if null_space is None else null_space}
    tolerance = NULL_TOLERANCE.get(str(flat.dtype), 1e-3)
    broken = broken_promises(product, flat.size, flat.dtype, null_tolerance=tolerance, **options)
    return jnp.append(broken, _has_kink(optimality, *jax.lax.stop_gradient((z, eqx.filter(args, eqx.is_array))), args))


def _has_kink(optimality: Callable[..., Any], z: PyTree, values: tuple[Any, ...], args: tuple[Any, ...]) -> Bool[Array, ""]:
    """Return whether the slopes of F on two sides of the answer differ, however near to it they are taken.

    F is evaluated at p ± h d, with d a random direction of unknown and arguments. The two differences from F(p) differ by
    O(h²) where F is smooth, by O(h) at a kink, and by O(1) at a jump, which has a derivative on its side.
    """
    moving, resting = eqx.partition(eqx.combine(values, args), eqx.is_inexact_array)
    point, unravel = ravel_pytree((z, moving))
    leaves = jax.tree.leaves((z, moving))
    sizes = [jnp.full(leaf.size, jnp.max(jnp.abs(leaf), initial=0.0), point.dtype) for leaf in leaves]
    size = jnp.concatenate(sizes)
    # A leaf of zeros says nothing of its own scale: the smallest of the others is taken.
    smallest = jnp.min(jnp.where(size > 0.0, size, jnp.inf))
    size = jnp.where(size > 0.0, size, jnp.where(jnp.isfinite(smallest), smallest, 1.0))
    # Half of the digits for the step, half for the difference.
    step = jnp.finfo(ravel_pytree(z)[0].dtype).eps ** 0.5
    direction = step * size * jax.random.normal(jax.random.key(3), point.shape, point.dtype)

    def at(t: Array) -> Array:
        unknown, moved = unravel(point + t * direction)
        return ravel_pytree(optimality(unknown, *eqx.combine(moved, resting)))[0]

    lengths = jnp.asarray([STEP_RATIO**-k for k in range(3)], point.dtype)
    steps = jnp.concatenate([jnp.zeros(1, point.dtype), lengths, -lengths])
    # Evaluated one by one a condition needs no program of its own.
    values_at = jax.lax.map(at, steps) if is_traced(z, values, args) else jnp.stack([at(t) for t in steps])
    there, back = (side - values_at[0] for side in jnp.split(values_at[1:], 2))
    apart, slope = jnp.abs(there + back), jnp.maximum(jnp.abs(there[0]), jnp.abs(back[0]))
    # Of a kink beside the answer, not at it, little or nothing is left in the shortest step.
    ratios = STEP_RATIO * apart[1:] / jnp.where(apart[:-1] > 0.0, apart[:-1], 1.0)
    return jnp.any((apart[0] > KINK_SHARE * slope) & jnp.all((ratios > 0.6) & (ratios < 1.6), axis=0))


def refuse_faults(flags: Bool[Array, " faults"], z: PyTree, tree: PyTree) -> PyTree:
    """Return the tree if the answer z is finite and without faults; else raise InputError, or give NaN for traced values."""
    if is_traced(flags):
        bad = jnp.any(flags) | ~jnp.isfinite(ravel_pytree(jax.lax.stop_gradient(z))[0]).all()
        return jax.tree.map(functools.partial(poison, bad), tree)
    for fault, sentence in zip(flags, FAULTS, strict=True):
        if fault:
            raise InputError(sentence)
    return tree


def poison(bad: Array, tangent: Array) -> Array:
    """Return the tangent, NaN where it is bad, in reverse mode too: a `where` would send a zero back."""
    tangent = jnp.asarray(tangent)
    return jnp.where(bad, jnp.nan, 1.0).astype(tangent.dtype) * tangent


def withhold(bad: Array, answer: PyTree) -> PyTree:
    """Replace a bad answer by NaN, and with it whatever is derived from it; what doesn't depend on it stays as it is.

    Unlike `poison` it sends a zero back for a zero, so that one bad member of a sum changes no derivative of the others.
    The answer itself is finite: at NaN a condition may drop the terms that would pass the NaN on (a pair out of reach).
    """
    flat, unravel = ravel_pytree(answer)
    return unravel(_show(bad, flat))


@jax.custom_jvp
def _show(bad: Array, answer: Array) -> Array:
    return jnp.where(bad, jnp.nan, answer)


@_show.defjvp
def _show_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Array]) -> tuple[Array, Array]:
    def change_or_nan(_: Matvec, change: Array) -> Array:
        return jnp.where(primals[0] & jnp.any(change != 0.0), jnp.nan, change)

    # What solves a linear equation may look at its right-hand side, forward and transposed.
    return _show(*primals), jax.lax.custom_linear_solve(lambda v: v, tangents[1], change_or_nan, change_or_nan, symmetric=True)


def replace_nonfinite(answer: PyTree, substitute: PyTree) -> PyTree:
    """Return the answer where all of it is finite, else a substitute of the same shapes."""
    finite = jnp.isfinite(ravel_pytree(answer)[0]).all()
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), answer, substitute)


def require_root(optimality: Callable[..., Any], z: PyTree, args: tuple[Any, ...], tolerance: float) -> PyTree:
    """Return the answer z if it is a root; else raise, or give NaN where the values are traced."""
    error, scale = _root_error(optimality, z, args)
    if not is_traced(error, scale):
        check_root(float(error), float(scale), tolerance)
        return z
    return jax.tree.map(functools.partial(poison, ~is_root(error, scale, tolerance)), z)


@eqx.filter_jit
def _root_error(optimality: Callable[..., Any], z: PyTree, args: tuple[Any, ...]) -> tuple[Array, Array]:
    """Return `(‖F‖, ‖A z‖ + ‖B θ‖ + floor)`: the condition beside the terms that have to cancel in it.

    The floor is the change of F with all components of z by `ROOT_STEP`: beside terms that vanish with z no residual is small.
    """
    moving, resting = eqx.partition(args, eqx.is_inexact_array)
    value, along_z = jax.jvp(lambda unknown: optimality(unknown, *args), (z,), (z,))
    check_condition(value, z)
    _, along_args = jax.jvp(lambda m: optimality(z, *eqx.combine(m, resting)), (moving,), (moving,))
    flat, unravel = ravel_pytree(z)
    signs = unravel(jax.random.rademacher(jax.random.key(0), flat.shape, flat.dtype))
    _, anyhow = jax.jvp(lambda unknown: optimality(unknown, *args), (z,), (signs,))
    norms = [jnp.linalg.norm(ravel_pytree(part)[0]) for part in (value, along_z, along_args, anyhow)]
    return norms[0], norms[1] + norms[2] + ROOT_STEP / ROOT_TOL * norms[3]
