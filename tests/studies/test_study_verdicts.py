"""What studies say of their own numbers: arrays component by component, correlations, rounding, fits that reach nothing, saddles.

The atom that sits on two fixed ones, as in `test_studies`; with equal depths the place between them is a saddle point.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refused
from test_studies import BONDS, TIGHT, L, height, height_of, on_two

import mdsens as ms
from mdsens import studies

PAIR = ["epsilon.A-B", "sigma"]


@pytest.fixture(scope="module")
def seat():
    return on_two(L, [0.9, 0.6], **{"A-B": 1.0})


@pytest.fixture(scope="module")
def seated(seat):
    return ms.relax(*seat, **TIGHT)


@pytest.mark.slow
def test_each_number_of_an_array_is_judged_by_itself(seated):
    def both(system, potential):
        return jnp.stack([1e4 * potential.epsilon["A-B"], 2.5e4 * (potential.sigma - 1.0) ** 2, potential.sigma])

    found = studies.uncertainty(seated, {"both": both}, {"sigma": 0.01, "epsilon.A-B": 0.1}, relax=TIGHT)
    np.testing.assert_allclose(found.std["both"], [1e3, 0.0, 0.01], rtol=1e-9, atol=1e-12)
    assert found.trusted is False and found.reasons[0].startswith("both[1]: its error bar is 0 to first order")
    # Samples alone say so too: of 2.5 z² the standard deviation is 2.5 √2.
    found = studies.uncertainty(seated, {"both": both}, {"sigma": 0.01}, check=False, samples=60, relax=TIGHT)
    assert found.trusted is False and "both[1]: samples" in found.reasons[0]
    np.testing.assert_allclose(found.sampling.std["both"][1], 2.5 * np.sqrt(2.0), rtol=0.5)


def test_what_was_not_looked_at_is_not_trusted(seated):
    assert studies.uncertainty(seated, {"height": height}, {"sigma": 0.005}, check=False).trusted is None
    bent = {"bent": lambda system, potential: potential.sigma + 2.0 * (potential.sigma - 1.0) ** 2}
    found = studies.uncertainty(seated, bent, {"sigma": 0.2}, check=False)
    assert not found.trusted and "not looked at" in repr(found)


def test_shares_and_covariances_know_correlations_order_and_names(seated):
    def sum_of(system, potential):
        return 2.0 * potential.sigma + 3.0 * potential.epsilon["A-B"]

    matrix = np.array([[0.04, 0.003], [0.003, 0.0009]])  # of ε and σ, correlated by a half
    asked = {"zeta": sum_of, "alpha": lambda system, potential: potential.sigma}
    found = studies.uncertainty(seated, asked, matrix, wrt=PAIR, check=False)
    slopes = np.array([[3.0, 2.0], [0.0, 1.0]])
    total = slopes @ matrix @ slopes.T
    assert list(found.values) == ["zeta", "alpha"] and found.labels == ("zeta", "alpha") and list(found.names) == PAIR
    np.testing.assert_allclose(found.covariance, total, rtol=1e-9)
    np.testing.assert_allclose(found.shares["zeta"], slopes[0] * (matrix @ slopes[0]) / total[0, 0], rtol=1e-9)
    np.testing.assert_allclose(found.shares["alpha"], [0.0, 1.0], atol=1e-9)
    (outcome,) = found.collected().outcomes
    assert outcome.record.labels("number") == outcome.record.labels("number_2") == ["zeta", "alpha"]
    # Fully anticorrelated parameters that make up for each other leave nothing, whoever has the larger width.
    opposed = np.array([[4e-4, -6e-4], [-6e-4, 9e-4]])
    found = studies.uncertainty(seated, {"zeta": sum_of}, opposed, wrt=PAIR, check=False)
    assert found.std["zeta"] < 1e-8 and not found.shares["zeta"].any() and " -" in repr(found).splitlines()[3]


def test_what_is_no_covariance_is_named(seated):
    def ask(matrix):
        return lambda: studies.uncertainty(seated, {"height": height}, matrix, wrt=PAIR, check=False)

    refused(ask([[1e-12, 2e-8], [2e-8, 1e-4]]), "epsilon.A-B and sigma", "allow")
    refused(ask([[1e-4, 1e-5], [2e-5, 1e-4]]), "not symmetric")
    refused(ask([[1e-4, 0.0], [0.0, -1e-30]]), "variance of sigma", "negative")
    refused(ask([[1.0]]), "shape")


@pytest.mark.slow
def test_rounding_has_no_shares_and_no_rank():
    triangle = ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [0.5, 0.9, 0.1]])
    eq = ms.relax(triangle, ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=6.0, onset=5.0), **TIGHT)
    asked = {"angle": ms.observables.angles([(0, 1, 2)]), "side": ms.observables.distances([(0, 1)])}
    widths = {"sigma": 0.01, "epsilon": 0.02}
    found = studies.uncertainty(eq, asked, widths, relax=TIGHT)
    assert found.trusted and not found.shares["angle"].any() and found.nonlinearity["angle"] == 0.0
    np.testing.assert_allclose(found.shares["side"][0], [1.0, 0.0], atol=1e-9)
    whole = studies.global_indices(eq, asked, widths, samples=4, relax=TIGHT)
    assert not whole.values["S1"]["angle"].any() and not whole.values["ST"]["angle"].any()
    assert whole.values["ST"]["side"][0, 0] > 0.1
    table = studies.sensitivity_table(eq, asked)
    assert all(size == 0.0 for _, size in table.ranking("angle"))
    assert table.ranking()[0] == ("sigma", pytest.approx(1.0))


def test_fits_that_reach_nothing_do_not_say_converged(seat, seated):
    """The height does not know of ε."""
    fit = studies.calibrate(*seat, {"height": studies.Target(height, 0.8 * height_of(1.0))}, wrt="epsilon.A-B", relax=TIGHT)
    assert not fit.converged and "no parameter that varies has an effect on height" in fit.message
    assert fit.missed == ("height",) and len(fit.undetermined) == 1 and np.isinf(fit.std).all()
    fit = studies.inverse_design(*seat, {"bonds": (BONDS, [1.5, 1.5])}, wrt="epsilon.A-B", relax=TIGHT)
    assert not fit.converged and fit.design

    both = {"low": studies.Target(height, height_of(0.95), 0.001), "high": studies.Target(height, height_of(1.1), 0.001)}
    fit = studies.calibrate(*seat, both, wrt="sigma", relax=TIGHT)
    assert not fit.converged and "no parameters nearby meet all targets" in fit.message and set(fit.missed) == {"low", "high"}
    # Without sigma they contradict each other as much.
    loose = {name: studies.Target(height, target.value) for name, target in both.items()}
    assert not studies.calibrate(*seat, loose, wrt="sigma", relax=TIGHT).converged
    # Within their errors two measurements may differ.
    close = {"low": studies.Target(height, height_of(1.0), 0.01), "high": studies.Target(height, height_of(1.0) + 0.02, 0.01)}
    assert studies.calibrate(*seat, close, wrt="sigma", relax=TIGHT).converged


@pytest.mark.slow
def test_states_with_a_saddle_are_studied_like_others(seat, seated):
    """Half way between the fixed atoms, L/2 = 0.9 from both: the barrier is 8 ε (q¹² - q⁶) + 2 ε with q = σ/0.9."""
    system, potential = seat
    saddle = ms.find_saddle(system.with_positions(system.positions.at[1].set(jnp.array([0.9, 0.05]))), potential, fmax=1e-12)
    np.testing.assert_allclose(saddle.system.positions[1], [0.9, 0.0], atol=1e-10)
    states, asked = {"saddle": saddle, "minimum": seated}, {"barrier": ms.observables.barrier}

    def barrier(sigma):
        q = (sigma / 0.9) ** 6
        return 8.0 * (q**2 - q) + 2.0

    def slope(sigma):
        q = (sigma / 0.9) ** 6
        return 48.0 / sigma * (2.0 * q**2 - q)

    found = studies.uncertainty(states, asked, {"sigma": 1e-3}, samples=8)
    assert found.trusted and float(found.std["barrier"]) == pytest.approx(1e-3 * slope(1.0), rel=1e-7)
    whole = studies.global_indices(states, asked, {"sigma": (0.99, 1.01)}, method="morris", samples=2)
    assert float(whole.values["mu_star"]["barrier"][0]) == pytest.approx(0.02 * slope(1.0), rel=0.1) and not whole.failed
    swept = studies.sweep(states, potential, {"sigma": [1.0, 1.02]}, asked, joint=True, derivatives=True)
    assert not swept.failures
    np.testing.assert_allclose(swept.column("barrier"), [barrier(1.0), barrier(1.02)], rtol=1e-9)
    slopes = [point.derivatives["barrier"][swept.names.index("sigma")] for point in swept.points]
    np.testing.assert_allclose(slopes, [slope(1.0), slope(1.02)], rtol=1e-7)
    target = {"barrier": studies.Target(ms.observables.barrier, barrier(1.02), 1e-3)}
    fit = studies.calibrate(states, potential, target, wrt="sigma")
    assert fit.converged and float(fit.potential.sigma) == pytest.approx(1.02, rel=1e-7)
    path = studies.continuation(saddle, {"sigma": 1.05}, observables={"energy": ms.observables.energy})
    assert path.complete and all(eq.index == 1 for eq in path.states)
    q = (1.05 / L) ** 6  # of the fixed atoms
    np.testing.assert_allclose(path.values["energy"][-1], barrier(1.05) - 2.0 + 4.0 * (q**2 - q), rtol=1e-9)
