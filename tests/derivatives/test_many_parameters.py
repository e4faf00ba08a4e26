"""Hundreds of parameters together: the same derivatives as one after the other, from few products and one factor."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdsens as ms
from mdsens.derivatives.many_parameters import DenseSystems
from mdsens.derivatives.selection import Selection
from mdsens.implicit import CG
from mdsens.structures.packing import random_packing

N = 80


class Crowd(ms.SitePotential):
    """½ k (Σ s_j s_i (1 - r²)² - 1)²: what an atom's size does to the forces reaches to its neighbours' neighbours."""

    size: jax.Array
    stiffness: jax.Array
    cutoff: float = ms.static(1.0)

    @property
    def range(self):
        return jnp.asarray(self.cutoff)

    def site_energy(self, d, i, j, mask):
        s = jnp.sum(d * d, axis=-1) / self.cutoff**2
        near = jnp.where(mask & (s < 1.0), self.one(self.size, j) * self.one(self.size, i) * (1.0 - s) ** 2, 0.0)
        return 0.5 * self.stiffness * (jnp.sum(near) - 1.0) ** 2


@pytest.fixture(scope="module")
def polydisperse():
    diameters = np.random.default_rng(0).uniform(0.8, 1.2, N)
    system = random_packing(N, {"A": 1.0})
    frozen = np.arange(N) == 3
    system = ms.System(system.positions, cell=system.cell, pbc=True, species=["A"] * N, frozen=frozen)
    return ms.relax(system, ms.SoftSphere(diameter=diameters, epsilon=1.0), fmax=1e-11)


@pytest.mark.slow
def test_all_diameters_together_are_what_each_is_alone(polydisperse):
    together, in_turn = ms.sensitivity(polydisperse), ms.sensitivity(polydisperse, linear_solver=CG())
    assert together.certificate.linear_solver.startswith("Cholesky's factor")
    assert together.certificate.trusted == in_turn.certificate.trusted
    assert together.certificate.residual < 1e-12
    for name in ("diameter", "epsilon"):
        one, other = (np.asarray(getattr(S.positions, name)) for S in (together, in_turn))
        np.testing.assert_allclose(one, other, rtol=0.0, atol=1e-8 * np.abs(other).max() + 1e-12)
    np.testing.assert_allclose(together.certificate.error_bound, in_turn.certificate.error_bound, rtol=0.5)
    # Frozen atoms stay, exactly.
    assert not np.asarray(together.positions.diameter)[3].any()


@pytest.mark.parametrize("reach", [1, 2])
def test_slopes_from_few_products_are_those_of_the_forces(polydisperse, reach):
    """∂F/∂θ of pairs reaches one neighbour, of sites two; forces are differentiated parameter by parameter beside."""
    eq = polydisperse
    if reach == 2:
        crowd = Crowd(size=np.random.default_rng(1).uniform(0.9, 1.1, N), stiffness=0.1)
        system = eq.system.with_neighbors(crowd, skin=0.0)
        eq = eqx.tree_at(lambda e: (e.system, e.potential), eq, (system, crowd))
    hessian = dataclasses.replace(polydisperse.hessian, reference=eq.reference, potential=eq.potential)
    together = DenseSystems(hessian, Selection(eq.potential, jax.tree.map(lambda _: None, eq.potential)))
    b = together.slopes(hessian.z)[:-1]
    slopes = jax.jacfwd(lambda p: jax.grad(lambda x: p.energy(eq.system.with_positions(x)))(eq.system.positions))(eq.potential)
    known = np.concatenate([np.asarray(leaf).reshape(2 * N, -1).T for leaf in jax.tree.leaves(slopes)])
    known[:, 6:8] = 0.0
    np.testing.assert_allclose(b, known, rtol=0.0, atol=1e-12 * np.abs(known).max())
    assert (together.atoms >= 0).sum() == N or together.groups.max() + 1 == N + 1


def test_a_field_with_as_many_numbers_as_atoms_need_not_be_of_atoms(polydisperse):
    """Weights of all pairs' energies, of the size N by chance, act on all forces: their matrix is not put together."""

    class Weighted(ms.PairPotential):
        weights: jax.Array
        cutoff: float = ms.static(1.2)

        def pair_energy(self, r, i, j):
            powers = jnp.arange(1, N + 1)
            return jnp.sum(self.weights / powers) * jnp.where(r < 1.2, (1.2 - r) ** 2, 0.0)

    weighted = Weighted(weights=np.ones(N))
    system = polydisperse.system.with_neighbors(weighted, skin=0.0)
    eq = eqx.tree_at(lambda e: (e.system, e.potential), polydisperse, (system, weighted))
    hessian = dataclasses.replace(polydisperse.hessian, reference=eq.reference, potential=weighted)
    together = DenseSystems(hessian, Selection(weighted, jax.tree.map(lambda _: None, weighted)))
    assert (together.atoms < 0).all()
    b = together.slopes(hessian.z)[:-1]
    np.testing.assert_allclose(b[1], 0.5 * b[0], rtol=0.0, atol=1e-12 * np.abs(b).max())
