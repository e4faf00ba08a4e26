"""Studies as functions, on an atom that sits on two fixed ones: its place is known in closed form.

Both bonds have the length r = 2^(1/6) σ of the pair's minimum, so its height over their line is y = √(r² - L²/4), and the
energies of both bonds are -ε, whatever the ε are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from ase.build import bulk
from calibration_targets import silicon_targets
from helpers import refused

import mdsens as ms
from mdsens import studies
from mdsens.common.units import unit_text
from mdsens.potentials.base import parameter_paths
from mdsens.studies.input.recipes import Components
from mdsens.studies.methods.observed import evaluate, flatten, join_observables, relax_all, units_of
from mdsens.studies.methods.parameters import Selection
from mdsens.studies.results.record import Record, entries

L = 1.8
MINIMUM = 2.0 ** (1.0 / 6.0)
TIGHT = {"fmax": 1e-12}
BONDS = ms.observables.distances([(0, 1), (1, 2)])


def height_of(sigma):
    return np.sqrt((MINIMUM * sigma) ** 2 - L**2 / 4.0)


def slope_of(sigma):
    return MINIMUM**2 * sigma / height_of(sigma)


def height(system, potential):
    return system.positions[1, 1]


OBSERVABLES = {"bonds": BONDS, "height": height, "energy": ms.observables.energy}


def on_two(distance, place, **epsilon):
    system = ms.System([[0.0, 0.0], place, [distance, 0.0]], species=["A", "A", "B"], frozen=[True, False, True])
    depths = {"A-A": 1.0, "A-B": 1.5, "B-B": 1.0} | epsilon
    return system, ms.LennardJones(epsilon=depths, sigma=1.0, cutoff=6.0, onset=5.0)


@pytest.fixture(scope="module")
def seat():
    return on_two(L, [0.8, 0.6])


@pytest.fixture(scope="module")
def seated(seat):
    return ms.relax(*seat, **TIGHT)


def test_a_sweep_relaxes_at_every_point(seat):
    found = studies.sweep(
        *seat,
        {"epsilon.A-B": [1.0, 2.0], "sigma": [1.0, 1.05, 1.1]},
        OBSERVABLES,
        derivatives=True,
        relax=TIGHT,
    )
    assert len(found) == 6 and not found.failures
    np.testing.assert_array_equal(found.column("sigma"), [1.0, 1.05, 1.1] * 2)
    np.testing.assert_allclose(found.column("height"), height_of(found.column("sigma")), rtol=1e-10)
    np.testing.assert_allclose(found.column("bonds"), MINIMUM * found.column("sigma")[:, None] * np.ones(2), rtol=1e-10)
    slopes = [point.derivatives["height"][found.names.index("sigma")] for point in found.points]
    np.testing.assert_allclose(slopes, slope_of(found.column("sigma")), rtol=1e-8)


def test_a_sweep_goes_on_where_a_point_fails(seat):
    system, potential = seat
    lost = system.with_positions(system.positions.at[1].set(jnp.array([0.9, 1e-9])))  # on a ridge
    found = studies.sweep({"seat": system, "ridge": lost}, potential, [{"sigma": 1.05}, {"sigma": 1.1}], {"height": height})
    assert [point.structure for point in found.points] == ["seat", "seat", "ridge", "ridge"]
    failed = found.failures
    assert {point.structure for point in failed} <= {"ridge"} and all("saddle" in point.reason for point in failed)
    assert np.isfinite(found.column("height")[:2]).all()


def test_a_grid_and_a_list():
    from mdsens.studies.methods.sweep import grid

    both = {"sigma": [1.0, 2.0], "epsilon": [3.0, 4.0]}
    assert [tuple(point.values()) for point in grid(both)] == [(1.0, 3.0), (1.0, 4.0), (2.0, 3.0), (2.0, 4.0)]
    assert [tuple(point.values()) for point in grid(both, "list")] == [(1.0, 3.0), (2.0, 4.0)]
    assert grid({}) == grid({}, "list") == [{}]
    refused(lambda: grid({"sigma": [1.0], "epsilon": [1.0, 2.0]}, "list"), "as many values")


def test_the_table_knows_what_scales_with_what(seated):
    table = studies.sensitivity_table(seated, OBSERVABLES)
    sigma = table.names.index("sigma")
    np.testing.assert_allclose(table.elasticity["bonds"][:, sigma], 1.0, rtol=1e-9)
    np.testing.assert_allclose(np.delete(table.elasticity["bonds"], sigma, axis=1), 0.0, atol=1e-9)
    np.testing.assert_allclose(table.derivatives["height"][sigma], slope_of(1.0), rtol=1e-9)
    # dE/dε E-scaled: the energy is linear in all ε.
    depths = [k for k, name in enumerate(table.names) if name.startswith("epsilon")]
    np.testing.assert_allclose(table.elasticity["energy"][depths].sum(), 1.0, rtol=1e-9)
    assert table.ranking("bonds")[0][0] == "sigma"
    assert table.ranking("energy")[0][0] == "epsilon.A-B"
    assert table.trusted and not table.reasons
    only = studies.sensitivity_table(seated, OBSERVABLES, wrt="sigma", certificate=False)
    assert only.names == ("sigma",) and only.derivatives["height"].shape == (1,) and only.trusted is None


@pytest.mark.slow
def test_error_bars_are_those_of_samples(seated):
    widths = {"sigma": 0.004, "epsilon.A-B": 0.1}
    found = studies.uncertainty(seated, OBSERVABLES, widths, samples=200, relax=TIGHT)
    np.testing.assert_allclose(found.std["height"], slope_of(1.0) * 0.004, rtol=1e-9)
    np.testing.assert_allclose(found.shares["height"], [0.0, 1.0] if found.names[0] != "sigma" else [1.0, 0.0], atol=1e-9)
    assert found.trusted and max(found.nonlinearity.values()) < 0.05
    for name in OBSERVABLES:
        assert (abs(found.std[name] - found.sampling.std[name]) < 4.0 * found.sampling.std_error[name]).all()


def test_a_covariance_matrix_and_an_ensemble_say_the_same(seated):
    rng = np.random.default_rng(0)
    members = [
        studies.with_values(seated.potential, {"sigma": 1.0 + 0.003 * a, "epsilon.A-B": 1.5 + 0.1 * a + 0.1 * b})
        for a, b in rng.normal(size=(12, 2))
    ]
    ensemble = studies.uncertainty(seated, OBSERVABLES, members, wrt=["sigma", "epsilon.A-B"], check=False)
    numbers = np.array([[float(one.sigma), float(one.epsilon["A-B"])] for one in members])
    matrix = studies.uncertainty(seated, OBSERVABLES, np.cov(numbers.T), wrt=["sigma", "epsilon.A-B"], check=False)
    np.testing.assert_allclose(ensemble.std["height"], matrix.std["height"], rtol=1e-9)
    np.testing.assert_allclose(matrix.std["height"], slope_of(1.0) * numbers[:, 0].std(ddof=1), rtol=1e-9)


def test_error_bars_that_are_no_straight_line_are_not_trusted(seated):
    # Three standard deviations of 0.1 reach down to where the atom lies between the two others: y is a square root there.
    found = studies.uncertainty(seated, OBSERVABLES, {"sigma": 0.12}, relax=TIGHT)
    assert not found.trusted and any("straight line" in reason or "relaxed" in reason for reason in found.reasons)


def test_a_parabola_in_a_direction_without_slope_is_not_trusted(seated):
    """The straightest direction tells nothing about the others: a box that is strained by a parameter either way, say."""
    bowl = {"bowl": lambda system, potential: 0.02 * potential.epsilon["A-B"] + (potential.sigma - seated.potential.sigma) ** 2}
    found = studies.uncertainty(seated, bowl, {"sigma": 0.005, "epsilon.A-B": 0.1}, relax=TIGHT)
    assert found.trusted
    found = studies.uncertainty(seated, bowl, {"sigma": 0.05, "epsilon.A-B": 0.1}, relax=TIGHT)
    assert not found.trusted and "straight line" in found.reasons[0]


def test_calibration_recovers_parameters_in_a_few_relaxations(seat):
    system, truth = seat
    eq = ms.relax(system, truth, **TIGHT)
    start = studies.with_values(truth, {"sigma": 1.06, "epsilon.A-B": 1.1})
    targets = {
        "height": studies.Target(height, float(height(eq.system, truth)), 0.01),
        "energy": studies.Target(ms.observables.energy, eq.energy, 0.01),
    }
    fit = studies.calibrate(system, start, targets, wrt=["sigma", "epsilon.A-B"], relax=TIGHT)
    assert fit.converged and fit.relaxations == fit.evaluations <= 7
    np.testing.assert_allclose(float(fit.potential.sigma), 1.0, rtol=1e-8)
    np.testing.assert_allclose(float(fit.potential.epsilon["A-B"]), 1.5, rtol=1e-8)
    assert list(fit.history) == sorted(fit.history, reverse=True)
    np.testing.assert_allclose(fit.std[fit.names.index("sigma")], 0.01 / slope_of(1.0), rtol=1e-6)
    assert not fit.undetermined


def test_second_derivatives_along_each_step_save_relaxations(seat):
    system, truth = seat
    start = studies.with_values(truth, {"sigma": 1.1, "epsilon.A-B": 1.8})
    eq = ms.relax(system, truth, **TIGHT)
    targets = {
        "height": studies.Target(height, float(height(eq.system, truth)), 0.01),
        "energy": studies.Target(ms.observables.energy, eq.energy, 0.01),
    }
    options = {"wrt": ["sigma", "epsilon.A-B"], "relax": TIGHT}
    learnt = studies.calibrate(system, start, targets, **options)
    exact = studies.calibrate(system, start, targets, **options, second_derivatives=True)
    assert exact.converged and exact.relaxations < learnt.relaxations
    np.testing.assert_allclose(exact.parameters, learnt.parameters, rtol=1e-8)


def test_what_the_targets_leave_open_is_named_and_stays(seat):
    system, truth = seat
    fit = studies.calibrate(system, truth, {"height": studies.Target(height, height_of(1.03))}, relax=TIGHT)
    np.testing.assert_allclose(float(fit.potential.sigma), 1.03, rtol=1e-8)
    assert {name: float(e) for name, e in fit.potential.epsilon.items()} == {"A-A": 1.0, "A-B": 1.5, "B-B": 1.0}
    assert len(fit.undetermined) == 3 and all(abs(direction["sigma"]) < 1e-8 for direction in fit.undetermined)
    assert np.isinf(np.delete(fit.std, fit.names.index("sigma"))).all()


def test_bounds_and_priors_hold(seat):
    system, truth = seat
    target = {"height": studies.Target(height, height_of(1.05), 0.01)}
    fit = studies.calibrate(system, truth, target, wrt="sigma", bounds={"sigma": (0.9, 1.02)}, relax=TIGHT)
    assert fit.converged and float(fit.potential.sigma) == pytest.approx(1.02, abs=1e-9)
    # A prior as narrow as the target's own error meets it half way.
    width = 0.01 / slope_of(1.025)
    fit = studies.calibrate(system, truth, target, wrt="sigma", priors={"sigma": (1.0, width)}, relax=TIGHT)

    def cost(sigma):
        return ((height_of(sigma) - height_of(1.05)) / 0.01) ** 2 + ((sigma - 1.0) / width) ** 2

    best = scipy.optimize.minimize_scalar(cost, bounds=(1.0, 1.05), options={"xatol": 1e-10}).x
    assert float(fit.potential.sigma) == pytest.approx(best, abs=1e-7)
    refused(lambda: studies.calibrate(system, truth, target, bounds={"sgima": (0, 2)}), "Did you mean 'sigma'")
    refused(lambda: studies.calibrate(system, truth, target, bounds={"sigma": (2, 3)}), "between")


@pytest.fixture(scope="module")
def off(seat):
    """A start, and targets of the height and the energy that the seat has with other parameters."""
    system, truth = seat
    start = studies.with_values(truth, {"sigma": 1.06, "epsilon.A-B": 1.1})
    return (
        system,
        start,
        {
            "height": studies.Target(height, height_of(1.0), 0.01),
            "energy": studies.Target(ms.observables.energy, -2.5, 0.01),
        },
    )


@pytest.mark.slow
def test_the_gradient_leads_where_gauss_newton_steps_do(off):
    """To the square root of the tolerance, which is of the gradient's square."""
    system, start, targets = off
    seen = []
    options = {"wrt": ["sigma", "epsilon.A-B"], "relax": TIGHT}
    fit = studies.calibrate(system, start, targets, **options)
    by_gradient = studies.calibrate(
        system, start, targets, **options, optimizer=optax.adam(0.03), max_steps=200, step=lambda k, cost: seen.append(cost)
    )
    assert by_gradient.converged and by_gradient.relaxations == by_gradient.evaluations == len(by_gradient.history)
    assert seen == list(by_gradient.history[:-1])
    np.testing.assert_allclose(by_gradient.parameters, fit.parameters, rtol=1e-4)
    np.testing.assert_allclose(by_gradient.std, fit.std, rtol=1e-3)
    # Few steps are not enough, and what is returned is the best that was seen.
    short = studies.calibrate(system, start, targets, **options, optimizer=optax.adam(0.03), max_steps=5)
    assert (
        not short.converged and short.message.startswith("not converged: the steps ran out") and "learning rate" in short.message
    )
    np.testing.assert_allclose(short.cost, min(short.history), rtol=1e-12)
    refused(lambda: studies.calibrate(system, start, targets, optimizer="adam"), "optax.adam")
    both = {"optimizer": optax.adam(0.1), "second_derivatives": True}
    refused(lambda: studies.calibrate(system, start, targets, **options, **both), "leave second_derivatives out")
    line_search = optax.lbfgs()
    refused(lambda: studies.calibrate(system, start, targets, optimizer=line_search), "nothing but gradients")


def test_bounds_and_priors_hold_for_optimisers_too(off):
    system, start, targets = off
    bounds, priors = {"sigma": (1.03, 1.1)}, {"epsilon.A-B": (1.2, 0.05)}
    options = {"wrt": ["sigma", "epsilon.A-B"], "bounds": bounds, "priors": priors, "relax": TIGHT}
    fit = studies.calibrate(system, start, targets, **options)
    by_gradient = studies.calibrate(system, start, targets, **options, optimizer=optax.adam(0.01), max_steps=300)
    assert fit.converged and by_gradient.converged and float(by_gradient.potential.sigma) == pytest.approx(1.03, abs=1e-12)
    np.testing.assert_allclose(by_gradient.parameters, fit.parameters, rtol=1e-4)


@pytest.mark.slow
def test_the_weights_of_a_network_are_found_by_the_gradient():
    """Four atoms, two of them fixed: what one network makes of them is what another one, of the same shape, is fitted to."""
    system = ms.System(
        [[0.0, 0.0, 0.0], [0.8, 0.6, 0.0], [L, 0.0, 0.0], [0.9, -0.1, 0.8]], species="A", frozen=[True, False, True, False]
    )

    def with_network(seed):
        network = ms.DeepSets.untrained("A", cutoff=3.0, n_radial=3, hidden=(4,), seed=seed)
        return ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=6.0, onset=5.0) + network

    truth, start = with_network(1), with_network(2)
    state = ms.relax(system, truth, **TIGHT)
    lengths = ms.observables.distances([(0, 1), (1, 3), (3, 0)])
    targets = {
        "energy": studies.Target(ms.observables.energy, state.energy, 0.1),
        "lengths": studies.Target(lengths, lengths(state.system, truth), 0.001),
    }
    weights = [path for path in parameter_paths(start) if path.startswith("DeepSets")]
    fit = studies.calibrate(system, start, targets, wrt=weights, relax=TIGHT, optimizer=optax.adam(0.03), max_steps=80)
    assert len(fit.parameters) == 95 and fit.history[0] > 2.0 and fit.cost < 0.01  # the lowest is 0: targets of a network
    # Of the three lengths two are the same.
    assert len(fit.undetermined) == 95 - 3 and float(fit.potential.terms[0].sigma) == 1.0


def test_a_path_is_followed_to_its_end(seated):
    path = studies.continuation(seated, {"sigma": 1.1}, observables={"height": height})
    assert path.complete and path.t[-1] == 1.0 and path.kind == "none"
    np.testing.assert_allclose(path.values["height"], height_of(1.0 + 0.1 * path.t), rtol=1e-9)
    refused(lambda: studies.continuation(seated, {"sigma": 1.0}), "no length")


def test_a_symmetry_that_breaks_is_an_instability(seated):
    """The atom comes down between the two others, where both its places on either side meet: y² is linear in σ² there."""
    path = studies.continuation(seated, {"sigma": 0.7}, observables={"height": height})
    there = L / 2.0 / MINIMUM
    assert not path.complete and path.kind == "instability"
    assert path.critical == pytest.approx((1.0 - there) / 0.3, abs=1e-4)
    np.testing.assert_allclose(path.values["height"], height_of(1.0 - 0.3 * path.t), rtol=1e-6)


def test_a_fold_is_found_where_the_minimum_ends():
    """An atom bound to one side is pulled off by the other, at a force that is the strongest the bond can bear."""
    system, potential = on_two(2.9, [1.13, 0.0])
    eq = ms.relax(system, potential, **TIGHT)
    reach = 60.0
    path = studies.continuation(eq, {"epsilon.A-B": reach})

    def force(x, depth):
        pair = lambda r: 24.0 * (r**-7 - 2.0 * r**-13)  # noqa: E731
        return pair(x) - depth * pair(2.9 - x)

    def both(unknown):
        x, depth = unknown
        return force(x, depth), (force(x + 1e-6, depth) - force(x - 1e-6, depth)) / 2e-6

    depth = scipy.optimize.fsolve(both, [1.22, 5.0], xtol=1e-12)[1]
    assert not path.complete and path.kind == "fold"
    assert 1.5 + (reach - 1.5) * path.critical == pytest.approx(depth, rel=1e-3)


@pytest.mark.slow
def test_error_bars_are_those_of_two_thousand_samples(seated):
    widths = {"sigma": 0.004, "epsilon.A-B": 0.1}
    found = studies.uncertainty(seated, OBSERVABLES, widths, samples=2000, seed=1, relax=TIGHT)
    assert found.trusted and found.sampling.count == 2000
    for name in OBSERVABLES:
        assert (abs(found.std[name] - found.sampling.std[name]) < 3.0 * found.sampling.std_error[name]).all()


@pytest.mark.slow
def test_error_bars_of_silicon_are_those_of_samples(silicon):
    """`scripts/bench/uncertainty_sampling.py` does it with 2,000 samples, and measures the time."""
    crystal = ms.relax(ms.System.from_ase(bulk("Si")), silicon, cell="isotropic", fmax=1e-10)
    observables = {"volume": ms.observables.volume, "energy": ms.observables.energy}
    found = studies.uncertainty(crystal, observables, {"sigma": 0.01, "epsilon": 0.04, "lam": 0.4}, samples=60, seed=2)
    assert found.trusted and found.sampling.count == 60
    for name in observables:
        assert abs(found.std[name] - found.sampling.std[name]) < 3.0 * found.sampling.std_error[name]


@pytest.mark.slow
def test_calibration_recovers_silicon_in_a_tenth_of_the_relaxations_of_finite_differences():
    """ε stays as it is: A ε and λ ε are all that is in the energy, as the next fit, of all eight, finds out."""
    systems, observables, options = silicon_targets()
    truth = ms.StillingerWeber.silicon()
    names = ["sigma", "a", "lam", "gamma", "costheta0", "A", "B"]
    observed = join_observables(observables, systems)
    values = evaluate(observed, relax_all(systems, truth, options))
    sigma = {"a": 1e-3, "C": 1.0, "bonds": 1e-3}
    targets = {name: studies.Target(observables[name], values[name], sigma[name]) for name in observables}
    rng = np.random.default_rng(0)
    start = studies.with_values(truth, {name: float(getattr(truth, name)) * (1 + 0.01 * rng.uniform(-1, 1)) for name in names})

    fit = studies.calibrate(systems, start, targets, wrt=names, relax=options)
    selection = Selection.of(truth, names)
    assert fit.converged
    np.testing.assert_allclose(fit.parameters, selection.values(), rtol=1e-6)

    count, wanted = 0, flatten(values)
    weights = np.concatenate([np.full(values[name].size, sigma[name]) for name in values])

    def residual(x):
        nonlocal count
        count += len(systems)
        return (flatten(evaluate(observed, relax_all(systems, selection.at(x), options))) - wanted) / weights

    there = scipy.optimize.least_squares(residual, selection.values(start), x_scale=np.abs(selection.values(start)))
    np.testing.assert_allclose(there.x, selection.values(), rtol=1e-6)
    assert 10 * fit.relaxations <= count, (fit.relaxations, count)

    free = studies.calibrate(systems, start, targets, relax=options)
    (direction,) = free.undetermined
    np.testing.assert_allclose([direction["A"], direction["lam"]], -direction["epsilon"], rtol=1e-4)
    assert max(abs(direction[name]) for name in ("sigma", "a", "gamma", "costheta0", "B")) < 1e-5


@pytest.mark.parametrize(
    ("unit", "told"),
    [
        ("", ""),
        (None, ""),
        ("eV", "eV"),
        ("eV Angstrom-2", "eV/Å²"),
        ("GPa-1", "1/GPa"),
        ("eV Angstrom6", "eV Å⁶"),
        ("Angstrom (Angstrom)-1", "Å/Å"),
        ("GPa (eV Angstrom6)-1", "GPa/(eV Å⁶)"),
        ("GPa (Angstrom-2)-1", "GPa Å²"),
        ("degrees", "°"),
    ],
)
def test_units_of_files_as_a_person_writes_them(unit, told):
    assert unit_text(unit) == told


def test_units_of_the_catalogue_s_observables_in_whatever_they_are_wrapped():
    bulk_modulus = jax.tree_util.Partial(ms.observables.bulk_modulus, average="voigt")
    observables = {
        "K": bulk_modulus,
        "a": Components(ms.observables.lattice_constants, ((0,),)),
        "all": ms.observables.lattice_constants,
        "d": ms.observables.distances([(0, 1)]),
        "ours": lambda system, potential: system.positions[0, 0],
    }
    crystal = ms.System(np.zeros((1, 3)), cell=2.7 * np.eye(3), pbc=True, species="Si")
    found = units_of(
        ms.StillingerWeber.silicon(), ("sigma", "lam"), join_observables(observables, ("structure",)), {"structure": crystal}
    )
    assert found["parameters"] == {"sigma": "Angstrom", "lam": ""}
    assert found["observables"] == {"K": "GPa", "a": "Angstrom", "all": ["Angstrom"] * 3 + ["degrees"] * 3, "d": "Angstrom"}
    sheet = ms.System(np.zeros((1, 3)), cell=2.7 * np.eye(3), pbc=[True, True, False], species="Si")
    of_a_sheet = units_of(ms.StillingerWeber.silicon(), (), join_observables({"K": bulk_modulus}, ("a",)), {"a": sheet})
    assert of_a_sheet["observables"] == {"K": "N m-1"}
    record = Record({}, {"units": found})
    assert record.unit("values/all", {}) is None and record.unit_of_number("all[4]", {}) == "degrees"
    assert record.unit_of_number("a[0]", {}) == "Angstrom" and record.unit_of_number("ours", {}) is None


def test_a_single_component_has_the_name_of_its_observable():
    assert entries("C44", (1,)) == entries("C44", (1, 1)) == entries("C44", ()) == ["C44"]
    assert entries("C", (2,)) == ["C[0]", "C[1]"]
