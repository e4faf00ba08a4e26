"""Bands at small wave vectors, motions that cost nothing, Grüneisen parameters in a plane, against sums by NumPy."""

import functools
import io

import ase.io
import jax
import numpy as np
import pytest
from ase.build import bulk
from differences import FMAX, richardson

import mdsens as ms
from mdsens.observables import entropy, gruneisen_parameters, harmonic_free_energy, phonon_frequencies
from mdsens.observables.lattice_dynamics import THZ
from mdsens.observables.thermodynamics import EV_PER_THZ

DIRECTION = np.array([1.0, 0.3, 0.2])
EPSILON, SIGMA, CUTOFF = 0.0103, 3.4, 6.5


def lennard_jones(r, sigma):
    """First and second derivative of the pair energy."""
    s = (sigma / r) ** 6
    return EPSILON * (24 * s - 48 * s**2) / r, EPSILON * (624 * s**2 - 168 * s) / r**2


def one_atom_bands(cell, q, mass, derivatives, cutoff):
    """ω²/|q|² of a lattice of one atom: Σ_R Φ(R) 2 sin²(π q·R) / m |q|², whose terms do not cancel."""
    dim = len(cell)
    steps = np.stack(np.meshgrid(*[np.arange(-9, 10)] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    steps = steps[np.any(steps != 0, axis=1)]
    arms = steps @ cell
    r = np.linalg.norm(arms, axis=1)
    steps, arms, r = steps[r < cutoff], arms[r < cutoff], r[r < cutoff]
    first, second = derivatives(r)
    along = arms[:, :, None] * arms[:, None, :] / (r**2)[:, None, None]
    stiffness = second[:, None, None] * along + (first / r)[:, None, None] * (np.eye(dim) - along)
    weights = 2.0 * np.sin(np.pi * (steps @ q)) ** 2 / np.dot(q, q)
    return np.linalg.eigvalsh(np.tensordot(weights, stiffness, 1) / mass)


def logarithmic(function, at, h=1e-3):
    """dlnω/dx of what gives ω², by differences of fourth order."""
    logs = {k: 0.5 * np.log(function(at + k * h)) for k in (-2, -1, 1, 2)}
    return (8 * (logs[1] - logs[-1]) - (logs[2] - logs[-2])) / (12 * h)


@pytest.mark.parametrize("size", [5e-5, 1e-7, 1e-11])
def test_sound_has_its_speed_at_any_wave_vector(size):
    q = size * DIRECTION
    system = ms.System.from_ase(bulk("Ar", "fcc", a=5.26))
    potential = ms.LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=CUTOFF, switch="truncated")
    cell, mass = np.asarray(system.cell), float(system.masses[0])

    def squared(strain, sigma=SIGMA):
        return one_atom_bands(cell * (1 + strain), q, mass, lambda r: lennard_jones(r, sigma), CUTOFF * (1 + strain))

    expected = THZ * np.sqrt(squared(0.0)) * np.linalg.norm(q)
    np.testing.assert_allclose(phonon_frequencies(q)(system, potential), expected, rtol=1e-11)
    # The neighbours that are listed stay the same.
    gamma = -logarithmic(squared, 0.0) / 3.0
    np.testing.assert_allclose(gruneisen_parameters(q)(system, potential), gamma, rtol=1e-8)
    slope = ms.jacobian(phonon_frequencies(q), ms.relax(system, potential)).sigma
    expected_slope = expected * logarithmic(lambda sigma: squared(0.0, sigma), SIGMA)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-8)


@pytest.mark.parametrize("masses", [(28.0855, 28.0855), (2.0, 2000.0)], ids=["equal", "unlike"])
def test_sound_in_a_crystal_of_two_atoms_follows_its_elastic_constants(silicon, masses):
    # Christoffel's matrix of the known constants of this potential, along a direction without symmetry.
    system = ms.System.from_ase(bulk("Si", a=5.431))
    system = ms.System(system.positions, cell=system.cell, pbc=True, species="Si", masses=masses)
    C11, C12, C44 = 151.42, 76.42, 56.45
    gpa = 1.0 / 160.21766208
    bands = []
    for size in (1e-4, 1e-8, 1e-12):
        q = size * DIRECTION
        wave = 2.0 * np.pi * np.linalg.inv(np.asarray(system.cell)) @ q
        n = wave / np.linalg.norm(wave)
        matrix = (C12 + C44) * np.outer(n, n) + np.diag(C44 + (C11 - C12 - 2 * C44) * n**2)
        density = sum(masses) / float(system.volume)
        expected = THZ * np.sqrt(np.linalg.eigvalsh(gpa * matrix) / density) * np.linalg.norm(wave)
        bands.append(np.asarray(phonon_frequencies(q)(system, silicon))[:3] / size)
        np.testing.assert_allclose(bands[-1], expected / size, rtol=3e-4)  # the constants are rounded to 0.02
    np.testing.assert_allclose(bands[1], bands[0], rtol=1e-6)
    np.testing.assert_allclose(bands[2], bands[1], rtol=1e-10)


def soft_spheres(r):
    """Derivatives of ε/α (1 - r/s)^α with s = 2, α = 5/2, ε = 1."""
    return -0.5 * (1 - r / 2.0) ** 1.5, 0.375 * np.sqrt(1 - r / 2.0)


def test_gruneisen_parameters_in_a_plane_match_a_sum_over_the_lattice():
    cell = np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)]]) * 0.9
    potential = ms.SoftSphere(diameter=2.0, epsilon=1.0, alpha=2.5)
    system = ms.System(np.zeros((1, 2)), cell=cell, pbc=True, masses=1.0)
    points = np.array([[0.11, 0.27], [0.4, -0.2], [1e-8, 3e-8]])
    found = gruneisen_parameters(points)(system, potential)
    for q, gamma in zip(points, np.asarray(found), strict=True):
        squared = lambda strain: one_atom_bands(cell * (1 + strain), q, 1.0, soft_spheres, 2.0)  # noqa: B023, E731
        # V dν/dV is half of the derivative in the strain.
        np.testing.assert_allclose(gamma, -logarithmic(squared, 0.0, 1e-4) / 2.0, rtol=1e-7)


def triangle(z, turn):
    angles = turn + 2 * np.pi * np.arange(3) / 3
    return np.stack([2.2 * np.cos(angles), 2.2 * np.sin(angles), np.full(3, z)], axis=1)


@functools.cache
def wire(lie="z") -> ms.Equilibrium:
    """A wire of octahedra of argon."""
    potential = ms.LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=8.0, onset=7.0)
    positions, order = np.concatenate([triangle(0.0, 0.0), triangle(3.1, np.pi / 3)]), {"z": [0, 1, 2], "x": [2, 0, 1]}[lie]
    cell = np.diag(np.array([30.0, 30.0, 6.2])[order])
    system = ms.System(positions[:, order], cell=cell, pbc=np.array([False, False, True])[order], species="Ar")
    return ms.relax(system, potential, cell="free", fmax=FMAX)


def hessian_by_differences(eq, h=1e-4):
    """Of forces, the periodic images moving along: D(0) without masses."""
    x = np.asarray(eq.system.positions)
    columns = []
    for k in range(x.size):
        step = np.zeros(x.size)
        step[k] = h
        step = step.reshape(x.shape)
        forces = {n: np.asarray(eq.potential.forces(eq.system.with_positions(x + n * step))) for n in (-2, -1, 1, 2)}
        columns.append(-(8 * (forces[1] - forces[-1]) - (forces[2] - forces[-2])).ravel() / (12 * h))
    return np.array(columns)


def through_a_file(system):
    """Eight decimals: forces of 1e-9 in this wire."""
    text = io.StringIO()
    ase.io.write(text, system.to_ase(), format="extxyz")
    return ms.System.from_ase(ase.io.read(io.StringIO(text.getvalue()), format="extxyz"))


@pytest.mark.slow
@pytest.mark.parametrize("lie", ["z", "x"])
def test_the_rotation_of_a_wire_is_no_vibration(lie):
    eq, T = wire(lie), 30.0
    values = np.linalg.eigvalsh(hessian_by_differences(eq) / float(eq.system.masses[0]))
    assert (np.abs(values[:4]) < 1e-7).all()
    quantum = EV_PER_THZ * THZ * np.sqrt(values[4:])
    thermal = 8.617330337217213e-05 * T
    free = np.sum(0.5 * quantum + thermal * np.log1p(-np.exp(-quantum / thermal)))
    disorder = np.sum(quantum / T / np.expm1(quantum / thermal) - thermal / T * np.log1p(-np.exp(-quantum / thermal)))
    noise = 3e-6 * np.random.default_rng(0).normal(size=eq.system.positions.shape)
    # The last is far enough from its equilibrium that forces of 1e-6 eV/Å are left.
    states = [eq.system, through_a_file(eq.system), eq.system.with_positions(eq.system.positions + noise)]
    for system, tolerance in zip(states, (1e-7, 1e-7, 1e-5), strict=True):
        frequencies = np.asarray(phonon_frequencies()(system, eq.potential))
        assert (frequencies[:4] == 0.0).all()
        assert frequencies[4] > 0.1
        np.testing.assert_allclose(harmonic_free_energy(T)(system, eq.potential), free, rtol=tolerance)
        np.testing.assert_allclose(entropy(T)(system, eq.potential), disorder, rtol=tolerance)


@pytest.mark.slow
def test_bands_of_a_wire_near_gamma_have_derivatives_and_twist():
    eq = ms.relax(wire().system, wire().potential, fmax=FMAX)
    q = np.array([[0.0, 0.0, 0.2], [0.0, 0.0, 1e-3]])

    def squared(state):
        # Tension makes ν² of bending bands change sign within a step, to which it is proportional and ν is not.
        frequencies = np.asarray(phonon_frequencies(q)(state.system, state.potential))
        return frequencies * np.abs(frequencies)

    slopes = np.asarray(ms.jacobian(phonon_frequencies(q), eq).sigma)
    slopes = 2.0 * slopes * np.asarray(phonon_frequencies(q)(eq.system, eq.potential))
    difference = richardson(eq, "sigma", observable=squared)
    for slope, other in zip(slopes, difference, strict=True):
        np.testing.assert_allclose(slope, other, atol=1e-7 * np.abs(other).max())
    np.testing.assert_allclose(slopes[1, :4], difference[1, :4], rtol=1e-5)
    # Bending bands go as q², twist and sound as q.
    near, nearer = (np.asarray(phonon_frequencies([0.0, 0.0, t])(eq.system, eq.potential))[:4] for t in (1e-3, 1e-4))
    np.testing.assert_allclose(near / nearer, [100.0, 100.0, 10.0, 10.0], rtol=1e-3)
    farther = np.asarray(phonon_frequencies([0.0, 0.0, 1e-9])(eq.system, eq.potential))[2:4]
    np.testing.assert_allclose(farther / nearer[2:4], 1e-5, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_a_straight_chain_has_no_rotation(count):
    # Springs between neighbours: ν = (k/m)^½ |sin(πq)| / π along the chain, nothing across it.
    d = 2 ** (1 / 6) * SIGMA
    potential = ms.LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=5.0, switch="truncated")
    positions = [[0.0, 0.0, k * d] for k in range(count)]
    system = ms.System(positions, cell=np.diag([30.0, 30.0, count * d]), pbc=[False, False, True], species="Ar")
    stiffness = lennard_jones(d, SIGMA)[1] / float(system.masses[0])
    for q in (0.2, 1e-8)[: 3 - count]:
        found = np.asarray(phonon_frequencies([0.0, 0.0, count * q])(system, potential))
        expected = THZ * 2.0 * np.sqrt(stiffness) * np.sin(np.pi * q)
        assert (np.abs(found[:2]) < 1e-6 * expected).all()
        np.testing.assert_allclose(found[2 * count], expected, rtol=1e-7)


@pytest.mark.slow
def test_a_molecule_in_a_box_turns_at_no_cost_though_forces_are_left():
    # Six motions cost nothing: three rotations are no sound of the crystal, and so there is no thermodynamics.
    potential = ms.LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=8.0, onset=7.0)
    system = ms.System(triangle(0.0, 0.1), cell=20.0 * np.eye(3), pbc=True, species="Ar")
    eq = ms.relax(system, potential)
    for decimals in (12, 6):
        rounded = eq.system.with_positions(np.round(np.asarray(eq.system.positions), decimals))
        frequencies = np.asarray(phonon_frequencies()(rounded, potential))
        assert (frequencies[:6] == 0.0).all()
        # A triangle of equal springs k: ω² = 3 k / 2m twice, 3 k / m once.
        assert frequencies[8] / frequencies[6] == pytest.approx(np.sqrt(2.0), rel=1e-5)
        with pytest.raises(ms.InputError, match="cost no energy"):
            entropy(10.0)(rounded, potential)


@pytest.mark.slow
def test_second_derivatives_of_sound_match_differences():
    system = ms.System.from_ase(bulk("Ar", "fcc", a=5.26)).with_neighbors(
        ms.LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=CUTOFF, switch="truncated"), skin=0.1
    )
    q = 1e-6 * DIRECTION

    def bands(sigma):
        return phonon_frequencies(q)(system, ms.LennardJones(epsilon=EPSILON, sigma=sigma, cutoff=CUTOFF, switch="truncated"))

    def expected(sigma):
        cell, mass = np.asarray(system.cell), float(system.masses[0])
        return THZ * np.sqrt(one_atom_bands(cell, q, mass, lambda r: lennard_jones(r, sigma), CUTOFF)) * np.linalg.norm(q)

    h = 3e-3
    at = [expected(SIGMA + k * h) for k in (-2, -1, 0, 1, 2)]
    bend = (16 * (at[3] + at[1]) - (at[4] + at[0]) - 30 * at[2]) / (12 * h**2)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(jax.jacfwd(bands)))(SIGMA), bend, rtol=1e-5)
