"""Small operations on trees of arrays, and checks of arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common.errors import InputError

PyTree = Any


def as_floating(y: PyTree) -> PyTree:
    """Return the tree with floating-point arrays for leaves, in the precision they have."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) * 1.0, y)


def dot(a: PyTree, b: PyTree) -> Any:
    """Return Σ a_i b_i over all leaves of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(lambda p, q: jnp.sum(p * q), a, b)))


def broadcast_like(value: PyTree, y: PyTree, name: str) -> PyTree:
    """Return a parameter, a number or a tree like y, in the shape and precision of y; raise InputError where it does not fit."""
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(value)):
        value = jax.tree.map(lambda _: value, y)
    if jax.tree.structure(value) != jax.tree.structure(y):  # type: ignore[operator]  # of jax's stubs
        raise InputError(f"The {name} must be one number or a tree like the variable, not {jax.tree.structure(value)}.")

    def fit(part: Any, leaf: Array) -> Array:
        shape = jnp.shape(part)
        if len(shape) > leaf.ndim or any(n not in (1, m) for n, m in zip(shape[::-1], leaf.shape[::-1], strict=False)):
            raise InputError(f"The {name} of shape {shape} does not fit a variable of shape {leaf.shape}.")
        return jnp.broadcast_to(jnp.asarray(part, leaf.dtype), leaf.shape)

    return jax.tree.map(fit, value, y)


def require_not_negative(value: PyTree, name: str) -> None:
    """Raise InputError where a concrete parameter is negative."""
    if not is_traced(value) and not all((np.asarray(leaf) >= 0.0).all() for leaf in jax.tree.leaves(value)):
        raise InputError(f"The {name} must not be negative; it is {value}.")


def require_callable(function: object, name: str) -> None:
    """Raise InputError for what is no function."""
    if not callable(function):
        raise InputError(f"The {name} must be a function, not {function!r:.80}.")


def is_traced(*trees: PyTree) -> bool:
    """Return whether any leaf is being traced by JAX."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))
