"""Neighbour lists against those of ASE, and what they promise: complete within the skin, the same each time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from helpers import refused

import mdsens as ms
from mdsens.structures.neighbors.search import find_neighbors
from mdsens.structures.neighbors.vectors import displacements

TRICLINIC = np.array([[4.0, 0.0, 0.0], [1.1, 3.7, 0.0], [-0.4, 0.9, 3.3]])


def scattered(n, dim=3, cell=TRICLINIC, spread=1.0, seed=0):
    """Random places, up to `spread` cells away from the cell."""
    share = np.random.default_rng(seed).uniform(-spread, 1.0 + spread, (n, dim))
    return share @ np.asarray(cell)[:dim, :dim]


def bonds(neighbors):
    """The list as a set of (i, j, *shift)."""
    rows, columns = np.nonzero(np.asarray(neighbors.mask))
    other, shift = np.asarray(neighbors.index)[rows, columns], np.asarray(neighbors.shift)[rows, columns]
    listed = list(map(tuple, np.column_stack([rows, other, shift]).tolist()))
    assert len(listed) == len(set(listed)), "a pair is listed twice"
    return set(listed)


def bonds_of_ase(positions, cell, pbc, radius):
    n, dim = positions.shape
    points, box = np.zeros((n, 3)), np.zeros((3, 3))
    points[:, :dim] = positions
    if cell is not None:
        box[:dim, :dim] = cell
    atoms = Atoms(f"H{n}", points, cell=box, pbc=[*pbc, *[False] * (3 - dim)])
    i, j, shift = neighbor_list("ijS", atoms, radius)
    return set(map(tuple, np.column_stack([i, j, shift[:, :dim]]).tolist()))


def within(positions, cell, neighbors, radius):
    """Those pairs of the list that are nearer than `radius` now."""
    d = np.linalg.norm(displacements(jnp.asarray(positions), cell, neighbors), axis=-1)
    listed = neighbors.mask & (d < radius)
    return bonds(eqx.tree_at(lambda n: n.opposite, neighbors, jnp.where(listed.T, neighbors.opposite, -1)))


SHEET = np.array([[4.0, 0.0, 0.0], [1.1, 3.7, 0.0], [0.0, 0.0, 0.0]])


def pairs_over(*sides, n=40, seed=0):
    """Pairs of atoms all over a box."""
    places = np.random.default_rng(seed).uniform(size=(n, len(sides))) * sides
    return np.concatenate([places, places + 0.4])


def moved(positions, atom, by):
    return positions + np.where(np.arange(len(positions))[:, None] == atom, by, 0.0)


CASES = {
    "triclinic crystal, atoms far outside": (scattered(30, spread=6.0), TRICLINIC, (True,) * 3, 1.5),
    "cell smaller than the cutoff": (scattered(3), TRICLINIC, (True,) * 3, 9.0),
    "one atom and its own images": (scattered(1), TRICLINIC, (True,) * 3, 9.0),
    "flat cell, images beyond the nearest": (scattered(4), TRICLINIC @ np.diag([1, 1, 0.2]), (True,) * 3, 3.0),
    "periodic along two vectors": (scattered(12), TRICLINIC, (True, False, True), 4.0),
    "periodic along the last vector": (scattered(12), TRICLINIC, (False, False, True), 4.0),
    "slab with a zero vector": (scattered(12), SHEET, (True, True, False), 4.0),
    "wire with two zero vectors": (scattered(8), np.diag([0.0, 3.0, 0.0]), (False, True, False), 4.0),
    "cluster in a box": (scattered(12), TRICLINIC, (False,) * 3, 4.0),
    "cluster without a cell": (scattered(12), None, (False,) * 3, 4.0),
    "planar": (scattered(12, dim=2, spread=3.0), TRICLINIC[:2, :2], (True, True), 1.7),
    "planar, cell smaller than the cutoff": (scattered(2, dim=2), TRICLINIC[:2, :2], (True, True), 9.0),
    "planar, periodic along one vector": (scattered(12, dim=2), TRICLINIC[:2, :2], (False, True), 4.0),
    "planar cluster": (scattered(12, dim=2), None, (False, False), 4.0),
    "nobody in reach": (10.0 * np.eye(3), None, (False,) * 3, 4.0),
    # Of more than 10⁵ cells, by which vesin ended the process.
    "wide layer": (pairs_over(1000.0, 1000.0), None, (False, False), 1.0),
    "wide film": (pairs_over(1000.0, 1000.0, 1.5), np.diag([1000.0, 1000.0, 1.5]), (True,) * 3, 1.0),
    "wide film, open": (pairs_over(1.5, 1000.0, 1000.0), None, (False,) * 3, 1.0),
    "wide film with a zero vector": (pairs_over(1000.0, 1.5, 1000.0), np.diag([1000.0, 0, 1000.0]), (True, False, True), 1.0),
    "long wire": (pairs_over(2e5, 1.0, 1.0), np.diag([2e5, 0.0, 0.0]), (True, False, False), 1.0),
    "long skewed wire": (pairs_over(2e5, 2.0, 2.0), [[2e5, 3.0, 1.0], [0.5, 2.0, 0.0], [0.0, 0.5, 2.0]], (True,) * 3, 1.0),
    "an atom that flew off": (moved(scattered(12), 3, [1e6, 0.0, 0.0]), None, (False,) * 3, 4.0),
    "an atom that is many cells away": (moved(scattered(12), 3, 1e5 * TRICLINIC.sum(axis=0)), TRICLINIC, (True,) * 3, 4.0),
    "one atom alone": (np.zeros((1, 3)), None, (False,) * 3, 4.0),
}


@pytest.mark.parametrize(("positions", "cell", "pbc", "radius"), CASES.values(), ids=CASES)
def test_pairs_are_those_of_ase(positions, cell, pbc, radius):
    neighbors = find_neighbors(positions, cell, pbc, radius=radius, skin=0.0)
    found = bonds(neighbors)
    assert found == bonds_of_ase(positions, cell, pbc, radius)
    # A full list: each pair from both sides, and no atom is its own neighbour in its own cell.
    assert {(j, i, *(-s for s in shift)) for i, j, *shift in found} == found
    assert not any(i == j and not any(shift) for i, j, *shift in found)


@pytest.mark.parametrize("case", ["triclinic crystal, atoms far outside", "cell smaller than the cutoff", "planar"])
def test_listed_vectors_are_the_distances_of_ase(case):
    positions, cell, pbc, radius = CASES[case]
    neighbors = find_neighbors(positions, cell, pbc, radius=radius, skin=0.0)
    d = np.asarray(displacements(jnp.asarray(positions), jnp.asarray(cell), neighbors))[np.asarray(neighbors.mask)]
    dim = positions.shape[1]
    points, box = np.zeros((len(positions), 3)), np.zeros((3, 3))
    points[:, :dim], box[:dim, :dim] = positions, cell
    expected = neighbor_list("d", Atoms(f"H{len(points)}", points, cell=box, pbc=[*pbc, *[False] * (3 - dim)]), radius)
    # Coordinates of about 25 Å: rounding 1e-14.
    np.testing.assert_allclose(np.sort(np.linalg.norm(d, axis=1)), np.sort(expected), atol=1e-13)


@pytest.mark.parametrize("case", ["cell smaller than the cutoff", "nobody in reach"])
def test_unused_places_are_masked_and_harmless(case):
    positions, cell, pbc, radius = CASES[case]
    neighbors = find_neighbors(positions, cell, pbc, radius=radius, skin=0.0)
    unused = ~np.asarray(neighbors.mask)
    own = np.broadcast_to(np.arange(len(positions))[:, None], unused.shape)
    assert (np.asarray(neighbors.index)[unused] == own[unused]).all()
    assert (np.asarray(neighbors.shift)[unused] == 0).all()


# Skin


def moved_by(positions, distance, seed=1):
    """Every atom moved by exactly `distance` in its own random direction."""
    step = np.random.default_rng(seed).normal(size=positions.shape)
    return positions + distance * step / np.linalg.norm(step, axis=1, keepdims=True)


@pytest.mark.parametrize("case", ["triclinic crystal, atoms far outside", "cell smaller than the cutoff", "planar"])
def test_the_list_stays_complete_while_atoms_move_less_than_half_the_skin(case):
    positions, cell, pbc, radius = CASES[case]
    skin = 0.6
    neighbors = find_neighbors(positions, cell, pbc, radius=radius, skin=skin)
    assert float(neighbors.radius) == radius + skin
    for seed in range(10):
        there = moved_by(positions, 0.4999 * skin, seed)
        assert not neighbors.is_stale(there, radius)
        assert within(there, jnp.asarray(cell), neighbors, radius) == bonds_of_ase(there, cell, pbc, radius)


def test_a_list_is_stale_once_one_atom_moved_more_than_half_the_skin():
    positions, cell, pbc, radius = CASES["triclinic crystal, atoms far outside"]
    neighbors = find_neighbors(positions, cell, pbc, radius=radius, skin=0.6)
    step = np.zeros_like(positions)
    step[17] = [0.0, 0.3, 0.0]
    stale = jax.jit(lambda x: neighbors.is_stale(x, radius))
    assert not stale(positions + 0.999 * step)
    assert stale(positions + 1.001 * step)
    assert not stale(positions + np.nan * step)  # that is worse than stale, and their energy says so


def test_a_potential_s_list_reaches_a_tenth_further_than_its_cutoff():
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.0, onset=1.5)
    system = ms.System(scattered(30), cell=TRICLINIC, pbc=True)
    assert float(system.with_neighbors(potential).neighbors.radius) == pytest.approx(2.2, rel=1e-15)
    assert float(system.with_neighbors(potential, skin=0.0).neighbors.radius) == 2.0


# Reproducibility


def test_the_list_is_the_same_bit_for_bit_each_time():
    positions, cell, pbc, radius = CASES["triclinic crystal, atoms far outside"]
    first, second = (find_neighbors(positions, cell, pbc, radius=radius, skin=0.3) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_neighbours_are_listed_in_a_fixed_order():
    positions, cell, pbc, radius = CASES["cell smaller than the cutoff"]
    neighbors = find_neighbors(positions, cell, pbc, radius=radius, skin=0.0)
    for index, shift, mask in zip(*map(np.asarray, (neighbors.index, neighbors.shift, neighbors.mask)), strict=True):
        row = list(map(tuple, np.column_stack([index, shift])[mask].tolist()))
        assert row == sorted(row)


# What is refused


@pytest.mark.parametrize(
    ("positions", "cell", "pbc"),
    [
        ([[0.0, 0, 0], [2, 2, 2], [5, 5, 5], [2, 2, 2]], None, (False,) * 3),
        ([[0.0, 0, 0], [0.3, 0.4, 0.5], [2, 2, 2], 4.0 * TRICLINIC[1] + [0.3, 0.4, 0.5]], TRICLINIC, (True,) * 3),
        ([[0.0, 0], [1, 1], [2, 0], [1, 1 + 1e-9]], None, (False, False)),
    ],
    ids=["same place", "same place in another cell", "nearly the same place"],
)
def test_coinciding_atoms_are_refused_with_both_indices(positions, cell, pbc):
    with pytest.raises(ms.InputError, match="coincide") as error:
        find_neighbors(np.array(positions), cell, pbc, radius=2.5, skin=0.1)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".")
    assert "Atoms 1 and 3" in message or "Atoms 3 and 1" in message, message


def test_positions_that_are_not_finite_are_refused():
    positions = np.zeros((3, 3))
    positions[1, 2] = np.nan
    with pytest.raises(ms.InputError, match="atom 1 is not finite"):
        find_neighbors(positions, None, (False,) * 3, radius=2.5, skin=0.1)


def test_traced_positions_without_a_list_are_refused():
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.0, onset=1.5)
    system = ms.System(np.eye(3))
    with pytest.raises(ms.InputError, match="with_neighbors"):
        jax.grad(lambda x: potential.energy(system.with_positions(x)))(system.positions)


@pytest.mark.parametrize(
    ("positions", "cell", "words"),
    [
        ([[0.0, 0.0, 0.0], [1e9, 0.0, 0.0]], None, "Atom 1 is too far away"),
        ([[0.0, 0.0, 0.0], [0.0, 1e10, 0.0]], np.eye(3), "Atom 1 is too far away"),
        ([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], 1e-5 * np.eye(3), "check the cell, its units"),
        ([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], np.diag([1e7, 1e7, 1e-3]), "check the cell, its units"),
        ([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], np.diag([5.0, 1e9, 5.0]), "check the cell, its units"),
    ],
    ids=["far away", "many cells away", "a tiny cell", "a thin cell", "a long cell"],
)
def test_structures_without_end_are_refused(positions, cell, words):
    pbc = [cell is not None] * 3
    refused(lambda: find_neighbors(np.array(positions), cell, pbc, radius=2.0, skin=0.2), words)
