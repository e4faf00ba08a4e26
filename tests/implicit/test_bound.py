"""The a-posteriori bound on the error of a derivative: it holds, or it says that it can't."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from ase.build import bulk
from helpers import refused

import mdsens as ms
from mdsens import implicit
from mdsens.implicit import bound

rng = np.random.default_rng(0)
X, Y = jnp.asarray(rng.normal(size=(20, 5))), jnp.asarray(rng.normal(size=20))
PENALTY, ONE = (jnp.array(0.7),), (jnp.array(1.0),)


def ridge_condition(w, penalty):
    return X.T @ (X @ w - Y) + penalty * w


def ridge(penalty):
    return jnp.linalg.solve(X.T @ X + penalty * jnp.eye(5), X.T @ Y)


@pytest.mark.slow
def test_ridge_regression_along_gradient_descent():
    exact = jax.jacfwd(ridge)(0.7)
    w = jnp.zeros(5)
    for step in range(201):
        if step % 40 == 0:
            dw, _ = implicit.root_jvp(ridge_condition, w, PENALTY, ONE, symmetric=True)
            found = implicit.jacobian_bound(ridge_condition, w, PENALTY, ONE, dw, symmetric=True)
            error = float(jnp.linalg.norm(dw - exact))
            # The worst direction is not the true one, but it is not far: the bound is of use.
            assert error <= found.error <= 10.0 * error + 1e-13
            np.testing.assert_allclose(found.distance, jnp.linalg.norm(w - ridge(0.7)), rtol=1e-8, atol=1e-13)
            assert found.trusted == (found.error <= 0.01 * found.size)
        w = w - 0.02 * ridge_condition(w, 0.7)


def curved(z, theta):
    return jnp.array([z[0] ** 3 + theta * z[1] - 2.0, jnp.sin(z[1]) + theta**2 * z[0] - 1.0])


@pytest.fixture(scope="module")
def curved_root():
    z = jnp.array([1.1, 0.5])
    for _ in range(30):
        z = z - jnp.linalg.solve(jax.jacfwd(curved)(z, 0.5), curved(z, 0.5))
    return z


@pytest.mark.parametrize("distance", [0.3, 0.1, 1e-2, 1e-4, 1e-6, 1e-9, 0.0])
def test_a_curved_condition_at_any_distance(curved_root, distance):
    theta = (jnp.array(0.5),)
    exact = -jnp.linalg.solve(jax.jacfwd(curved)(curved_root, 0.5), jax.jacfwd(curved, argnums=1)(curved_root, 0.5))
    z = curved_root + distance * jnp.array([1.0, -0.7])
    dz, _ = implicit.root_jvp(curved, z, theta, ONE)
    found = implicit.jacobian_bound(curved, z, theta, ONE, dz)
    assert jnp.linalg.norm(dz - exact) <= found.error
    assert found.trusted == (distance <= 1e-2)
    assert found.trusted or found.reason


@pytest.mark.parametrize("share", [0.1, 1e-2, 1e-3, 1e-4])
def test_a_square_root_from_above_where_the_curvature_falls(share):
    a = 1e-4
    z, theta = jnp.sqrt(a) * (1.0 + share), (jnp.array(a),)
    dz, _ = implicit.root_jvp(lambda z, a: z**2 - a, z, theta, ONE)
    found = implicit.jacobian_bound(lambda z, a: z**2 - a, z, theta, ONE, dz)
    assert abs(float(dz) - 0.5 / np.sqrt(a)) <= found.error


WELL = [0.15, 0.08, 0.01, 1e-3, -1e-3, -0.01, -0.08]
"""How far off, as a share of the distance from the middle of a double well, where curvatures fall towards the root."""


@pytest.mark.parametrize("share", WELL)
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_a_double_well_that_is_the_softer_the_shallower(share, shift):
    theta = 1e-8
    root = np.sqrt(theta)
    z = jnp.array([shift + root * (1.0 + share), shift + 1.0])

    def condition(z, theta):
        y, stiff = z - shift
        return jnp.array([y**3 - theta * y, 5.0 * (stiff - 1.0)])

    dz, _ = implicit.root_jvp(condition, z, (jnp.array(theta),), ONE, symmetric=True)
    found = implicit.jacobian_bound(condition, z, (jnp.array(theta),), ONE, dz, symmetric=True)
    error = abs(float(dz[0]) - 0.5 / root)
    assert error <= found.error
    # It is of use where the state is near, in coordinates that say so: at 1e4 roundings are 2e-8 of the distance.
    assert found.error <= 2.0 * error or share < -0.05


@pytest.mark.parametrize("share", WELL)
@pytest.mark.parametrize("depth", [1e-4, 1e-2])
def test_the_certificate_of_an_atom_that_buckled_between_two(share, depth):
    """Springs of length l between atoms at ±1 and one that gives way to y = √(l² - 1): dy/dl = l / y."""
    length = np.sqrt(1.0 + depth**2)
    system = ms.System([[-1.0, 0.0], [0.0, depth * (1.0 + share)], [1.0, 0.0]], frozen=[True, False, True])
    eq = ms.relax(system, Spring(length, 1.0), fmax=0.1, solver=ms.FIRE(), polish=False)
    S = ms.sensitivity(eq)
    assert eq.steps == 0
    assert length * abs(float(S.positions.length[1, 1]) - length / depth) <= S.certificate.error_bound


class Spring(ms.PairPotential):
    length: float
    k: float
    cutoff: float = ms.static(1.5)

    def pair_energy(self, r, i, j):
        return 0.5 * self.k * (r - self.length) ** 2


def test_it_judges_any_derivative_an_unrolled_one_too():
    theta, w = jnp.array(0.7), ridge(0.7)
    exact = jax.jacfwd(ridge)(0.7)

    def unrolled(theta):
        return jax.lax.fori_loop(0, 30, lambda _, w: w - 0.02 * ridge_condition(w, theta), jnp.zeros(5))

    dw = jax.jacfwd(unrolled)(theta)
    found = implicit.jacobian_bound(ridge_condition, w, (theta,), ONE, dw, symmetric=True)
    error = jnp.linalg.norm(dw - exact)
    assert error <= found.error <= 20.0 * error


@pytest.mark.parametrize("exponent", range(2, 17, 2))
def test_an_ill_conditioned_family_is_bounded_or_not_trusted(exponent):
    n = 8
    mpmath.mp.dps = 60
    basis, _ = np.linalg.qr(np.random.default_rng(exponent).normal(size=(n, n)))
    A = jnp.asarray(basis @ np.diag(np.logspace(0, -exponent, n)) @ basis.T)
    A, b = 0.5 * (A + A.T), jnp.asarray(rng.normal(size=n))
    # F = A z - θ b, whose tangent A⁻¹b is the same everywhere; the reference has 60 digits.
    exact = np.array([float(v) for v in mpmath.lu_solve(mpmath.matrix(A.tolist()), mpmath.matrix(b.tolist()))])
    condition = lambda z, theta: A @ z - theta * b  # noqa: E731
    z, theta = jnp.linalg.solve(A, b), (jnp.array(1.0),)
    dz, residual = implicit.root_jvp(condition, z, theta, ONE, symmetric=True, throw=False)
    if not residual < 1e-6:
        assert jnp.isnan(dz).all()  # nobody is misled
        return
    found = implicit.jacobian_bound(condition, z, theta, ONE, dz, symmetric=True)
    assert np.linalg.norm(dz - exact) <= found.error or not found.trusted
    # In between, ε times the condition number decides.
    assert found.trusted or exponent > 10, found
    assert not found.trusted or exponent < 15, found


@pytest.mark.slow
def test_the_known_null_space_is_left_out():
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    A = jnp.asarray(basis @ np.diag([0.0, 0.5, 1.0, 2.0, 5.0, 9.0]) @ basis.T)
    null_space, b = implicit.NullSpace(basis=jnp.asarray(basis[:, :1])), A @ jnp.asarray(rng.normal(size=6))
    condition = lambda z, theta: A @ z - theta * b  # noqa: E731
    z, theta = jnp.linalg.pinv(A, rtol=1e-10) @ b, (jnp.array(1.0),)
    options = {"symmetric": True, "null_space": null_space}
    dz, _ = implicit.root_jvp(condition, z, theta, ONE, **options)
    found = implicit.jacobian_bound(condition, z, theta, ONE, dz, **options)
    np.testing.assert_allclose([found.lowest, found.highest], [0.5, 9.0], rtol=1e-12)
    assert found.trusted and jnp.linalg.norm(dz - z) <= found.error
    blind = implicit.jacobian_bound(condition, z, theta, ONE, dz, symmetric=True)
    assert not blind.trusted and "singular" in blind.reason


def test_large_operators_get_their_singular_values_by_lanczos(monkeypatch):
    A = jnp.asarray(rng.normal(size=(30, 30)) + 8.0 * np.eye(30))
    monkeypatch.setattr(bound, "DENSE_LIMIT", 0)
    found = bound.RootCondition(lambda z, s: s * (A @ z), (1.0,)).singular_values(jnp.zeros(30))
    np.testing.assert_allclose(found, np.linalg.svd(A, compute_uv=False)[[-1, 0]], rtol=1e-2)


def test_the_bound_allows_for_rounding_of_what_it_measures():
    """3 z = θ at θ = 1: fl(1/3) makes 3 fl(1/3) - 1 exactly zero in floating point, and is off all the same."""
    third = jnp.asarray(1.0 / 3.0)
    condition = lambda z, theta: 3.0 * z - theta  # noqa: E731
    assert float(condition(third, 1.0)) == 0.0
    found = implicit.jacobian_bound(condition, third, (jnp.array(1.0),), ONE, third, symmetric=True)
    assert abs(Fraction(float(third)) - Fraction(1, 3)) <= Fraction(found.error)
    assert found.trusted


def test_a_root_that_is_not_reached_counts_by_the_lipschitz_constant():
    """z² = a at a = 1 from z = 1.001 behind a step of 0.005 that left 0.001 of the way.

    The derivative 1/2z is off by 5e-4, of which A J + B = 0 at that very place shows nothing.
    """
    z, step = 1.001, 5e-3
    derivative, alpha = 0.5 / z, 2.0 * z
    found = bound.error_bound(
        abs(alpha * derivative - 1.0),
        step,
        z**2 - 1.0,
        slope=lambda: 2.0 * derivative,
        softening=lambda: 2.0,
        lowest=alpha,
        highest=alpha,
        size=derivative,
        eps=2e-16,
        noise=2e-16,
    )
    # To first order in the distance to the root, which is 1e-3.
    assert 0.99 * abs(derivative - 0.5) <= found <= 2.0 * abs(derivative - 0.5)


def test_traced_values_are_refused():
    refused(lambda: jax.jit(lambda z: implicit.jacobian_bound(curved, z, (0.5,), ONE, z))(jnp.ones(2)), "concrete")


@pytest.mark.slow
def test_the_certificate_of_a_loose_equilibrium_covers_its_error(soft_packing):
    exact = ms.sensitivity(soft_packing, wrt=["diameter.B"]).positions.diameter["B"]
    start = soft_packing.system.with_positions(soft_packing.system.positions + 1e-5 * jnp.sin(jnp.arange(256.0)).reshape(-1, 2))
    for fmax in (1e-6, 1e-8):
        loose = ms.relax(start, soft_packing.potential, solver=ms.FIRE(), fmax=fmax, polish=False)
        S = ms.sensitivity(loose, wrt=["diameter.B"])
        error = 0.6 * float(jnp.linalg.norm(S.positions.diameter["B"] - exact))
        assert error <= S.certificate.error_bound <= 100.0 * error, (error, S.certificate)
        assert S.certificate.linear_solver.startswith("Cholesky's factor")


CLUSTER = [[0.0, 0.0, 0.0], [1.12, 0.0, 0.0], [0.56, 0.97, 0.0], [0.56, 0.32, 0.91], [1.5, 0.9, 0.9]]


@pytest.fixture(scope="module")
def cluster():
    potential = ms.LennardJones(sigma=1.0, epsilon=1.0, cutoff=4.0)
    return ms.relax(ms.System(CLUSTER), potential, fmax=1e-12)


@pytest.mark.slow
def test_a_logarithm_that_is_zero_is_bounded_like_the_parameter_itself(cluster):
    """σ = ε = 1, so that dX/d ln σ = dX/dσ."""
    start = cluster.system.with_positions(cluster.system.positions + 1e-5 * jnp.cos(jnp.arange(15.0)).reshape(5, 3))
    logarithms = ms.reparameterised(cluster.potential, {"sigma": "log", "epsilon": "log"})
    exact = ms.sensitivity(cluster).positions.sigma
    bounds = []
    for potential in (cluster.potential, logarithms):
        S = ms.sensitivity(ms.relax(start, potential, fmax=0.1, polish=False, solver=ms.FIRE()))
        assert 0.0 < jnp.linalg.norm(S.positions.sigma - exact) <= S.certificate.error_bound
        bounds.append(S.certificate.error_bound)
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)


@pytest.mark.parametrize("shift", [1e2, 1e4, 1e6])
def test_a_cluster_far_from_the_origin_is_known_as_well(cluster, shift):
    """But for the rounding of its coordinates, 1.2e-10 at 1e6."""
    far = cluster.system.with_positions(cluster.system.positions + shift * jnp.array([1.0, -0.7, 0.5]))
    S = ms.sensitivity(ms.relax(far, cluster.potential, fmax=1e-8))
    error = float(jnp.linalg.norm(S.positions.sigma - ms.sensitivity(cluster).positions.sigma))
    assert error <= S.certificate.error_bound < 1e-10 + 1e-14 * shift
    assert S.certificate.trusted, S.certificate


@pytest.mark.slow
@pytest.mark.parametrize("fmax", [1e-8, 1e-10])
@pytest.mark.parametrize(("name", "a"), [("Si", 5.3), ("Si", 5.431), ("Ar", 5.25)])
def test_a_perfect_primitive_cell_is_trusted_however_little_force_is_left(name, a, fmax):
    """By symmetry nothing moves, and all that is computed is rounding."""
    potential = ms.StillingerWeber.silicon() if name == "Si" else ms.LennardJones(sigma=3.4, epsilon=0.0104, cutoff=8.5)
    S = ms.sensitivity(ms.relax(ms.System.from_ase(bulk(name, a=a)), potential, fmax=fmax))
    assert S.certificate.trusted, S.certificate
    moved = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(S.scaled().positions))
    assert moved <= S.certificate.error_bound < 1e-13


@pytest.mark.slow
def test_a_perfect_crystal_of_two_atoms_has_derivatives_of_rounding_only():
    crystal = ms.System.from_ase(bulk("Ar", "bcc", a=4.2, cubic=True))
    S = ms.sensitivity(ms.relax(crystal, ms.LennardJones(sigma=3.4, epsilon=0.0104, cutoff=8.5)))
    assert S.certificate.trusted, S.certificate
    assert jnp.abs(S.positions.sigma).max() <= S.certificate.error_bound
