"""Structures of different sizes relaxed and differentiated together, against each alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from helpers import refused

import mdsens as ms
from mdsens.solvers import Status

FMAX = 1e-11


@pytest.fixture(scope="module")
def salts():
    """Crystals with a vacancy of three sizes, two of which are padded alike, and a cluster."""
    potential = ms.LennardJones(
        epsilon={"A-A": 1.0, "A-B": 1.1, "B-B": 0.9}, sigma={"A-A": 1.0, "A-B": 0.97, "B-B": 0.94}, cutoff=1.9, onset=1.5
    )
    systems = []
    for size, missing in (((2, 2, 2), [7]), ((2, 2, 2), [3, 9]), ((3, 2, 2), [5])):
        atoms = bulk("Ar", "fcc", a=1.52, cubic=True) * size
        del atoms[missing]
        systems.append(ms.System(atoms.positions, cell=atoms.cell.array, pbc=True, species=list("AAB" * 20)[: len(atoms)]))
    corners = 1.1 * np.array([[0.0, 0, 0], [1, 0.1, 0], [0, 1, 0.1], [0.1, 0, 1], [1, 1, 1]])
    systems.append(ms.System(corners, species=list("AABAB")))
    return systems, potential


def spread(positions):
    return jnp.sum(jnp.linalg.norm(positions[1:] - positions[0], axis=1) ** 3)


@pytest.mark.slow
def test_each_is_what_it_is_alone(salts):
    systems, potential = salts
    together, codes = ms.equilibrium_positions(systems, potential, fmax=FMAX, return_status=True)
    assert [Status.from_code(int(code)) for code in codes] == [Status.CONVERGED] * len(systems)
    for system, found in zip(systems, together, strict=True):
        assert found.shape == system.positions.shape
        forces = potential.forces(system.with_positions(found))
        assert np.abs(forces).max() < FMAX
        alone = ms.equilibrium_positions(system, potential, fmax=FMAX)
        # A cluster may turn on its way.
        lengths = [jnp.linalg.norm(x[:, None] - x, axis=-1) for x in (found, alone)]
        np.testing.assert_allclose(*lengths, atol=1e-9)


@pytest.mark.slow
def test_they_are_differentiated_together(salts):
    systems, potential = salts

    def loss(potential):
        return sum(spread(x) for x in ms.equilibrium_positions(systems, potential, fmax=FMAX))

    total = jax.grad(loss)(potential)
    each = [jax.grad(lambda p, s=s: spread(ms.equilibrium_positions(s, p, fmax=FMAX)))(potential) for s in systems]
    for found, *expected in zip(*map(jax.tree.leaves, (total, *each)), strict=True):
        np.testing.assert_allclose(found, sum(expected), rtol=1e-7, atol=1e-8)


@pytest.mark.slow
def test_a_bad_member_is_nan_and_changes_nothing_for_the_others(salts):
    systems, potential = salts
    torn = eqx.tree_at(lambda s: s.positions, systems[0], systems[0].positions.at[3].add(0.45))
    settings = {"max_steps": 2, "return_status": True}
    good, codes = ms.equilibrium_positions(systems[:2], potential, **settings)
    assert all(Status.from_code(int(code)) is Status.CONVERGED for code in codes)
    found, codes = ms.equilibrium_positions([torn, systems[1]], potential, **settings)
    assert np.isnan(found[0]).all() and Status.from_code(int(codes[0])) is not Status.CONVERGED
    # To rounding: the other one's neighbours give both lists more places.
    np.testing.assert_allclose(found[1], good[1], atol=1e-13)


def test_what_cannot_be_a_member_is_named(salts):
    systems, potential = salts
    refused(lambda: ms.equilibrium_positions([], potential), "no systems")
    alien = ms.System(np.eye(3), species="C")
    refused(lambda: ms.equilibrium_positions([systems[0], alien], potential), "System 1", "C-C")
    everywhere = ms.JaxMD(lambda positions, k: k * jnp.sum(positions**2), k=1.0)
    refused(lambda: ms.equilibrium_positions([systems[0]], everywhere), "System 0", "one at a time")


@pytest.mark.slow
def test_a_saddle_point_among_many_is_told(salts):
    # Three atoms in a line, the outer ones out of reach of each other but for what pulls them together: they buckle.
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.9, onset=2.6)
    line = ms.System([[-1.1, 0.0, 0.0], [0.0, 0.0, 0.0], [1.1, 0.0, 0.0]])
    bent = ms.System([[-1.1, 0.0, 0.0], [0.0, 0.9, 0.0], [1.1, 0.0, 0.0]])
    with pytest.raises(ms.ConvergenceError, match="saddle"):
        ms.relax(line, potential)
    together = jax.jit(lambda p: ms.equilibrium_positions([line, bent], p, return_status=True))
    for find in (lambda p: ms.equilibrium_positions([line, bent], p, return_status=True), together):
        positions, codes = find(potential)
        assert [Status.from_code(int(code)) for code in codes] == [Status.SADDLE, Status.CONVERGED]
        assert np.isnan(positions[0]).all()
        lengths = np.linalg.norm(positions[1] - np.roll(positions[1], 1, axis=0), axis=1)
        np.testing.assert_allclose(lengths, 2 ** (1 / 6), rtol=1e-9)
    slope = jax.grad(lambda p: spread(ms.equilibrium_positions([line, bent], p)[1]))(potential)
    # All lengths are proportional to σ: two of them cubed, at σ = 1.
    np.testing.assert_allclose(slope.sigma, 3 * 2 * 2**0.5, rtol=1e-6)
    assert np.isnan(jax.grad(lambda p: spread(ms.equilibrium_positions([line, bent], p)[0]))(potential).sigma)


@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_derivative_of_what_did_not_converge_is_nan_in_both_modes(several):
    """Pairs that are NaN apart are out of reach: the energy drops them, and its derivatives were zero."""
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.9, onset=2.6)
    torn = ms.System([[-1.1, 0.0, 0.0], [0.0, 1.9, 0.0], [1.3, 0.0, 0.0]])
    near = ms.System([[-0.56, 0.0, 0.0], [0.0, 0.971, 0.0], [0.56, 0.0, 0.0]])

    def found(potential):
        if several:
            return ms.equilibrium_positions([near, torn], potential, max_steps=4)
        return [None, ms.equilibrium_positions(torn, potential, max_steps=4)]

    assert np.isnan(jax.jit(lambda p: found(p)[1])(potential)).all()
    along = ms.LennardJones(epsilon=0.0, sigma=1.0, cutoff=2.9, onset=2.6)
    assert np.isnan(jax.jit(lambda t: jax.jvp(lambda p: found(p)[1], (potential,), (t,))[1])(along)).all()
    slope = jax.jit(jax.grad(lambda p: spread(found(p)[1])))(potential)
    assert np.isnan(slope.sigma) and np.isnan(slope.epsilon)
    if several:
        # All lengths are proportional to σ, as above.
        slope = jax.jit(jax.grad(lambda p: spread(found(p)[0])))(potential)
        np.testing.assert_allclose(slope.sigma, 3 * 2 * 2**0.5, rtol=1e-6)
