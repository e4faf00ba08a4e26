"""Linear systems: every solver on every kind of operator it is for, null spaces, right-hand sides, refusals."""

import functools

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from helpers import refused

import mdsens as ms
from mdsens import implicit

N = 12
rng = np.random.default_rng(0)
Q, _ = np.linalg.qr(rng.normal(size=(N, N)))
B = jnp.asarray(rng.normal(size=N))

SYMMETRIC_ONLY = {"cg": implicit.CG(), "minres": implicit.MINRES(), "cholesky": implicit.Cholesky()}
GENERAL = {
    "gmres": implicit.GMRES(),
    "bicgstab": implicit.BiCGSTAB(),
    "normal cg": implicit.NormalCG(),
    "direct": implicit.Direct(),
    "sparse direct": implicit.SparseDirect(),
    "lineax gmres": implicit.Lineax(lineax.GMRES(rtol=1e-12, atol=0.0)),
    "lineax lu": implicit.Lineax(lineax.LU()),
}
LEAST_NORM = {
    name: {**SYMMETRIC_ONLY, **GENERAL}[name] for name in ("minres", "normal cg", "direct", "cholesky", "sparse direct")
}


def with_spectrum(values):
    return jnp.asarray(Q @ np.diag(values) @ Q.T)


POSITIVE = with_spectrum(np.logspace(-2, 1, N))
INDEFINITE = with_spectrum(np.r_[-np.logspace(-1, 1, N // 2), np.logspace(-1, 1, N // 2)])
UNSYMMETRIC = jnp.asarray(rng.normal(size=(N, N)) + 5.0 * np.eye(N))


@functools.partial(jax.jit, static_argnames=("solver", "symmetric", "project"))
def solve(A, b, null_space, solver, symmetric=True, project=True):
    return implicit.linear_solve(
        lambda v: A @ v, b, solver=solver, symmetric=symmetric, null_space=null_space, project=project, throw=False
    )


# rtol 1e-12 over a condition number of 1e3.
ACCURACY = 1e-8


@pytest.mark.parametrize("solver", [*SYMMETRIC_ONLY.values(), *GENERAL.values()], ids=[*SYMMETRIC_ONLY, *GENERAL])
def test_a_positive_operator(solver):
    u, residual = solve(POSITIVE, B, None, solver)
    np.testing.assert_allclose(u, np.linalg.solve(POSITIVE, B), atol=ACCURACY)
    assert residual <= 1e-12 or not isinstance(solver, implicit.CG)


@pytest.mark.parametrize("solver", [implicit.MINRES(), *GENERAL.values()], ids=["minres", *GENERAL])
def test_an_indefinite_operator(solver):
    u, _ = solve(INDEFINITE, B, None, solver)
    np.testing.assert_allclose(u, np.linalg.solve(INDEFINITE, B), atol=ACCURACY)


@pytest.mark.parametrize("solver", GENERAL.values(), ids=GENERAL)
def test_an_operator_without_symmetry_and_its_transpose(solver):
    exact = np.linalg.solve(UNSYMMETRIC, B)
    u, _ = solve(UNSYMMETRIC, B, None, solver, symmetric=False)
    np.testing.assert_allclose(u, exact, atol=1e-10)
    slope = jax.grad(lambda b: jnp.sum(solve(UNSYMMETRIC, b, None, solver, symmetric=False)[0] ** 2))(B)
    np.testing.assert_allclose(slope, np.linalg.solve(UNSYMMETRIC.T, 2.0 * exact), atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("solver", GENERAL.values(), ids=GENERAL)
def test_null_spaces_of_the_two_sides_may_differ(solver):
    U, S, Vt = np.linalg.svd(UNSYMMETRIC)
    singular = jnp.asarray(U @ np.diag(np.r_[S[:-2], 0.0, 0.0]) @ Vt)
    null_space = implicit.NullSpace(basis=jnp.asarray(Vt[-2:].T), left=jnp.asarray(U[:, -2:]))
    pseudo = np.linalg.pinv(singular, rtol=1e-10)
    u, _ = solve(singular, B, null_space, solver, symmetric=False)
    np.testing.assert_allclose(u, pseudo @ B, atol=1e-10)
    # The adjoint of the projected solve is that of the pseudo-inverse, whatever the cotangent.
    slope = jax.grad(lambda b: jnp.vdot(B, solve(singular, b, null_space, solver, symmetric=False)[0]))(B)
    np.testing.assert_allclose(slope, pseudo.T @ B, atol=1e-10)
    assert solve(singular, B, null_space, solver, symmetric=False, project=False)[1] > 1e-2


@pytest.mark.parametrize("solver", LEAST_NORM.values(), ids=LEAST_NORM)
def test_an_unknown_null_space_gives_the_least_norm_or_an_error(solver):
    singular = with_spectrum(np.r_[0.0, 0.0, np.logspace(-1, 1, N - 2)])
    compatible = singular @ B
    u, residual = solve(singular, compatible, None, solver)
    np.testing.assert_allclose(u, np.linalg.pinv(singular, rtol=1e-10) @ compatible, atol=1e-9)
    assert residual < 1e-11
    with pytest.raises(ms.LinearSolveError, match="relative residual of"):
        implicit.linear_solve(lambda v: singular @ v, B, solver=solver, symmetric=True)


@pytest.mark.parametrize("solver", [implicit.CG(), implicit.GMRES(), implicit.Direct(), implicit.SparseDirect()], ids=str)
def test_several_right_hand_sides_are_solved_together(solver):
    many = jnp.asarray(rng.normal(size=(N, 4)))
    u, residual = solve(POSITIVE, many, None, solver)
    assert u.shape == (N, 4) and residual.shape == (4,)
    np.testing.assert_allclose(u, np.linalg.solve(POSITIVE, many), atol=ACCURACY)


def test_one_factorisation_serves_all_right_hand_sides(monkeypatch):
    from mdsens.implicit import direct

    calls = []
    factorise = direct._factorise_and_solve
    monkeypatch.setattr(direct, "_factorise_and_solve", lambda *args: calls.append(1) or factorise(*args))
    many = jnp.asarray(rng.normal(size=(N, 7)))
    implicit.linear_solve(lambda v: POSITIVE @ v, many, solver=implicit.SparseDirect(), symmetric=True)
    assert len(calls) == 1


def test_sparse_factorisation_on_the_host_survives_jit_and_vmap_with_calls_in_flight():
    shifts = jnp.linspace(0.0, 1.0, 3)
    batched = jax.jit(
        jax.vmap(lambda s: implicit.linear_solve(lambda v: UNSYMMETRIC @ v + s * v, B, solver=implicit.SparseDirect())[0])
    )
    expected = [np.linalg.solve(UNSYMMETRIC + s * np.eye(N), B) for s in shifts]
    for answer in [batched(shifts) for _ in range(12)]:
        np.testing.assert_allclose(answer, expected, atol=1e-10)


def test_a_warm_start_changes_the_road_only():
    few = implicit.CG(max_steps=2)
    exact = jnp.asarray(np.linalg.solve(POSITIVE, B))
    cold = implicit.linear_solve(lambda v: POSITIVE @ v, B, solver=few, symmetric=True, throw=False)[1]
    u, warm = implicit.linear_solve(lambda v: POSITIVE @ v, B, solver=few, symmetric=True, start=exact * (1 + 1e-9))
    assert warm < 1e-8 < cold
    np.testing.assert_allclose(u, exact, rtol=1e-6)


@pytest.mark.parametrize("solver", [implicit.GMRES(max_steps=1, restart=2), implicit.BiCGSTAB(max_steps=3)], ids=str)
def test_a_transposed_solve_keeps_its_preconditioner(solver):
    # So far from symmetric that a few iterations only suffice with the inverse itself, transposed where A is.
    A = jnp.asarray(np.diag(np.logspace(0, 6, N)) @ (np.eye(N) + np.triu(rng.normal(size=(N, N)), 1)))
    inverse = jnp.asarray(np.linalg.inv(A))

    def answer(b):
        options = {"solver": solver, "precondition": lambda r: inverse @ r}
        return implicit.linear_solve(lambda v: A @ v, b, **options)[0]

    w = jnp.asarray(rng.normal(size=N))
    expected = np.linalg.solve(A.T, w)
    np.testing.assert_allclose(jax.grad(lambda b: w @ answer(b))(B), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("solver", [implicit.CG(), implicit.MINRES(), implicit.GMRES(), implicit.Direct()], ids=str)
def test_single_precision_has_its_own_tolerances(solver):
    u, residual = solve(POSITIVE.astype(jnp.float32), B.astype(jnp.float32), None, solver)
    assert u.dtype == jnp.float32 and residual < 1e-4
    # A condition number of 1e3 times the rounding of 1e-7.
    np.testing.assert_allclose(u, np.linalg.solve(POSITIVE, B), rtol=1e-3)


def test_the_automatic_choice_says_what_it_is():
    assert implicit.automatic(50, symmetric=True) == implicit.Direct()
    assert implicit.automatic(5000, symmetric=True) == implicit.MINRES()
    assert implicit.automatic(5000, symmetric=False) == implicit.GMRES()


def test_large_symmetric_systems_are_solved_without_being_assembled():
    n = 3000
    scale = jnp.linspace(1.0, 50.0, n)
    b = jnp.asarray(rng.normal(size=n))
    u, residual = implicit.linear_solve(lambda v: scale * v + 0.1 * jnp.roll(v, 1) + 0.1 * jnp.roll(v, -1), b, symmetric=True)
    assert residual < 1e-12 and u.shape == (n,)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": implicit.CG()}, ["CG is for symmetric operators"]),
        ({"solver": "cg"}, ["such as CG()"]),
        ({"start": jnp.zeros(3)}, ["start has shape (3,)"]),
        ({"null_space": implicit.NullSpace(basis=jnp.zeros((4, 1)))}, ["basis has shape (4, 1)"]),
        (
            {"symmetric": True, "null_space": implicit.NullSpace(basis=jnp.zeros((N, 1)), left=jnp.zeros((N, 1)))},
            ["leave left= out"],
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    refused(lambda: implicit.linear_solve(lambda v: v, B, **options), *words)


@pytest.mark.parametrize("b", [jnp.zeros((2, 2, 2)), jnp.arange(3), jnp.zeros(0)])
def test_right_hand_sides_of_another_kind_are_refused(b):
    refused(lambda: implicit.linear_solve(lambda v: v, b), "right-hand side")


@pytest.mark.parametrize(
    "make",
    [
        lambda: implicit.CG(rtol=-1.0),
        lambda: implicit.GMRES(max_steps=0),
        lambda: implicit.Lineax("gmres"),
        lambda: implicit.Lineax(lineax.LU(), max_steps=3),
    ],
)
def test_settings_out_of_their_range_are_refused(make):
    refused(make)


def test_broken_promises_are_found_out():
    Q = jnp.linalg.qr(jnp.asarray(rng.normal(size=(N, 1))))[0]
    singular = POSITIVE - POSITIVE @ Q @ Q.T - Q @ (Q.T @ POSITIVE) + Q @ (Q.T @ POSITIVE @ Q) @ Q.T
    refused(lambda: implicit.linear_solve(lambda v: UNSYMMETRIC @ v, B, symmetric=True), "not symmetric")
    for basis, words in ((3.0 * Q, "orthonormal"), (jnp.eye(N, 1), "no null space")):
        null_space = implicit.NullSpace(basis=basis)
        refused(
            lambda null_space=null_space: implicit.linear_solve(lambda v: singular @ v, B, symmetric=True, null_space=null_space),
            words,
        )
    refused(lambda: implicit.linear_solve(lambda v: v[:3], B), "into")
    refused(lambda: implicit.linear_solve(POSITIVE, B), "lambda")


@pytest.mark.parametrize("solver", [implicit.CG(), implicit.MINRES(), implicit.GMRES(), implicit.BiCGSTAB()], ids=str)
def test_small_numbers_are_solved_for_like_any_others(solver):
    b = B.astype(jnp.float32)
    u, _ = solve(POSITIVE.astype(jnp.float32), b, None, solver)
    small, residual = solve(POSITIVE.astype(jnp.float32), 2.0**-80 * b, None, solver)
    np.testing.assert_allclose(2.0**80 * small, u, rtol=1e-6)
    assert 0.0 < residual < 1e-4


def test_null_spaces_of_two_sizes_are_refused():
    refused(lambda: implicit.NullSpace(basis=jnp.zeros((4, 2)), left=jnp.zeros((4, 1))), "as many columns")
