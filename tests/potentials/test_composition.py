"""Potentials added up, and potentials seen in other variables: energies, derivatives by the chain rule, files, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from differences import scaled_errors
from helpers import refused

import mdsens as ms
from mdsens.derivatives.certificate import distance_to_kinks
from mdsens.potentials.base import parameter_paths, total_energy
from mdsens.potentials.wrapped.jaxmd_energy import AllPairs

LONG = ms.LennardJones(epsilon=0.02, sigma=2.1, cutoff=5.0, onset=4.0)
# ε and σ of A-A and B-B are the same, so that tying them changes no structure.
PAIRS = ms.LennardJones(
    epsilon={"A-A": 1.0, "A-B": 1.5, "B-B": 1.0}, sigma={"A-A": 1.0, "A-B": 0.9, "B-B": 1.0}, cutoff=4.0, onset=3.5
)


class Trap(ms.Potential):
    """All atoms pull at each other, near and far: an energy that is not of listed pairs."""

    local = False

    k: float

    @property
    def range(self):
        return np.asarray(np.inf)

    @property
    def smoothness(self):
        return np.inf

    def find_neighbors(self, system, *, skin=None):
        return AllPairs()

    def atom_energies(self, system):
        x = system.positions
        return 0.25 * self.k * jnp.sum((x[:, None] - x) ** 2, axis=(1, 2))


@pytest.fixture(scope="module")
def silicon_piece():
    atoms = bulk("Si", cubic=True)
    del atoms[3]
    atoms.rattle(0.05, seed=1)
    return ms.System.from_ase(atoms)


@pytest.fixture(scope="module")
def cluster():
    x = np.array([[0.0, 0, 0], [1.1, 0, 0], [0.5, 0.9, 0.1], [0.4, 0.4, 0.9], [1.3, 0.9, 0.6]])
    return ms.relax(ms.System(x, species=["A", "A", "B", "B", "A"]), PAIRS, fmax=1e-12)


def deviation(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


@pytest.mark.slow
def test_a_sum_is_the_sum_of_its_terms(silicon_piece, silicon):
    both = LONG + silicon
    assert both.range == 5.0 and both.smoothness == 2
    for name in ("energy", "energies", "forces", "stress"):
        parts = [getattr(term, name)(silicon_piece) for term in (LONG, silicon)]
        assert deviation(getattr(both, name)(silicon_piece), sum(parts)) < 1e-14
    parts = sum(ms.hessian(silicon_piece, term, "dense") for term in (LONG, silicon))
    assert deviation(ms.hessian(silicon_piece, both, "dense"), parts) < 1e-13
    v = np.random.default_rng(0).normal(size=parts.shape[0])
    assert deviation(ms.hessian(silicon_piece, both, "operator") @ v, parts @ v) < 1e-13


def test_a_term_of_short_range_has_a_list_of_its_own_which_is_held_against_its_range(silicon_piece, silicon):
    both = LONG + silicon
    listed = silicon_piece.with_neighbors(both, skin=0.1)
    whole, (shared, short) = listed.neighbors, listed.neighbors.shorter
    assert shared is None and short.atom.shape[0] < whole.atom.shape[0]
    assert np.isfinite(total_energy(both, listed))
    grown = jax.tree.unflatten(
        jax.tree.structure(both), [x * (1.05 if k == 3 else 1.0) for k, x in enumerate(jax.tree.leaves(both))]
    )
    assert grown.terms[1].sigma > silicon.sigma and grown.range == both.range
    assert np.isnan(total_energy(grown, listed))
    # An atom that moved so far that the short list could miss a pair makes the whole list stale.
    slack = float(whole.slack(both.ranges))
    for share, stale in ((0.49, False), (0.51, True)):
        moved = silicon_piece.positions.at[0, 0].add(share * slack)
        assert bool(whole.is_stale(moved, both.ranges)) is stale


def test_sums_are_flat_and_name_their_terms():
    three = PAIRS + LONG + ms.SoftSphere(diameter=0.5, epsilon=1.0)
    assert len(three.terms) == 3 and (PAIRS + (LONG + LONG)).terms == (PAIRS, LONG, LONG)
    assert three.smoothness == 1 and distance_to_kinks(three) is None
    assert np.isnan(distance_to_kinks(LONG + ms.Tersoff.silicon())) and distance_to_kinks(LONG + LONG) == np.inf
    paths = parameter_paths(three)
    assert paths[:2] == ["LennardJones1.epsilon.A-A", "LennardJones1.epsilon.A-B"] and paths[-1] == "SoftSphere.epsilon"
    assert three.unit_of("LennardJones2.sigma") == "Angstrom"


@pytest.mark.slow
def test_the_sensitivity_of_a_sum_is_that_of_structures_relaxed_again(cluster):
    eq = ms.relax(cluster.system, PAIRS + ms.SoftSphere(diameter=1.3, epsilon=0.5, alpha=2.5), fmax=1e-12)
    S = ms.sensitivity(eq)
    assert S.certificate.trusted and S.positions.terms[1].diameter.shape == (5, 3)
    assert max(scaled_errors(eq, S).values()) < 1e-6
    some = ms.sensitivity(eq, wrt=["SoftSphere", "LennardJones.sigma.A-B"])
    kept = dict(zip(parameter_paths(some.positions), jax.tree.leaves(some.positions), strict=True))
    assert list(kept) == ["LennardJones.sigma.A-B", "SoftSphere.diameter", "SoftSphere.epsilon"]


@pytest.mark.slow
def test_an_energy_without_a_list_can_be_a_term(cluster):
    together = PAIRS + Trap(k=0.1)
    eq = ms.relax(cluster.system, together, fmax=1e-12)
    assert deviation(together.forces(cluster.system), Trap(k=0.1).forces(cluster.system)) < 1e-9  # the pairs are at rest
    S = ms.sensitivity(eq)
    assert S.certificate.trusted
    assert max(scaled_errors(eq, S, same_contacts=False).values()) < 1e-6
    refused(lambda: ms.hessian(eq.system, together), "operator")


@pytest.mark.slow
def test_derivatives_in_other_variables_obey_the_chain_rule(cluster):
    rules = {
        "epsilon.A-B": "log",
        "sigma.A-B": ("ratio", "sigma.A-A"),
        "sigma.B-B": "fixed",
        "epsilon.B-B": ("tied", "epsilon.A-A"),
    }
    potential = ms.reparameterised(PAIRS, rules)
    eq = ms.relax(cluster.system, potential, fmax=1e-12)
    plain, S = ms.sensitivity(cluster).positions, ms.sensitivity(eq)
    assert S.certificate.trusted
    new = S.positions
    assert deviation(new.epsilon["A-B"], PAIRS.epsilon["A-B"] * plain.epsilon["A-B"]) < 1e-9
    assert deviation(new.epsilon["A-A"], plain.epsilon["A-A"] + plain.epsilon["B-B"]) < 1e-9
    assert deviation(new.sigma["A-B"], PAIRS.sigma["A-A"] * plain.sigma["A-B"]) < 1e-9
    assert deviation(new.sigma["A-A"], plain.sigma["A-A"] + 0.9 * plain.sigma["A-B"]) < 1e-9
    assert new.sigma["B-B"] is None and new.epsilon["B-B"] is None
    assert parameter_paths(potential) == ["epsilon.A-A", "epsilon.A-B", "sigma.A-A", "sigma.A-B"]
    assert potential.unit_of("epsilon.A-B") == "" and potential.unit_of("epsilon.A-A") == "eV"
    span = lambda system, potential: jnp.sum(system.positions**2)  # noqa: E731
    slope = ms.gradient(span, eq)
    assert deviation(slope.epsilon["A-B"], np.vdot(2.0 * eq.system.positions, new.epsilon["A-B"])) < 1e-8
    assert deviation(ms.jvp(eq, {"epsilon.A-B": 1.0}), new.epsilon["A-B"]) < 1e-9
    traced = jax.grad(lambda p: jnp.sum(ms.equilibrium_positions(eq.system, p, fmax=1e-12) ** 2))(potential)
    assert deviation(traced.epsilon["A-B"], slope.epsilon["A-B"]) < 1e-8


def test_short_names_for_fixed_and_tied_and_rules_upon_rules():
    one = ms.tied(ms.fixed(PAIRS, "epsilon"), {"sigma.B-B": "sigma.A-A"})
    assert parameter_paths(one) == ["sigma.A-A", "sigma.A-B"]
    two = ms.reparameterised(one, {"sigma.A-B": "log"})
    assert two.inner.sigma["A-B"] == pytest.approx(0.9, abs=1e-15) and two.sigma["A-B"] == np.log(0.9)
    everything = ms.tied(PAIRS, {"sigma": "sigma.A-A"})
    assert parameter_paths(everything) == [*(f"epsilon.{pair}" for pair in ("A-A", "A-B", "B-B")), "sigma.A-A"]
    assert everything.inner.sigma["A-B"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_compositions_come_back_from_files_bit_for_bit(cluster, tmp_path, dtype):
    rules = {"epsilon.A-B": "log", "sigma.A-B": ("ratio", "sigma.A-A"), "sigma.B-B": "fixed"}
    potential = (ms.reparameterised(PAIRS, rules) + ms.fixed(LONG, "sigma")).astype(dtype)
    assert {constant.dtype for constant in potential.stored_constants.values()} == {np.dtype(dtype)}
    eq = ms.relax(cluster.system.astype(dtype), potential, fmax=1e-2, check_minimum=False)
    again, _ = ms.load(ms.save(tmp_path / "state.h5", eq))
    assert jax.tree.structure(again.potential) == jax.tree.structure(potential)
    for a, b in zip(jax.tree.leaves(again.potential), jax.tree.leaves(potential), strict=True):
        assert a.dtype == b.dtype and a == b


def test_a_file_with_a_term_of_the_users_needs_it(cluster, tmp_path):
    eq = ms.relax(cluster.system, PAIRS + Trap(k=0.1), check_minimum=False)
    path = ms.save(tmp_path / "state.h5", eq)
    with pytest.raises(ms.StoreError, match="Trap"):
        ms.load(path)
    assert ms.load(path, potential=PAIRS + Trap(k=0.3))[0].potential.terms[1].k == 0.1
    with pytest.raises(ms.StoreError, match="settings"):
        ms.load(path, potential=LONG + Trap(k=0.3))


BAD_INPUT = {
    "a number in a sum": (lambda: ms.Sum((LONG, 1.0)), ["Sum", "potentials"]),
    "an unknown parameter": (lambda: ms.fixed(PAIRS, "epsilom"), ["epsilom", "'epsilon'"]),
    "an unknown rule": (lambda: ms.reparameterised(PAIRS, {"epsilon": "logarithm"}), ["'logarithm'", "log"]),
    "a tie to nothing": (lambda: ms.reparameterised(PAIRS, {"epsilon": "tied"}), ["'tied'", "path"]),
    "a tie to several": (lambda: ms.tied(PAIRS, {"epsilon.A-A": "sigma"}), ["'sigma'", "several"]),
    "a chain": (lambda: ms.tied(PAIRS, {"sigma.A-B": "sigma.B-B", "sigma.B-B": "sigma.A-A"}), ["sigma.A-B", "sigma.A-A"]),
    "a negative logarithm": (
        lambda: ms.reparameterised(ms.StillingerWeber.silicon(), {"costheta0": "log"}),
        ["costheta0", "-0.33"],
    ),
    "a missing species": (lambda: (PAIRS + LONG).energy(ms.System([[0.0, 0, 0], [1, 0, 0]], species="C")), ["'C-C'"]),
    "a term that does not exist": (
        lambda: ms.fixed(PAIRS + LONG, "LennardJones.epsilon"),
        ["LennardJones.epsilon", "LennardJones2.epsilon"],
    ),
}


@pytest.mark.parametrize(("call", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_refused_with_a_sentence_that_names_it(call, words):
    refused(call, *words)


@pytest.mark.slow
def test_parameters_are_listed_by_the_names_that_they_have_in_results():
    pair = ms.LennardJones(epsilon={"A-A": 1.0, "A-B": 1.5, "B-B": 0.5}, sigma=1.0, cutoff=2.5)
    assert list(ms.fixed(pair, "sigma").parameters()) == ["epsilon"]
    whole = pair + ms.fixed(ms.ZBL(cutoff=2.0), "a0")
    assert list(whole.parameters()) == ["LennardJones.epsilon", "LennardJones.sigma", "ZBL.p", "ZBL.c", "ZBL.d"]
    assert whole.parameters()["LennardJones.sigma"] is whole.terms[0].sigma
    dimer = ms.relax(
        ms.System([[0.0, 0.0], [1.1, 0.0]], species=["A", "B"]), ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5) + pair
    )
    derivatives = ms.sensitivity(dimer, wrt=["LennardJones2.sigma"]).positions.parameters()
    assert derivatives["LennardJones2.sigma"].shape == (2, 2) and derivatives["LennardJones1.sigma"] is None
