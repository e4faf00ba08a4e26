"""Solvers of any condition: they arrive where an independent program does, and their derivative is the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.optimize
from helpers import refused
from jax.flatten_util import ravel_pytree

import mdsens as ms
from mdsens import implicit, solvers
from mdsens.structures.packing import random_packing

START = jnp.array([-0.9, 0.9, 0.7, 0.6])


def valley(z, a):
    """Rosenbrock's valley with a tilt that has no closed form."""
    return jnp.sum(a * (z[1:] - z[:-1] ** 2) ** 2 + (1.0 - z[:-1]) ** 2) + 0.3 * jnp.sum(jnp.cosh(z - 0.5))


@pytest.fixture(scope="module")
def bottom():
    """The minimum at a = 10 and its derivative, by SciPy and differences."""

    def at(a):
        gradient = jax.grad(valley)
        found = scipy.optimize.root(lambda z: gradient(z, a), near, jac=lambda z: jax.hessian(valley)(z, a), tol=1e-14)
        return found.x

    near = scipy.optimize.minimize(lambda z: float(valley(z, 10.0)), START, method="Nelder-Mead", tol=1e-8).x
    h = 1e-3
    slope = (8 * (at(10 + h) - at(10 - h)) - (at(10 + 2 * h) - at(10 - 2 * h))) / (12 * h)
    return at(10.0), slope


MINIMISERS = {
    "truncated newton": solvers.TruncatedNewton(max_step=None),
    "l-bfgs": solvers.LBFGS(max_step=None),
    "fire": solvers.FIRE(dt_start=0.01, dt_max=0.05, max_step=None),
    "gradient descent": solvers.GradientDescent(2e-3),
    "optax": solvers.Optax(optax.sgd(2e-3, momentum=0.9)),
    "damped dynamics": solvers.DampedDynamics(dt=0.05, friction=1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("solver", MINIMISERS.values(), ids=MINIMISERS)
def test_minimisers_find_the_minimum_and_its_derivative(solver, bottom):
    solve = solvers.minimum(valley, solver=solver, tolerance=1e-11, max_steps=100_000)
    np.testing.assert_allclose(solve(START, 10.0), bottom[0], atol=1e-10)
    # The reference is a difference over h = 1e-3: rounding 1e-14 / h.
    np.testing.assert_allclose(jax.jacfwd(solve, argnums=1)(START, 10.0), bottom[1], atol=1e-9)


@pytest.mark.slow
def test_under_jit_and_vmap_the_same_steps_run_compiled(bottom):
    solve = solvers.minimum(valley)
    batch = jax.jit(jax.vmap(jax.jacrev(lambda a: solve(START, a))))(jnp.array([10.0, 12.0]))
    np.testing.assert_allclose(batch[0], bottom[1], atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [solvers.LBFGS(), solvers.TruncatedNewton(), solvers.GradientDescent(0.02)], ids=str)
def test_minimisers_relax_structures_too(solver, soft_packing):
    rng = np.random.default_rng(0)
    start = soft_packing.system.with_positions(soft_packing.system.positions + 1e-3 * rng.normal(size=(128, 2)))
    eq = ms.relax(start, soft_packing.potential, solver=solver, fmax=1e-10, polish=False)
    np.testing.assert_allclose(eq.energy, soft_packing.energy, rtol=1e-9)


def coupled(z, t):
    return {"x": z["x"] ** 3 + t * z["y"] - 2.0, "y": jnp.sin(z["y"]) + t**2 * z["x"] - 1.0}


@pytest.mark.slow
def test_newton_with_halved_steps_finds_a_root_of_any_pytree():
    solve = solvers.root(coupled)
    z = solve({"x": 3.0, "y": 0.2}, 0.5)
    assert all(abs(float(leaf)) < 1e-10 for leaf in jax.tree.leaves(coupled(z, 0.5)))
    h = 1e-4
    for name in "xy":
        found = jax.jacrev(lambda t, name=name: solve(z, t)[name])(0.5)
        ahead, behind = (solve(z, 0.5 + s)[name] for s in (h, -h))
        np.testing.assert_allclose(found, (ahead - behind) / (2 * h), rtol=1e-6)  # a difference of second order, over h = 1e-4


def test_newton_takes_no_step_that_raises_the_residual():
    """Newton's whole steps at arctan z = 0 go farther and farther off from |z| > 1.3917, and halved ones arrive."""
    solve = solvers.root(lambda z, t: jnp.arctan(z - t), solver=solvers.Newton(max_step=None, backtracks=40))
    for start in (3.0, -40.0):
        np.testing.assert_allclose(solve(jnp.asarray(start), 0.5), 0.5, atol=1e-9)


FIXED = {"picard": ms.FixedPoint("picard"), "damped picard": solvers.Picard(damping=0.6), "anderson": solvers.Anderson()}


@pytest.mark.parametrize("solver", FIXED.values(), ids=FIXED)
def test_fixed_points(solver):
    a = jnp.array([0.5, 0.8, 0.9])
    solve = solvers.fixed_point(lambda z, a: jnp.cos(a * z), solver=solver, tolerance=1e-13)
    z = solve(jnp.ones(3), a)
    np.testing.assert_allclose(z, jnp.cos(a * z), atol=1e-12)
    slope = -z * jnp.sin(a * z) / (1.0 + a * jnp.sin(a * z))
    np.testing.assert_allclose(jax.jacrev(solve, argnums=1)(jnp.ones(3), a), jnp.diag(slope), atol=1e-11)


def test_anderson_converges_where_the_map_does_not_contract():
    T = lambda z, a: jnp.cos(a * z)  # noqa: E731
    a = jnp.array([2.5, 3.0])
    with pytest.raises(ms.ConvergenceError, match="Picard"):
        solvers.fixed_point(T, solver=solvers.Picard(), max_steps=200)(jnp.ones(2), a)
    z = solvers.fixed_point(T)(0.4 * jnp.ones(2), a)
    np.testing.assert_allclose(z, jnp.cos(a * z), atol=1e-9)


def test_members_of_a_batch_have_a_status_each():
    solve = solvers.root(lambda z, a: z**2 - a, return_status=True)
    a = jnp.array([2.0, -1.0, 3.0])
    z, code = jax.vmap(solve, in_axes=(None, 0))(1.0, a)
    assert [ms.Status.from_code(c) is ms.Status.CONVERGED for c in code] == [True, False, True]
    assert jnp.isnan(z[1])
    np.testing.assert_allclose(z[::2], jnp.sqrt(a[::2]), rtol=1e-10)  # the tolerance
    slopes = jax.vmap(jax.grad(lambda a: solve(1.0, a)[0]))(a)
    assert not jnp.isfinite(slopes[1])
    np.testing.assert_allclose(slopes[::2], 0.5 / jnp.sqrt(a[::2]), rtol=1e-10)


def test_solvers_find_minima_uphill_and_downhill():
    """Picard and Anderson go along the residual, minimisers against it: each gets the sign it is made for."""
    hills = lambda z, a: -jnp.cos(z - a)  # noqa: E731
    for solver in (solvers.Anderson(), solvers.Picard(damping=0.5), solvers.FIRE(max_step=None)):
        np.testing.assert_allclose(solvers.minimum(hills, solver=solver)(0.4, 0.1), 0.1, atol=1e-9)
    halved = lambda z, a: 0.5 * z + a  # noqa: E731
    for solver in (ms.FixedPoint("damped dynamics", dt=0.3), solvers.LBFGS(max_step=None), solvers.GradientDescent(0.5)):
        np.testing.assert_allclose(solvers.fixed_point(halved, solver=solver)(0.0, 1.0), 2.0, atol=1e-9)


def test_anderson_relaxes_structures_and_not_apart(soft_packing):
    start = soft_packing.system.with_positions(soft_packing.system.positions + 1e-4 * jnp.sin(jnp.arange(256.0)).reshape(-1, 2))
    eq = ms.relax(start, soft_packing.potential, solver=ms.FixedPoint("anderson", damping=0.1), fmax=1e-9, polish=False)
    np.testing.assert_allclose(eq.energy, soft_packing.energy, rtol=1e-9)


UNITS = (1e-20, 1e-10, 1e-5, 1.0, 1e10, 1e20)


@pytest.mark.parametrize("unit", [1e-10, 1e10])
def test_no_unit_of_a_condition_or_of_its_unknown_matters(unit):
    """The root of c (x³ - 8 u³) is 2 u, and its slope in 8 u³ is 1/(3 x²); the minimum of c ‖x - a u‖² is a u."""
    cube = solvers.root(lambda x, c, b: c * (x**3 - b))
    nearest = solvers.minimum(lambda x, c, a: c * jnp.sum((x - a) ** 2))
    a = unit * jnp.array([0.0, 1.0, -2.0])
    slope, each = jax.jit(jax.grad(cube, argnums=2)), jax.jit(jax.vmap(nearest, in_axes=(None, None, 0)))
    for c in map(jnp.asarray, UNITS):
        for start in jnp.array([3.0, 100.0]):
            np.testing.assert_allclose(cube(start * unit, c, jnp.asarray(8.0 * unit**3)), 2.0 * unit, rtol=1e-10)
        np.testing.assert_allclose(slope(3.0 * unit, c, 8.0 * unit**3) * unit**2, 1.0 / 12.0, rtol=1e-9)
        np.testing.assert_allclose(nearest(unit * jnp.array([3.0, 4.0, 5.0]), c, a) / unit, a / unit, atol=1e-10)
        together = each(unit * jnp.ones(3), c, jnp.stack([a, 2.0 * a]))
        np.testing.assert_allclose(together / unit, jnp.stack([a, 2.0 * a]) / unit, atol=1e-10)
    change = solvers.fixed_point(lambda z, u: u * jnp.cos(z / u))
    # Dottie's number.
    np.testing.assert_allclose(change(unit * 0.5, unit) / unit, 0.7390851332151607, rtol=1e-10)


def test_each_component_of_a_condition_has_its_own_unit():
    solve = solvers.root(lambda x: jnp.stack([x[0] - 1.0, 1e-7 * (x[1] ** 3 - 8.0), 1e5 * (x[2] - x[1])]))
    np.testing.assert_allclose(solve(jnp.array([4.0, 5.0, 6.0])), [1.0, 2.0, 2.0], rtol=1e-9)


@pytest.mark.parametrize("T", [lambda z: z + 0.29, lambda z: z + 1.0 / (1.0 + z * z), lambda z: z + 0.29 + 0.2 * jnp.sin(z)])
def test_a_map_without_a_fixed_point_is_told_from_one_whose_change_is_rounding(T):
    """At z = -5.5e15 the sum z + 0.29 is z in floating point."""
    with pytest.raises(ms.ConvergenceError):
        solvers.fixed_point(T, max_steps=1000)(jnp.array([1.0, 2.0]))
    assert jnp.isnan(jax.jit(solvers.fixed_point(T, max_steps=1000))(jnp.array([1.0, 2.0]))).all()


def test_a_map_that_runs_away_is_named_whatever_the_tolerance():
    with pytest.raises(ms.ConvergenceError, match="its own rounding"):
        solvers.fixed_point(lambda z: z + 0.29, tolerance=1e-12)(jnp.array([1.0, 2.0]))


def test_a_saddle_is_no_minimum():
    with pytest.raises(ms.ConvergenceError, match="saddle"):
        solvers.minimum(lambda z, a: z[0] ** 2 - z[1] ** 2 + a * z[1] ** 4)(jnp.array([1.0, 0.0]), 1.0)


def test_a_root_at_a_saddle_point_is_fine():
    solve = solvers.root(lambda z, a: jnp.array([2.0, -2.0]) * z - a, symmetric=True)
    np.testing.assert_allclose(jax.jacrev(solve, argnums=1)(jnp.zeros(2), jnp.ones(2)), np.diag([0.5, -0.5]), atol=1e-12)


def test_single_precision_has_its_own_tolerance():
    solve = solvers.root(lambda z, a: z**3 + z - a)
    z = solve(jnp.ones(2, jnp.float32), jnp.float32(2.7))
    assert z.dtype == jnp.float32
    bottom = solvers.minimum(lambda z, a: jnp.sum((z - a) ** 2 + 0.1 * z**4))
    assert bottom(jnp.ones(2, jnp.float32), jnp.float32(2.7)).dtype == jnp.float32


def test_a_quadratic_program_is_solved_through_its_conditions():
    condition = implicit.optimality.kkt(
        lambda x, q: jnp.sum((x - q) ** 2), inequality=lambda x, q: x - 1.0, complementarity="fischer-burmeister"
    )
    point = implicit.optimality.KKTPoint(jnp.zeros(2), None, jnp.zeros(2))
    found = solvers.root(condition)(point, jnp.array([3.0, 0.5]))
    np.testing.assert_allclose(found.x, [1.0, 0.5], atol=1e-9)
    np.testing.assert_allclose(found.inequality, [4.0, 0.0], atol=1e-9)


# The derivative does not care which solver found the answer


@pytest.fixture(scope="module")
def small_packing():
    diameters = {"A": 1.0, "B": 0.6}
    return ms.relax(random_packing(32, diameters, seed=4), ms.SoftSphere(diameter=diameters, epsilon=1.0), fmax=1e-13)


def _energy(positions, theta, system):
    potential = ms.SoftSphere(diameter={"A": 1.0, "B": theta}, epsilon=1.0)
    return potential.energy(system.with_positions(positions))


@pytest.mark.slow
def test_five_solvers_one_equilibrium_one_jacobian(small_packing):
    import jax_md.minimize

    eq = small_packing
    system = eq.system.with_neighbors(eq.potential, skin=0.5)
    start = eq.system.positions + 1e-4 * jnp.sin(jnp.arange(64.0)).reshape(-1, 2)
    energy = functools.partial(_energy, system=system)
    force = jax.grad(energy)
    translations = implicit.NullSpace(basis=jnp.tile(jnp.eye(2), (32, 1)) / jnp.sqrt(32.0))
    names = {
        "fire": solvers.FIRE(),
        "jax-md": solvers.JaxMD(jax_md.minimize.fire_descent),
        "l-bfgs": solvers.LBFGS(),
        "truncated newton": solvers.TruncatedNewton(),
        "optax": solvers.Optax(optax.sgd(0.05, momentum=0.8)),
    }
    found = {}
    for name, solver in names.items():
        solve = solvers.root(
            force, solver=solver, symmetric=True, tolerance=1e-12, max_steps=50_000, null_space=lambda z, t: translations
        )
        found[name] = solve(start, 0.6), jax.jacfwd(solve, argnums=1)(start, 0.6)
    decorate = implicit.custom_root(force, symmetric=True, null_space=lambda z, t: translations)
    black_box = decorate(solvers.scipy_root(force, method="lm", options={"xtol": 1e-15, "ftol": 1e-15}))
    found["scipy"] = black_box(start, 0.6), jax.jacfwd(black_box, argnums=1)(start, 0.6)

    centred = lambda x: np.asarray(x - jnp.mean(x, axis=0))  # noqa: E731
    reference = ms.sensitivity(eq, wrt=["diameter.B"]).positions.diameter["B"]
    for z, jacobian in found.values():
        np.testing.assert_allclose(centred(z), centred(eq.system.positions), atol=1e-10)
        np.testing.assert_allclose(jacobian, reference, atol=1e-9)


@pytest.mark.slow
def test_whatever_runs_like_a_jaxopt_solver_can_be_plugged_in(bottom):
    class Solver:
        """`run(init, *args) -> (params, state)`, as jaxopt's."""

        def run(self, z0, a):
            found = scipy.optimize.minimize(valley, z0, args=(a,), jac=jax.grad(valley), method="BFGS", tol=1e-9)
            return jnp.asarray(found.x), {"iterations": found.nit, "error": float(np.abs(found.jac).max())}

    solve = implicit.custom_root(jax.grad(valley), has_aux=True, symmetric=True)(Solver().run)
    z, state = solve(START, 10.0)
    np.testing.assert_allclose(z, bottom[0], atol=1e-8)
    assert state["error"] < 1e-8
    # The answer is good to 1e-9, and so is its derivative (Theorem 1 of Blondel et al.).
    np.testing.assert_allclose(jax.jacrev(lambda a: solve(START, a)[0])(10.0), bottom[1], atol=1e-7)


@pytest.mark.slow
def test_steps_of_dynamics_with_friction_are_fixed_point_maps(small_packing):
    """FIRE without its switches is damped dynamics; jax-md's own steps serve as T as they are."""
    import jax_md.minimize
    import jax_md.simulate

    eq = small_packing
    system = eq.system.with_neighbors(eq.potential, skin=0.5)
    energy, x, rest = functools.partial(_energy, system=system), eq.system.positions, jnp.zeros((32, 2))
    shift = lambda x, dx, **_: x + dx  # noqa: E731

    def descent(x, theta):
        init, apply = jax_md.minimize.gradient_descent(lambda x, **_: energy(x, theta), shift, 0.1)
        return apply(init(x))

    def langevin(state, theta):
        # Without heat it is deterministic: friction alone.
        init, apply = jax_md.simulate.nvt_langevin(lambda x, **_: energy(x, theta), shift, dt=0.1, kT=0.0, gamma=2.0)
        started = init(jax.random.key(0), state[0], mass=1.0, kT=0.0)
        moved = apply(started.set(position=state[0], momentum=state[1], force=-jax.grad(energy)(state[0], theta)))
        return moved.position, moved.momentum

    ours = solvers.DampedDynamics(dt=0.1, friction=2.0).map(jax.grad(energy))
    reference = ms.sensitivity(eq, wrt=["diameter.B"]).positions.diameter["B"]
    for T, state in ((descent, x), (langevin, (x, rest)), (ours, (x, rest))):
        # A packing may rest anywhere: its translations, and the momentum that a step conserves, are known.
        flat, unravel = ravel_pytree(state)
        slope = np.asarray(jax.jacobian(lambda z, T=T, unravel=unravel: ravel_pytree(T(unravel(z), 0.6))[0] - z)(flat))
        right, left = (jnp.asarray(scipy.linalg.null_space(matrix, rcond=1e-9)) for matrix in (slope, slope.T))
        known = implicit.NullSpace(basis=right, left=left)
        solve = implicit.custom_fixed_point(T, null_space=lambda *_, known=known: known)(lambda z0, theta: z0)
        tangent = jax.jvp(lambda theta, solve=solve, state=state: solve(state, theta), (0.6,), (1.0,))[1]
        positions = tangent[0] if isinstance(tangent, tuple) else tangent
        np.testing.assert_allclose(positions, reference, atol=1e-9)


# What must be refused or said


def test_a_solve_that_does_not_arrive_says_how_far_it_came():
    with pytest.raises(ms.ConvergenceError, match=r"after \d+ steps \(residual \d"):
        solvers.root(lambda z, a: z**2 + a)(1.0, 1.0)
    with pytest.raises(ms.ConvergenceError, match="did not arrive"):
        solvers.scipy_root(lambda z, a: z**2 + a)(jnp.array([1.0]), 1.0)


def test_black_boxes_cannot_be_traced():
    solve = implicit.custom_root(lambda z, a: z**2 - a)(solvers.scipy_root(lambda z, a: z**2 - a))
    refused(lambda: jax.jit(solve)(jnp.array([1.0]), 2.0), "cannot be traced")
    minimise = solvers.scipy_minimize(lambda z, a: jnp.sum((z - a) ** 2))
    refused(lambda: jax.vmap(minimise, in_axes=(None, 0))(jnp.array([1.0]), jnp.ones(2)), "cannot be traced")


@pytest.mark.parametrize(
    "call",
    [
        lambda: solvers.root(lambda z: z, tolerance=0.0),
        lambda: solvers.root(lambda z: z)(jnp.arange(3)),
        lambda: solvers.root(lambda z: z[:2])(jnp.ones(3)),
        lambda: solvers.LBFGS(memory=0),
        lambda: solvers.TruncatedNewton(max_step=-1.0),
        lambda: solvers.Newton(rtol=2.0),
        lambda: solvers.Picard(damping=0.0),
        lambda: solvers.Anderson(memory=0),
        lambda: ms.FixedPoint("andersen"),
        lambda: ms.FixedPoint("picard", memory=3),
        lambda: solvers.GradientDescent(0.0),
        lambda: solvers.DampedDynamics(dt=1.0, friction=2.0),
        lambda: solvers.Optax(3),
        lambda: solvers.minimum(valley, solver="newton"),
        lambda: solvers.minimum(valley, solver=solvers.scipy_minimize),
        lambda: solvers.minimum(lambda z: z)(jnp.ones(2)),
    ],
)
def test_settings_that_make_no_sense_are_refused(call):
    refused(call)
