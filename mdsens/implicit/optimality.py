"""Optimality conditions F(z, θ) = 0 of common problems, for `custom_root`, so that their solutions can be differentiated.

Functions take `(x, *args)`, the unknown and any arguments, all of them any trees; a condition is F(z, *args), of the
structure of z. Where the condition is a fixed point z = T(z, θ), F is T(z, θ) - z and T is `.map`. The stepsize of a
fixed point changes how fast it is reached, neither where it is nor how it moves.

    condition = optimality.projected_gradient(f, projections.non_negative)

    @implicit.custom_root(condition)                 # or custom_fixed_point(condition)
    def solve(x0, theta): ...                        # any solver of min f(x, theta) on x >= 0

M. Blondel et al., "Efficient and Modular Implicit Differentiation", NeurIPS 2022, arXiv:2105.15183: Table 1.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens.common.errors import InputError, did_you_mean
from mdsens.implicit.checks import check_condition, outline
from mdsens.implicit.linear import linear_solve
from mdsens.implicit.linear_system import NullSpace
from mdsens.implicit.projections import dual, free
from mdsens.implicit.trees import PyTree, dot, is_traced, require_callable


@dataclasses.dataclass(frozen=True)
class Condition:
    """The condition F(z, *args) = rule(*settings, z, *args).

    Two with the same rule and settings are equal, so that code compiled for one is found again for the other.
    """

    rule: Callable[..., Any]
    settings: tuple[Any, ...]

    def __call__(self, z: PyTree, *args: Any) -> PyTree:
        return self.rule(*self.settings, z, *args)


@dataclasses.dataclass(frozen=True)
class FixedPointCondition(Condition):
    """The condition F(z, *args) = T(z, *args) - z, with T = `map`: `rule(*settings, z, *args)`."""

    def map(self, z: PyTree, *args: Any) -> PyTree:
        """Return T(z, *args)."""
        return super().__call__(z, *args)

    def __call__(self, z: PyTree, *args: Any) -> PyTree:
        image = self.map(z, *args)
        check_condition(image, z)
        return jax.tree.map(jnp.subtract, image, z)


def stationary(f: Callable[..., Any]) -> Condition:
    """Return F = ∇₁f(x, θ), for a minimum, maximum or saddle point of f; InputError for an f that is no function.

    ∂F/∂x is symmetric: declare `custom_root(..., symmetric=True)`.
    """
    require_callable(f, "objective")
    return Condition(_gradient, (f,))


def newton(F: Callable[..., Any], stepsize: float = 1.0) -> FixedPointCondition:
    """Return T = z - η [∂₁F(z, θ)]⁻¹ F(z, θ), for a root of F; the linear system is solved by `linear_solve` on z raveled.

    Raises:
        InputError: an F that is no function, a stepsize that is no positive number.
    """
    require_callable(F, "function whose root is sought")
    return FixedPointCondition(_newton, (F, _stepsize(stepsize)))


def proximal_gradient(f: Callable[..., Any], prox: Callable[..., Any], stepsize: float = 1.0) -> FixedPointCondition:
    """Return T = prox(x - η ∇₁f(x, θ), η, θ), for the minimum of f(x, θ) + g(x, θ).

    Args:
        f: the smooth part, `f(x, *args)`.
        prox: the proximal operator of g, `prox(y, stepsize, *args)`, with all arguments of f; `mdsens.implicit.proximal` has
            the common ones, to be called inside with what is theirs: `lambda y, eta, theta: proximal.l1(y, eta, theta)`.
        stepsize: η.

    Raises:
        InputError: an f or prox that is no function, a stepsize that is no positive number.
    """
    require_callable(f, "objective")
    require_callable(prox, "proximal operator")
    return FixedPointCondition(_proximal_gradient, (f, prox, _stepsize(stepsize)))


def block_proximal_gradient(
    f: Callable[..., Any], proxes: Sequence[Callable[..., Any]], stepsizes: float | Sequence[float] = 1.0
) -> FixedPointCondition:
    """Return T_j = prox_j(x_j - η_j [∇₁f(x, θ)]_j, η_j, θ), for the minimum of f(x, θ) + Σ_j g_j(x_j, θ).

    Args:
        f: the smooth part, `f(x, *args)` with x a tuple or list of blocks, each any tree.
        proxes: one proximal operator for each block, `prox(y, stepsize, *args)`.
        stepsizes: η, one for each block or one for all.

    Raises:
        InputError: an f or prox that is no function, a stepsize that is no positive number, not as many stepsizes as
            proximal operators; when called, not as many blocks.
    """
    require_callable(f, "objective")
    proxes = tuple(proxes)
    for prox in proxes:
        require_callable(prox, "proximal operator")
    sizes: tuple[Any, ...] = tuple(stepsizes) if np.ndim(stepsizes) else (stepsizes,) * len(proxes)  # type: ignore[arg-type]  # told by ndim
    if len(sizes) != len(proxes):
        raise InputError(f"There must be one stepsize for each block, or one for all, not {len(sizes)} for {len(proxes)}.")
    return FixedPointCondition(_block_proximal_gradient, (f, proxes, tuple(map(_stepsize, sizes))))


def projected_gradient(f: Callable[..., Any], projection: Callable[..., Any], stepsize: float = 1.0) -> FixedPointCondition:
    """Return T = P(x - η ∇₁f(x, θ), θ), for the minimum of f(x, θ) on a convex set C(θ).

    Args:
        f: `f(x, *args)`.
        projection: on C, `projection(y, *args)`, with all arguments of f; `mdsens.implicit.projections` has the common ones.
            One with a size of its own is bound first, or takes θ for it: `lambda y, theta: projections.simplex(y)`.
        stepsize: η.

    Raises:
        InputError: an f or projection that is no function, a stepsize that is no positive number.
    """
    require_callable(f, "objective")
    require_callable(projection, "projection")
    return FixedPointCondition(_projected_gradient, (f, projection, _stepsize(stepsize)))


def mirror_descent(
    f: Callable[..., Any],
    projection: Callable[..., Any],
    *,
    mirror_map: str | Callable[..., Any] = "entropy",
    stepsize: float = 1.0,
) -> FixedPointCondition:
    """Return T = P(∇φ(x) - η ∇₁f(x, θ), θ), for the minimum of f(x, θ) on a convex set C(θ), in the geometry of φ.

    Args:
        f: `f(x, *args)`.
        projection: the Bregman projection from the dual space, `projection(y, *args)`: the x in C that minimises
            φ(x) - y·x. For the simplex and the entropy it is `projections.kl_simplex`.
        mirror_map: ∇φ as a function of x; "entropy", log x for φ = Σ x_i (log x_i - 1), or "euclidean", x.
        stepsize: η.

    Raises:
        InputError: an f, projection or map that is no function, an unknown name, a stepsize that is no positive number.
    """
    require_callable(f, "objective")
    require_callable(projection, "projection")
    if isinstance(mirror_map, str) and mirror_map not in MIRROR_MAPS:
        raise InputError(f"There is no mirror map {mirror_map!r}.{did_you_mean(mirror_map, MIRROR_MAPS)}")
    slope = MIRROR_MAPS[mirror_map] if isinstance(mirror_map, str) else mirror_map
    require_callable(slope, "mirror map")
    return FixedPointCondition(_mirror_descent, (f, projection, slope, _stepsize(stepsize)))


class KKTPoint(NamedTuple):
    """A solution and its multipliers: ν of H(x) = 0 and λ of G(x) <= 0, like H and G, None without such a constraint."""

    x: PyTree
    equality: PyTree = None
    inequality: PyTree = None


def kkt(
    f: Callable[..., Any],
    *,
    equality: Callable[..., Any] | None = None,
    inequality: Callable[..., Any] | None = None,
    complementarity: str = "product",
) -> Condition:
    """Return the conditions of Karush, Kuhn and Tucker for min f(x, θ) subject to H(x, θ) = 0 and G(x, θ) <= 0:

    F(x, ν, λ) = (∇f + (∂H)ᵀν + (∂G)ᵀλ, H, λ∘G).

    The condition is for a known solution: a root of it may also be an x with G > 0 or a λ < 0. To solve for one with
    `solvers.root`, take complementarity="fischer-burmeister", λ - G - √(λ² + G²), in place of λ∘G: its roots have G <= 0 <= λ.

    The unknown is a `KKTPoint`, or a plain tuple of its three parts. ∂F/∂z is regular where the active constraints have
    independent gradients, the multipliers of active inequalities are positive, and the minimum is one of second order.

    Args:
        f: `f(x, *args)`.
        equality, inequality: H and G, `H(x, *args)`, any trees.
        complementarity: "product" as in the paper, or "fischer-burmeister" (A. Fischer, Optimization 24, 269 (1992)).

    Raises:
        InputError: what is no function, an unknown complementarity; when called, an unknown of another kind, a multiplier
            that is missing, too many, or not like its constraint.
    """
    require_callable(f, "objective")
    for name, constraint in (("equality", equality), ("inequality", inequality)):
        if constraint is not None:
            require_callable(constraint, f"{name} constraint")
    if complementarity not in COMPLEMENTARITIES:
        raise InputError(
            f"There is no complementarity {complementarity!r}.{did_you_mean(str(complementarity), COMPLEMENTARITIES)}"
        )
    return Condition(_kkt, (f, equality, inequality, COMPLEMENTARITIES[complementarity]))


class ConicPoint(NamedTuple):
    """The unknown of the homogeneous self-dual embedding; a positive multiple of a solution is one as well.

    Attributes:
        u: `(n,)`, x w at a solution.
        v: `(m,)`, (y - s) w at a solution.
        w: a number, positive at a solution.
    """

    u: Float[Array, " n"]
    v: Float[Array, " m"]
    w: Float[Array, ""]


def conic_residual(projection: Callable[..., Any]) -> Condition:
    """Return F(z, Q) = ((Q - 1) Π + 1) z, for min c·x subject to A x + s = b, s in a cone K, and its dual.

    Π projects on R^n × K* × R₊. With Q of `conic_embedding` a root z = (u, v, w), w > 0, holds the solution
    (`conic_solution`). Because F(z) is homogeneous and (Πz)·F(z) = 0, ∂F/∂z is singular: give `custom_root` the
    `null_space=conic_null_space(projection)`.

    Args:
        projection: on K, the cone of the slack s, not on its dual; see `projections.product`.

    Returns:
        `F(z, Q)` with z a `ConicPoint`, or a plain tuple of its three parts.

    Raises:
        InputError: a projection that is no function; when called, an unknown or a Q that does not fit.

    E. Busseti, W. M. Moursi, S. Boyd, "Solution refinement at regular points of conic problems", Comput. Optim. Appl. 74,
    627 (2019); A. Agrawal et al., "Differentiating through a cone program", arXiv:1904.09043.
    """
    require_callable(projection, "projection")
    return Condition(_conic_residual, (projection,))


def conic_null_space(projection: Callable[..., Any]) -> Condition:
    """Return `null_space(z, Q) -> NullSpace` for the condition `conic_residual(projection)`: ∂F/∂z z = 0 and (∂F/∂z)ᵀ Πz = 0.

    Raises:
        InputError: a projection that is no function; when called, an unknown that is no `ConicPoint`.
    """
    require_callable(projection, "projection")
    return Condition(_conic_null_space, (projection,))


def conic_embedding(A: Float[Array, "m n"], b: Float[Array, " m"], c: Float[Array, " n"]) -> Float[Array, "k k"]:
    """Return the skew matrix Q of the problem min c·x subject to A x + s = b, s in K, with k = n + m + 1:

        [  0   Aᵀ  c ]
        [ -A   0   b ]
        [ -cᵀ -bᵀ  0 ]

    Raises:
        InputError: shapes that do not fit each other.
    """
    A, b, c = map(jnp.asarray, (A, b, c))
    if A.ndim != 2 or b.shape != A.shape[:1] or c.shape != A.shape[1:]:
        raise InputError(f"A (m, n), b (m,) and c (n,) do not fit each other: {A.shape}, {b.shape} and {c.shape}.")
    m, n = A.shape
    upper = jnp.zeros((n + m + 1,) * 2, jnp.result_type(A, b, c))
    upper = upper.at[:n, n:-1].set(A.T).at[:n, -1].set(c).at[n:-1, -1].set(b)
    return upper - upper.T


def conic_point(x: Float[Array, " n"], y: Float[Array, " m"], s: Float[Array, " m"]) -> ConicPoint:
    """Return z = (x, y - s, 1) of a solution x with the dual variable y in K* and the slack s in K."""
    x, y, s = map(jnp.asarray, (x, y, s))
    return ConicPoint(x, y - s, jnp.ones((), x.dtype))


def conic_solution(z: ConicPoint, projection: Callable[..., Any]) -> tuple[Array, Array, Array]:
    """Return `(x, y, s)` = (u, P_K*(v), P_K*(v) - v)/w, with `projection` that on K.

    Raises:
        InputError: a w that is not positive, as where the problem or its dual has no feasible point.
    """
    u, v, w = _conic_parts(z)
    if not is_traced(w) and not w > 0.0:
        raise InputError(f"A conic point holds a solution where w is positive; it is {w}.")
    y = dual(v, projection)
    return u / w, y / w, (y - v) / w


def _gradient(f: Callable[..., Any], x: PyTree, *args: Any) -> PyTree:
    value = jax.eval_shape(f, x, *args)
    single = jax.tree_util.treedef_is_leaf(jax.tree.structure(value))
    if not single or value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(f"The objective must give one real floating-point number, not {outline(value)}.")
    return jax.grad(f)(x, *args)


def _newton(F: Callable[..., Any], stepsize: Any, z: PyTree, *args: Any) -> PyTree:
    flat, unravel = ravel_pytree(z)

    def condition(unknown: PyTree) -> Array:
        value = F(unravel(unknown), *args)
        check_condition(value, z)
        return ravel_pytree(value)[0]

    value, product = jax.linearize(condition, flat)
    return unravel(flat - stepsize * linear_solve(product, value)[0])


def _descent(f: Callable[..., Any], stepsize: Any, x: PyTree, args: tuple[Any, ...]) -> PyTree:
    return jax.tree.map(lambda leaf, slope: leaf - stepsize * slope, x, _gradient(f, x, *args))


def _proximal_gradient(f: Callable[..., Any], prox: Callable[..., Any], stepsize: Any, x: PyTree, *args: Any) -> PyTree:
    return prox(_descent(f, stepsize, x, args), stepsize, *args)


def _projected_gradient(f: Callable[..., Any], projection: Callable[..., Any], stepsize: Any, x: PyTree, *args: Any) -> PyTree:
    return projection(_descent(f, stepsize, x, args), *args)


def _block_proximal_gradient(
    f: Callable[..., Any], proxes: Sequence[Callable[..., Any]], stepsizes: Sequence[float], x: PyTree, *args: Any
) -> PyTree:
    if not isinstance(x, tuple | list) or len(x) != len(proxes):
        raise InputError(f"The unknown must be a tuple or list of {len(proxes)} blocks, one for each proximal operator.")
    slopes = _gradient(f, x, *args)
    blocks = [
        prox(jax.tree.map(lambda leaf, slope, eta=eta: leaf - eta * slope, block, slope), eta, *args)
        for prox, eta, block, slope in zip(proxes, stepsizes, x, slopes, strict=True)
    ]
    return _rebuild(x, blocks)


def _mirror_descent(
    f: Callable[..., Any], projection: Callable[..., Any], mirror_map: Callable[..., Any], stepsize: Any, x: PyTree, *args: Any
) -> PyTree:
    y = jax.tree.map(lambda image, slope: image - stepsize * slope, mirror_map(x), _gradient(f, x, *args))
    return projection(y, *args)


def _logarithm(x: PyTree) -> PyTree:
    # A component that has underflowed to zero stays there; log 0 would have no slope.
    return jax.tree.map(lambda leaf: jnp.log(jnp.maximum(leaf, jnp.finfo(leaf.dtype).tiny)), x)


MIRROR_MAPS = {"entropy": _logarithm, "euclidean": free}
"""Gradients ∇φ by the name of their geometry."""


def _fischer_burmeister(lam: Array, g: Array) -> Array:
    # At λ = G = 0 the root has no slope, and there the solution has none either.
    square = lam * lam + g * g
    return lam - g - jnp.sqrt(jnp.where(square > 0.0, square, 1.0)) * (square > 0.0)


COMPLEMENTARITIES = {"product": jnp.multiply, "fischer-burmeister": _fischer_burmeister}
"""Functions of λ and G that vanish where one of them does."""


def _kkt(
    f: Callable[..., Any],
    equality: Callable[..., Any] | None,
    inequality: Callable[..., Any] | None,
    complementarity: Callable[..., Any],
    z: PyTree,
    *args: Any,
) -> PyTree:
    if not isinstance(z, tuple) or len(z) != 3:
        raise InputError("The unknown of kkt must be KKTPoint(x, equality, inequality), or a tuple of these three.")
    x, nu, lam = z

    def constraint(function: Callable[..., Any] | None, multiplier: PyTree, name: str, x: PyTree) -> tuple[PyTree, Any]:
        if (function is None) != (multiplier is None):
            fault = "lacks the" if multiplier is None else "has, without such a constraint, an"
            raise InputError(f"The unknown of kkt {fault} {name} multiplier.")
        if function is None:
            return None, 0.0
        value = function(x, *args)
        _check_multiplier(multiplier, value, name)
        return value, dot(multiplier, value)

    def lagrangian(x: PyTree) -> tuple[Any, Any]:
        h, nu_h = constraint(equality, nu, "equality", x)
        g, lam_g = constraint(inequality, lam, "inequality", x)
        return f(x, *args) + nu_h + lam_g, (h, g)

    slope, (h, g) = jax.grad(lagrangian, has_aux=True)(x)
    return _rebuild(z, [slope, h, jax.tree.map(complementarity, lam, g)])


def _conic_parts(z: PyTree) -> ConicPoint:
    if not isinstance(z, tuple) or len(z) != 3 or [jnp.ndim(part) for part in z] != [1, 1, 0]:
        raise InputError("The unknown of a conic problem must be ConicPoint(u, v, w) of two vectors and a number.")
    return ConicPoint(*z)


def _conic_projection(projection: Callable[..., Any], z: Any) -> Array:
    u, v, w = _conic_parts(z)
    return jnp.concatenate([u, dual(v, projection), jax.nn.relu(w)[None]])


def _conic_residual(projection: Callable[..., Any], z: PyTree, Q: Array) -> PyTree:
    projected = _conic_projection(projection, z)
    flat, unravel = ravel_pytree(z)
    if jnp.shape(Q) != (flat.size, flat.size):
        raise InputError(f"Q must have shape {(flat.size, flat.size)}, as conic_embedding(A, b, c) has, not {jnp.shape(Q)}.")
    return unravel(Q @ projected - projected + flat)


def _conic_null_space(projection: Callable[..., Any], z: PyTree, Q: Array) -> NullSpace:
    right, left = ravel_pytree(z)[0], _conic_projection(projection, z)
    return NullSpace(basis=(right / jnp.linalg.norm(right))[:, None], left=(left / jnp.linalg.norm(left))[:, None])


def _rebuild(container: PyTree, parts: Sequence[PyTree]) -> PyTree:
    """Return the parts in a tuple, named tuple or list like the container."""
    return jax.tree.unflatten(jax.tree.structure(container, is_leaf=lambda part: part is not container), parts)


def _stepsize(value: Any) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise InputError(
            f"The stepsize must be one positive number, not traced, for it moves no solution; not {value!r:.80}."
        ) from None
    if not 0.0 < value < float("inf"):
        raise InputError(f"The stepsize must be positive and finite; it is {value}.")
    return value


def _check_multiplier(multiplier: PyTree, value: PyTree, name: str) -> None:
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (multiplier, value)]
    if jax.tree.structure(multiplier) != jax.tree.structure(value) or shapes[0] != shapes[1]:  # type: ignore[operator]
        raise InputError(f"The {name} multiplier must look like its constraint, {shapes[1]}, not {shapes[0]}.")
