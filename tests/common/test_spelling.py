"""Who misspells a name is told which one was meant, in a sentence, wherever the message is read (notebooks show no more)."""

import copy
import inspect
import pickle

import equinox as eqx
import jax
import pytest

import mdsens as ms
from mdsens.common.suggestions import suggest_names

SILICON = ms.StillingerWeber.silicon()
PAIR = ms.System([[0.0, 0.0, 0.0], [2.3, 0.0, 0.0]], species="Si")


NOT_OURS = {"Status", "Certificate", "Calculator", "static"}
"""Made by mdsens itself, or of enum's, ASE's and Equinox's making."""


def _with_options():
    """Public functions and classes, with the longest name of their parameters."""
    for module in (ms, ms.plot):
        for name in sorted(set(module.__all__) - NOT_OURS):
            value = getattr(module, name)
            if not callable(value) or (isinstance(value, type) and issubclass(value, Exception)):
                continue
            parameters = inspect.signature(value).parameters.values()
            named = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
            if named and all(one.kind is not one.VAR_KEYWORD for one in parameters):
                yield pytest.param(value, max(named, key=len), id=f"{module.__name__}.{name}")


@pytest.mark.parametrize(("function", "option"), list(_with_options()))
def test_a_misspelled_option_is_answered_with_the_one_that_was_meant(function, option):
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{option}s'\. Did you mean '{option}'\?"):
        function(**{f"{option}s": 1.0})


def test_options_that_are_like_none_are_answered_with_all_of_them():
    with pytest.raises(TypeError, match=r"relax\(\) got an unexpected keyword argument 'tol'\. There are: cell, check_minimum, "):
        ms.relax(PAIR, SILICON, tol=1e-8)


def test_an_option_of_a_potential_of_ones_own():
    class Yukawa(ms.PairPotential):
        strength: dict
        cutoff: float = ms.static(8.0)

    with pytest.raises(TypeError, match="Did you mean 'strength'"):
        Yukawa(strenght=1.0)
    assert list(inspect.signature(Yukawa).parameters) == [
        "strength",
        "cutoff",
        "no_interaction",
    ]  # the last by keyword, of every pair potential


@pytest.mark.parametrize(
    ("owner", "name", "meant"),
    [
        (ms, "Lennardjones", "LennardJones"),
        (ms.observables, "presure", "pressure"),
        (ms.plot, "cristal", "crystal"),
        (ms.studies, "swep", "sweep"),
        (SILICON, "sigm", "sigma"),
        (SILICON, "A_", "A"),
        (SILICON, "force", "forces"),
        (PAIR, "positons", "positions"),
        (PAIR, "too_ase", "to_ase"),
    ],
)
def test_a_misspelled_attribute_is_answered_with_the_one_that_was_meant(owner, name, meant):
    with pytest.raises(AttributeError, match=rf"has no attribute '{name}'\. Did you mean '{meant}'\?") as caught:
        getattr(owner, name)
    assert caught.value.obj is None  # else the interpreter adds a guess of its own


def test_what_lies_inside_a_part_is_named_with_it():
    eq = ms.Equilibrium(PAIR, SILICON, -1.0, 0.0, 0, ms.Status.CONVERGED, None, "FIRE()")
    for name, meant in (("positions", "system.positions"), ("sigma", "potential.sigma"), ("forces", "potential.forces")):
        with pytest.raises(AttributeError, match=rf"Equilibrium has no attribute '{name}'\. Did you mean '{meant}'\?"):
            getattr(eq, name)


def test_programs_that_ask_for_attributes_are_told_no_guesses():
    """As IPython and NumPy do of everything that they meet."""
    for owner in (ms, SILICON, PAIR):
        for name in ("_repr_html_", "__array__", "_ipython_canary_method_should_not_exist_"):
            assert not hasattr(owner, name)
            with pytest.raises(AttributeError, match=r"'\.$"):
                getattr(owner, name)


def test_a_property_that_fails_says_why_itself():
    class Broken(ms.PairPotential):
        depth: float
        cutoff: float = ms.static(3.0)

        @property
        def half(self):
            return self.depth.nothing

    with pytest.raises(AttributeError, match="'nothing'"):
        _ = Broken(depth=1.0).half


def test_modules_stay_what_they_were():
    for one in (copy.copy(SILICON), copy.deepcopy(SILICON), pickle.loads(pickle.dumps(SILICON))):
        assert eqx.tree_equal(one, SILICON)
    assert eqx.tree_equal(pickle.loads(pickle.dumps(PAIR)), PAIR)
    assert pickle.loads(pickle.dumps(ms.relax)) is ms.relax
    assert jax.jit(lambda potential: potential.sigma)(SILICON) == SILICON.sigma


def test_errors_inside_a_function_are_its_own():
    @suggest_names
    def fails(option=1):
        return dict(option=option, **{"other": 1}) + 1

    with pytest.raises(TypeError, match="unsupported operand"):
        fails(option=2)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda eq: ms.gradient(eq, ms.observables.volume), "goes first"),
        (lambda eq: ms.gradient("volume", eq), r"such as ms\.observables\.volume, not 'volume'"),
        (lambda eq: ms.jacobian(ms.observables.distances, eq), r"give what distances\(\.\.\.\) returns"),
        (lambda eq: ms.save(eq, "a.h5"), r"ms\.save\(path, eq, S\)"),
        (lambda eq: ms.relax(eq.system, eq.potential, solver="FIRE"), r"such as ms\.FIRE\(\), not 'FIRE'"),
        (lambda eq: ms.relax(eq.system, eq.potential, solver=ms.FIRE), r"such as ms\.FIRE\(\)"),
        (lambda eq: ms.System(eq.system.to_ase()), r"System\.from_ase\(atoms\)"),
    ],
)
def test_arguments_in_the_wrong_place_are_answered_with_the_call_that_was_meant(mistake, words):
    eq = ms.relax(ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]]), ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5))
    with pytest.raises(ms.InputError, match=words):
        mistake(eq)


def test_dir_of_a_module_shows_its_public_names():
    for name in ms._MODULES:
        module = getattr(ms, name)
        assert dir(module) == sorted(module.__all__) and all(hasattr(module, one) for one in dir(module)), name
