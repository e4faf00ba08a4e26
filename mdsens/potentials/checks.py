"""What several potentials ask of their parameters."""

import numpy as np

from mdsens.errors import InputError
from mdsens.system import is_concrete


def check_positive(potential, *names: str, or_zero: bool = False) -> None:
    """Refuse values of these parameters that are negative, or zero; what is traced by JAX has none.

    Raises:
        InputError: naming the parameter and its entry.
    """
    for name in names:
        for _, where, value in entries(potential, name):
            lowest = np.min(np.asarray(value), initial=np.inf) if is_concrete(value) else np.inf
            if lowest < 0.0 or (lowest == 0.0 and not or_zero):
                raise InputError(f"{where} must be {'positive or zero' if or_zero else 'positive'}, not {lowest}.")


def entries(potential, name: str) -> list:
    """`(key, what it is called, value)` of each entry of a parameter; one, without key, where it is no dict."""
    value, where = getattr(potential, name), f"{type(potential).__name__}'s {name}"
    return [(k, f"{where}[{k!r}]", entry) for k, entry in value.items()] if isinstance(value, dict) else [(None, where, value)]
