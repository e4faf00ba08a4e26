"""What several potentials ask of their numbers."""

import dataclasses
import warnings
from collections.abc import Collection, Sequence
from numbers import Real
from typing import Any

import numpy as np

from mdsens.common.errors import InputError, level_of_user
from mdsens.potentials.parameters import Parametric
from mdsens.structures.masses import is_element
from mdsens.structures.system import is_concrete


def check_positive(potential: Parametric, *names: str, or_zero: bool = False) -> None:
    """Refuse values of these parameters that are negative, or zero; what is traced by JAX has none.

    Raises:
        InputError: naming the parameter and its entry.
    """
    for name in names:
        for _, where, value in entries(potential, name):
            if is_concrete(value) and np.size(value):
                check_sign(where, np.min(np.asarray(value)), positive=not or_zero, not_negative=or_zero)


def check_numbers(potential: Parametric, positive: Collection[str] = (), not_negative: Collection[str] = ()) -> None:
    """Each parameter is one number or a dict of such, and some have a sign.

    Raises:
        InputError: naming the parameter and its entry.
    """
    for name in potential.parameters():
        for _, where, value in entries(potential, name):
            check_number(where, value)
    check_positive(potential, *positive)
    check_positive(potential, *not_negative, or_zero=True)


def check_number(where: str, value: Any) -> None:
    """It is one number, traced or not.

    Raises:
        InputError: naming `where`.
    """
    if np.ndim(value) != 0:
        raise InputError(f"{where} must be one number, not an array of shape {np.shape(value)}.")


def check_sign(where: str, value: Any, *, positive: bool = False, not_negative: bool = False) -> None:
    """One number has the sign that it should.

    Raises:
        InputError: naming `where`.
    """
    if positive and not value > 0:
        raise InputError(f"{where} must be positive, not {value}.")
    if not_negative and not value >= 0:
        raise InputError(f"{where} must be positive or zero, not {value}.")


def check_entries(potential: Parametric, name: str, needed: Collection[str], labels: Sequence[str]) -> None:
    """A parameter has all entries that a system needs.

    Raises:
        InputError: naming the first that is missing.
    """
    table, where = getattr(potential, name), f"{type(potential).__name__}.{name}"
    if not (missing := sorted(set(needed) - set(table))):
        return
    remedy = f"add {name}[{missing[0]!r}]"
    if hasattr(potential, "no_interaction") and "-" in missing[0]:
        remedy += f", or say that such a pair has no energy, no_interaction=({missing[0]!r},)"
    if not set(needed) & set(table):
        remedy += "; what is keyed otherwise, a network's weights say, is for NetworkPotential"
    raise InputError(f"{where} has no entry {missing[0]!r}, but the system has the species {', '.join(labels)}: {remedy}.")


def check_static_lengths(potential: Parametric) -> None:
    """Lengths that lists are made for are no parameters.

    Raises:
        InputError: naming the one that is declared as such.
    """
    for field in dataclasses.fields(potential):
        if field.name in ("cutoff", "onset") and not field.metadata.get("static", False):
            raise InputError(
                f"{type(potential).__name__}.{field.name} is declared as a parameter, and neighbour lists want it fixed: declare "
                f"it as {field.name}: float = mdsens.static({getattr(potential, field.name)!r:.20})."
            )


def check_switch(potential: Any) -> None:
    """Static `onset` and `cutoff` are lengths in their order.

    Raises:
        InputError: naming both.
    """
    onset: float = potential.onset
    cutoff: float = potential.cutoff
    if not (isinstance(cutoff, Real) and isinstance(onset, Real) and 0 <= onset < cutoff < np.inf):
        raise InputError(
            f"{type(potential).__name__}'s onset and cutoff must be lengths in Å, 0 ≤ onset < cutoff, "
            f"not {onset!r} and {cutoff!r}."
        )


def note_species(potential: Parametric, labels: Sequence[str]) -> None:
    """Warn where elements get numbers of another, or several the same of everything that could depend on them."""
    could = [getattr(potential, one.name) for one in dataclasses.fields(potential) if "dict" in str(one.type)]
    if not could or any(isinstance(value, dict) or np.ndim(value) for value in could) or not all(map(is_element, labels)):
        return
    name, element = type(potential).__name__, getattr(potential, "element", None)
    if strangers := [label for label in labels if element not in (None, label)]:
        text = f"The numbers of this {name} are those of {element}, and the structure has {', '.join(strangers)}"
        remedy = f"take others ('mdsens potentials {name}')"
    elif len(labels) > 1:
        text = f"The structure has the elements {', '.join(labels)}, and {name} has the same numbers for all of them"
        remedy = f"give it dicts by species, {{{labels[0]!r}: ..., {labels[1]!r}: ...}} ('mdsens potentials {name}')"
    else:
        return
    warnings.warn(f"{text}: {remedy}, unless that is meant.", UserWarning, stacklevel=level_of_user())


def entries(potential: Parametric, name: str) -> list[tuple[str | None, str, Any]]:
    """`(key, what it is called, value)` of each entry of a parameter; one, without key, where it is no dict."""
    value, where = getattr(potential, name), f"{type(potential).__name__}'s {name}"
    return [(k, f"{where}[{k!r}]", entry) for k, entry in value.items()] if isinstance(value, dict) else [(None, where, value)]
