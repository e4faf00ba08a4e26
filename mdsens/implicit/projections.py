"""Euclidean projections P(y) = argmin_{x in C} ½‖x - y‖² on convex sets C, differentiable wherever P is.

A projection in an optimality condition is called with the arguments of the objective, `projection(y, *args)`: bind what
it needs, say `lambda y, theta: projections.box(y, 0.0, theta)`. Sets and cones without a parameter ignore the arguments.
A tree may be one array; the result has the structure, shapes and precision of y.

N. Parikh, S. Boyd, "Proximal Algorithms", Found. Trends Optim. 1, 127 (2014), chapter 6, unless a docstring says otherwise.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.implicit.trees import PyTree, as_floating, broadcast_like, dot, is_traced, require_callable, require_not_negative


def box(y: PyTree, lower: PyTree, upper: PyTree) -> PyTree:
    """Project on the box l <= x <= u: min(max(y, l), u).

    Args:
        y: any tree.
        lower, upper: one number, or trees like y; infinite where there is no bound.

    Raises:
        InputError: a lower bound above its upper bound, bounds that do not fit y.
    """
    y = as_floating(y)
    lower, upper = broadcast_like(lower, y, "lower bound"), broadcast_like(upper, y, "upper bound")
    if not is_traced(lower, upper) and not all(jax.tree.leaves(jax.tree.map(lambda l, u: bool((l <= u).all()), lower, upper))):
        raise InputError("A lower bound is above its upper bound: the box is empty.")
    return jax.tree.map(jnp.clip, y, lower, upper)


def non_negative(y: PyTree, *_: Any) -> PyTree:
    """Project any tree on the orthant x >= 0, a cone that is its own dual: max(y, 0)."""
    return jax.tree.map(jax.nn.relu, as_floating(y))


def zero(y: PyTree, *_: Any) -> PyTree:
    """Project any tree on the cone {0}, whose dual is the whole space: the slack of an equality is 0."""
    return jax.tree.map(jnp.zeros_like, as_floating(y))


def free(y: PyTree, *_: Any) -> PyTree:
    """Project any tree on the whole space, whose dual cone is {0}: y."""
    return as_floating(y)


def linf_ball(y: PyTree, radius: ArrayLike = 1.0) -> PyTree:
    """Project any tree on max_i |x_i| <= r: min(max(y, -r), r).

    Raises:
        InputError: a radius that is negative or no single number.
    """
    y = as_floating(y)
    radius = _radius(radius, y)
    return jax.tree.map(lambda leaf: jnp.clip(leaf, -radius.astype(leaf.dtype), radius.astype(leaf.dtype)), y)


def l2_ball(y: PyTree, radius: ArrayLike = 1.0) -> PyTree:
    """Project on ‖x‖ <= r, with the norm of the whole tree: y min(1, r/‖y‖).

    Raises:
        InputError: a radius that is negative or no single number.
    """
    y = as_floating(y)
    radius = _radius(radius, y)
    square = dot(y, y)
    outside = square > radius**2
    # The square root's slope is infinite at zero, and a derivative looks into both branches of a `where`.
    scale = jnp.where(outside, radius / jnp.sqrt(jnp.where(outside, square, 1.0)), 1.0)
    return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), y)


def l1_ball(y: Float[Array, " n"], radius: ArrayLike = 1.0) -> Float[Array, " n"]:
    """Project on Σ|x_i| <= r: y inside, else sign(y) P(|y|) with P the projection on the simplex of that radius.

    Raises:
        InputError: a radius that is negative or no single number, a y that is no vector.

    J. Duchi et al., ICML 2008.
    """
    y = _vector(y, "l1_ball")
    radius = _radius(radius, y)
    return jnp.where(jnp.sum(jnp.abs(y)) <= radius, y, jnp.sign(y) * simplex(jnp.abs(y), radius))


def simplex(y: Float[Array, " n"], radius: ArrayLike = 1.0) -> Float[Array, " n"]:
    """Project on x >= 0, Σ x_i = r: max(y - τ, 0) with the τ for which it adds up to r.

    On the support S = {y_i > τ} the threshold is τ = (Σ_S y_i - r)/|S|, and so are its derivatives. At r = 0 the derivative in r
    is NaN: there is no smaller radius.

    Raises:
        InputError: a radius that is negative or no single number, a y that is no vector.

    J. Duchi et al., ICML 2008.
    """
    y = _vector(y, "simplex")
    radius = _radius(radius, y)
    # The largest component is in the support; counted from it, no radius is lost in the rounding of a large y.
    top = jax.lax.stop_gradient(y.max())
    y = y - top
    ranked = -jnp.sort(-jax.lax.stop_gradient(y))
    thresholds = (jnp.cumsum(ranked) - jax.lax.stop_gradient(radius)) / jnp.arange(1, y.size + 1, dtype=y.dtype)
    support = y > thresholds[jnp.maximum(jnp.sum(ranked > thresholds), 1) - 1]
    tau = (jnp.sum(jnp.where(support, y, 0.0)) - radius) / jnp.maximum(jnp.sum(support), 1).astype(y.dtype)
    # At r = 0 there is only the point 0, and nothing to differentiate in r: the root of zero has no slope, its square is zero.
    point = jnp.sqrt(jnp.where(radius > 0.0, 1.0, radius)) ** 2
    return jnp.where(radius > 0.0, jax.nn.relu(y - tau), point)


def hyperplane(y: PyTree, a: PyTree, b: ArrayLike) -> PyTree:
    """Project on a·x = b: y - (a·y - b)/‖a‖² a.

    Args:
        y: any tree.
        a: the normal, one number or a tree like y.
        b: a number.

    Raises:
        InputError: a normal of length zero, or one that does not fit y.
    """
    return _along_normal(y, a, b, lambda excess: excess)


def half_space(y: PyTree, a: PyTree, b: ArrayLike) -> PyTree:
    """Project on a·x <= b: y - max(a·y - b, 0)/‖a‖² a; arguments and errors as for `hyperplane`."""
    return _along_normal(y, a, b, jax.nn.relu)


def affine(y: Float[Array, " n"], A: Float[Array, "m n"], b: Float[Array, " m"]) -> Float[Array, " n"]:
    """Project on A x = b, the rows of A being independent: y - Aᵀ(A Aᵀ)⁻¹(A y - b).

    By the QR factors of Aᵀ: A Aᵀ has the square of A's condition number.

    Raises:
        InputError: an A with dependent rows, shapes that do not fit.
    """
    y = _vector(y, "affine")
    A, b = jnp.asarray(A, y.dtype), jnp.asarray(b, y.dtype)
    if A.ndim != 2 or A.shape[1] != y.size or b.shape != A.shape[:1]:
        raise InputError(f"affine needs A of shape (m, {y.size}) and b of shape (m,), not {A.shape} and {b.shape}.")
    if A.shape[0] > A.shape[1] or (not is_traced(A) and np.linalg.matrix_rank(np.asarray(A)) < A.shape[0]):
        raise InputError("The rows of A must be linearly independent: leave out those that follow from others.")
    q, r = jnp.linalg.qr(A.T)
    return y - q @ solve_triangular(r, A @ y - b, trans="T")


def second_order_cone(y: Float[Array, " n"], *_: Any) -> Float[Array, " n"]:
    """Project on ‖x‖ <= t for vectors (t, x), a cone that is its own dual:

    (t, x) inside it, 0 where ‖x‖ <= -t, else (1 + t/‖x‖)/2 (‖x‖, x).

    Raises:
        InputError: a y that is no vector.
    """
    y = _vector(y, "second_order_cone")
    t, x = y[0], y[1:]
    square = jnp.vdot(x, x)
    beside = square > t * t
    norm = jnp.sqrt(jnp.where(beside, square, 1.0))
    boundary = 0.5 * (1.0 + t / norm) * jnp.concatenate([norm[None], x])
    return jnp.where(beside, boundary, jnp.where(t > 0.0, y, 0.0))


def kl_simplex(y: Float[Array, " n"], radius: ArrayLike = 1.0) -> Float[Array, " n"]:
    """Return r exp(y_i)/Σ_j exp(y_j), the point of the simplex nearest to exp(y) in the Kullback-Leibler divergence.

    The Bregman projection of mirror descent with `mirror_map="entropy"`; y is in the dual space, a logarithm.

    Raises:
        InputError: a radius that is negative or no single number, a y that is no vector.

    A. Beck, M. Teboulle, Oper. Res. Lett. 31, 167 (2003).
    """
    y = _vector(y, "kl_simplex")
    return _radius(radius, y) * jax.nn.softmax(y)


def product(projections: Sequence[Callable[..., Any]], sizes: Sequence[int]) -> Callable[..., Any]:
    """Return the projection on C₁ × C₂ × ..., each on its slice of a flat vector, in this order.

    Args:
        projections: one for each set.
        sizes: how many components each set has.

    Returns:
        `projection(y, *args)`; two of the same parts are equal.

    Raises:
        InputError: not as many projections as sizes, a part that is no function, a size that is no whole number >= 0;
            when called, a y of another length.
    """
    return _Product(tuple(projections), tuple(sizes))


@dataclasses.dataclass(frozen=True)
class _Product:
    projections: tuple[Any, ...]
    sizes: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.projections) != len(self.sizes):
            raise InputError(
                f"A product needs one size for each projection, not {len(self.sizes)} sizes for {len(self.projections)}."
            )
        for projection in self.projections:
            require_callable(projection, "part of a product of projections")
        if not all(isinstance(size, int | np.integer) and size >= 0 for size in self.sizes):
            raise InputError(f"The sizes of a product must be whole numbers that are not negative, not {self.sizes}.")

    def __call__(self, y: PyTree, *args: Any) -> Array:
        y = _vector(y, "product")
        if y.size != sum(self.sizes):
            raise InputError(f"The sizes {self.sizes} of a product add up to {sum(self.sizes)}, but the vector has {y.size}.")
        parts = jnp.split(y, np.cumsum(self.sizes)[:-1])
        return jnp.concatenate([part(slice_, *args) for part, slice_ in zip(self.projections, parts, strict=True)])


def dual(y: PyTree, projection: Callable[..., Any]) -> PyTree:
    """Project on the dual cone K* = {v : v·x >= 0 for all x in K} by the projection on the cone K: y + P_K(-y).

    J. J. Moreau's decomposition y = P_K(y) - P_K*(-y) (C. R. Acad. Sci. 255, 238, 1962); any tree that `projection` takes.
    """
    y = as_floating(y)
    return jax.tree.map(jnp.add, y, projection(jax.tree.map(jnp.negative, y)))


def _radius(radius: ArrayLike, y: PyTree) -> Array:
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(radius)) or jnp.shape(radius) != ():
        raise InputError(f"The radius must be one number, not {radius!r:.80}.")
    require_not_negative(radius, "radius")
    return jnp.asarray(radius, jnp.result_type(*jax.tree.leaves(y)))


def _vector(y: PyTree, name: str) -> Array:
    shape = jax.tree.map(jnp.shape, y)
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(y)) or len(shape) != 1 or shape[0] == 0:
        raise InputError(f"{name} projects one vector (n,), not what has the shape {shape}; jax.vmap projects several.")
    return as_floating(y)


def _along_normal(y: PyTree, a: PyTree, b: ArrayLike, excess: Callable[..., Any]) -> PyTree:
    y = as_floating(y)
    a = broadcast_like(a, y, "normal")
    square = dot(a, a)
    if not is_traced(square) and not square > 0.0:
        raise InputError("The normal of a plane must not be zero.")
    step = excess(dot(a, y) - b) / square
    return jax.tree.map(lambda leaf, normal: leaf - step.astype(leaf.dtype) * normal, y, a)
