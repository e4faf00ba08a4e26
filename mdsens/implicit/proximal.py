"""Proximal operators prox(y, η) = argmin_x ½‖x - y‖² + η g(x) of penalties g, differentiable wherever prox is.

All are called `prox(y, stepsize, strength)`, and a proximal operator in an optimality condition with the arguments of the
objective, `prox(y, stepsize, *args)`: bind what it needs, say `lambda y, eta, theta: proximal.l1(y, eta, theta[0])`.
A tree may be one array; the result has the structure, shapes and precision of y.

N. Parikh, S. Boyd, "Proximal Algorithms", Found. Trends Optim. 1, 127 (2014), chapter 6.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from mdsens.implicit.trees import PyTree, as_floating, broadcast_like, require_not_negative


def identity(y: PyTree, stepsize: ArrayLike = 1.0, *_: Any) -> PyTree:
    """Return y, for no penalty, g = 0; any tree."""
    return as_floating(y)


def l1(y: PyTree, stepsize: ArrayLike = 1.0, strength: PyTree = 1.0) -> PyTree:
    """Return sign(y) max(|y| - ηs, 0), for g = Σ s_i |x_i|: the soft threshold of the lasso.

    Args:
        y: any tree.
        stepsize: η.
        strength: s, one number or a tree like y.

    Raises:
        InputError: a strength or stepsize that is negative or does not fit y.
    """
    y = as_floating(y)
    return jax.tree.map(_soft, y, _threshold(strength, stepsize, y, "strength"))


def non_negative_l1(y: PyTree, stepsize: ArrayLike = 1.0, strength: PyTree = 1.0) -> PyTree:
    """Return max(y - ηs, 0), for g = Σ s_i x_i on x >= 0; arguments and errors as for `l1`."""
    y = as_floating(y)
    return jax.tree.map(lambda leaf, t: jax.nn.relu(leaf - t), y, _threshold(strength, stepsize, y, "strength"))


def l2_squared(y: PyTree, stepsize: ArrayLike = 1.0, strength: PyTree = 1.0) -> PyTree:
    """Return y/(1 + ηs), for g = ½ Σ s_i x_i²: the ridge; arguments and errors as for `l1`."""
    y = as_floating(y)
    return jax.tree.map(lambda leaf, t: leaf / (1.0 + t), y, _threshold(strength, stepsize, y, "strength"))


def elastic_net(y: PyTree, stepsize: ArrayLike = 1.0, l1_strength: PyTree = 1.0, l2_strength: PyTree = 1.0) -> PyTree:
    """Return sign(y) max(|y| - ηs, 0)/(1 + ηr), for g = Σ s_i |x_i| + ½ Σ r_i x_i²; arguments and errors as for `l1`.

    H. Zou, T. Hastie, J. R. Stat. Soc. B 67, 301 (2005).
    """
    y = as_floating(y)
    thresholds = _threshold(l1_strength, stepsize, y, "l1_strength")
    return l2_squared(jax.tree.map(_soft, y, thresholds), stepsize, l2_strength)


def group_lasso(y: PyTree, stepsize: ArrayLike = 1.0, strength: PyTree = 1.0, *, axis: int | None = None) -> PyTree:
    """Return y max(1 - ηs/‖y‖, 0) in each block, for g = s Σ_blocks ‖x_block‖: whole blocks become zero together.

    Args:
        y: any tree.
        stepsize: η.
        strength: s, one number, or what broadcasts to the blocks' norms in a tree like y.
        axis: None for one block a leaf; otherwise the axis along which a block lies, so that axis=1 penalises the rows
            of a matrix.

    Raises:
        InputError: a strength or stepsize that is negative or does not fit the blocks.

    M. Yuan, Y. Lin, J. R. Stat. Soc. B 68, 49 (2006).
    """
    y = as_floating(y)
    squares = jax.tree.map(lambda leaf: jnp.sum(leaf * leaf, axis=axis, keepdims=True), y)

    def shrink(leaf: Array, square: Array, t: Array) -> Array:
        remains = (square > t * t) | (t == 0.0)
        # The square root's slope is infinite at zero, and a derivative looks into both branches of a `where`.
        norm = jnp.sqrt(jnp.where(remains & (square > 0.0), square, 1.0))
        return jnp.where(remains, (1.0 - t / norm) * leaf, 0.0)

    return jax.tree.map(shrink, y, squares, _threshold(strength, stepsize, squares, "strength"))


def _threshold(strength: PyTree, stepsize: ArrayLike, y: PyTree, name: str) -> PyTree:
    require_not_negative(strength, name)
    require_not_negative(stepsize, "stepsize")
    return jax.tree.map(lambda s, eta: eta * s, broadcast_like(strength, y, name), broadcast_like(stepsize, y, "stepsize"))


def _soft(y: PyTree, t: Array) -> Array:
    # Without a penalty a component moves freely, at y = 0 too.
    return jnp.where((jnp.abs(y) > t) | (t == 0.0), y - t * jnp.sign(y), 0.0)
