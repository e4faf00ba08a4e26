"""Parameter files, and what potentials refuse: each time in one sentence that names it."""

import copy
import dataclasses
import math
import pickle
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.emt import EMT
from helpers import refused, sw_entry

import mdsens as ms

ONSET, CUTOFF = 2.0, 2.5
SIGMA = {"A-A": 1.0, "A-B": 0.9, "B-B": 0.95}


# Files of Stillinger-Weber parameters


@pytest.fixture
def write_sw(tmp_path):
    def write(content, name="Si.sw"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def loads(path, silicon, **options):
    found = ms.StillingerWeber.from_file(path, **options)
    return all(
        getattr(found, field.name) == getattr(silicon, field.name)
        for field in dataclasses.fields(ms.StillingerWeber)
        if field.name != "built_range"
    )


def test_a_sw_file_gives_the_parameters_that_were_written(silicon, write_sw):
    entry = sw_entry(silicon)
    assert loads(write_sw(entry), silicon)
    words = entry.split()
    first, rest = " ".join(words[:6]), "\n  ".join(words[6:])
    several_lines = f"# a comment of 14 words is no entry\n\n{first}  # epsilon to a\n\t{rest}\n#"
    assert loads(write_sw(several_lines), silicon)
    assert loads(write_sw(several_lines.replace("\n", "\r\n")), silicon)


def test_one_element_of_several_is_chosen_by_name(silicon, write_sw):
    carbon = dataclasses.replace(silicon, sigma=1.4, element="C")
    entries = [sw_entry(carbon, "C"), sw_entry(silicon, "C", ("Si", "Si"), lam=0.0), sw_entry(silicon)]
    path = write_sw("\n".join(entries), "SiC.sw")
    assert loads(path, silicon, elements="Si") and loads(path, carbon, elements=["C"])
    refused(lambda: ms.StillingerWeber.from_file(path), "C-C-Si", "C, Si", "elements=")
    refused(lambda: ms.StillingerWeber.from_file(path, elements="Ge"), "'Ge'", "C, Si")


BAD_FILES = {
    "cut off": (lambda good: good[:-40], ["cut off", "14"]),
    "cut off in the second entry": (lambda good: good + "\nSi Si", ["cut off"]),
    "empty": (lambda good: "", ["cut off"]),
    "only a comment": (lambda good: "# nothing here\n", ["cut off"]),
    "not a number": (lambda good: good.replace("21.0", "nan"), ["Si-Si-Si", "not finite"]),
    "infinite": (lambda good: good.replace("21.0", "inf"), ["Si-Si-Si", "not finite"]),
    "a word among the numbers": (lambda good: good.replace("21.0", "many"), ["Si-Si-Si", "not numbers"]),
    "code": (lambda good: good.replace("21.0", "exit()"), ["Si-Si-Si", "not numbers"]),
    "negative length": (lambda good: good.replace("2.0951", "-2.0951"), ["line ", "sigma", "positive"]),
    "another cutoff": (lambda good: good.removesuffix("0.0") + "0.1", ["tol"]),
    "not text": (lambda good: b"\xff\xfe\x00\x80" * 50, ["not a text file"]),
    "the same entry twice": (lambda good: f"{good}\n{good.replace('21.0', '22.0')}", ["Si-Si-Si", "twice"]),
    "kcal/mol, as its first line says": (lambda good: f"# DATE: 2015-01-01 UNITS: real\n{good}", ["real", "metal"]),
    "no element by itself": (lambda good: good.replace("Si Si Si", "Si C C"), ["Si-Si-Si", "Si, C"]),
}


@pytest.mark.parametrize(("spoil", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_spoilt_sw_file_is_refused(spoil, words, silicon, write_sw):
    path = write_sw(spoil(sw_entry(silicon)))
    refused(lambda: ms.StillingerWeber.from_file(path), *words)


def test_a_missing_sw_file_is_refused(tmp_path):
    refused(lambda: ms.StillingerWeber.from_file(tmp_path / "none.sw"), "There is no file", "none.sw")
    refused(lambda: ms.StillingerWeber.from_file(tmp_path), "There is no file")


# What is refused


def lj(**changed):
    return ms.LennardJones(**{"epsilon": 1.0, "sigma": 1.0, "cutoff": CUTOFF, "onset": ONSET, **changed})


@pytest.mark.parametrize(
    "made",
    [
        lambda **lengths: ms.LennardJones(epsilon=1.0, sigma=1.0, **lengths),
        lambda **lengths: ms.LennardJones(epsilon=1.0, sigma=1.0, switch="xplor", **lengths),
        lambda **lengths: ms.Yukawa(strength=1.0, kappa=1.0, **lengths),
        lambda **lengths: ms.ZBL(**lengths),
    ],
    ids=["Lennard-Jones", "xplor", "Yukawa", "ZBL"],
)
def test_a_cutoff_is_enough_and_the_switch_begins_at_0_8_of_it(made):
    """2.0 σ and 2.5 σ of Lennard-Jones, as jax-md has them."""
    assert eqx.tree_equal(made(cutoff=2.5), made(cutoff=2.5, onset=2.0))
    assert made(cutoff=2.5).smoothness >= 1


SALT = ms.System([[0.0, 0.0, 0.0], [2.5, 0.0, 0.0]], species=["Na", "Cl"])


@pytest.mark.parametrize(
    "potential",
    [lj(), dataclasses.replace(ms.Gupta.published("Cu"), element=None), lj() + ms.ZBL(cutoff=2.0)],
    ids=["pairs", "embedded", "in a sum"],
)
def test_the_same_numbers_for_several_elements_are_noted(potential):
    with pytest.warns(UserWarning, match=r"elements Cl, Na, and (LennardJones|Gupta) has the same numbers for all"):
        potential.energy(SALT)


@pytest.mark.parametrize(
    "potential",
    [ms.StillingerWeber.silicon(), ms.Tersoff.silicon(), ms.Gupta.published("Cu"), ms.FinnisSinclair.published("W")],
    ids=lambda potential: type(potential).__name__,
)
def test_published_numbers_of_another_element_are_noted(potential):
    name = type(potential).__name__
    with pytest.warns(UserWarning, match=rf"The numbers of this {name} are those of {potential.element}, .* has Ge: "):
        potential.energy(ms.System(SALT.positions, species="Ge"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential.check(ms.System(SALT.positions, species=potential.element))
        potential.check(ms.System(SALT.positions, species="A"))


def test_the_same_numbers_are_not_noted_where_they_say_enough():
    """One element; labels that are none; some parameters that do differ, or nuclei that say which they are."""
    models = ms.System(SALT.positions, species=["A", "B"])
    pairs = {"Na-Na": 1.0, "Cl-Na": 1.1, "Cl-Cl": 1.2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for potential, system in (
            (lj(), ms.System(SALT.positions, species="Si")),
            (lj(), models),
            (lj(epsilon=pairs), SALT),
            (ms.ZBL(cutoff=2.0), SALT),
        ):
            potential.check(system)


def test_switches_without_an_onset_have_none():
    assert lj(onset=None, switch="shifted_force").onset is None


TWO = [[0.0, 0, 0], [1.1, 0, 0]]

BAD_INPUT = {
    "a pair is missing": (
        lambda: lj(epsilon={"A-A": 1.0, "A-B": 1.0}).energy(ms.System(TWO, species=["A", "B"])),
        ["LennardJones.epsilon", "'B-B'", "A, B"],
    ),
    "a species nobody knows": (lambda: lj(sigma=SIGMA).energy(ms.System(TWO, species=["A", "C"])), ["sigma", "'A-C'"]),
    "a diameter is missing": (
        lambda: ms.SoftSphere(diameter={"A": 1.0}, epsilon=1.0).energy(ms.System(TWO, species=["A", "B"])),
        ["SoftSphere.diameter", "'B'"],
    ),
    "two species in silicon": (
        lambda: ms.StillingerWeber.silicon().energy(ms.System(TWO, species=["Si", "C"])),
        ["one species", "C, Si"],
    ),
    "negative cutoff": (lambda: lj(cutoff=-1.0, onset=None, switch="truncated"), ["cutoff", "positive", "-1.0"]),
    "no cutoff at all": (lambda: lj(cutoff=np.inf, switch="truncated"), ["cutoff", "inf"]),
    "cutoff that is not a number": (lambda: lj(cutoff=np.nan), ["cutoff", "nan"]),
    "onset beyond the cutoff": (lambda: lj(onset=3.0), ["onset", "2.5", "3.0"]),
    "onset at the cutoff": (lambda: lj(onset=CUTOFF), ["onset"]),
    "negative onset": (lambda: lj(onset=-0.1), ["onset", "-0.1"]),
    "a switch nobody knows": (lambda: lj(switch="quintc"), ["'quintc'", "Did you mean 'quintic'?"]),
    "a switch far from any": (lambda: lj(switch="none"), ["'none'", "quintic, xplor, shifted_force, truncated"]),
    "single precision": (lambda: lj(epsilon=np.float32(1.0)), ["LennardJones.epsilon", "float32"]),
    "single precision for a pair": (lambda: lj(sigma={"A-A": jnp.float32(1.0)}), ["sigma", "'A-A'", "float32"]),
    "a word": (lambda: lj(epsilon="1.0"), ["LennardJones.epsilon", "'1.0'", "not a number"]),
    "nothing": (lambda: lj(epsilon=None), ["LennardJones.epsilon", "None"]),
    "true": (lambda: lj(sigma=True), ["LennardJones.sigma", "True"]),
    "not finite": (lambda: lj(sigma={"A-A": np.nan}), ["sigma", "'A-A'", "not finite"]),
    "both orders of a pair": (lambda: lj(epsilon={"A-A": 1, "A-B": 1, "B-A": 1}), ["'A-B'", "both orders"]),
    "labels and pairs": (lambda: lj(epsilon={"A": 1.0, "A-B": 1.0}), ["mixes", "A, A-B"]),
    "keys that are no labels": (lambda: lj(epsilon={("A", "A"): 1.0}), ["key", "('A', 'A')"]),
    "spheres without size": (lambda: ms.SoftSphere(diameter={"A": 0.0}, epsilon=1.0), ["diameters", "positive"]),
    "spheres without a continuous force": (lambda: ms.SoftSphere(diameter=1.0, epsilon=1.0, alpha=1.0), ["alpha", "1"]),
    "diameters for other particles": (
        lambda: ms.SoftSphere(diameter=np.ones(3), epsilon=1.0).energy(ms.System(TWO)),
        ["3 values", "2 atoms"],
    ),
    "stress without a cell": (lambda: lj().stress(ms.System(TWO)), ["cell", "stress"]),
    "stress of a sheet": (
        lambda: lj().stress(ms.System(TWO, cell=np.diag([3.0, 3.0, 0.0]), pbc=[True, True, False])),
        ["zero", "stress"],
    ),
    "a label where a pair is due": (lambda: lj(epsilon={"A": 1.0}).energy(ms.System(TWO)), ["epsilon", "'A-A'"]),
    "a pair where a label is due": (
        lambda: ms.SoftSphere(diameter={"A-A": 1.0}, epsilon=1.0).energy(ms.System(TWO)),
        ["diameter", "'A'"],
    ),
    "no entries": (lambda: lj(epsilon={}).energy(ms.System(TWO)), ["epsilon"]),
    "one well depth for each atom": (lambda: lj(epsilon=np.ones(2)).energy(ms.System(TWO)), ["epsilon"]),
    "two values of λ": (
        lambda: eqx.tree_at(lambda p: p.lam, ms.StillingerWeber.silicon(), np.ones(2)).energy(ms.System(TWO, species="Si")),
        ["lam"],
    ),
    "cutoff in words": (lambda: lj(cutoff="2.5"), ["cutoff", "'2.5'"]),
    "onset in words": (lambda: lj(onset="2.0"), ["onset", "'2.0'"]),
}


@pytest.mark.parametrize(("call", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_refused_with_a_sentence_that_names_it(call, words):
    refused(call, *words)


# Potentials of one's own


def own(base, method, body):
    """A potential of one's own with one parameter and one method."""
    members = {"__annotations__": {"k": float, "cutoff": float}, "cutoff": ms.static(3.0), method: body}
    return type("Mine", (base,), members)(k=1.0)


FAILING = {
    "math": (ms.PairPotential, "pair_energy", lambda self, r, i, j: math.exp(-r), "cannot be traced"),
    "NumPy": (ms.PairPotential, "pair_energy", lambda self, r, i, j: np.exp(-r), "cannot be traced"),
    "a branch": (ms.PairPotential, "pair_energy", lambda self, r, i, j: r if r < 2.0 else 0.0, "cannot be traced"),
    "arguments": (ms.PairPotential, "pair_energy", lambda self, r: r, "is called as pair_energy(r, i, j) -> number"),
    "no return": (ms.PairPotential, "pair_energy", lambda self, r, i, j: None, "returns nothing"),
    # Without a word this was an energy, and a wrong one.
    "no sum": (ms.SitePotential, "site_energy", lambda self, d, i, j, mask: jnp.where(mask, d[:, 0], 0.0), "shape (4,)"),
    "math in sites": (ms.SitePotential, "site_energy", lambda self, d, i, j, mask: math.exp(d[0, 0]), "cannot be traced"),
}


@pytest.mark.parametrize(("base", "method", "body", "words"), FAILING.values(), ids=FAILING)
def test_what_is_wrong_in_ones_own_energy_names_the_method(base, method, body, words):
    system = ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]])
    refused(lambda: own(base, method, body).energy(system), f"Mine.{method}", words)


def test_a_dict_that_was_not_looked_up_is_named():
    mine = own(ms.PairPotential, "pair_energy", lambda self, r, i, j: self.k * r)
    by_species = dataclasses.replace(mine, k={"A": 1.0, "B": 2.0})
    refused(lambda: by_species.energy(ms.System([[0.0, 0.0], [1.1, 0.0]], species=["A", "B"])), "Mine.pair_energy", "self.one")


@pytest.mark.parametrize(
    ("base", "method"),
    [
        (ms.PairPotential, "pair_energy"),
        (ms.SitePotential, "site_energy"),
        (ms.EmbeddedPotential, "pair_energy"),
        (ms.Potential, "atom_energies"),
    ],
)
def test_a_method_that_was_not_written_is_named(base, method):
    mine = own(base, "nothing", None)
    with pytest.raises(NotImplementedError, match=f"Mine has no method {method}"):
        mine.energy(ms.System([[0.0, 0.0], [1.1, 0.0]]))


def test_fields_are_declared_and_not_set_in_an_init():
    refused(lambda: own(ms.PairPotential, "__init__", lambda self, k: None), "Mine has an __init__", "fields")


def test_potentials_and_structures_are_not_changed_in_place(silicon):
    for change in (lambda: setattr(silicon, "sigma", 2.0), lambda: delattr(silicon, "sigma")):
        with pytest.raises(dataclasses.FrozenInstanceError, match="with_values"):
            change()
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"dataclasses.replace\(potential, element"):
        silicon.element = "Ge"
    with pytest.raises(dataclasses.FrozenInstanceError, match="with_positions"):
        ms.System([[0.0, 0.0], [1.1, 0.0]]).positions = jnp.zeros((2, 2))
    assert silicon.sigma == 2.0951


def test_entries_of_a_parameter_are_not_changed_in_place():
    """An equilibrium would not be one of its own potential any more, and its derivatives wrong."""
    pair = lj(epsilon=dict(SIGMA), sigma=1.0)
    for change in (
        lambda entries: entries.update({"A-B": 2.0}),
        lambda entries: entries.__setitem__("A-B", 2.0),
        lambda entries: entries.pop("A-B"),
    ):
        with pytest.raises(TypeError, match="with_values"):
            change(pair.epsilon)
    doubled = jax.tree.map(lambda leaf: 2.0 * leaf, pair)
    for entries in (pair.epsilon, copy.deepcopy(pair.epsilon), pickle.loads(pickle.dumps(pair.epsilon))):
        assert type(entries) is type(doubled.epsilon) and {key: float(x) for key, x in entries.items()} == SIGMA
    assert doubled.epsilon["A-B"] == 2.0 * SIGMA["A-B"]


@pytest.mark.parametrize(("name", "meant"), [("sigma.B-A", "'sigma.A-B'"), ("epsilon", "'LennardJones.epsilon'")])
def test_a_pair_in_the_other_order_and_a_term_that_was_left_out_are_meant(name, meant):
    pair = lj(sigma=dict(SIGMA))
    potential = pair if "." in name else pair + ms.ZBL(cutoff=2.0)
    refused(lambda: ms.studies.with_values(potential, {name: 1.0}), f"Did you mean {meant}?")


def test_a_warning_points_at_the_line_of_the_user():
    several = ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]], species=["Ar", "Ne"])
    with pytest.warns(UserWarning, match="the same numbers") as noted:
        ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5).energy(several)
        ms.relax(several, ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5), throw=False)
    assert {one.filename for one in noted} == {__file__}


class Wide(ms.PairPotential):
    weights: dict
    cutoff: float = ms.static(6.0)

    def pair_energy(self, r, i, j):
        return self.weights["layer"]["b"] * jnp.exp(-r)


MEANT = {
    "a cutoff that is a parameter": (
        lambda: type("Mine", (ms.PairPotential,), {"__annotations__": {"k": float, "cutoff": float}})(1.0, 6.0),
        ["Mine.cutoff", "cutoff: float = mdsens.static(6.0)"],
    ),
    "weights of a network": (lambda: Wide({"layer": {"b": 1.0}}).energy(ARGON), ["Wide.weights", "NetworkPotential"]),
    "a list of layers": (lambda: Wide([{"b": 1.0}]), ["Wide.weights", "NetworkPotential", "array"]),
    "a calculator": (lambda: ms.relax(ARGON, EMT()), ["EMT", "ms.from_ase(calculator)"]),
    "a calculator, as a function": (lambda: ms.equilibrium_positions(ARGON, EMT()), ["EMT", "ms.from_ase(calculator)"]),
}
ARGON = ms.System([[0.0, 0.0, 0.0], [3.8, 0.0, 0.0]], species=["Ar", "Ar"])


@pytest.mark.parametrize(("call", "words"), MEANT.values(), ids=MEANT)
def test_what_works_in_the_place_of_what_does_not_is_named(call, words):
    refused(call, *words)
