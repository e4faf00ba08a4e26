"""Global indices against cases whose indices are known: sums and products of parameters, and a bond's length."""

import sys

import numpy as np
import pytest
import scipy.stats
from study_files import DIMER

import mdsens as ms
from mdsens import studies
from mdsens.studies.input import tasks
from mdsens.studies.results.text_tables import describe_study
from mdsens.studies.running import execution
from mdsens.studies.storage import collected_file

STD = {"sigma": 0.02, "epsilon": 0.1}


@pytest.fixture(scope="module")
def dimer():
    system = ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]])
    return ms.relax(system, ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=6.0, onset=5.0), fmax=1e-10)


def linear(system, potential):
    return 10.0 * potential.sigma + potential.epsilon


def product(system, potential):
    return (potential.sigma - 1.0) * (potential.epsilon - 1.0)


@pytest.mark.slow
def test_sobol_s_indices_are_the_shares_of_the_variance(dimer):
    """10 σ + ε has the variances 0.04 and 0.01; the product has none of one parameter alone; the bond is of σ only."""
    observables = {"linear": linear, "product": product, "bond": ms.observables.distances([(0, 1)])}
    found = studies.global_indices(dimer, observables, STD, samples=64, seed=1)
    assert found.names == ("sigma", "epsilon") and found.count == 64 * 4 and not found.failed
    for index in ("S1", "ST"):
        # The estimates' own 95 % intervals are 0.1 to 0.2 at 64 points.
        np.testing.assert_allclose(found.values[index]["linear"], [0.8, 0.2], atol=0.1)
        np.testing.assert_allclose(found.values[index]["bond"], [[1.0, 0.0]], atol=0.1)
    assert (abs(found.values["S1"]["linear"] - [0.8, 0.2]) < 2.0 * found.values["S1_conf"]["linear"]).all()
    assert (abs(found.values["S1"]["product"]) < 0.35).all() and (found.values["ST"]["product"] > 0.6).all()
    # Where the observable is a straight line they are what J Σ Jᵀ says.
    local = studies.uncertainty(dimer, {"linear": linear}, STD, check=False)
    np.testing.assert_allclose(local.shares["linear"], [0.8, 0.2], rtol=1e-10)


def test_morris_s_effects_of_a_straight_line_are_its_slopes(dimer):
    found = studies.global_indices(dimer, {"g": linear}, {"sigma": 0.02, "epsilon": (0.9, 1.2)}, method="morris", samples=4)
    np.testing.assert_allclose(found.values["mu_star"]["g"], [10.0 * 0.02 * 2.0 * np.sqrt(3.0), 0.3], rtol=1e-8)
    np.testing.assert_allclose(found.values["mu"]["g"], found.values["mu_star"]["g"], rtol=1e-8)
    np.testing.assert_allclose(found.values["sigma"]["g"], 0.0, atol=1e-8)
    assert found.count == 4 * 3


def test_indices_and_their_intervals_are_salib_s_of_the_function_itself(dimer):
    """10 σ + ε needs no relaxation: SALib's answer for it, the half widths of its intervals included."""
    from SALib.analyze import morris as effects
    from SALib.analyze import sobol as indices
    from SALib.sample import morris, sobol

    problem = {"num_vars": 2, "names": ["sigma", "epsilon"], "bounds": [[1.0, 0.02], [1.0, 0.1]], "dists": ["norm", "norm"]}
    points = sobol.sample(problem, 16, calc_second_order=False, seed=5)
    expected = indices.analyze(problem, points @ [10.0, 1.0], calc_second_order=False, seed=5)
    found = studies.global_indices(dimer, {"linear": linear}, STD, samples=16, seed=5)
    for name in ("S1", "S1_conf", "ST", "ST_conf"):
        np.testing.assert_allclose(found.values[name]["linear"], expected[name], rtol=1e-9, err_msg=name)
    # A uniform distribution of the same variance reaches √3 standard deviations far.
    problem = {"num_vars": 2, "names": ["sigma", "epsilon"], "bounds": [[1 - 0.02 * 3**0.5, 1 + 0.02 * 3**0.5], [0.9, 1.2]]}
    points = morris.sample(problem, 4, num_levels=4, seed=5)
    expected = effects.analyze(problem, points, points @ [10.0, 1.0], num_levels=4, seed=5)
    both = {"sigma": 0.02, "epsilon": (0.9, 1.2)}
    found = studies.global_indices(dimer, {"linear": linear}, both, method="morris", samples=4, seed=5)
    for name in ("mu", "mu_star", "mu_star_conf", "sigma"):
        np.testing.assert_allclose(found.values[name]["linear"], expected[name], rtol=1e-6, atol=1e-9, err_msg=name)


def test_sampling_errors_are_those_of_a_standard_deviation(dimer):
    """Of n draws of 10 σ + ε, the standard deviation s has the error s √((κ - 1) / 4n)."""
    found = studies.uncertainty(dimer, {"linear": linear}, STD, samples=40, seed=2, check=False).sampling
    drawn = 11.0 + np.random.default_rng(2).normal(size=(40, 2)) @ [0.2, 0.1]
    width, peak = np.std(drawn, ddof=1), scipy.stats.kurtosis(drawn, fisher=False)
    assert found.count == 40
    np.testing.assert_allclose(found.mean["linear"], drawn.mean(), rtol=1e-9)
    np.testing.assert_allclose(found.std["linear"], width, rtol=1e-9)
    # SciPy's κ is relative to the variance over n, ours to that over n - 1.
    np.testing.assert_allclose(found.std_error["linear"], width * np.sqrt((peak - 1.0) / 160.0), rtol=0.05)


@pytest.mark.slow
def test_what_does_not_relax_is_left_out_or_said(dimer):
    found = studies.global_indices(dimer, {"g": linear}, {"sigma": (-0.05, 1.0)}, method="morris", samples=8, seed=3)
    assert 0 < found.failed < found.count and np.isfinite(found.values["mu_star"]["g"]).all()
    with pytest.raises(ms.InputError, match="did not relax: narrow"):
        studies.global_indices(dimer, {"g": linear}, {"sigma": (-2.0, -1.0)}, method="morris", samples=4)


def test_what_cannot_be_sampled_is_refused(dimer, monkeypatch):
    for given, options, word in (
        (STD, {"method": "sobl"}, "sobol"),
        (STD, {"samples": 100}, "power of two"),
        ({"sigma": -0.1}, {}, "standard deviations"),
        ({"sigma": (1.0, 0.5)}, {}, "low, high"),
        ({"sgma": 0.1}, {}, "no parameter"),
    ):
        with pytest.raises(ms.InputError, match=word):
            studies.global_indices(dimer, {"g": linear}, given, **options)
    monkeypatch.setitem(sys.modules, "SALib.analyze", None)
    with pytest.raises(ms.InputError, match=r"pip install 'mdsens\[salib\]'"):
        studies.global_indices(dimer, {"g": linear}, STD)


def test_a_study_has_them_too(tmp_path):
    settings = 'kind = "uncertainty"\nstd = { sigma = 0.01, epsilon = 0.1 }\nindices = "morris"\nindex_samples = 3\n'
    text = DIMER.format(sigma="[1.0]").replace('kind = "sweep"\n', settings)
    text = text.replace("[study.parameters]\nsigma = [1.0]\nepsilon = [0.5, 1.0]\n", "")
    (tmp_path / "study.toml").write_text(text)
    study = tasks.read_study(tmp_path / "study.toml")
    done = execution.run(study, tmp_path / "out", progress=False)
    assert done.done == 1 and not done.failed, done.failed
    collected_file.collect(tmp_path / "out", tmp_path / "all.h5")
    lines = "\n".join(describe_study(collected_file.read_collected(tmp_path / "all.h5")))
    assert "morris, 9 structures relaxed, 0 of them failed" in lines and "mu_star" in lines
    (tmp_path / "study.toml").write_text(text.replace('"morris"', '"sobol"'))
    with pytest.raises(ms.InputError, match=r"index_samples is 3.*power of two"):
        tasks.read_study(tmp_path / "study.toml")
