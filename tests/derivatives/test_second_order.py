"""Second derivatives in parameter space, the range of a prediction, and what is extrapolated from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from differences import at
from helpers import refused

import mdsens as ms
from mdsens import studies
from mdsens.derivatives.first_order import check_direction
from mdsens.derivatives.second_order import derivatives_along
from mdsens.structures.packing import random_packing


@pytest.fixture
def crystal(squeezed_salt):
    return squeezed_salt


@pytest.fixture(scope="module")
def packing():
    diameters = {"A": 1.0, "B": 0.6}
    return ms.relax(random_packing(32, diameters, seed=4), ms.SoftSphere(diameter=diameters, epsilon=1.0), fmax=1e-12)


def span(system, potential):
    """Something that depends on positions, cell and parameters."""
    return jnp.sum(system.cell**2) + jnp.sum(jnp.sin(system.positions)) * potential.epsilon["A-B"] + potential.energy(system)


def test_product_with_the_hessian_against_differences_of_gradients(crystal):
    direction = {"sigma.A-B": 1.0, "sigma.B-B": -0.4, "epsilon.A-A": 0.3}
    product = ms.hessian_vector(span, crystal, direction)
    step = 1e-4
    shaped = check_direction(crystal.potential, direction)

    def slope(k):
        moved = jax.tree.map(lambda theta, v: theta + k * step * v, crystal.potential, shaped)
        return jax.tree.leaves(ms.gradient(span, crystal.again(moved, fmax=1e-12, check_minimum=False)))

    slopes = {k: slope(k) for k in (-2, -1, 1, 2)}
    for entry, exact in enumerate(jax.tree.leaves(product)):
        difference = (8 * (slopes[1][entry] - slopes[-1][entry]) - (slopes[2][entry] - slopes[-2][entry])) / (12 * step)
        np.testing.assert_allclose(exact, difference, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_derivatives_along_a_direction_against_differences_of_relaxed_structures(crystal):
    def of_two(systems, potential):
        (system,) = systems.values()
        return jnp.stack([jnp.sum(system.cell**2), span(system, potential)])

    direction, step = {"sigma.A-B": 1.0, "sigma.B-B": -0.4, "epsilon.A-A": 0.3}, 1e-3
    first, second = derivatives_along(of_two, {"salt": crystal}, direction)
    shaped = check_direction(crystal.potential, direction)
    values = {}
    for k in (-2, -1, 0, 1, 2):
        moved = jax.tree.map(lambda theta, v, k=k: theta + k * step * v, crystal.potential, shaped)
        there = crystal.again(moved, fmax=1e-12, check_minimum=False)
        values[k] = of_two({"salt": there.system}, moved)
    np.testing.assert_allclose(first, (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step), rtol=1e-7)
    bent = (16 * (values[1] + values[-1]) - (values[2] + values[-2]) - 30 * values[0]) / (12 * step**2)
    # Rounding is 1e-14 of values of about 100, divided by the square of the step.
    np.testing.assert_allclose(second, bent, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_hessian_is_symmetric(crystal):
    """⟨u, H v⟩ = ⟨v, H u⟩ and an energy's Hessian has its implicit part."""
    steps = ({"sigma.A-B": 1.0}, {"epsilon.B-B": 1.0, "sigma.A-A": 0.5})
    u, v = (check_direction(crystal.potential, step) for step in steps)
    Hu, Hv = (ms.hessian_vector(ms.observables.energy, crystal, direction) for direction in (u, v))
    left, right = (
        sum(float(jnp.vdot(a, b)) for a, b in zip(*map(jax.tree.leaves, pair), strict=True)) for pair in ((u, Hv), (v, Hu))
    )
    np.testing.assert_allclose(left, right, rtol=1e-9)


@pytest.mark.slow
def test_taylor_series_against_structures_relaxed_again(crystal):
    direction = {"sigma.A-B": 1.0}
    series, step = ms.taylor(crystal, direction), 1e-3
    cells = {
        k: np.asarray(crystal.again(at(crystal.potential, "sigma.A-B", k * step), fmax=1e-12, check_minimum=False).system.cell)
        for k in (-2, -1, 0, 1, 2)
    }
    first = (8 * (cells[1] - cells[-1]) - (cells[2] - cells[-2])) / (12 * step)
    second = (16 * (cells[1] + cells[-1]) - (cells[2] + cells[-2]) - 30 * cells[0]) / (12 * step**2)
    np.testing.assert_allclose(series.cell[0], first, atol=1e-7)
    np.testing.assert_allclose(series.cell[1], second, atol=1e-5)
    np.testing.assert_allclose(series.cell[0], ms.sensitivity(crystal, wrt=["sigma.A-B"]).cell.sigma["A-B"], atol=1e-9)


@pytest.mark.slow
def test_scaling_has_no_second_derivative_at_zero_pressure(silicon):
    """h ∝ σ: the Taylor series ends after the first term, and nothing limits its range but the parameter's own size."""
    eq = ms.relax(ms.System.from_ase(bulk("Si", cubic=True)), silicon, cell="free", fmax=1e-11)
    direction = {"sigma": silicon.sigma}
    series = ms.taylor(eq, direction)
    np.testing.assert_allclose(series.cell[0], eq.system.cell, atol=1e-8)
    np.testing.assert_allclose(series.cell[1], 0.0, atol=1e-6)
    assert ms.validity(eq, direction).range > 0.5


@pytest.mark.slow
def test_range_of_a_packing_and_its_checks(packing):
    found = ms.validity(packing, {"diameter.B": 1.0}, share=0.1, checks=4)
    assert 0.0 < found.range < 0.1 and found.limit
    assert found.holds and len(found.checks) == 4
    # The second-order term alone sees nothing of contacts; what ends the range is one of the three or all together.
    assert found.first_contact < 10.0 * found.range or found.second_order < 10.0 * found.range
    assert all(check.error <= 0.1 for check in found.checks[:-1]) and found.checks[-1].t > found.range


@pytest.mark.slow
def test_where_the_second_order_makes_up_its_share_of_the_first():
    """A bond of length l²: dx/dl = 2 l and d²x/dl² = 2, so that ½ t² 2 is a share s of 2 l t at t = 2 l s."""

    class Squared(ms.PairPotential):
        root: float
        cutoff: float = ms.static(5.0)

        def pair_energy(self, r, i, j):
            return 0.5 * (r - self.root**2) ** 2

    bond = ms.System([[0.0, 0.0], [1.7, 0.0]], frozen=[True, False], species="A")
    eq = ms.relax(bond, Squared(root=1.2), fmax=1e-12)
    for share in (0.1, 0.02):
        found = ms.validity(eq, {"root": 1.0}, share=share)
        np.testing.assert_allclose(found.second_order, 2.0 * 1.2 * share, rtol=1e-8)
        # What is wrong with the line is t² of a displacement 2 l t; nine tenths of where that is the share are stated.
        np.testing.assert_allclose(found.range, 0.9 * 2.0 * 1.2 * share, rtol=0.1)
    np.testing.assert_allclose(ms.taylor(eq, {"root": 1.0}).positions[1][1, 0], 2.0, rtol=1e-8)


def test_softest_mode_on_the_way_to_an_instability():
    """Two springs that buckle: with length a the curvature across is 1 - a, to first order about a = 0.6."""

    class Strut(ms.PairPotential):
        length: float
        cutoff: float = ms.static(5.0)

        def pair_energy(self, r, i, j):
            return 0.5 * (r - self.length) ** 2

    frozen = np.array([True, False, True])
    system = ms.System([[-1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]], frozen=frozen, species="A")
    strut = Strut(length=0.6)
    eq = ms.relax(system, strut, fmax=1e-12)
    # Curvature across is 2 (1 - length).
    found = ms.validity(eq, Strut(length=jnp.asarray(1.0)))
    # Eight inverse iterations leave 0.4^16 of the stiffer mode in the energy of the soft one.
    np.testing.assert_allclose(found.soft_mode, 0.4, rtol=1e-5)
    assert found.range <= 0.4 + 1e-6


class Springs(ms.PairPotential):
    length: dict
    stiffness: dict
    cutoff: float = ms.static(5.0)

    def pair_energy(self, r, i, j):
        return 0.5 * self.pair(self.stiffness, i, j) * (r - self.pair(self.length, i, j)) ** 2


@pytest.fixture(scope="module")
def strut():
    """A weak pair of springs that shifts its atom, far from a stiff one that buckles as soon as its length is 1."""
    places = [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [19.0, 0.0], [20.0, 0.0], [21.0, 0.0]]
    system = ms.System(places, frozen=[True, False, True] * 2, species=["A", "A", "A", "C", "B", "D"])
    pairs = [f"{a}-{b}" for k, a in enumerate("ABCD") for b in "ABCD"[k:]]
    lengths = dict.fromkeys(pairs, 0.5) | {"A-A": 0.8}
    stiffnesses = dict.fromkeys(pairs, 0.01) | {"A-A": 1.0}
    return ms.relax(system, Springs(length=lengths, stiffness=stiffnesses), fmax=1e-13)


@pytest.mark.slow
def test_a_mode_that_was_not_the_softest_ends_the_range(strut):
    """The weak atom's curvature across is 0.01 and vanishes far away; the stiff one's, 2 (1 - a), at t = 0.2."""
    along = {"length.A-A": 1.0, "length.B-D": 1.0}
    found = ms.validity(strut, along)
    assert 0.15 < found.range <= 0.2 and "unstable" in found.limit
    longer = studies.with_values(strut.potential, {"length.A-A": 1.05, "length.B-D": 0.75})
    guess = ms.extrapolate(strut, longer)
    assert not guess.trusted and guess.validity.range <= 0.8
    assert ms.extrapolate(strut, studies.with_values(longer, {"length.A-A": 0.95, "length.B-D": 0.65})).trusted


@pytest.mark.slow
def test_the_range_of_an_observable_is_its_own():
    """A bond of length l², and its square: of (l + t)⁴ the straight line 4 l³ t misses 6 l² t² + 4 l t³ + t⁴."""

    class Squared(ms.PairPotential):
        root: float
        cutoff: float = ms.static(5.0)

        def pair_energy(self, r, i, j):
            return 0.5 * (r - self.root**2) ** 2

    eq = ms.relax(ms.System([[0.0, 0.0], [1.44, 0.0]], frozen=[True, False], species="A"), Squared(root=1.2), fmax=1e-12)

    def squares(system, potential):
        length = system.positions[1, 0]
        return jnp.stack([length, length**2])

    share, t = 0.1, np.linspace(1e-3, 0.3, 30_000)
    off = (6.0 * 1.44 * t**2 + 4.8 * t**3 + t**4) / (4.0 * 1.2**3 * t)
    end = t[np.searchsorted(off, share)]
    found = ms.validity(eq, {"root": 1.0}, share=share, observable=lambda s, p: squares(s, p)[1])
    np.testing.assert_allclose(found.range, 0.9 * end, rtol=0.1)
    both = ms.validity(eq, {"root": 1.0}, share=share, observable=squares)
    np.testing.assert_allclose(both.range, found.range, rtol=0.05)  # the worst of both
    assert ms.validity(eq, {"root": 1.0}, share=share).range > 2.0 * found.range
    second = ms.validity(eq, {"root": 1.0}, share=share, order=2, observable=lambda s, p: squares(s, p)[1])
    np.testing.assert_allclose(second.range, 0.9 * 0.454218, rtol=0.1)  # 4 l t³ + t⁴ is a tenth of 4 l³ t + 6 l² t²


@pytest.mark.slow
def test_extrapolation_of_first_and_second_order(crystal):
    new = at(crystal.potential, "sigma.A-B", 0.02)
    exact = crystal.again(new, fmax=1e-11)
    errors = []
    for order in (1, 2):
        guess = ms.extrapolate(crystal, new, order=order)
        assert guess.trusted and guess.order == order
        errors.append(np.abs(np.asarray(guess.system.cell - exact.system.cell)).max())
    assert errors[1] < 0.2 * errors[0]
    warm = ms.extrapolate(crystal, new).relax(fmax=1e-11)
    assert warm.steps <= exact.steps
    np.testing.assert_allclose(warm.system.cell, exact.system.cell, atol=1e-9)


def test_nothing_moves_nowhere(crystal):
    guess = ms.extrapolate(crystal, crystal.potential)
    assert guess.trusted and guess.system is crystal.system


@pytest.mark.slow
def test_extrapolation_beyond_its_range_says_so(packing):
    guess = ms.extrapolate(packing, at(packing.potential, "diameter.B", 0.2))
    assert not guess.trusted and guess.validity.range < 1.0


def test_what_makes_no_sense_is_refused(crystal, packing):
    potential = crystal.potential
    direction = {"sigma.A-B": 1.0}
    refused(lambda: ms.validity(crystal, direction, share=1.5), "between 0 and 1")
    refused(lambda: ms.validity(crystal, direction, order=3), "1 or 2")
    refused(lambda: ms.validity(crystal, jax.tree.map(jnp.zeros_like, potential)), "zero")
    refused(lambda: ms.extrapolate(crystal, packing.potential), "same kind")
    refused(lambda: ms.hessian_vector(lambda s, p: s.positions, crystal, direction), "jacobian")
    refused(lambda: ms.taylor(crystal, packing.potential), "potential's shape")
    refused(lambda: ms.taylor(crystal, {"sigmma": 1.0}), "'sigma'")
    refused(lambda: ms.taylor(crystal, {"sigma": "much"}), "potential's shape")
    refused(lambda: ms.taylor(crystal, {"sigma": np.nan}), "finite")
    refused(lambda: ms.validity(crystal, direction, checks=-1), "checks")
