"""Functions with the same code that see the same values are one; those that see others are never taken for one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdsens as ms
from mdsens.common.same_function import same_function
from mdsens.derivatives import first_order


def shifted(shift):
    return lambda x: x + shift


SYSTEM = ms.System([[0.0, 0.0], [1.0, 0.0]], species="Ar")

CASES = [
    *((1, 2), (1.0, 2.0), (True, False), (None, 0), ("a", "b"), ((1, 2), (1, 3)), ([1, 2], [1, 3]), ({"a": 1}, {"a": 2})),
    *((np.arange(3.0), np.arange(3.0) + 1.0), (jnp.arange(3.0), jnp.arange(4.0))),
    *((SYSTEM, SYSTEM.with_positions(SYSTEM.positions + 1.0)), (shifted(2.0), shifted(3.0)), (np.sum, np.prod), (np, jnp)),
]


def copied(value):
    return np.array(value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(("value", "other"), CASES, ids=lambda value: type(value).__name__)
def test_closures(value, other):
    see = lambda value: lambda x: (x, value)  # noqa: E731
    first = same_function(see(value))
    assert same_function(see(copied(value))) is first
    assert same_function(see(other)) is not first
    assert first(1)[0] == 1


def test_other_code_and_other_kinds_of_numbers_are_others():
    assert same_function(lambda x: x + 1) is not same_function(lambda x: x + 2)
    see = lambda value: lambda x: (x, value)  # noqa: E731
    kinds = [same_function(see(value)) for value in (1, 1.0, True, -0.0, 0.0, np.float64(1.0), np.ones(1), jnp.ones(1))]
    assert len(set(kinds)) == len(kinds)


def test_values_that_change_later_make_another_function():
    values, array = [1.0], np.ones(2)
    function = lambda x: x + values[0] + array[0]  # noqa: E731
    first = same_function(function)
    values[0] = 2.0
    second = same_function(function)
    array[0] = 3.0
    third = same_function(function)
    assert (first(0.0), second(0.0), third(0.0)) == (2.0, 3.0, 5.0)


def test_global_variables_count(monkeypatch):
    source = "f = lambda x: helper(x) * scale"
    spaces = [{"scale": scale, "__name__": "__main__"} for scale in (2.0, 2.0, 3.0)]
    functions = []
    for k, names in enumerate(spaces):
        exec(f"def helper(x):\n    return x + {k // 3}", names)
        exec(source, names)
        functions.append(same_function(names["f"]))
    assert functions[0] is functions[1] is not functions[2]
    assert functions[0](1.0) == 2.0
    assert functions[2](1.0) == 3.0
    exec("def helper(x):\n    return x + 10.0", spaces[0])
    assert same_function(spaces[0]["f"])(1.0) == 22.0


def test_defaults_partials_and_inner_functions():
    def total(x, *, power=2):
        return sum(v**power for v in x)

    make = lambda power: functools.partial(total, power=power)  # noqa: E731
    assert same_function(make(3)) is same_function(make(3)) is not same_function(make(2))
    assert same_function(make(3))([1, 2]) == 9
    with_default = lambda power: lambda x, power=power: x**power  # noqa: E731
    assert same_function(with_default(2)) is same_function(with_default(2)) is not same_function(with_default(3))


class Mutable:
    value = 1.0


def test_what_cannot_be_compared_is_left_as_it_is():
    thing, count = Mutable(), 0

    def counts(x):
        nonlocal count
        count += 1
        return x

    def recursive(x):
        return x if x < 1 else recursive(x - 1)

    seen, places = [], np.zeros(2)

    def notes(x):
        seen.append(x)
        return x

    def stores(x):
        places[0] = x
        return x

    for function in (lambda x: x + thing.value, counts, notes, stores, recursive, Mutable(), jax.jit(lambda x: x), same_function):
        assert same_function(function) is function
    counts(1)
    assert count == 1


def test_an_observable_given_anew_compiles_nothing(argon_vacancy):
    def observe(k, weight):
        return float(ms.gradient(lambda system, potential: weight * system.positions[k, 0] ** 2, argon_vacancy).sigma)

    def programs():
        return first_order._slopes._cached._cache_size()

    first = observe(3, 2.0)
    count = programs()
    assert observe(3, 2.0) == first
    assert programs() == count
    assert observe(3, 4.0) == pytest.approx(2.0 * first, rel=1e-12)
    assert programs() == count + 1
