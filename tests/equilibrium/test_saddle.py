"""Saddle points: known ones of model surfaces, and what must not be taken for one."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from ase.build import bulk
from differences import at
from helpers import refused

import mdsens as ms
from mdsens import implicit, solvers
from mdsens.derivatives.verification import check_sensitivity
from mdsens.equilibrium.climb import POLISH
from mdsens.solvers import MinimumMode, Problem, Status


def problem_of(energy) -> Problem:
    return Problem(lambda z, data: jax.grad(energy)(z), symmetric=True, kind="gradient")


def search(problem, solver, start, *, tolerance=1e-10, max_steps=300):
    return solvers.solve(problem, solver, start, None, tolerance=tolerance, max_steps=max_steps)


def mueller_brown(z):
    """K. Müller, L. D. Brown, Theor. Chim. Acta 53, 75 (1979)."""
    x, y = z
    strength, a, b, c = jnp.array([[-200, -100, -170, 15], [-1, -1, -6.5, 0.7], [0, 0, 11, 0.6], [-10, -10, -6.5, 0.7]])
    x, y = x - jnp.array([1, 0, -0.5, -1]), y - jnp.array([0, 0.5, 1.5, 1])
    return jnp.sum(strength * jnp.exp(a * x**2 + b * x * y + c * y**2))


BROWN = problem_of(mueller_brown)
MINIMA = {"A": (-0.558224, 1.441726), "B": (-0.050011, 0.466694), "C": (0.623499, 0.028038)}
UPPER, LOWER = ((-0.822002, 0.624313), -40.66484), ((0.212487, 0.292988), -72.24894)


@pytest.mark.parametrize(
    ("start", "mode", "saddle"),
    [
        (MINIMA["A"], (-0.26, -0.82), UPPER),
        (MINIMA["B"], (-1.0, 0.2), UPPER),
        (MINIMA["B"], (1.0, -0.2), LOWER),
        (MINIMA["C"], (-1.0, 0.5), LOWER),
        ((-0.7, 0.7), None, UPPER),
        ((0.0, 0.3), None, LOWER),
    ],
    ids=["A-AB", "B-AB", "B-BC", "C-BC", "near AB", "near BC"],
)
def test_saddles_of_the_surface_of_mueller_and_brown(start, mode, saddle):
    found = search(BROWN, MinimumMode(mode=None if mode is None else jnp.array(mode)), jnp.array(start))
    assert found.status is Status.CONVERGED and found.steps < 20
    # The published numbers have six and seven digits.
    np.testing.assert_allclose(found.z, saddle[0], atol=1e-6)
    np.testing.assert_allclose(mueller_brown(found.z), saddle[1], atol=1e-5)
    assert (jnp.linalg.eigvalsh(jax.hessian(mueller_brown)(found.z)) < 0.0).sum() == 1


N = 200
STIFFNESS = 10.0 ** np.linspace(-1, 3, N - 1)
TURN, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))
PULL = np.random.default_rng(1).normal(size=N - 1) / N**0.5


def double_well(z):
    """x⁴/4 - x²/2 in a bath of oscillators that its motion pulls along, in axes that show nothing of it."""
    x, bath = TURN[:, 0] @ z, TURN[:, 1:].T @ z
    return 0.25 * x**4 - 0.5 * x**2 + 0.5 * jnp.sum(STIFFNESS * (bath - PULL * jnp.sin(x + 0.3)) ** 2)


WELL = problem_of(double_well)
"""The barrier: x = 0 and the bath at rest there."""
TOP = TURN @ np.concatenate([[0.0], PULL * np.sin(0.3)])
BOTTOM = TURN @ np.concatenate([[-1.0], PULL * np.sin(-0.7)])


def test_the_barrier_of_a_well_in_an_ill_conditioned_bath():
    """From the minimum, whose softest mode is one of the bath, along a direction that is only about right."""
    direction = TURN[:, 0] + 0.05 * np.random.default_rng(2).normal(size=N)
    found = search(WELL, MinimumMode(mode=direction), jnp.asarray(BOTTOM), tolerance=1e-11)
    assert found.status is Status.CONVERGED and found.steps < 60
    # The tolerance over the smallest curvature of the bath.
    np.testing.assert_allclose(found.z, TOP, atol=1e-9)


def test_the_lowest_mode_is_found_where_nothing_is_known_of_it():
    found = search(WELL, MinimumMode(), jnp.asarray(TOP + 0.3 * TURN[:, 0] + 0.003))
    assert found.status is Status.CONVERGED
    np.testing.assert_allclose(found.z, TOP, atol=1e-8)


def test_newton_polishes_a_saddle_point_of_any_index():
    def hills(z):
        return jnp.sum(jnp.cos(z)) + 0.1 * jnp.sum(z[1:] * z[:-1]) ** 2

    start = jnp.where(jnp.arange(6) % 2 == 0, 0.03, jnp.pi / 3 * 3 - 0.02)
    found = search(problem_of(hills), POLISH, start, tolerance=1e-13)
    assert found.status is Status.CONVERGED and found.steps <= 6
    assert 1 < (jnp.linalg.eigvalsh(jax.hessian(hills)(found.z)) < 0.0).sum() < 6


@pytest.mark.slow
def test_the_derivative_of_a_saddle_point():
    """x³ - a x² - x has its maximum at x = (a - √(a² + 3)) / 3; y follows x."""

    def slope(z, a):
        return jax.grad(lambda z: z["x"] ** 3 - a * z["x"] ** 2 - z["x"] + jnp.sum((z["y"] - a * z["x"]) ** 2))(z)

    solve = solvers.root(slope, solver=MinimumMode(), symmetric=True)
    start = {"x": jnp.asarray(-0.1), "y": jnp.ones(3)}
    x = lambda a: (a - jnp.sqrt(a**2 + 3.0 + 0.0 * a)) / 3.0  # noqa: E731
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(lambda a: solve(start, a)["x"])))(jnp.array([0.3, 0.5]))
    np.testing.assert_allclose(values, x(jnp.array([0.3, 0.5])), atol=1e-10)
    np.testing.assert_allclose(slopes, jax.vmap(jax.grad(x))(jnp.array([0.3, 0.5])), atol=1e-9)


# A vacancy that jumps. Its surroundings are symmetric half way.


@pytest.fixture(scope="module")
def barrier_states(vacancy_jump):
    chain, minimum = vacancy_jump.chain, vacancy_jump.initial
    saddle = ms.find_saddle(chain, minimum.potential, fmax=1e-12)
    return {"saddle": saddle, "minimum": minimum}


@pytest.mark.slow
def test_the_vacancys_saddle_point_from_the_top_of_a_chain(vacancy_jump, barrier_states):
    saddle, chain = barrier_states["saddle"], vacancy_jump.chain
    assert saddle.index == saddle.spectrum.index == 1 and saddle.fmax < 1e-12 and saddle.steps <= 12
    # The climbing image of ASE's chain arrives at the same place, which it misses by the square of its forces.
    barrier = ms.nudged_chain(vacancy_jump.initial, vacancy_jump.final, fmax=0.01).barrier
    np.testing.assert_allclose(saddle.energy - vacancy_jump.initial.energy, barrier, atol=1e-5)
    # Half way between the places it jumps from and to, of which the rest of the crystal moves little.
    ends = [np.asarray(end.positions - jnp.mean(end.positions, axis=0)) for end in (chain.images[0], chain.images[-1])]
    there = np.asarray(saddle.system.positions - jnp.mean(saddle.system.positions, axis=0))
    np.testing.assert_allclose(there[vacancy_jump.atom], 0.5 * (ends[0] + ends[1])[vacancy_jump.atom], atol=1e-9)


@pytest.mark.slow
def test_the_same_saddle_point_from_the_minimum_along_the_jump(vacancy_jump, barrier_states):
    initial = vacancy_jump.initial
    mode = np.zeros(initial.system.positions.shape)
    mode[vacancy_jump.atom] = vacancy_jump.jump
    other = ms.find_saddle(initial.system, initial.potential, mode=mode, fmax=1e-10)
    np.testing.assert_allclose(other.energy, barrier_states["saddle"].energy, rtol=1e-12)


def test_a_barrier_wants_a_saddle_point_above_a_minimum(barrier_states, vacancy_jump):
    exchanged = {"saddle": barrier_states["minimum"], "minimum": barrier_states["saddle"]}
    for states in (exchanged, {"saddle": vacancy_jump.final, "minimum": vacancy_jump.initial}):
        with pytest.raises(ms.InputError, match="must be a"):
            ms.value_and_gradient(ms.observables.barrier, states)


def test_the_barriers_gradient_against_barriers_found_again(barrier_states):
    """In both parameters; the height scales with ε exactly, and depends on σ since the cell is fixed."""
    value, slope = ms.value_and_gradient(ms.observables.barrier, barrier_states)
    potential, step = barrier_states["minimum"].potential, 1e-4

    def height(name, k):
        again = {key: eq.again(at(potential, name, k * step), fmax=1e-12) for key, eq in barrier_states.items()}
        return again["saddle"].energy - again["minimum"].energy

    assert abs(float(slope.epsilon - value)) < 1e-9
    heights = {k: height("sigma", k) for k in (-2, -1, 1, 2)}
    difference = (8 * (heights[1] - heights[-1]) - (heights[2] - heights[-2])) / (12 * step)
    np.testing.assert_allclose(slope.sigma, difference, rtol=1e-6)


@pytest.mark.slow
def test_the_saddles_structure_against_saddles_found_again(barrier_states):
    """The barrier's gradient is explicit alone: the implicit part shows in positions."""
    saddle = barrier_states["saddle"]
    S = ms.sensitivity(saddle)
    assert S.certificate.trusted and S.certificate.index == 1 and "MINRES" in S.certificate.linear_solver
    (epsilon, sigma) = check_sensitivity(saddle, S)
    assert epsilon.agrees and sigma.agrees


def test_a_minimum_is_no_saddle_and_a_saddle_no_minimum(barrier_states):
    saddle, minimum = barrier_states["saddle"], barrier_states["minimum"]
    with pytest.raises(ms.ConvergenceError, match="saddle point"):
        ms.relax(saddle.system, saddle.potential)
    with pytest.raises(ms.ConvergenceError, match=r"structure after .* steps"):
        ms.find_saddle(minimum.system, minimum.potential, max_steps=2)
    claimed = eqx.tree_at(lambda eq: eq.system, saddle, minimum.system)
    claimed = dataclasses.replace(claimed, spectrum=minimum.spectrum)
    with pytest.raises(ms.ConvergenceError, match="exactly one negative curvature"):
        ms.sensitivity(claimed)


def test_modes_of_a_wrong_shape_are_refused(barrier_states):
    minimum = barrier_states["minimum"]
    refused(lambda: ms.find_saddle(minimum.system, minimum.potential, mode=np.ones(3)), "(107, 3)")
    refused(lambda: ms.find_saddle(minimum.system, minimum.potential, mode=np.zeros((107, 3))), "not zero")


# What is no saddle point of first order


NO_SADDLE = {
    "bowl": (lambda z: jnp.sum(z**2 * jnp.array([1.0, 3.0, 5.0])), (0.1, 0.2, 0.0)),
    "bottom of a bowl": (lambda z: jnp.sum(z**2 * jnp.array([1.0, 3.0, 5.0])), (0.0, 0.0, 0.0)),
    "top of a hill": (lambda z: jnp.sum(0.25 * z**4 - z**2), (0.0, 0.0, 0.0)),
    "plain": (lambda z: 0.0 * jnp.sum(z), (0.0, 1.0, 2.0)),
}


@pytest.mark.parametrize(("energy", "start"), NO_SADDLE.values(), ids=NO_SADDLE)
def test_other_places_without_force_are_never_accepted(energy, start):
    found = search(problem_of(energy), MinimumMode(), jnp.array(start), tolerance=1e-6, max_steps=50)
    assert found.status in (Status.MAX_STEPS, Status.STALLED)


def test_from_a_hilltop_the_way_leads_to_a_pass():
    found = search(
        problem_of(lambda z: jnp.sum(0.25 * z**4 - z**2 * jnp.array([1.0, 2.0]))), MinimumMode(), jnp.array([0.1, 0.05])
    )
    assert found.status is Status.CONVERGED
    np.testing.assert_allclose(np.abs(found.z), [2.0**0.5, 0.0], atol=1e-9)


@pytest.mark.parametrize(
    "call",
    [
        lambda: MinimumMode(max_step=0.0),
        lambda: MinimumMode(lanczos_steps=1),
        lambda: search(BROWN, MinimumMode(mode=jnp.ones(3)), jnp.ones(2)),
        lambda: search(BROWN, MinimumMode(mode={"x": jnp.ones(2)}), jnp.ones(2)),
    ],
)
def test_settings_that_make_no_sense_are_refused(call):
    refused(call)


def test_a_direction_along_the_null_space_leads_nowhere():
    held = Problem(
        BROWN.residual, symmetric=True, kind="gradient", null_space=lambda z, data: implicit.NullSpace(basis=jnp.eye(2)[:, :1])
    )
    found = search(held, MinimumMode(mode=jnp.array([1.0, 0.0])), jnp.array(MINIMA["B"]))
    assert found.status is Status.STALLED


@pytest.mark.slow
def test_a_large_saddle_point_has_its_one_negative_curvature_found():
    # 1,371 atoms, an atom half way into a vacancy: among 4,113 curvatures, all others above 11, a local one is below zero.
    # Search directions of the preconditioner alone would pass it by.
    atoms = bulk("Ar", "fcc", a=1.55, cubic=True) * 7
    arms = atoms.get_distances(0, range(len(atoms)), mic=True, vector=True)
    atom = int(np.argsort(np.linalg.norm(arms, axis=1))[1])
    mode = np.zeros_like(arms)
    mode[atom] = arms[atom]
    atoms.positions[atom] -= 0.5 * arms[atom]
    del atoms[0]
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    saddle = ms.find_saddle(ms.System.from_ase(atoms), potential, mode=mode[1:], fmax=1e-8)
    hessian = ms.hessian(saddle.system, potential)
    # Inverse iteration about a guess below.
    lowest = scipy.sparse.linalg.eigsh(hessian.tocsc(), k=1, sigma=-100.0, return_eigenvectors=False)[0]
    found = saddle.spectrum
    assert not found.exact and found.index == 1 and found.few[1] > 0.0
    np.testing.assert_allclose(found.lowest, lowest, rtol=1e-3)
