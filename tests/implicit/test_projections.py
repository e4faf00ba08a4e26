"""Projections and proximal operators: what defines them, their derivatives, and the points where a derivative is a trap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refused
from jax.flatten_util import ravel_pytree

from mdsens.implicit import projections, proximal

N = 6
normal, matrix = np.random.default_rng(1).normal(size=N), np.random.default_rng(2).normal(size=(2, N))
cones = projections.product(
    [projections.zero, projections.second_order_cone, projections.free, projections.non_negative], (1, 3, 1, 1)
)

# name: (projection, whether a point is in the set, whether the set is a cone)
SETS = {
    "box": (lambda y: projections.box(y, -0.5, np.linspace(0.0, 1.0, N)), lambda x: (x >= -0.5) & (x <= np.linspace(0, 1, N))),
    "non_negative": (projections.non_negative, lambda x: x >= 0),
    "zero": (projections.zero, lambda x: x == 0),
    "free": (projections.free, lambda x: x == x),
    "linf_ball": (lambda y: projections.linf_ball(y, 0.7), lambda x: abs(x) <= 0.7),
    "l2_ball": (lambda y: projections.l2_ball(y, 1.5), lambda x: np.linalg.norm(x) <= 1.5 + 1e-14),
    "l1_ball": (lambda y: projections.l1_ball(y, 1.5), lambda x: abs(x).sum() <= 1.5 + 1e-14),
    "simplex": (lambda y: projections.simplex(y, 2.0), lambda x: (x >= 0) & (abs(x.sum() - 2.0) < 1e-14)),
    "hyperplane": (lambda y: projections.hyperplane(y, normal, 0.3), lambda x: abs(normal @ x - 0.3) < 1e-14),
    "half_space": (lambda y: projections.half_space(y, normal, 0.3), lambda x: normal @ x <= 0.3 + 1e-14),
    "affine": (lambda y: projections.affine(y, matrix, np.array([0.2, -1.0])), lambda x: abs(matrix @ x - [0.2, -1.0]) < 1e-14),
    "second_order_cone": (projections.second_order_cone, lambda x: np.linalg.norm(x[1:]) <= x[0] + 1e-14),
    "product": (cones, lambda x: (x[0] == 0) & (np.linalg.norm(x[2:4]) <= x[1] + 1e-14) & (x[5] >= 0)),
}
CONES = ("non_negative", "zero", "free", "second_order_cone", "product")

# name: (prox(y, stepsize), penalty)
strengths = np.linspace(0.2, 1.2, N)
PENALTIES = {
    "identity": (proximal.identity, lambda x: 0.0),
    "l1": (lambda y, eta: proximal.l1(y, eta, strengths), lambda x: strengths @ abs(x)),
    "non_negative_l1": (
        lambda y, eta: proximal.non_negative_l1(y, eta, 0.4),
        lambda x: 0.4 * x.sum() if (x >= 0).all() else np.inf,
    ),
    "l2_squared": (lambda y, eta: proximal.l2_squared(y, eta, strengths), lambda x: 0.5 * strengths @ x**2),
    "elastic_net": (
        lambda y, eta: proximal.elastic_net(y, eta, 0.5, 0.8),
        lambda x: 0.5 * abs(x).sum() + 0.4 * (x**2).sum(),
    ),
    "group_lasso": (lambda y, eta: proximal.group_lasso(y, eta, 0.9), lambda x: 0.9 * np.linalg.norm(x)),
    "group_lasso of rows": (
        lambda y, eta: proximal.group_lasso(y.reshape(3, 2), eta, 0.9, axis=1).ravel(),
        lambda x: 0.9 * np.linalg.norm(x.reshape(3, 2), axis=1).sum(),
    ),
}

# What has a parameter to differentiate in: name: function(y, parameter)
PARAMETERS = {
    "box": (lambda y, p: projections.box(y, -p, 0.5 * p), 0.8),
    "linf_ball": (projections.linf_ball, 0.7),
    "l2_ball": (projections.l2_ball, 1.5),
    "l1_ball": (projections.l1_ball, 1.5),
    "simplex": (projections.simplex, 2.0),
    "kl_simplex": (projections.kl_simplex, 2.0),
    "hyperplane": (lambda y, a: projections.hyperplane(y, a, 0.3), normal),
    "half_space": (lambda y, a: projections.half_space(y, a, -3.0), normal),
    "affine": (lambda y, A: projections.affine(y, A, np.array([0.2, -1.0])), matrix),
    "second_order_cone": (lambda y, p: projections.second_order_cone(y * p), 0.9),
    "product": (lambda y, p: cones(y * p), 0.9),
    "dual": (lambda y, p: projections.dual(y * p, cones), 0.9),
    "l1": (lambda y, s: proximal.l1(y, 0.5, s), strengths),
    "non_negative_l1": (lambda y, s: proximal.non_negative_l1(y, 0.5, s), 0.4),
    "l2_squared": (lambda y, s: proximal.l2_squared(y, 0.5, s), strengths),
    "elastic_net": (lambda y, s: proximal.elastic_net(y, 0.5, s[0], s[1]), np.array([0.5, 0.8])),
    "group_lasso": (lambda y, s: proximal.group_lasso(y, 0.5, s), 0.9),
}

each_set = pytest.mark.parametrize("name", SETS)
each_penalty = pytest.mark.parametrize("name", PENALTIES)
each_parameter = pytest.mark.parametrize("name", PARAMETERS)


def points(k, seed=0, scale=1.5):
    return scale * np.random.default_rng(seed).normal(size=(k, N))


def richardson(f, x, h=1e-3):
    """df/dx by central differences; the truncation error is h⁴ times a fifth derivative, the rounding 1e-16/h."""
    flat, unravel = ravel_pytree(jnp.asarray(x))
    steps = h * jnp.array([-2.0, -1.0, 1.0, 2.0])[:, None, None] * jnp.eye(flat.size)
    values = jax.vmap(jax.vmap(lambda step: f(unravel(flat + step))))(steps)
    slopes = (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * h)
    return jnp.moveaxis(slopes, 0, -1).reshape(*values.shape[2:], *jnp.shape(x))


def batched(function):
    return jax.jit(jax.vmap(function))


# What defines them


@each_set
def test_a_projection_is_the_nearest_point_of_its_set(name):
    """(y - Py)·(x - Py) <= 0 for every x of a convex set, and PPy = Py."""
    projection, inside = SETS[name]
    project = batched(projection)
    y = points(20, scale=2.0)
    p = np.asarray(project(y))
    # 1e-14: a few roundings of sums of six numbers near 4.
    np.testing.assert_allclose(project(p), p, atol=1e-14)
    for k in range(len(y)):
        assert np.all(inside(p[k]))
        assert ((p - p[k]) @ (y[k] - p[k]) <= 1e-13).all()


@pytest.mark.parametrize("name", CONES)
def test_moreau_splits_a_vector_into_a_cone_and_its_polar(name):
    """y = P_K(y) - P_K*(-y), the two parts are orthogonal, and P_K* is idempotent."""
    cone, _ = SETS[name]
    y = points(8)
    on_dual = batched(lambda v: projections.dual(v, cone))
    p, polar = batched(cone)(y), -on_dual(-y)
    np.testing.assert_allclose(p + polar, y, atol=1e-15)
    assert (abs((p * polar).sum(axis=1)) < 1e-14).all()
    np.testing.assert_allclose(on_dual(-polar), -polar, atol=1e-15)


def test_which_cones_are_their_own_dual():
    y = points(8)
    for cone in (projections.non_negative, projections.second_order_cone):
        np.testing.assert_allclose(batched(lambda v, cone=cone: projections.dual(v, cone))(y), batched(cone)(y), atol=2e-15)
    np.testing.assert_array_equal(projections.dual(y, projections.zero), projections.free(y))
    np.testing.assert_array_equal(projections.dual(y, projections.free), projections.zero(y))


@each_penalty
def test_a_proximal_operator_minimises(name):
    """(y - p)/η is a subgradient of g at p: g(x) >= g(p) + (y - p)·(x - p)/η for all x."""
    prox, penalty = PENALTIES[name]
    for eta in (0.3, 1.7):
        y = points(6)
        for v, p in zip(y, np.asarray(batched(lambda v: prox(v, eta))(y)), strict=True):  # noqa: B023
            for x in [*points(10, seed=4), *abs(points(10, seed=5)), np.zeros(N), p + 1e-3]:
                assert penalty(x) >= penalty(p) + (v - p) @ (x - p) / eta - 1e-13


def test_moreau_joins_norms_and_the_balls_of_their_duals():
    """y = prox_ηg(y) + P(y), P projecting on the dual norm's ball of radius ηs."""
    y = points(8)
    for whole in (
        lambda v: proximal.l1(v, 0.5, 1.4) + projections.linf_ball(v, 0.7),
        lambda v: proximal.group_lasso(v, 0.5, 1.4) + projections.l2_ball(v, 0.7),
    ):
        np.testing.assert_allclose(batched(whole)(y), y, atol=1e-15)


def test_the_simplex_against_its_dual_problem():
    """τ is the root of Σ max(y - τ, 0) = r, found by bisection."""
    y = points(8)
    for v, x in zip(y, batched(lambda v: projections.simplex(v, 1.3))(y), strict=True):
        low, high = v.min() - 1.0, v.max()
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1.3 else (low, middle)
        np.testing.assert_allclose(x, np.maximum(v - low, 0), atol=1e-14)


def test_the_simplex_loses_no_radius_in_the_rounding_of_a_large_vector():
    x = batched(projections.simplex)(jnp.array([[1e20, 1e20, 0.0], [1.0, 2.0, 0.5]]), jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(x, [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])


def test_the_bregman_projection_minimises_the_divergence():
    """Σ x (log x - 1) - y·x on the simplex: its slope log x - y is the same for all components."""
    y = points(4)
    x = np.asarray(batched(lambda v: projections.kl_simplex(v, 2.0))(y))
    np.testing.assert_allclose(x.sum(axis=1), 2.0, atol=1e-14)
    level = np.log(x) - y
    np.testing.assert_allclose(level, np.broadcast_to(level[:, :1], level.shape), atol=1e-13)


def test_trees_are_projected_as_the_vector_they_are():
    tree = {"a": jnp.asarray(points(1)[0][:4].reshape(2, 2)), "b": (jnp.asarray(points(1)[0][4:]),)}
    flat, unravel = ravel_pytree(tree)
    for f in (
        lambda y, like: projections.box(y, -0.2, like(jnp.linspace(0.0, 1.0, N))),
        lambda y, like: projections.non_negative(y),
        lambda y, like: projections.linf_ball(y, 0.7),
        lambda y, like: projections.l2_ball(y, 0.7),
        lambda y, like: projections.half_space(y, like(jnp.asarray(normal)), -1.0),
        lambda y, like: projections.hyperplane(y, 1.0, 0.0),
        lambda y, like: projections.dual(y, projections.non_negative),
        lambda y, like: proximal.l1(y, 0.5, like(jnp.asarray(strengths))),
        lambda y, like: proximal.elastic_net(y, 0.5, 0.3, like(jnp.asarray(strengths))),
    ):
        whole, parts = jax.jit(lambda f=f: (f(flat, lambda v: v), f(tree, unravel)))()
        np.testing.assert_allclose(ravel_pytree(parts)[0], whole, atol=1e-15)
    blocks = proximal.group_lasso(tree, 0.5, {"a": 0.1, "b": (100.0,)})
    np.testing.assert_allclose(blocks["a"], proximal.group_lasso(tree["a"], 0.5, 0.1), atol=1e-15)
    np.testing.assert_array_equal(blocks["b"][0], [0.0, 0.0])


# Derivatives


@each_parameter
def test_derivatives_at_generic_points(name):
    function, parameter = PARAMETERS[name]
    parameter = jnp.asarray(parameter)

    @jax.jit
    @jax.vmap
    def compared(y):
        slope = jax.jacrev(lambda v: function(v, parameter))
        in_y, in_p = richardson(lambda v: function(v, parameter), y), richardson(lambda p: function(y, p), parameter)
        return [
            (jax.jacfwd(function, argnums=(0, 1))(y, parameter), (in_y, in_p)),
            (jax.jacrev(function, argnums=(0, 1))(y, parameter), (in_y, in_p)),
            (jax.jacfwd(slope)(y), richardson(slope, y)),
        ]

    for derivative, reference in compared(jnp.asarray(points(3, seed=6))):
        # 1e-9: 1e-12 of truncation times the fifth derivatives of x/‖x‖ and of the projector on matrix's rows.
        jax.tree.map(lambda d, r: np.testing.assert_allclose(d, r, atol=1e-9), derivative, reference)


TRAPS = {
    "zero": np.zeros(N),
    "one component": np.array([0.0, 0.0, 2.0, 0.0, 0.0, 0.0]),
    "on the axis of a cone": np.array([3.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    "on the axis of its polar": np.array([-3.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    "all the same": np.ones(N),
    "tiny": np.full(N, 1e-30),
    "huge": np.full(N, 1e15),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_parameter
def test_no_derivative_is_nan_where_roots_and_ties_are(name, dtype):
    function, parameter = PARAMETERS[name]
    parameter = jnp.asarray(parameter, dtype)
    batch = jnp.asarray(np.stack(list(TRAPS.values())), dtype)

    @jax.jit
    @jax.vmap
    def everything(y):
        slopes = [d(function, argnums=(0, 1))(y, parameter) for d in (jax.jacfwd, jax.jacrev)]
        return function(y, parameter), slopes, jax.hessian(function)(y, parameter)

    for leaf in jax.tree.leaves(everything(batch)):
        assert leaf.dtype == dtype
        assert jnp.isfinite(leaf).all()


def test_without_a_penalty_a_component_at_zero_moves_freely():
    free = np.array([0.0] + [0.5] * (N - 1))
    for prox in (lambda y: proximal.l1(y, 1.0, free), lambda y: proximal.elastic_net(y, 1.0, free, 0.0)):
        np.testing.assert_array_equal(jax.jit(jax.jacrev(prox))(jnp.zeros(N)), np.diag([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    slope = jax.jit(jax.jacrev(lambda y: proximal.group_lasso(y, 1.0, 0.0)))(jnp.zeros(N))
    np.testing.assert_array_equal(slope, np.eye(N))


@pytest.mark.parametrize("name", [*SETS, *PENALTIES])
def test_float32_stays_float32_beside_wider_parameters(name):
    function = SETS[name][0] if name in SETS else lambda y: PENALTIES[name][0](y, np.float64(0.5))
    y = points(1)
    x = batched(function)(jnp.asarray(y, jnp.float32))
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, batched(function)(y), atol=2e-6)


def test_whole_numbers_are_made_floating():
    np.testing.assert_array_equal(projections.box(jnp.array([-1, 0, 3]), -0.5, 0.5), [-0.5, 0.0, 0.5])
    np.testing.assert_array_equal(proximal.l1(np.array([-2, 0, 3]), 1, 1), [-1.0, 0.0, 2.0])


def test_products_of_the_same_parts_are_equal():
    again = projections.product(list(cones.projections), list(cones.sizes))
    assert again == cones and hash(again) == hash(cones)


# Refusals


def test_what_cannot_be_projected_is_refused_in_a_sentence():
    y = jnp.ones(N)
    refused(lambda: projections.box(y, 1.0, 0.0), "lower bound")
    refused(lambda: projections.box(y, jnp.zeros(3), 1.0), "lower bound", "(3,)", "(6,)")
    refused(lambda: projections.box({"a": y}, {"b": y}, 1.0), "tree like the variable")
    for ball in (projections.l1_ball, projections.l2_ball, projections.linf_ball, projections.simplex, projections.kl_simplex):
        refused(lambda ball=ball: ball(y, -1.0), "radius", "-1.0")
        refused(lambda ball=ball: ball(y, y), "one number")
    for function in (projections.simplex, projections.l1_ball, projections.second_order_cone, projections.kl_simplex, cones):
        refused(lambda function=function: function(jnp.ones((2, 3))), "one vector", "(2, 3)")
    refused(lambda: projections.hyperplane(y, jnp.zeros(N), 1.0), "normal", "zero")
    refused(lambda: projections.affine(y, matrix[:, :3], np.zeros(2)), "shape (m, 6)")
    refused(lambda: projections.affine(y, np.ones((2, N)), np.zeros(2)), "linearly independent")
    refused(lambda: projections.product([projections.zero], (1, 2)), "one size for each")
    refused(lambda: projections.product(["zero"], (1,)), "must be a function", "'zero'")
    refused(lambda: projections.product([projections.zero], (1.5,)), "whole numbers")
    refused(lambda: cones(jnp.ones(4)), "add up to 6")


def test_what_cannot_be_a_penalty_is_refused_in_a_sentence():
    y = jnp.ones(N)
    refused(lambda: proximal.l1(y, 1.0, -0.1), "strength", "-0.1")
    refused(lambda: proximal.l1(y, -1.0, 0.1), "stepsize")
    refused(lambda: proximal.elastic_net(y, 1.0, 0.1, -0.1), "strength")
    refused(lambda: proximal.l2_squared(y, 1.0, np.ones(4)), "(4,)", "(6,)")
    refused(lambda: proximal.group_lasso(jnp.ones((3, 2)), 1.0, np.ones(3), axis=1), "(3,)", "(3, 1)")
