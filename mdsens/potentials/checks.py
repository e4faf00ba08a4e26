"""What several potentials ask of their numbers."""

from collections.abc import Collection
from numbers import Real

import numpy as np

from mdsens.errors import InputError
from mdsens.system import is_concrete


def check_numbers(potential, positive: Collection[str] = (), not_negative: Collection[str] = ()) -> None:
    """Each parameter is one number or a dict of such, and some have a sign.

    Raises:
        InputError: naming the parameter and its entry.
    """
    for name, parameter in potential.parameters().items():
        for key, value in parameter.items() if isinstance(parameter, dict) else [("", parameter)]:
            where = f"{type(potential).__name__}'s {name}" + (f"[{key!r}]" if key else "")
            if np.ndim(value) != 0:
                raise InputError(f"{where} must be one number, not an array of shape {np.shape(value)}.")
            if is_concrete(value):
                check_sign(where, value, positive=name in positive, not_negative=name in not_negative)


def check_sign(where: str, value, *, positive: bool = False, not_negative: bool = False) -> None:
    """One number has the sign that it should.

    Raises:
        InputError: naming `where`.
    """
    if positive and not value > 0:
        raise InputError(f"{where} must be positive, not {value}.")
    if not_negative and not value >= 0:
        raise InputError(f"{where} must not be negative, but is {value}.")


def check_switch(potential) -> None:
    """Static `onset` and `cutoff` are lengths in their order.

    Raises:
        InputError: naming both.
    """
    onset, cutoff = potential.onset, potential.cutoff
    if not (isinstance(cutoff, Real) and isinstance(onset, Real) and 0 <= onset < cutoff < np.inf):
        raise InputError(
            f"{type(potential).__name__}'s onset and cutoff must be lengths in Å, 0 ≤ onset < cutoff, "
            f"not {onset!r} and {cutoff!r}."
        )
