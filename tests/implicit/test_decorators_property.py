"""Random well-posed problems through every decorator and every linear solver (hypothesis)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdsens import implicit

N = 5
SOLVERS = {
    "cg": implicit.CG(),
    "minres": implicit.MINRES(),
    "cholesky": implicit.Cholesky(),
    "gmres": implicit.GMRES(),
    "bicgstab": implicit.BiCGSTAB(),
    "normal cg": implicit.NormalCG(),
    "direct": implicit.Direct(),
    "sparse direct": implicit.SparseDirect(),
}
SYMMETRIC_ONLY = ("cg", "minres", "cholesky")

# Shapes are always the same, so that each pair is compiled once.
many = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32 - 1)
exponents = st.floats(0.0, 3.0)


def condition(z, args):
    """Monotone: A z + z³/10 = θ has one root for every A with a positive symmetric part."""
    return args["A"] @ z + 0.1 * z**3 - args["theta"]


def newton(z0, args):
    def step(_, z):
        return z - jnp.linalg.solve(args["A"] + jnp.diag(0.3 * z**2), condition(z, args))

    return jax.lax.fori_loop(0, 60, step, z0)


def gentle_map(z, args):
    """A damped step, with the same root."""
    return z - 0.3 * condition(z, args)


@functools.cache
def jacobians(decorator, name, symmetric):
    options = {"linear_solver": SOLVERS[name], "symmetric": symmetric}
    if decorator == "root":
        solve = implicit.custom_root(condition, **options)(newton)
    else:
        solve = implicit.custom_fixed_point(gentle_map, **options)(newton)

    @jax.jit
    def both(A, theta):
        def answer(theta):
            return solve(jnp.zeros(N), {"A": A, "theta": theta, "label": "static", "count": 3})

        return answer(theta), jax.jacfwd(answer)(theta), jax.jacrev(answer)(theta)

    return both


def random_problem(seed, exponent, symmetric):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(N, N)))
    A = basis @ np.diag(np.logspace(-exponent, 0, N)) @ basis.T
    if not symmetric:
        skew = rng.normal(size=(N, N))
        A = A + 0.3 * (skew - skew.T)
    return A, rng.normal(size=N)


def pairs():
    found = []
    for decorator in ("root", "fixed point"):
        for name in SOLVERS:
            for symmetric in (True, False):
                # The gentle map's Jacobian is negative: fine for whoever needs no positive curvature.
                if (not symmetric and name in SYMMETRIC_ONLY) or (decorator == "fixed point" and name in ("cg", "cholesky")):
                    continue
                found.append(pytest.param(decorator, name, symmetric, id=f"{decorator}-{name}-{'sym' if symmetric else 'any'}"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("decorator", "name", "symmetric"), pairs())
def test_every_decorator_with_every_linear_solver(decorator, name, symmetric):
    @many
    @given(seed=seeds, exponent=exponents)
    def check(seed, exponent):
        A, theta = random_problem(seed, exponent, symmetric)
        z, forward, reverse = jacobians(decorator, name, symmetric)(A, theta)
        exact = np.linalg.inv(A + np.diag(0.3 * np.asarray(z) ** 2))
        # rtol 1e-12 times a condition number of at most 1e3, squared by the normal equations.
        tolerance = (1e-6 if name == "normal cg" else 1e-8) * np.abs(exact).max()
        np.testing.assert_allclose(forward, exact, atol=tolerance)
        np.testing.assert_allclose(reverse, exact, atol=tolerance)

    check()


@functools.cache
def singular_jacobian(name, known):
    options = {"linear_solver": SOLVERS[name], "symmetric": True}
    if known:
        options["null_space"] = lambda z, A, theta, basis: implicit.NullSpace(basis=basis)
    solve = implicit.custom_root(lambda z, A, theta, basis: A @ (z - theta), root_tol=None, **options)(
        lambda z0, A, theta, basis: theta
    )

    @jax.jit
    def both(A, theta, basis):
        answer = lambda theta: solve(theta, A, theta, basis)  # noqa: E731
        return jax.jacfwd(answer)(theta), jax.jacrev(answer)(theta)

    return both


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("known", [True, False], ids=["known null space", "unknown null space"])
def test_a_singular_compatible_problem_has_the_answer_of_least_norm_if_its_null_space_is_said(name, known):
    """A (z - θ) = 0: any z = θ + null vector is a root, and the one that moves least moves by A⁺A."""

    @many
    @given(seed=seeds, rank=st.integers(1, N - 1))
    def check(seed, rank):
        rng = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(rng.normal(size=(N, N)))
        values = np.r_[np.zeros(N - rank), rng.uniform(0.5, 2.0, rank)]
        A = basis @ np.diag(values) @ basis.T
        # Always as many columns, so that one compilation serves: those beyond the null space are empty.
        null = np.where(np.arange(N) < N - rank, basis, 0.0)
        forward, reverse = singular_jacobian(name, known)(A, rng.normal(size=N), null)
        exact = basis[:, N - rank :] @ basis[:, N - rank :].T
        if known:
            np.testing.assert_allclose(forward, exact, atol=1e-8)
            np.testing.assert_allclose(reverse, exact, atol=1e-8)
        else:
            # A cotangent has parts that no Aᵀw reaches; only a known null space says that they don't count.
            assert np.isnan(forward).all() and np.isnan(reverse).all()

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_a_singular_incompatible_problem_has_no_derivative(name):
    """A z = θ where θ moves out of the range of A."""

    @many
    @given(seed=seeds)
    def check(seed):
        A, null = random_singular(seed)
        found = incompatible_tangent(name)(A, null)
        assert np.isnan(found).all()

    check()


def random_singular(seed):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(N, N)))
    return basis @ np.diag(np.r_[0.0, rng.uniform(0.5, 2.0, N - 1)]) @ basis.T, basis[:, 0]


@functools.cache
def incompatible_tangent(name):
    options = {"linear_solver": SOLVERS[name], "symmetric": True}
    solve = implicit.custom_root(lambda z, A, theta: A @ z - theta, root_tol=None, **options)(lambda z0, A, theta: z0)

    @jax.jit
    def tangent(A, direction):
        return jax.jvp(lambda theta: solve(jnp.zeros(N), A, theta), (jnp.zeros(N),), (direction,))[1]

    return tangent
