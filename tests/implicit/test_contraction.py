"""Spectral radii of maps with known eigenvalues, and a contracting map that learns; no atom in sight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refused

import mdsens as ms
from mdsens import implicit
from mdsens.implicit.contraction import DENSE_LIMIT, check_contraction, spectral_radius


def random_matrix(n, radius, seed=0):
    """A matrix without symmetry, whose largest eigenvalues are complex, and its spectral radius."""
    matrix = np.random.default_rng(seed).normal(size=(n, n)) / np.sqrt(n)
    return jnp.asarray(radius / np.abs(np.linalg.eigvals(matrix)).max() * matrix)


def affine(z, matrix, b):
    flat, unravel = jax.flatten_util.ravel_pytree(z)
    return unravel(matrix @ flat + b)


@pytest.mark.parametrize("n", [12, DENSE_LIMIT + 50], ids=["dense", "ARPACK"])
@pytest.mark.parametrize("radius", [0.6, 2.5])
def test_the_spectral_radius_of_a_matrix(n, radius):
    z = {"a": jnp.zeros((2, 3)), "b": [jnp.ones(n - 6)]}
    assert spectral_radius(affine, z, random_matrix(n, radius), 1.0) == pytest.approx(radius, rel=1e-9)


def test_a_map_that_ignores_the_point_contracts_at_once():
    for n in (3, DENSE_LIMIT + 1):
        assert spectral_radius(lambda z, b: b, jnp.zeros(n), jnp.ones(n)) == 0.0


def test_the_distance_to_the_fixed_point_falls_by_the_spectral_radius():
    # Kepler's equation: T(E) = M + e sin E, T' = e cos E.
    def step(E, M, e):
        return M + e * jnp.sin(E)

    end = jax.lax.fori_loop(0, 200, lambda _, E: step(E, 0.4, 0.8), 1.0)
    rate = check_contraction(step, end, 0.4, 0.8)
    assert rate == pytest.approx(0.8 * abs(np.cos(end)), rel=1e-12)
    near = end + 1e-6
    assert (step(near, 0.4, 0.8) - end) / (near - end) == pytest.approx(rate, rel=1e-5)


def test_a_map_that_does_not_contract_is_refused_with_its_spectral_radius():
    with pytest.raises(ms.ConvergenceError, match=r"The map T does not contract: .* is 1\.25, .*damp the map.*\.$"):
        check_contraction(affine, jnp.zeros(12), random_matrix(12, 1.25), 0.0)
    with pytest.raises(ms.ConvergenceError, match=r"The field of 7 spins .* is 1, .*; cool it\.$"):
        check_contraction(lambda z: -z, jnp.zeros(7), what="The field of 7 spins", remedy="cool it")


def test_what_has_no_spectral_radius_is_refused():
    refused(lambda: spectral_radius(lambda z: z[:2], jnp.zeros(3)), "3 unknowns", "2 numbers")
    refused(lambda: spectral_radius(lambda z: jnp.sqrt(z), jnp.zeros(3)), "not finite")
    refused(lambda: spectral_radius(lambda z: jnp.sqrt(z), jnp.zeros(DENSE_LIMIT + 1)), "not finite")
    refused(lambda: jax.jit(lambda z: spectral_radius(jnp.sin, z))(1.0), "outside jit")


# A contracting map on a neighbour graph whose weights are learned: J. Park, J. Choo, J. Park, "Convergent Graph Solvers",
# ICLR 2022, arXiv:2106.01680. Their map is linear in the state and bounded below 1 by its form.


def messages(state, weights, system):
    """z_i ← c Σ_j w_ij z_j + b_i: a share c < 1 of an average over neighbours, weighted by distance, and a bias by species."""
    x, neighbors = system.positions, system.neighbors
    r2 = jnp.sum((x[neighbors.index] - x[:, None]) ** 2, axis=-1)
    logits = jnp.where(neighbors.mask, -jax.nn.softplus(weights["decay"]) * r2, -jnp.inf)
    share = jax.nn.sigmoid(weights["share"])
    return share * jnp.sum(jax.nn.softmax(logits, axis=1) * state[neighbors.index], axis=1) + weights["bias"][system.species]


@implicit.custom_fixed_point(messages)
def graph_state(start, weights, system):
    return jax.lax.fori_loop(0, 300, lambda _, z: messages(z, weights, system), start)


def test_a_contracting_map_on_a_graph_learns_through_its_fixed_point():
    positions = np.random.default_rng(2).uniform(0.0, 3.0, (10, 3))
    system = ms.System(positions, species=["A", "B"] * 5)
    system = system.with_neighbors(ms.LennardJones(epsilon={}, sigma=1.0, cutoff=6.0, onset=5.0), skin=0.0)
    start = jnp.zeros(10)
    hidden = {"decay": jnp.asarray(0.4), "share": jnp.asarray(1.2), "bias": jnp.array([1.0, -0.5])}
    target = graph_state(start, hidden, system)

    @jax.jit
    def loss(weights):
        return jnp.mean((graph_state(start, weights, system) - target) ** 2)

    weights = {"decay": jnp.asarray(-1.0), "share": jnp.asarray(0.0), "bias": jnp.array([0.2, 0.1])}
    slope = jax.jit(jax.grad(loss))
    for name in weights:
        change = jax.tree.map(jnp.zeros_like, weights) | {name: jnp.ones_like(weights[name])}

        def at(h, change=change):
            return float(loss(jax.tree.map(lambda w, c: w + h * c, weights, change)))

        expected = (8 * (at(1e-3) - at(-1e-3)) - (at(2e-3) - at(-2e-3))) / 12e-3
        assert float(jnp.sum(slope(weights)[name])) == pytest.approx(expected, rel=1e-8)

    losses = [float(loss(weights))]
    for _ in range(30):
        weights = jax.tree.map(lambda w, g: w - 0.3 * g, weights, slope(weights))
        assert check_contraction(messages, start, weights, system) < float(jax.nn.sigmoid(weights["share"])) + 1e-12
        losses.append(float(loss(weights)))
    assert losses[-1] < 0.05 * losses[0] and all(np.diff(losses) < 0.0)
