"""The linear system of a small structure: factors, null space, spectrum, and what is refused."""

import numpy as np
import pytest

import mdsens as ms
from mdsens.mechanics.dense_system import dense_systems, spectra_of
from mdsens.mechanics.unknown import reference_at

CHAIN = np.array([[2.0, -1.0, 0.0, -1.0], [-1.0, 2.0, -1.0, 0.0], [0.0, -1.0, 2.0, -1.0], [-1.0, 0.0, -1.0, 2.0]])
"""A ring of four springs."""


def ring(springs=CHAIN):
    """Return the matrix of four atoms on a ring of springs that act alike in all directions."""
    return np.kron(springs, np.eye(3))


def system_of(matrix, frozen=()):
    positions = np.arange(12.0).reshape(4, 3) % 5.0
    held = np.isin(np.arange(4), frozen)
    system = ms.System(positions, cell=3 * [9.0], pbc=True, frozen=held)
    return dense_systems(positions[None], [reference_at(system)], np.repeat(held[None, :, None], 3, axis=2), matrix[None])[0]


def test_it_solves_outside_its_null_space():
    matrix = ring()
    dense = system_of(matrix)
    right = np.random.default_rng(0).normal(size=12)
    answer = dense.solve(right)
    assert dense.basis.shape == (12, 3) and dense.rattlers == ()
    left = right - matrix @ answer
    np.testing.assert_allclose(left, dense.basis @ (dense.basis.T @ left), atol=1e-13)
    np.testing.assert_allclose(dense.basis.T @ answer, 0.0, atol=1e-13)


def test_its_spectrum_is_that_of_the_matrix():
    spectrum = spectra_of([system_of(ring()), system_of(2.0 * ring())])[1]
    assert (spectrum.lowest, spectrum.highest) == (pytest.approx(4.0), pytest.approx(8.0))
    assert spectrum.exact and spectrum.index == spectrum.floppy == 0


def test_atoms_without_contact_and_frozen_ones_are_left_out():
    springs = CHAIN.copy()
    springs[1] = springs[:, 1] = 0.0
    dense = system_of(ring(springs), frozen=[0])
    assert dense.rattlers == (1,) and dense.free.tolist() == list(range(6, 12))


@pytest.mark.parametrize("softest", [1e-10, 0.0, -1e-3])
def test_what_is_soft_is_no_proven_minimum(softest):
    modes = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)) + 5.0 * np.eye(4)[0] * np.ones((4, 1)))[0]
    modes[:, 0] = 0.5
    modes = np.linalg.qr(modes)[0]
    dense = system_of(ring(modes @ np.diag([0.0, softest, 1.0, 3.0]) @ modes.T))
    assert dense is None or spectra_of([dense]) == [None]


def test_forces_that_are_no_gradient_have_none():
    # Each atom pushes the next one, and is not pushed back: rigid motions cost nothing all the same.
    turn = np.array([[0.0, 1.0, 0.0, -1.0], [-1.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 1.0], [1.0, 0.0, -1.0, 0.0]])
    assert system_of(ring()) is not None and system_of(ring(CHAIN + 1e-3 * turn)) is None


def test_a_rigid_motion_that_costs_energy_has_none():
    assert system_of(ring() + 1e-3 * np.eye(12)) is None
