"""The implicit core on problems with known answers; no atom in sight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refused

import mdsens as ms
from mdsens import implicit

rng = np.random.default_rng(0)
X, Y = jnp.asarray(rng.normal(size=(20, 5))), jnp.asarray(rng.normal(size=20))


def ridge(penalty):
    return jnp.linalg.solve(X.T @ X + penalty * jnp.eye(5), X.T @ Y)


def ridge_condition(w, args):
    return {"w": X.T @ (X @ w["w"] - Y) + args["penalty"] * w["w"]}


def implicit_ridge(**options):
    @implicit.custom_root(ridge_condition, **options)
    def solve(w0, args):
        return jax.lax.stop_gradient({"w": ridge(args["penalty"])})

    # A static leaf and an integer array ride along in the arguments.
    return lambda penalty: solve({"w": jnp.zeros(5)}, {"penalty": penalty, "name": "ridge", "count": jnp.arange(3)})["w"]


OPTIONS = {
    "cg": {"symmetric": True},
    "automatic": {},
    "preconditioned cg": {"symmetric": True, "precondition": lambda w, args: lambda r: r / (20.0 + args["penalty"])},
    "direct": {"linear_solver": implicit.Direct()},
    "gmres": {"linear_solver": implicit.GMRES()},
}
DERIVATIVES = {
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "hessian": jax.hessian,
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
    "third": lambda f: jax.jacfwd(jax.hessian(f)),
    "checkpoint": lambda f: jax.jacrev(jax.checkpoint(f)),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("derivative", ["jacfwd", "jacrev", "hessian"])
def test_ridge_regression_in_every_mode_and_solver(options, derivative):
    d = DERIVATIVES[derivative]
    np.testing.assert_allclose(d(implicit_ridge(**options))(0.7), d(ridge)(0.7), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("derivative", ["reverse over reverse", "third", "checkpoint"])
def test_ridge_regression_to_third_order(derivative):
    d = DERIVATIVES[derivative]
    np.testing.assert_allclose(d(implicit_ridge(symmetric=True))(0.7), d(ridge)(0.7), atol=1e-12)


@pytest.mark.slow
def test_jit_vmap_and_linearize():
    f = implicit_ridge(symmetric=True)
    penalties = jnp.array([0.1, 0.5, 2.0])
    expected = jax.vmap(jax.grad(lambda p: ridge(p).sum()))(penalties)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(lambda p: f(p).sum())))(penalties), expected, atol=1e-13)
    value, product = jax.linearize(f, 0.7)
    np.testing.assert_allclose(value, ridge(0.7), atol=1e-14)
    np.testing.assert_allclose(product(2.0), 2.0 * jax.jacfwd(ridge)(0.7), atol=1e-13)


@pytest.mark.slow
def test_an_asymmetric_root_in_both_modes():
    def condition(z, theta):
        return jnp.array([z[0] ** 3 + theta[0] * z[1] - 2.0, z[1] ** 2 * z[0] + theta[1] - z[0]])

    @implicit.custom_root(condition)
    def solve(z0, theta):
        z = z0
        for _ in range(60):
            z = z - jnp.linalg.solve(jax.jacfwd(condition)(z, theta), condition(z, theta))
        return z

    theta = jnp.array([0.5, 0.3])
    start = jnp.array([1.0, 0.8])
    z = solve(start, theta)
    A, B = jax.jacfwd(condition)(z, theta), jax.jacfwd(condition, argnums=1)(z, theta)
    exact = -jnp.linalg.solve(A, B)
    np.testing.assert_allclose(jax.jacfwd(solve, argnums=1)(start, theta), exact, atol=1e-13)
    np.testing.assert_allclose(jax.jacrev(solve, argnums=1)(start, theta), exact, atol=1e-13)
    np.testing.assert_array_equal(jax.jacrev(solve)(start, theta), jnp.zeros((2, 2)))
    tangent, residual = implicit.root_jvp(condition, z, (theta,), (jnp.array([1.0, 0.0]),))
    np.testing.assert_allclose(tangent, exact[:, 0], atol=1e-13)
    (cotangent,), _ = implicit.root_vjp(condition, z, (theta,), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(cotangent, exact[1], atol=1e-13)
    assert residual < 1e-12


@pytest.mark.slow
def test_a_fixed_point():
    # Kepler's equation E = M + e sin E: dE/dM = 1 / (1 - e cos E).
    @implicit.custom_fixed_point(lambda E, M, e: M + e * jnp.sin(E))
    def anomaly(start, M, e):
        return jax.lax.fori_loop(0, 200, lambda _, E: M + e * jnp.sin(E), start)

    E = anomaly(1.0, 1.0, 0.3)
    np.testing.assert_allclose(jax.grad(anomaly, argnums=1)(1.0, 1.0, 0.3), 1 / (1 - 0.3 * jnp.cos(E)), rtol=1e-13)
    np.testing.assert_allclose(jax.grad(anomaly, argnums=2)(1.0, 1.0, 0.3), jnp.sin(E) / (1 - 0.3 * jnp.cos(E)), rtol=1e-13)


def singular(n=6):
    """A symmetric matrix with a known null vector, and a positive spectrum otherwise."""
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    values = np.array([0.0, 0.1, 1.0, 2.0, 5.0, 9.0])
    return jnp.asarray(basis @ np.diag(values) @ basis.T), jnp.asarray(basis[:, :1])


@pytest.mark.parametrize("solver", [implicit.CG(), implicit.Direct(), implicit.GMRES()], ids=["cg", "direct", "gmres"])
def test_a_known_null_space_gives_the_minimum_norm_answer(solver):
    A, null = singular()
    b = jnp.asarray(rng.normal(size=6))
    u, residual = implicit.linear_solve(
        lambda v: A @ v, b, solver=solver, symmetric=True, null_space=implicit.NullSpace(basis=null)
    )
    np.testing.assert_allclose(u, jnp.linalg.pinv(A, rtol=1e-10) @ b, atol=1e-11)
    assert residual < 1e-11


@pytest.mark.slow
def test_second_derivatives_keep_the_null_space_out():
    # The minimum-norm answer of A(t) u = b, where the null vector is the same for every t.
    A, null = singular()
    b = jnp.asarray(rng.normal(size=6))
    null_space = implicit.NullSpace(basis=null)

    def answer(t):
        matrix = A + t * (A @ A)
        return implicit.linear_solve(lambda v: matrix @ v, b, symmetric=True, null_space=null_space)[0]

    def exact(t):
        shifted = A + t * (A @ A) + null @ null.T
        return jnp.linalg.solve(shifted, b - null[:, 0] * (null[:, 0] @ b))

    for d in (jax.jacfwd, jax.jacrev, jax.hessian):
        np.testing.assert_allclose(d(answer)(0.2), d(exact)(0.2), atol=1e-10)


def test_components_held_at_zero_stay_exactly_zero():
    A, _ = singular()
    A = A + jnp.eye(6)
    active = jnp.array([True, True, False, True, True, False])
    b = jnp.asarray(rng.normal(size=6))
    u, _ = implicit.linear_solve(lambda v: A @ v, b, symmetric=True, null_space=implicit.NullSpace(active=active))
    assert (u[~active] == 0.0).all()
    np.testing.assert_allclose(u[active], jnp.linalg.solve(A[active][:, active], b[active]), atol=1e-12)


def test_an_indefinite_or_singular_system_gives_nan_and_a_residual():
    A, _ = singular()
    b = jnp.asarray(rng.normal(size=6))
    cg = {"solver": implicit.CG(), "symmetric": True, "throw": False}
    u, _ = implicit.linear_solve(lambda v: (A - 3.0 * jnp.eye(6)) @ v, b, **cg)
    assert jnp.isnan(u).all()
    u, residual = implicit.linear_solve(lambda v: A @ v, b, **cg)
    assert jnp.isnan(u).all() and not residual < 1e-6


def test_a_bad_member_of_a_batch_leaves_the_others_alone():
    A, _ = singular()
    shifts = jnp.array([1.0, -3.0, 2.0])
    b = jnp.asarray(rng.normal(size=6))
    solve = jax.vmap(lambda s: implicit.linear_solve(lambda v: A @ v + s * v, b, solver=implicit.CG(), symmetric=True)[0])
    u = solve(shifts)
    assert jnp.isnan(u[1]).all()
    for k in (0, 2):
        np.testing.assert_allclose(u[k], jnp.linalg.solve(A + shifts[k] * jnp.eye(6), b), atol=1e-12)


def test_preconditioning_changes_the_road_and_not_the_answer():
    scales = jnp.asarray(10.0 ** np.linspace(0, 4, 40))
    A = jnp.diag(scales) + 0.1 * jnp.ones((40, 40))
    b = jnp.asarray(rng.normal(size=40))
    few = implicit.CG(max_steps=15)
    _, plain_residual = implicit.linear_solve(lambda v: A @ v, b, solver=few, symmetric=True, throw=False)
    u, residual = implicit.linear_solve(lambda v: A @ v, b, solver=few, symmetric=True, precondition=lambda r: r / scales)
    assert residual < 1e-11 < plain_residual
    np.testing.assert_allclose(u, jnp.linalg.solve(A, b), rtol=1e-10)


def test_a_condition_of_another_shape_is_refused():
    solve = implicit.custom_root(lambda z, a: z[:2])(lambda z0, a: jnp.ones(3))
    with pytest.raises(ms.InputError, match="must return what the unknown looks like"):
        jax.jacfwd(solve, argnums=1)(jnp.zeros(3), 1.0)


def test_cg_wants_symmetry_declared():
    with pytest.raises(ms.InputError, match="symmetric=True"):
        implicit.linear_solve(lambda v: v, jnp.ones(3), solver=implicit.CG())


def test_float32_stays_float32():
    def condition(z, a):
        return z**3 - a

    @implicit.custom_root(condition)
    def cube_root(z0, a):
        return jnp.cbrt(a)

    a = jnp.asarray([8.0, 27.0], jnp.float32)
    slope = jax.jacrev(cube_root, argnums=1)(a, a)
    assert slope.dtype == jnp.float32
    np.testing.assert_allclose(jnp.diag(slope), 1 / (3 * jnp.cbrt(a) ** 2), rtol=1e-6)


# What the solver reports beside its answer


@implicit.custom_root(lambda z, a: z**3 - a, has_aux=True)
def reporting_cube_root(z0, a):
    z = jnp.cbrt(a)
    return z, {"error": jnp.abs(z**3 - a), "steps": 7, "converged": jnp.all(z > 0)}


@pytest.mark.slow
def test_auxiliary_outputs_come_along_and_leave_the_derivative_alone():
    z, aux = reporting_cube_root(1.0, 8.0)
    assert z == 2.0 and aux["steps"] == 7 and aux["converged"] and aux["error"] == 0.0
    root = lambda a: reporting_cube_root(1.0, a)[0]  # noqa: E731
    for d in (jax.grad(root), jax.jacfwd(root), jax.jit(jax.grad(root))):
        np.testing.assert_allclose(d(8.0), 1 / 12, rtol=1e-14)
    np.testing.assert_allclose(jax.hessian(root)(8.0), jax.hessian(jnp.cbrt)(8.0), rtol=1e-13)
    np.testing.assert_allclose(jax.vmap(jax.grad(root))(jnp.array([8.0, 27.0])), [1 / 12, 1 / 27], rtol=1e-14)


def test_differentiating_an_auxiliary_output_is_refused_and_never_zero():
    error = lambda a: reporting_cube_root(1.0, a)[1]["error"]  # noqa: E731
    refused(lambda: jax.grad(error)(8.0), "auxiliary output")
    refused(lambda: jax.jit(jax.grad(error))(8.0), "auxiliary output")
    refused(lambda: jax.vmap(jax.grad(error))(jnp.array([8.0])), "auxiliary output")
    # Forward mode cannot know who will look.
    assert jnp.isnan(jax.jvp(error, (8.0,), (1.0,))[1])
    assert jax.grad(lambda a: jax.lax.stop_gradient(error(a)) + a)(8.0) == 1.0


def test_what_is_computed_from_the_answer_is_differentiated_through_it():
    @implicit.custom_root(lambda z, a: z**3 - a)
    def cube_root(z0, a):
        return jnp.cbrt(a)

    np.testing.assert_allclose(jax.grad(lambda a: a * cube_root(1.0, a) ** 2)(8.0), 4.0 + 8.0 * 4.0 / 12.0, rtol=1e-14)


# Nested and batched use


@pytest.mark.slow
def test_an_inner_solve_inside_an_outer_condition():
    inner = implicit.custom_root(lambda y, z, a: y**3 - a * z)(lambda y0, z, a: jnp.cbrt(a * z))

    def condition(z, a):
        return z + inner(1.0, z, a) - 3.0

    @implicit.custom_root(condition)
    def outer(z0, a):
        return jax.lax.fori_loop(0, 60, lambda _, z: z - condition(z, a) / jax.grad(condition)(z, a), z0)

    # z + (a z)^(1/3) = 3 has the root 2 at a = 1/2.
    def exact(a):
        z = 2.0
        for _ in range(50):
            z = z - (z + np.cbrt(a * z) - 3.0) / (1.0 + np.cbrt(a) / (3.0 * np.cbrt(z) ** 2))
        return z

    np.testing.assert_allclose(outer(2.0, 0.5), 2.0, rtol=1e-14)
    h = 1e-4
    slope = (8 * (exact(0.5 + h) - exact(0.5 - h)) - (exact(0.5 + 2 * h) - exact(0.5 - 2 * h))) / (12 * h)
    for d in (jax.grad(outer, argnums=1), jax.jacfwd(outer, argnums=1), jax.jit(jax.grad(outer, argnums=1))):
        np.testing.assert_allclose(d(2.0, 0.5), slope, rtol=1e-10)  # truncation h⁴, rounding 1e-16 / h
    curvature = (exact(0.5 + h) - 2 * exact(0.5) + exact(0.5 - h)) / h**2
    np.testing.assert_allclose(jax.hessian(outer, argnums=1)(2.0, 0.5), curvature, rtol=1e-5)  # rounding 1e-16 / h²


@pytest.mark.slow
def test_one_bad_member_neither_kills_nor_changes_the_others():
    # At a = 0 the cube root has no derivative.
    cube_root = implicit.custom_root(lambda z, a: z**3 - a)(lambda z0, a: jnp.cbrt(a))
    a = jnp.array([8.0, 0.0, 27.0])
    slopes = jax.vmap(jax.grad(cube_root, argnums=1), in_axes=(None, 0))(1.0, a)
    alone = jnp.array([jax.grad(cube_root, argnums=1)(1.0, value) for value in a[::2]])
    assert not jnp.isfinite(slopes[1])
    np.testing.assert_array_equal(slopes[::2], alone)


# What must be refused or said


@pytest.mark.parametrize("transform", [jax.grad, jax.jit, lambda f: lambda a: jax.vmap(f)(jnp.array([a]))])
@pytest.mark.parametrize("where", ["condition", "solver"])
def test_closing_over_a_traced_value_gives_a_sentence_and_no_leak(transform, where):
    def f(scale):
        condition = (lambda z, a: z**3 - a * scale) if where == "condition" else (lambda z, a: z**3 - a)
        solve = (lambda z0, a: jnp.cbrt(a * scale)) if where == "solver" else (lambda z0, a: jnp.cbrt(a))
        return implicit.custom_root(condition)(solve)(1.0, 8.0)

    with jax.checking_leaks():
        refused(lambda: transform(f)(1.0), where, "'scale'", "argument")


class Holder:
    """Keeps a value where no closure shows it."""

    scale = None

    def __call__(self, z, a):
        return z**3 - a * self.scale


def test_traced_values_in_attributes_and_globals_are_seen_too():
    def by_attribute(c):
        Holder.scale = c
        return implicit.custom_root(Holder())(lambda z0, a: jnp.cbrt(a))(1.0, 8.0)

    def by_global(c):
        Holder.scale = c
        return implicit.custom_root(lambda z, a: z**3 - a * Holder.scale)(lambda z0, a: jnp.cbrt(a))(1.0, 8.0)

    def by_partial(c):
        return implicit.custom_root(functools.partial(lambda z, a, stretch: z**3 - a * stretch, stretch=c))(lambda z0, a: a)(
            1.0, 8.0
        )

    try:
        for f, name in ((by_attribute, "'scale'"), (by_global, "'scale'"), (by_partial, "'stretch'")):
            refused(lambda f=f: jax.grad(f)(1.0), name)
    finally:
        Holder.scale = None


def test_a_root_is_told_from_none_in_any_units():
    far = implicit.custom_root(lambda z, a: 1e-9 * (z**2 - a))(lambda z0, a: 5.0 * a)
    with pytest.raises(ms.ConvergenceError, match="no root"):
        jax.grad(far, argnums=1)(1.0, 1.0)


def test_a_failed_solve_in_forward_mode_says_so():
    solve = implicit.custom_root(lambda z, a: z**3 - a)(lambda z0, a: 0.0 * a)
    with pytest.raises(ms.LinearSolveError, match="singular"):
        jax.jvp(lambda a: solve(1.0, a), (jnp.zeros(2),), (jnp.ones(2),))


def test_solvers_that_need_values_say_so_under_jit():
    solve = implicit.custom_root(lambda z, a: z - a)(lambda z0, a: np.asarray(a))
    assert jax.grad(solve, argnums=1)(1.0, 2.0) == 1.0
    refused(lambda: jax.jit(solve)(1.0, 2.0), "cannot be traced")


def test_settings_in_the_arguments_stay_settings():
    solve = implicit.custom_root(lambda z, a, flag, n: jnp.sum(jnp.ones(n)) * z - a if flag else z)(lambda z0, a, flag, n: a / n)
    np.testing.assert_allclose(jax.grad(solve, argnums=1)(1.0, 2.0, np.bool_(True), np.int64(4)), 0.25)
    refused(lambda: solve(1.0, 2.0, True, {1, 2}), "a set", "no hash")


def test_an_answer_that_is_no_root_is_not_differentiated():
    wrong = implicit.custom_root(lambda z, a: z**3 - a)(lambda z0, a: 1.1 * jnp.cbrt(a))
    for d in (jax.grad(wrong, argnums=1), jax.jacfwd(wrong, argnums=1)):
        with pytest.raises(ms.ConvergenceError, match=r"no root: the condition has norm 2\.6e\+00"):
            d(1.0, 8.0)
    assert jnp.isnan(jax.jit(jax.grad(wrong, argnums=1))(1.0, 8.0))
    assert jnp.isnan(jax.jit(jax.jacfwd(wrong, argnums=1))(1.0, 8.0))
    allowed = implicit.custom_root(lambda z, a: z**3 - a, root_tol=None)(lambda z0, a: 1.1 * jnp.cbrt(a))
    assert jnp.isfinite(jax.grad(allowed, argnums=1)(1.0, 8.0))


def test_an_answer_near_zero_is_a_root_if_it_is_small():
    # Beside terms that vanish with it, no residual is small.
    near = implicit.custom_root(lambda z, a: z - a)(lambda z0, a: a + 1e-9)
    assert jax.grad(near, argnums=1)(0.0, 0.0) == 1.0


def test_an_answer_that_is_not_finite_is_not_differentiated():
    lost = implicit.custom_root(lambda z, a: z**3 - a)(lambda z0, a: jnp.nan * a)
    with pytest.raises(ms.ConvergenceError, match="not finite"):
        jax.grad(lost, argnums=1)(1.0, 8.0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (jnp.arange(3), "int64"),
        ("no", "a str"),
        (None, "no unknown"),
        ({"z": 1.0, "n": 3}, "a int"),
        (jnp.array(1j), "complex"),
        (jnp.zeros(0), "empty"),
        (jnp.ones(2, jnp.float16), "float16"),
    ],
)
def test_answers_that_are_no_floating_point_arrays_are_refused(answer, words):
    refused(lambda: implicit.custom_root(lambda z, a: z)(lambda z0, a: answer)(1.0, 1.0), words)


def test_a_promised_pair_must_come():
    refused(lambda: implicit.custom_root(lambda z, a: z, has_aux=True)(lambda z0, a: a)(1.0, 1.0), "pair")
    refused(lambda: implicit.custom_root(lambda z, a: z, has_aux=True)(lambda z0, a: (1.0, "done"))(1.0, 1.0), "a str")


def test_precisions_must_agree():
    single = implicit.custom_root(lambda z, a: z**3 - a)(lambda z0, a: jnp.cbrt(a).astype(jnp.float32))
    refused(lambda: jax.jacrev(single, argnums=1)(1.0, jnp.array([8.0])), "float32", "float64")


def test_a_fixed_point_map_of_another_structure_is_refused():
    solve = implicit.custom_fixed_point(lambda z, a: (z, a))(lambda z0, a: a)
    refused(lambda: jax.grad(solve, argnums=1)(1.0, 1.0), "must return what the unknown looks like")


@pytest.mark.parametrize("argnums", [1, -2, (0, 3)])
def test_argnums_out_of_range_are_refused(argnums):
    z, args, ct = jnp.array(2.0), (jnp.array(8.0),), jnp.array(1.0)
    refused(lambda: implicit.root_vjp(lambda z, a: z**3 - a, z, args, ct, argnums=argnums), "argnums")
    slope, _ = implicit.root_vjp(lambda z, a: z**3 - a, z, args, ct, argnums=0)
    np.testing.assert_allclose(slope, 1 / 12, rtol=1e-14)


def test_arguments_of_the_products_must_fit():
    condition, z, one = (lambda z, a: z**3 - a), jnp.array(2.0), jnp.array(1.0)
    refused(lambda: implicit.root_jvp(condition, z, jnp.array(8.0), (one,)), "tuple")
    refused(lambda: implicit.root_jvp(condition, z, (jnp.array(8.0),), (one, one)), "tangents")
    refused(lambda: implicit.root_jvp(condition, z, (jnp.array(8.0),), (jnp.ones(2),)), "tangents")
    refused(lambda: implicit.root_vjp(condition, z, (3,), one, argnums=0), "no floating-point array")
    np.testing.assert_allclose(implicit.root_vjp(condition, z, (8.0,), one, argnums=np.int64(0))[0], 1 / 12)
    for bad in (lambda: implicit.custom_root(3), lambda: implicit.custom_root(condition)(3)):
        refused(bad, "function")
    refused(lambda: implicit.custom_root(condition, linear_solver="cg"), "such as CG()")
    refused(lambda: implicit.root_vjp(condition, z, (jnp.array(8.0),), {"z": one}), "cotangent")


@pytest.mark.slow
def test_a_singular_jacobian_is_an_error_with_its_residual():
    A, null = singular()
    condition = lambda z, b: A @ z - b  # noqa: E731
    solve = implicit.custom_root(condition, symmetric=True)(lambda z0, b: jnp.linalg.pinv(A, rtol=1e-10) @ b)
    b = A @ jnp.ones(6)
    # Along the range there are many answers, across it none.
    with pytest.raises(ms.LinearSolveError, match="relative residual of"):
        jax.jvp(lambda b: solve(b, b), (b,), (A @ b,))
    with pytest.raises(ms.LinearSolveError, match="relative residual of"):
        implicit.root_jvp(condition, solve(b, b), (b,), (null[:, 0],), symmetric=True)
    null_space = implicit.NullSpace(basis=null)
    with pytest.raises(ms.LinearSolveError, match="relative residual of"):
        implicit.root_jvp(condition, solve(b, b), (b,), (null[:, 0],), symmetric=True, null_space=null_space)
    known = implicit.custom_root(condition, symmetric=True, null_space=lambda z, b: null_space)(lambda z0, b: solve(z0, b))
    with pytest.raises(ms.LinearSolveError, match="relative residual of"):
        jax.jvp(lambda b: known(b, b), (b,), (null[:, 0],))
    assert jnp.isnan(jax.jit(lambda v: jax.jvp(lambda b: known(b, b), (b,), (v,))[1])(null[:, 0])).all()
