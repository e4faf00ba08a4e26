"""Chains of images between two equilibria, and what cannot be the ends of one."""

import dataclasses

import matplotlib.axes
import numpy as np
import pytest
from helpers import refused

import mdsens as ms
from mdsens import plot
from mdsens.equilibrium.elastic_band import nudged_chain


def test_the_highest_image_of_a_vacancys_jump_is_half_way(vacancy_jump):
    chain, atom = vacancy_jump.chain, vacancy_jump.atom
    assert chain.converged and chain.fmax <= 0.5
    assert len(chain.images) == 7 and chain.highest == 3
    # The two halves are mirror images, as far as the chain has converged: forces of 0.5 over curvatures of 50 and more.
    np.testing.assert_allclose(chain.energies, chain.energies[::-1], atol=0.05)
    np.testing.assert_allclose(np.diff(chain.lengths), np.diff(chain.lengths)[::-1], atol=0.01)
    ends = [np.asarray(chain.images[k].positions[atom]) for k in (0, -1)]
    np.testing.assert_allclose(chain.images[3].positions[atom], 0.5 * (ends[0] + ends[1]), atol=0.01)
    np.testing.assert_allclose(ends[1] - ends[0], vacancy_jump.jump, atol=0.1)
    # The atom that jumps makes up nearly all of the path.
    assert np.linalg.norm(chain.tangent) == pytest.approx(1.0)
    assert chain.tangent[atom] @ vacancy_jump.jump / np.linalg.norm(vacancy_jump.jump) > 0.95


def test_a_chain_in_the_plane_with_frozen_atoms():
    """A disc that passes between two others, from one hollow to the next."""
    rows = np.array([[x, y] for y in (0.0, 1.0) for x in range(6)], dtype=float) * [1.0, 1.8]
    potential = ms.LennardJones(epsilon=1.0, sigma=0.9, cutoff=2.5, onset=2.0)
    frozen = np.arange(13) < 12

    def hollow(x):
        start = ms.System(np.vstack([rows, [x, 0.9]]), cell=np.diag([6.0, 20.0]), pbc=True, frozen=frozen)
        return ms.relax(start, potential, fmax=1e-10)

    # Across the boundary of the cell: at its nearest image the last hollow is behind the first.
    chain = nudged_chain(hollow(0.4), hollow(5.6), images=5, fmax=1e-3, interpolation="linear")
    assert chain.images[2].positions.shape == (13, 2) and chain.highest == 2
    np.testing.assert_allclose(chain.images[2].positions[12], [0.0, 0.9], atol=1e-6)
    assert not chain.tangent[:12].any()


def test_the_picture_of_a_chain(vacancy_jump):
    ax = plot.chain(vacancy_jump.chain)
    assert isinstance(ax, matplotlib.axes.Axes) and "Å" in ax.get_xlabel() and "eV" in ax.get_ylabel()


def test_a_chain_that_did_not_converge_says_so(vacancy_jump):
    ends = vacancy_jump.initial, vacancy_jump.final
    assert not nudged_chain(*ends, fmax=1e-3, max_steps=2, throw=False).converged
    with pytest.raises(ms.ConvergenceError, match="max_steps"):
        nudged_chain(*ends, fmax=1e-3, max_steps=2)


def test_what_cannot_be_the_ends_of_a_chain_is_refused(vacancy_jump):
    initial, final = vacancy_jump.initial, vacancy_jump.final
    system, potential = initial.system, initial.potential
    positions, cell = np.asarray(system.positions), np.asarray(system.cell)
    build = lambda positions, cell=cell, **options: ms.System(  # noqa: E731
        positions, cell=cell, pbc=True, **{"species": "Ar", **options}
    )
    frozen = np.arange(len(system)) == 0
    harder = dataclasses.replace(potential, epsilon=1.1)
    for words, ends in {
        "the same structure": (initial, initial),
        "same atoms": (initial, build(positions[1:])),
        "same order": (initial, build(positions, species=["Ar"] * (len(system) - 1) + ["Kr"])),
        "same cell": (initial, build(positions, 1.01 * cell)),
        "same frozen atoms": (initial, build(positions, frozen=frozen)),
        "relax it first": (initial, build(positions + 0.05 * np.sin(positions))),
        "two equilibria": (initial, positions),
    }.items():
        refused(lambda ends=ends: nudged_chain(*ends), words)
    refused(lambda: nudged_chain(system, final.system), "potential")
    refused(lambda: nudged_chain(initial, final, harder), "different potentials")
    refused(lambda: nudged_chain(initial, final, images=2), "images >= 3")
    refused(lambda: nudged_chain(initial, final, interpolation="spline"), "idpp")
    refused(lambda: nudged_chain(initial, final, fmax=0.0), "fmax")
