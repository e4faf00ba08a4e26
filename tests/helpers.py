"""What several tests use: refusals in a sentence, and entries of `.sw` files."""

import pytest

import mdsens as ms


def refused(call, *words) -> str:
    """The call raises InputError, in one line that ends in a full stop and has all the words."""
    with pytest.raises(ms.InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and message.endswith((".", "'?")), message
    for word in words:
        assert word in message, message
    return message


def sw_entry(potential, element="Si", partners=None, tol=0.0, **changed) -> str:
    """One entry of a `.sw` file, with all digits."""
    names = ("epsilon", "sigma", "a", "lam", "gamma", "costheta0", "A", "B", "p", "q")
    values = [changed.get(name, float(getattr(potential, name))) for name in names]
    return " ".join([element, *(partners or (element, element)), *map(repr, [*values, tol])])
