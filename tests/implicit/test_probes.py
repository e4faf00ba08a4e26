"""Where a solution has no derivative both modes say so, and promises about a condition that are not true are seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refused
from scipy.linalg import hilbert, invhilbert

import mdsens as ms
from mdsens import implicit, solvers
from mdsens.implicit import optimality, projections

rng = np.random.default_rng(3)
SKEW = jnp.asarray(rng.normal(size=(4, 4)) + 4.0 * np.eye(4))
"""A matrix that is not symmetric."""


def refused_in_both_modes(solve, theta):
    """No number: an error or NaN in eager mode, NaN under jit, forward and reverse."""
    for mode in (jax.jacfwd, jax.jacrev):
        try:
            found = mode(solve)(theta)
        except ms.MdsensError:
            found = np.nan
        assert np.isnan(found).any(), mode
        assert np.isnan(jax.jit(mode(solve))(theta)).any(), mode


def linear(**options):
    """The solution of SKEW z = θ, with promises."""
    solve = implicit.custom_root(lambda z, theta: SKEW @ z - theta, **options)(lambda z0, theta: jnp.linalg.solve(SKEW, theta))
    return lambda theta: solve(theta, theta)


AXIS = jnp.eye(4)[:, :1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"symmetric": True}, "not symmetric"),
        ({"null_space": lambda z, theta: implicit.NullSpace(basis=AXIS)}, "no null space"),
        ({"null_space": lambda z, theta: implicit.NullSpace(basis=2.0 * AXIS)}, "orthonormal"),
    ],
)
def test_promises_that_are_not_true_are_seen(options, words):
    solve, theta = linear(**options), jnp.ones(4)
    refused(lambda: jax.jacfwd(solve)(theta), words)
    refused(lambda: jax.jacrev(solve)(theta), words)
    refused_in_both_modes(solve, theta)
    # Without them it is the inverse.
    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(mode(linear())(theta), np.linalg.inv(SKEW), atol=1e-12)


@pytest.mark.slow
def test_a_left_null_space_that_is_not_one_is_seen():
    # A = (1, 1)ᵀ(1, -1): the null space is along (1, 1), the left one along (1, -1).
    A = jnp.array([[1.0, -1.0], [1.0, -1.0]])
    along, across = jnp.array([[1.0], [1.0]]) / np.sqrt(2.0), jnp.array([[1.0], [-1.0]]) / np.sqrt(2.0)

    def solve(left):
        null = lambda z, t: implicit.NullSpace(basis=along, left=left)  # noqa: E731
        found = implicit.custom_root(lambda z, t: A @ z - t * jnp.ones(2), null_space=null)(
            lambda z0, t: 0.5 * t * jnp.array([1.0, -1.0])
        )
        return lambda t: found(jnp.zeros(2), t)

    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(mode(solve(across))(2.0), [0.5, -0.5], atol=1e-14)
    refused_in_both_modes(solve(along), 2.0)


@pytest.mark.parametrize("n", [4, 7, 12])
def test_an_ill_conditioned_system_is_solved_or_refused(n):
    """Hilbert's matrices, whose inverses are whole numbers; the condition number is 1e4, 5e8 and 2e16."""
    H, exact = jnp.asarray(hilbert(n)), invhilbert(n)
    solve = implicit.custom_root(lambda z, theta: H @ z - theta, root_tol=None)(lambda z0, theta: theta)
    for mode in (jax.jacfwd, jax.jacrev):
        found = jax.jit(mode(lambda theta: solve(theta, theta)))(jnp.ones(n))
        if n == 12:
            assert np.isnan(found).any()
        else:
            np.testing.assert_allclose(found, exact, atol=1e-6 * np.abs(exact).max())


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_vertex_whose_multipliers_are_not_unique_has_no_derivative(share):
    """x >= θ said twice: the multipliers add up to 1 + θ, and a derivative would depend on how they share it."""
    condition = optimality.kkt(
        lambda x, theta: 0.5 * jnp.sum((x + 1.0) ** 2),
        inequality=lambda x, theta: jnp.stack([theta - x[0], 2 * theta - 2 * x[0]]),
    )
    solve = implicit.custom_root(condition)(
        lambda z0, theta: optimality.KKTPoint(theta[None], None, (1.0 + theta) * jnp.array([share, 0.5 * (1.0 - share)]))
    )
    start = optimality.KKTPoint(jnp.zeros(1), None, jnp.zeros(2))
    refused_in_both_modes(lambda theta: solve(start, theta).x[0], jnp.array(1.0))


@pytest.mark.slow
@pytest.mark.parametrize("complementarity", ["product", "fischer-burmeister"])
def test_a_constraint_that_holds_without_a_force_has_no_derivative(complementarity):
    """The nearest point x >= 0 to θ has slope 0 for θ < 0, 1 for θ > 0, none at 0."""
    condition = optimality.kkt(
        lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2), inequality=lambda x, theta: -x, complementarity=complementarity
    )
    solve = implicit.custom_root(condition)(
        lambda z0, theta: optimality.KKTPoint(jnp.maximum(theta, 0.0), None, jnp.maximum(-theta, 0.0))
    )
    x = lambda theta: solve(optimality.KKTPoint(theta, None, theta), theta).x  # noqa: E731
    refused_in_both_modes(x, jnp.array([0.0, 1.0]))
    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(mode(x)(jnp.array([-0.5, 1.0])), np.diag([0.0, 1.0]), atol=1e-12)


def linear_program(b):
    """The vertex of max x₁ + x₂ on A x <= b, with the cone's point; the third row holds too where b says so."""
    A, c = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), jnp.array([-1.0, -1.0])
    K = projections.non_negative
    condition = optimality.conic_residual(K)

    def solve(share):
        def answer(z0, Q):
            b = Q[2:5, 5]
            # Multipliers: (1 - t, 1 - t, t) for any t in [0, 1] where three rows hold.
            y = jnp.array([1.0 - share, 1.0 - share, share])
            x = b[:2]
            return optimality.conic_point(x, y, b - A @ x)

        return implicit.custom_root(condition, null_space=optimality.conic_null_space(K))(answer)

    def x(b, share=0.0):
        z = solve(share)(None, optimality.conic_embedding(A, b, c))
        return optimality.conic_solution(z, K)[0]

    return x


@pytest.mark.slow
def test_a_degenerate_vertex_of_a_conic_program_has_no_derivative():
    x = linear_program(None)
    # Two rows hold, the third is slack: the vertex follows them.
    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(mode(x)(jnp.array([1.0, 2.0, 4.0])), np.eye(2, 3), atol=1e-12)
    # All three hold: with smaller b₁ it follows one pair, with larger b₁ another.
    for share in (0.25, 0.5):
        refused_in_both_modes(lambda b, share=share: x(b, share), jnp.array([1.0, 2.0, 3.0]))


@pytest.mark.slow
def test_a_minimiser_that_is_not_unique_has_no_derivative():
    flat = solvers.minimum(lambda x, theta: (x[0] + x[1] - theta) ** 2)
    refused_in_both_modes(lambda theta: flat(jnp.zeros(2), theta), 1.0)
    # The value is one of the minimisers all the same, and with the flat direction said it moves least: by half for each.
    np.testing.assert_allclose(jnp.sum(flat(jnp.zeros(2), 1.0)), 1.0)
    along = jnp.array([[1.0], [-1.0]]) / np.sqrt(2.0)
    known = solvers.minimum(lambda x, t: (x[0] + x[1] - t) ** 2, null_space=lambda x, t: implicit.NullSpace(basis=along))
    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(mode(lambda theta: known(jnp.zeros(2), theta))(1.0), [0.5, 0.5], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_fixed_point_on_a_kink_has_no_derivative(scale):
    """z = max(z/2 + θ - s, 0): 2 (θ - s) above s, 0 below."""

    def T(z, theta):
        return jax.nn.relu(0.5 * z + theta - scale)

    def exact(theta):
        return jnp.maximum(2.0 * (theta - scale), 0.0)[None]

    solve = implicit.custom_fixed_point(T)(lambda z0, theta: exact(theta))
    there = lambda theta: solve(jnp.zeros(1), theta)  # noqa: E731
    refused_in_both_modes(there, scale)
    for theta, slope in ((1.3 * scale, 2.0), (0.7 * scale, 0.0), (1.0001 * scale, 2.0)):
        for mode in (jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(mode(there)(theta), [slope], atol=1e-12)


@pytest.mark.parametrize("nearest", [2e-6, 0.0])
def test_kinks_near_an_answer_of_thousands_are_none_at_it(nearest):
    """As contacts of a large packing, one of which is always about to open: the derivative holds up to it."""
    n = 4096
    gaps = jnp.asarray(np.sort(rng.uniform(0.0, 0.1, n))).at[0].set(nearest)
    condition = lambda z, theta: z - theta + jax.nn.relu(z - theta - gaps)  # noqa: E731
    solve = implicit.custom_root(condition, symmetric=True)(lambda z0, theta: theta)
    theta = jnp.asarray(rng.uniform(0.0, 60.0, n))
    slope = jax.jvp(lambda theta: jax.jit(solve)(theta, theta), (theta,), (jnp.ones(n),))[1]
    np.testing.assert_allclose(slope, 1.0 if nearest else np.nan, rtol=1e-9)


def test_projections_on_what_shrank_to_a_point_have_no_derivative_in_its_size():
    y = jnp.array([1.0, 2.0])
    for project in (projections.simplex, projections.l1_ball):
        for mode in (jax.jacfwd, jax.jacrev):
            assert np.isnan(mode(lambda r, project=project: project(y, r))(0.0)).all()
            np.testing.assert_array_equal(mode(lambda y, project=project: project(y, 0.0))(y), 0.0)
            np.testing.assert_allclose(mode(lambda r, project=project: project(y, r))(0.5), [0.0, 1.0])
        np.testing.assert_array_equal(project(y, 0.0), 0.0)


def test_an_answer_that_is_no_root_is_refused_where_only_its_value_is_used():
    wrong = implicit.custom_root(lambda z, a: z**2 - a)(lambda z0, a: 1.1 * jnp.sqrt(a))
    right = implicit.custom_root(lambda z, a: z**2 - a)(lambda z0, a: jnp.sqrt(a))
    with pytest.raises(ms.ConvergenceError, match="no root"):
        wrong(1.0, 2.0)
    assert np.isnan(jax.jit(wrong)(1.0, 2.0)) and np.isnan(jax.vmap(wrong)(jnp.ones(2), jnp.ones(2))).all()
    assert float(right(1.0, 4.0)) == float(jax.jit(right)(1.0, 4.0)) == 2.0
    lenient = implicit.custom_root(lambda z, a: z**2 - a, root_tol=None)(lambda z0, a: 1.1 * jnp.sqrt(a))
    np.testing.assert_allclose(lenient(1.0, 4.0), 2.2)
    np.testing.assert_allclose(jax.hessian(right, argnums=1)(1.0, 2.0), -0.25 * 2.0**-1.5, rtol=1e-12)


def test_jumps_and_masks_beside_the_answer_are_no_kinks():
    """A mask of zeros and ones as a floating-point argument: the condition jumps where nobody goes."""
    mask = jnp.array([1.0, 0.0, 1.0])
    solve = implicit.custom_root(lambda z, theta, mask: jnp.where(mask > 0.0, z**3 - theta, z))(
        lambda z0, theta, mask: jnp.where(mask > 0.0, jnp.cbrt(theta), 0.0)
    )
    for mode in (jax.jacfwd, jax.jacrev):
        found = mode(lambda theta: solve(jnp.zeros(3), theta, mask))(8.0)
        np.testing.assert_allclose(found, [1 / 12, 0.0, 1 / 12], rtol=1e-12)
