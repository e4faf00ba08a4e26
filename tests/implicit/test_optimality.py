"""The catalogue of optimality conditions: derivatives of solutions that NumPy and SciPy found, in every mode.

The wrapped "solver" only hands back what was found beforehand: no derivative goes through it. References are closed
forms, or central differences of the problem solved anew.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import refused

from mdsens import implicit
from mdsens.implicit import optimality, projections, proximal
from mdsens.implicit.optimality import ConicPoint, KKTPoint

rng = np.random.default_rng(0)
X, DX, Y = rng.normal(size=(20, 5)), 0.3 * rng.normal(size=(20, 5)), rng.normal(size=20)
THETA = np.array([2.5, 0.4])


def differentiable(condition, answer, **options):
    """The known answer as a function of the arguments, differentiable by the condition."""
    decorate = implicit.custom_root(condition, **options)
    return lambda *args: decorate(lambda z0, *_: z0)(jax.tree.map(jnp.asarray, answer), *args)


def differences(solve, theta, h=1e-2):
    """First and second derivatives in θ by central differences over h, h/2 and h/4 of solutions with 1e-15 of rounding.

    Truncation is of the order h⁶ = 1e-12 times a seventh derivative, rounding of the order 1e-15/(h/4)² = 1e-10.
    """
    theta = np.asarray(theta, float)

    def central(order, k, l, s):
        e, d = s * h * np.eye(theta.size)[k], s * h * np.eye(theta.size)[l]
        if order == 1:
            return (solve(theta + e) - solve(theta - e)) / (2 * s * h)
        return (solve(theta + e + d) - solve(theta + e - d) - solve(theta - e + d) + solve(theta - e - d)) / (2 * s * h) ** 2

    def extrapolated(order, k, l):
        d1, d2, d4 = (central(order, k, l, s) for s in (0.25, 0.5, 1.0))
        return (64 * d1 - 20 * d2 + d4) / 45

    n = range(theta.size)
    first = np.stack([extrapolated(1, k, 0) for k in n], axis=-1)
    return first, np.stack([np.stack([extrapolated(2, k, l) for l in n], axis=-1) for k in n], axis=-1)


def check(solution, theta, first, second, atol=1e-9):
    """Forward and reverse Jacobian and the Hessian of `solution(theta)` against the references."""
    derivatives = jax.jit(lambda theta: [d(solution)(theta) for d in (jax.jacfwd, jax.jacrev, jax.hessian)])
    for derivative, reference in zip(derivatives(jnp.asarray(theta)), (first, first, second), strict=True):
        np.testing.assert_allclose(derivative, reference, atol=atol)


def least_squares(w, theta):
    """½‖(X + θ₁ DX) w - Y‖²."""
    residual = (X + theta[1] * DX) @ w - Y
    return 0.5 * residual @ residual


STEPSIZE = 0.5 / np.linalg.norm(X, 2) ** 2


# Without constraints


def ridge(theta):
    matrix = X + theta[1] * DX
    return jnp.linalg.solve(matrix.T @ matrix + theta[0] * jnp.eye(5), matrix.T @ Y)


@functools.cache
def ridge_derivatives():
    return jax.jit(lambda theta: (jax.jacfwd(ridge)(theta), jax.hessian(ridge)(theta)))(THETA)


def ridge_objective(w, theta):
    return least_squares(w, theta) + 0.5 * theta[0] * w @ w


RIDGE = {
    "stationary": (optimality.stationary(ridge_objective), {"symmetric": True}),
    "newton": (optimality.newton(optimality.stationary(ridge_objective), stepsize=0.3), {}),
    "l2_squared": (
        optimality.proximal_gradient(least_squares, lambda w, eta, theta: proximal.l2_squared(w, eta, theta[0]), STEPSIZE),
        {},
    ),
    "euclidean mirror": (
        optimality.mirror_descent(ridge_objective, projections.free, mirror_map="euclidean", stepsize=STEPSIZE),
        {},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RIDGE)
def test_ridge_regression(name):
    condition, options = RIDGE[name]
    solution = differentiable(condition, ridge(THETA), **options)
    # 1e-10: rounding, times the condition number of about 10 and its square in second derivatives.
    check(solution, THETA, *ridge_derivatives(), atol=1e-10)


# Penalties


def lasso(theta):
    """Coordinate descent: each w_j minimises ½‖A w - Y‖² + θ₀|w_j| with the others fixed."""
    A, w = X + theta[1] * DX, np.zeros(5)
    for _ in range(100):
        for j in range(5):
            pull = A[:, j] @ (Y - A @ w + A[:, j] * w[j])
            w[j] = np.sign(pull) * max(abs(pull) - theta[0], 0.0) / (A[:, j] @ A[:, j])
    return w


@functools.cache
def lasso_derivatives():
    return differences(lasso, THETA)


def lasso_prox(w, eta, theta):
    return proximal.l1(w, eta, theta[0])


def test_the_lasso_moves_on_its_support():
    w = lasso(THETA)
    assert 1 < np.sum(w == 0.0) < 4
    condition = optimality.proximal_gradient(least_squares, lasso_prox, STEPSIZE)
    # Solved: T(w) = w.
    np.testing.assert_allclose(condition.map(jnp.asarray(w), THETA), w, atol=1e-14)
    first, second = lasso_derivatives()
    check(differentiable(condition, w), THETA, first, second)
    assert (first[w == 0.0] == 0.0).all()


def test_the_lasso_in_blocks_of_different_steps():
    def objective(blocks, theta):
        return least_squares(jnp.concatenate([blocks[0], blocks[1]["tail"]]), theta)

    w = lasso(THETA)
    condition = optimality.block_proximal_gradient(objective, [lasso_prox, lasso_prox], [STEPSIZE, 0.5 * STEPSIZE])
    solution = differentiable(condition, [w[:2], {"tail": w[2:]}])
    check(lambda theta: jnp.concatenate([(z := solution(theta))[0], z[1]["tail"]]), THETA, *lasso_derivatives())


@pytest.mark.slow
def test_penalties_of_blocks_under_one_roof():
    """A free intercept, an elastic net and a group that is zero or not as a whole: against SciPy's smooth minimum."""
    groups = (slice(0, 1), slice(1, 3), slice(3, 5))

    def objective(blocks, theta):
        return least_squares(jnp.concatenate(blocks), theta)

    def smooth_slope(w, theta):
        A = X + theta[1] * DX
        extra = np.concatenate([[0.0], 0.1 * np.sign(start[1:3]) + 0.7 * w[1:3], theta[0] * w[3:] / np.linalg.norm(w[3:])])
        return A.T @ (A @ w - Y) + extra

    def solve(theta):
        return polished(lambda w: smooth_slope(w, theta), start)

    start = np.linalg.lstsq(X + 0.4 * DX, Y)[0]
    theta = np.array([0.5, 0.4])
    w = solve(theta)
    assert (np.sign(w) == np.sign(start)).all()
    proxes = (
        proximal.identity,
        lambda y, eta, theta: proximal.elastic_net(y, eta, 0.1, 0.7),
        lambda y, eta, theta: proximal.group_lasso(y, eta, theta[0]),
    )
    condition = optimality.block_proximal_gradient(objective, proxes, STEPSIZE)
    solution = differentiable(condition, tuple(w[group] for group in groups))
    check(lambda theta: jnp.concatenate(solution(theta)), theta, *differences(solve, theta))


def polished(slope, w):
    """The root of a smooth slope to rounding: SciPy's, then Newton steps with a Jacobian by differences."""
    w = scipy.optimize.root(slope, w, tol=1e-12).x
    for _ in range(4):
        jacobian = np.stack([(slope(w + e) - slope(w - e)) / 2e-5 for e in 1e-5 * np.eye(w.size)], axis=1)
        w = w - np.linalg.solve(jacobian, slope(w))
    return w


# Sets


def test_non_negative_least_squares():
    def solve(theta):
        return scipy.optimize.nnls(X + theta[1] * DX, Y * theta[0])[0]

    def objective(w, theta):
        residual = (X + theta[1] * DX) @ w - theta[0] * Y
        return 0.5 * residual @ residual

    w = solve(THETA)
    assert 0 < np.sum(w == 0.0) < 5
    condition = optimality.projected_gradient(objective, projections.non_negative, STEPSIZE)
    check(differentiable(condition, w), THETA, *differences(solve, THETA))


@pytest.mark.slow
def test_the_projection_on_the_simplex_as_a_projected_gradient():
    """Its Jacobian is 1 - 𝟏𝟏ᵀ/|S| on the support S."""
    theta = np.array([0.9, 0.2, 0.7, -0.5, 0.4])
    ranked = np.sort(theta)[::-1]
    size = max(k for k in range(1, 6) if ranked[k - 1] > (ranked[:k].sum() - 1.0) / k)
    x = np.maximum(theta - (ranked[:size].sum() - 1.0) / size, 0.0)
    support = x > 0.0
    assert size == support.sum() == 3
    jacobian = np.outer(support, support) * (np.eye(5) - 1.0 / size)

    def objective(x, theta):
        return 0.5 * jnp.sum((x - theta) ** 2)

    for stepsize in (1.0, 0.3):
        condition = optimality.projected_gradient(objective, lambda y, theta: projections.simplex(y), stepsize)
        check(differentiable(condition, x), theta, jacobian, np.zeros((5, 5, 5)), atol=1e-13)


@pytest.mark.slow
def test_sets_that_move_with_the_arguments():
    """min ½‖x - t‖² on ‖x‖ <= θ₀ is θ₀ t/‖t‖, and on a box its upper bound where t is above it."""
    t = np.array([2.0, -1.0, 0.3])
    ball = optimality.projected_gradient(
        lambda x, theta: 0.5 * jnp.sum((x - theta[1] * t) ** 2), lambda y, theta: projections.l2_ball(y, theta[0]), 0.5
    )
    theta = np.array([1.5, 1.0])
    direction = t / np.linalg.norm(t)
    first = np.stack([direction, np.zeros(3)], axis=1)
    check(differentiable(ball, 1.5 * direction), theta, first, np.zeros((3, 2, 2)), atol=1e-13)
    box = optimality.projected_gradient(
        lambda x, theta: 0.5 * jnp.sum((x - theta[1] * t) ** 2), lambda y, theta: projections.box(y, -2.0, theta[0]), 0.5
    )
    first = np.array([[1.0, 0.0], [0.0, -1.0], [0.0, 0.3]])
    check(differentiable(box, np.array([1.5, -1.0, 0.3])), theta, first, np.zeros((3, 2, 2)), atol=1e-13)


# The entropic geometry


def entropic(x, theta, matrix):
    """½ xᵀ M x - θ·x + Σ x log x."""
    return 0.5 * x @ matrix @ x - theta @ x + jnp.sum(x * jnp.log(x))


def test_entropic_mirror_descent_to_the_softmax():
    theta = np.array([0.3, -0.2, 1.1])
    p = np.exp(theta) / np.exp(theta).sum()
    condition = optimality.mirror_descent(
        lambda x, theta: entropic(x, theta, np.zeros((3, 3))), lambda y, theta: projections.kl_simplex(y), stepsize=0.6
    )
    # p_i' = p_i (δ_ij - p_j), and once more.
    jacobian = np.diag(p) - np.outer(p, p)
    hessian = np.einsum("ij,ik->ijk", np.eye(3) - p, jacobian) - np.einsum("i,jk->ijk", p, jacobian)
    check(differentiable(condition, p), theta, jacobian, hessian, atol=1e-12)


@pytest.mark.slow
def test_entropic_mirror_descent_without_a_closed_form():
    """On the simplex of radius θ₃ the slope M x - θ + log x + 1 is the same for all components."""
    factor = rng.normal(size=(3, 3))
    matrix, theta = factor @ factor.T, np.array([0.3, -0.2, 1.1, 1.7])

    def solve(theta):
        def slope(unknown):
            x, level = unknown[:3], unknown[3]
            return np.append(matrix @ x - theta[:3] + np.log(x) + 1.0 - level, x.sum() - theta[3])

        return polished(slope, np.array([0.4, 0.4, 0.9, 0.0]))[:3]

    condition = optimality.mirror_descent(
        lambda x, theta: entropic(x, theta[:3], matrix),
        lambda y, theta: projections.kl_simplex(y, theta[3]),
        mirror_map="entropy",
        stepsize=0.2,
    )
    check(differentiable(condition, solve(theta)), theta, *differences(solve, theta))


def test_a_component_that_underflowed_to_zero_stays_there():
    theta = jnp.array([0.0, 0.0, 800.0, 1.0])
    condition = optimality.mirror_descent(lambda x, theta: theta @ x, lambda y, theta: projections.kl_simplex(y, 2.0))
    # The third component costs 800: T gives exp(-800) = 0, and no NaN; on the other three any x is not yet the answer.
    slope = jax.jacrev(condition)(jnp.array([1.0, 0.5, 0.0, 0.5]), theta)
    assert jnp.isfinite(slope).all()
    np.testing.assert_array_equal(slope[2], [0.0, 0.0, -1.0, 0.0])


# A quadratic program: min ½ xᵀPx + q·x with E x = e and G x <= h, where q, e, h and P depend on θ

L0 = np.tril(rng.normal(size=(4, 4))) + 3 * np.eye(4)
Q0, E0, G0 = rng.normal(size=4), rng.normal(size=(1, 4)), rng.normal(size=(3, 4))
DQ, H0 = rng.normal(size=4), np.array([-0.2, 0.5, 4.0])
QP_THETA = np.array([0.3, 0.7])


def qp(theta, np=jnp):
    """`(L, q, E, e, G, h)` with P = L Lᵀ."""
    E = np.concatenate([E0[:, :3], E0[:, 3:] + theta[0]], axis=1)
    return L0 * (1.0 + 0.2 * theta[1]), Q0 + theta[0] * DQ, E, theta[1:], G0 * (1.0 + theta[0] * theta[1]), H0 + 0.1 * theta[0]


def solve_qp(theta):
    """`(x, ν, λ)`: the active set whose linear KKT system gives a feasible point with multipliers that are not negative."""
    L, q, E, e, G, h = qp(theta, np)
    found = []
    for active in itertools.chain.from_iterable(itertools.combinations(range(3), k) for k in range(4)):
        A = np.concatenate([E, G[list(active)]])
        matrix = np.block([[L @ L.T, A.T], [A, np.zeros((len(A), len(A)))]])
        solution = np.linalg.solve(matrix, np.concatenate([-q, e, h[list(active)]]))
        x, multipliers = solution[:4], solution[5:]
        if (multipliers > 0).all() and (G @ x <= h + 1e-12).all():
            lam = np.zeros(3)
            lam[list(active)] = multipliers
            found.append((x, solution[4:5], lam))
    (only,) = found
    return only


def qp_objective(x, theta):
    L, q, *_ = qp(theta)
    return 0.5 * jnp.sum((L.T @ x) ** 2) + q @ x


def qp_kkt(**constraints):
    return optimality.kkt(qp_objective, **constraints)


def qp_equality(x, theta):
    _, _, E, e, _, _ = qp(theta)
    return E @ x - e


def qp_inequality(x, theta):
    *_, G, h = qp(theta)
    return {"all": G @ x - h}


@pytest.mark.slow
def test_a_quadratic_program_by_its_multipliers():
    x, nu, lam = solve_qp(QP_THETA)
    assert 0 < np.sum(lam > 0) < 3
    condition = qp_kkt(equality=qp_equality, inequality=qp_inequality)
    solution = differentiable(condition, KKTPoint(x, nu, {"all": lam}))

    def flat(z):
        return jnp.concatenate([z[0], z[1], z[2]["all"]])

    first, second = differences(lambda theta: np.concatenate(solve_qp(theta)), QP_THETA)
    check(lambda theta: flat(solution(theta)), QP_THETA, first, second)
    # A plain tuple is as good.
    plain = differentiable(condition, (x, nu, {"all": lam}))
    np.testing.assert_allclose(jax.jacrev(lambda theta: flat(plain(theta)))(jnp.asarray(QP_THETA)), first, atol=1e-9)


@pytest.mark.slow
def test_constraints_of_one_kind_alone():
    """With equalities alone the KKT system is linear, and its inverse is the derivative."""
    L, q, E, e, *_ = qp(QP_THETA, np)
    matrix = np.block([[L @ L.T, E.T], [E, np.zeros((1, 1))]])
    inverse = np.linalg.inv(matrix)
    answer = inverse @ np.concatenate([-q, e])
    condition = optimality.kkt(lambda x, q: 0.5 * jnp.sum((L.T @ x) ** 2) + q @ x, equality=lambda x, q: E @ x - e)
    solution = differentiable(condition, KKTPoint(answer[:4], answer[4:]), symmetric=True)
    slope = jax.jit(jax.jacrev(lambda q: solution(q)[:2]))(jnp.asarray(q))
    # 1e-12: rounding, times the condition number of the KKT matrix.
    np.testing.assert_allclose(np.concatenate(slope), -inverse[:, :4], atol=1e-12)
    # min ½(x - θ)² with x <= 1, from θ = 2: x stays, λ = θ - x follows.
    bounded = optimality.kkt(lambda x, theta: 0.5 * (x - theta) ** 2, inequality=lambda x, theta: x - 1.0)
    z = jax.jit(jax.jacfwd(differentiable(bounded, KKTPoint(1.0, None, 1.0))))(2.0)
    np.testing.assert_allclose([z.x, z.inequality], [0.0, 1.0], atol=1e-15)
    assert z.equality is None


CONE = projections.product([projections.zero, projections.non_negative, projections.second_order_cone], (1, 3, 6))


def cone_program(theta, np=jnp):
    """`(A, b, c)` of the quadratic program: min t + q·x, with ½ xᵀPx <= t as |(√2 Lᵀx, t - 1)| <= t + 1."""
    L, q, E, e, G, h = qp(theta, np)
    apex = np.concatenate([np.zeros((1, 4)), -np.sqrt(2.0) * L.T, np.zeros((1, 4))])
    A = np.concatenate([E, G, apex])
    # Only t + 1 and t - 1 hold the last unknown.
    t_column = np.array([0.0] * 4 + [-1.0] + [0.0] * 4 + [-1.0])
    b = np.concatenate([e, h, np.array([1.0, 0.0, 0.0, 0.0, 0.0, -1.0])])
    return np.concatenate([A, t_column[:, None]], axis=1), b, np.concatenate([q, np.ones(1)])


def cone_answer(theta):
    """`(x, y, s)` of the cone program, from the quadratic program's."""
    x, nu, lam = solve_qp(theta)
    L, *_ = qp(theta, np)
    x = np.append(x, 0.5 * np.sum((L.T @ x) ** 2))
    A, b, _ = cone_program(theta, np)
    s = b - A @ x
    # On the cone's boundary y is along the reflected slack; its size follows from the slope in t.
    return x, np.concatenate([nu, lam, 0.5 * s[4:5], -0.5 * s[5:]]), s


@pytest.mark.slow
def test_a_quadratic_program_as_a_cone_program():
    condition, null_space = optimality.conic_residual(CONE), optimality.conic_null_space(CONE)
    x, y, s = cone_answer(QP_THETA)
    z = optimality.conic_point(x, y, s)
    Q = optimality.conic_embedding(*cone_program(QP_THETA))
    for part in condition(z, Q):
        np.testing.assert_allclose(part, jnp.zeros_like(part), atol=1e-13)
    for found, known in zip(optimality.conic_solution(z, CONE), (x, y, s), strict=True):
        np.testing.assert_allclose(found, known, atol=1e-13)
    first, second = differences(lambda theta: np.concatenate(cone_answer(theta)), QP_THETA)
    # Any positive multiple is the same solution, with the same derivative.
    for scale in (1.0, 3.0):
        point = differentiable(condition, jax.tree.map(lambda part, scale=scale: scale * part, z), null_space=null_space)

        def solution(theta, point=point):
            return jnp.concatenate(optimality.conic_solution(point(optimality.conic_embedding(*cone_program(theta))), CONE))

        check(solution, QP_THETA, first, second)


# Conditions as data


def test_equal_settings_make_equal_conditions():
    for make in (
        lambda: optimality.stationary(least_squares),
        lambda: optimality.newton(least_squares, 0.5),
        lambda: optimality.proximal_gradient(least_squares, lasso_prox, 0.1),
        lambda: optimality.block_proximal_gradient(least_squares, [lasso_prox], [0.1]),
        lambda: optimality.projected_gradient(least_squares, projections.non_negative),
        lambda: optimality.mirror_descent(least_squares, projections.kl_simplex),
        lambda: optimality.kkt(least_squares, equality=qp_equality),
        lambda: optimality.conic_residual(projections.product([projections.zero], [2])),
    ):
        assert make() == make() and hash(make()) == hash(make())
    assert optimality.newton(least_squares, 0.5) != optimality.newton(least_squares, 0.4)


def test_float32_stays_float32():
    w = jnp.asarray(lasso(THETA), jnp.float32)
    condition = optimality.proximal_gradient(
        lambda w, theta: least_squares(w, theta).astype(jnp.float32), lasso_prox, np.float64(STEPSIZE)
    )
    solution = differentiable(condition, w)
    slope = jax.jit(jax.jacrev(solution))(jnp.asarray(THETA, jnp.float32))
    assert slope.dtype == jnp.float32
    # 1e-5: rounding of 6e-8 times the condition number of XᵀX.
    np.testing.assert_allclose(slope, lasso_derivatives()[0], atol=1e-5)


def test_a_solver_of_a_fixed_point_iterates_the_map_itself():
    condition = optimality.projected_gradient(lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2), projections.non_negative, 0.5)

    @implicit.custom_fixed_point(condition)
    def solve(x0, theta):
        return jax.lax.fori_loop(0, 60, lambda _, x: condition.map(x, theta), x0)

    theta = jnp.array([1.0, -2.0])
    value, slope = jax.jit(lambda theta: (solve(jnp.ones(2), theta), jax.jacrev(solve, argnums=1)(jnp.ones(2), theta)))(theta)
    np.testing.assert_allclose(value, [1.0, 0.0], atol=1e-15)
    np.testing.assert_allclose(slope, np.diag([1.0, 0.0]), atol=1e-15)


# Refusals


def test_what_makes_no_condition_is_refused_in_a_sentence():
    f, P = least_squares, projections.non_negative
    refused(lambda: optimality.stationary(3.0), "objective", "function")
    refused(lambda: optimality.newton(None), "function")
    refused(lambda: optimality.proximal_gradient(f, 0.1), "proximal operator")
    refused(lambda: optimality.projected_gradient(f, "box"), "projection", "'box'")
    refused(lambda: optimality.projected_gradient(f, P, 0.0), "positive")
    refused(lambda: optimality.projected_gradient(f, P, -1.0), "positive")
    refused(lambda: optimality.projected_gradient(f, P, np.ones(2)), "one positive number")
    refused(lambda: jax.jit(lambda eta: optimality.newton(f, eta)(jnp.ones(5), THETA))(0.1), "not traced")
    refused(lambda: optimality.block_proximal_gradient(f, [lasso_prox], [0.1, 0.2]), "one stepsize for each block")
    refused(lambda: optimality.mirror_descent(f, P, mirror_map="entropie"), "Did you mean 'entropy'?")
    refused(lambda: optimality.mirror_descent(f, P, mirror_map=2.0), "mirror map")
    refused(lambda: optimality.kkt(f, equality=jnp.ones(2)), "equality constraint")
    refused(lambda: optimality.conic_residual(None), "projection")
    refused(lambda: optimality.conic_embedding(np.ones((2, 3)), np.ones(3), np.ones(2)), "fit each other")


def test_an_unknown_that_does_not_fit_its_condition_is_refused_in_a_sentence():
    x, theta = jnp.ones(5), jnp.asarray(THETA)
    blocks = optimality.block_proximal_gradient(least_squares, [lasso_prox, lasso_prox])
    refused(lambda: blocks((x,), theta), "2 blocks")
    refused(lambda: optimality.projected_gradient(least_squares, lambda y, theta: y[:3])(x, theta), "[3]", "[5]")
    refused(lambda: optimality.newton(lambda z, theta: z[:2])(x, theta), "[2]", "[5]")
    z = KKTPoint(jnp.ones(4), jnp.ones(1), {"all": jnp.ones(3)})
    both = qp_kkt(equality=qp_equality, inequality=qp_inequality)
    refused(lambda: both(z.x, theta), "KKTPoint")
    refused(lambda: both(z._replace(equality=None), theta), "lacks the equality multiplier")
    refused(lambda: qp_kkt(equality=qp_equality)(z, theta), "an inequality multiplier")
    refused(lambda: both(z._replace(inequality=jnp.ones(3)), theta), "inequality multiplier", "(3,)")
    refused(lambda: both(z._replace(equality=jnp.ones(2)), theta), "equality multiplier", "(2,)", "(1,)")
    residual = optimality.conic_residual(projections.non_negative)
    point = ConicPoint(jnp.ones(2), jnp.ones(3), jnp.ones(()))
    refused(lambda: residual(jnp.ones(6), jnp.eye(6)), "ConicPoint")
    refused(lambda: residual(point, jnp.eye(5)), "(6, 6)", "(5, 5)")
    refused(lambda: optimality.conic_solution(point._replace(w=jnp.zeros(())), projections.non_negative), "positive")
