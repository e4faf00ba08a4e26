"""Factors of Hessians, which are kept with an equilibrium: nearly exact inverses, and never more than preconditioners."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdsens as ms
from mdsens.derivatives import linear_response
from mdsens.derivatives.linear_response import adjoint_gradients, solutions
from mdsens.implicit import CG, MINRES
from mdsens.mechanics import factors, hessian_operator, softest_modes
from mdsens.mechanics.hessian_operator import StoredOperator


def with_sparse_factor(eq, monkeypatch):
    monkeypatch.setattr(softest_modes, "DENSE_LIMIT", 0)
    return ms.relax(eq.system, eq.potential, fmax=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_factor_inverts_the_hessian_outside_its_null_space(soft_packing, monkeypatch, kind):
    eq = soft_packing if kind == "dense" else with_sparse_factor(soft_packing, monkeypatch)
    assert isinstance(eq.hessian.factor, factors.DenseFactor if kind == "dense" else factors.SparseFactor)
    hessian = eq.hessian
    operator = hessian.product_at(hessian.z, eq.potential)
    v = hessian.null_space.project(jax.random.normal(jax.random.key(0), (hessian.size,)))
    np.testing.assert_allclose(hessian.null_space.project(operator.precondition(operator(v))), v, atol=1e-9)
    # Several right-hand sides at once, and symmetric between any two vectors.
    w = jax.vmap(hessian.null_space.project)(jax.random.normal(jax.random.key(1), (3, hessian.size)))
    images = jax.vmap(lambda r: hessian.null_space.project(operator.precondition(r)))(w)
    np.testing.assert_allclose(w @ images.T, (w @ images.T).T, rtol=1e-9)
    assert eq.hessian.factor.description in ms.sensitivity(eq).certificate.linear_solver


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_derivatives_are_those_without_a_factor(soft_packing, monkeypatch, kind):
    eq = soft_packing if kind == "dense" else with_sparse_factor(soft_packing, monkeypatch)
    fast, slow = ms.sensitivity(eq), ms.sensitivity(eq, linear_solver=CG())
    assert fast.certificate.trusted and fast.certificate.residual < 1e-13
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slow.positions))
    for a, b in zip(*map(jax.tree.leaves, (fast.positions, slow.positions)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9 * scale)
    # Second derivatives go through the same solves.
    v = jax.tree.map(jnp.ones_like, eq.potential)
    bent, plain = (ms.hessian_vector(ms.observables.pressure, eq, v, linear_solver=solver) for solver in (None, CG()))
    for a, b in zip(*map(jax.tree.leaves, (bent, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_a_free_cell_and_frozen_atoms_have_factors_too(squeezed_salt, argon_vacancy):
    assert isinstance(squeezed_salt.hessian.factor, factors.DenseFactor)
    assert ms.sensitivity(squeezed_salt).certificate.residual < 1e-11
    frozen = np.zeros(len(argon_vacancy.system), dtype=bool)
    frozen[:20] = True
    system = argon_vacancy.system
    held = ms.System(system.positions, cell=system.cell, pbc=True, species=system.symbols, frozen=frozen)
    eq = ms.relax(held, argon_vacancy.potential, fmax=1e-12)
    S = ms.sensitivity(eq)
    assert S.certificate.residual < 1e-13 and not np.asarray(S.positions.sigma)[:20].any()


def test_a_factor_that_is_gone_costs_iterations_only(soft_packing, monkeypatch):
    eq = with_sparse_factor(soft_packing, monkeypatch)
    factor, hessian = eq.hessian.factor, eq.hessian
    number = int(factor.handle)
    gone = factors.SparseFactor(jnp.asarray(number), factor.free)
    del eq, factor
    hessian = dataclasses.replace(hessian, factor=None)
    gc.collect()
    assert number not in factors._factors
    v = hessian.null_space.project(jax.random.normal(jax.random.key(0), (hessian.size,)))
    np.testing.assert_array_equal(gone(v)[gone.free], v[gone.free])


def test_other_solvers_and_saddle_points_go_without(soft_packing):
    certificate = ms.sensitivity(soft_packing, linear_solver=MINRES()).certificate
    assert "preconditioned" not in certificate.linear_solver and certificate.trusted


def test_right_hand_sides_that_share_directions_are_answered_like_each_alone(soft_packing):
    """Parallel ones, graded ones, and one that is what is left of the forces, which matters to three digits only."""
    hessian = soft_packing.hessian.solved_by(CG())
    rng = np.random.default_rng(1)
    apart, rest = rng.normal(size=(2, hessian.size)), 1e-11 * rng.normal(size=hessian.size)
    b = np.stack([apart[0], -3.0 * apart[0], 1e-3 * apart[0] + 1e-7 * apart[1], 2.0 * rest])
    weights = np.array([1.0, 5.0, 1.0, 1.0])
    answers, step, residuals, left = solutions(hessian, jnp.asarray(b), jnp.asarray(rest), weights)
    matrix = np.asarray(jax.vmap(hessian.product_at(hessian.z, soft_packing.potential))(jnp.eye(hessian.size)))
    outside = np.asarray(jax.vmap(hessian.null_space.project)(jnp.eye(hessian.size)))
    inverse = -np.linalg.pinv(outside @ matrix @ outside, rcond=1e-10, hermitian=True)
    exact = b @ inverse
    sizes = np.linalg.norm(exact, axis=1)
    assert (np.linalg.norm(answers - exact, axis=1)[:3] < 1e-9 * sizes[:3]).all()
    assert np.linalg.norm(answers[3] - exact[3]) < 1e-2 * sizes[3]
    assert np.linalg.norm(np.asarray(step) - rest @ inverse) < 1e-2 * np.linalg.norm(step)
    assert residuals.max() < 1e-11
    assert left == pytest.approx(np.linalg.norm(outside @ rest))


@pytest.mark.parametrize("kind", ["dense", "stored"])
def test_the_operator_that_is_kept_is_the_hessian(argon_vacancy, monkeypatch, kind):
    if kind == "stored":
        monkeypatch.setattr(softest_modes, "DENSE_LIMIT", 0)
    eq = ms.relax(argon_vacancy.system, argon_vacancy.potential, fmax=1e-12)
    assert isinstance(eq.hessian.operator, factors.DenseMatrix if kind == "dense" else StoredOperator)
    assert (eq.hessian.factor is None) == (kind == "stored")
    hessian = eq.hessian
    v = jax.random.normal(jax.random.key(0), (hessian.size,))
    anew = hessian.product_at(hessian.z, eq.potential)(v)
    np.testing.assert_allclose(hessian.product()(v), anew, atol=1e-12 * float(jnp.abs(anew).max()))


@pytest.mark.slow
def test_first_derivatives_do_not_assemble_what_was_kept(argon_vacancy, monkeypatch):
    eq = ms.relax(argon_vacancy.system, argon_vacancy.potential, fmax=1e-12)
    expected = ms.gradient(ms.observables.pressure, eq)

    def assembled(*_):
        raise AssertionError("the Hessian was assembled again")

    jax.clear_caches()
    monkeypatch.setattr(hessian_operator, "hessian_operator", assembled)
    np.testing.assert_allclose(ms.gradient(ms.observables.pressure, eq).sigma, expected.sigma, rtol=1e-12)
    assert ms.sensitivity(eq, wrt=["sigma"]).certificate.trusted


def test_one_slope_is_pulled_back_as_several_are(argon_vacancy, monkeypatch):
    """By the derivative of a work, by ∂F/∂θ transposed, and by ∂F/∂θ as it is kept."""
    hessian = argon_vacancy.hessian
    slopes = np.random.default_rng(1).normal(size=(2, hessian.size))
    kept, _ = adjoint_gradients(hessian, slopes)
    monkeypatch.setattr(linear_response, "BATCH", 0)
    by_work, _ = adjoint_gradients(hessian, slopes)
    hessian = dataclasses.replace(hessian, is_stored=False)
    together, _ = adjoint_gradients(hessian, slopes)
    alone, _ = adjoint_gradients(hessian, slopes[:1])
    scale = np.abs(kept).max()
    for one in (by_work, together, alone):
        # ε only scales all forces, which are zero.
        np.testing.assert_allclose(one, kept[: len(one)], rtol=1e-11, atol=1e-13 * scale)
