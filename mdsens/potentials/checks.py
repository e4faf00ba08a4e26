"""Checks of numbers and settings that several potentials share."""

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
    """Refuse values of these parameters that are negative, or zero; traced ones have no values.

    Raises:
        InputError: naming the parameter and its entry.
    """
    for name in names:
        for _, where, value in entries(potential, name):
            if is_concrete(value) and np.size(value):
                check_sign(where, np.min(np.asarray(value)), positive=not or_zero, not_negative=or_zero)


def check_numbers(potential: Parametric, positive: Collection[str] = (), not_negative: Collection[str] = ()) -> None:
    """Refuse parameters that are not one number or a dict of such, or have the wrong sign.

    Raises:
        InputError: naming the parameter and its entry.
    """
    for name in potential.parameters():
        for _, where, value in entries(potential, name):
            check_number(where, value)
    check_positive(potential, *positive)
    check_positive(potential, *not_negative, or_zero=True)


def check_number(where: str, value: Any) -> None:
    """Raise InputError where a value, traced or not, is not one number."""
    if np.ndim(value) != 0:
        raise InputError(f"{where} must be one number, not an array of shape {np.shape(value)}.")


def check_sign(where: str, value: Any, *, positive: bool = False, not_negative: bool = False) -> None:
    """Raise InputError where a number does not have the sign that it should."""
    if positive and not value > 0:
        raise InputError(f"{where} must be positive, not {value}.")
    if not_negative and not value >= 0:
        raise InputError(f"{where} must be positive or zero, not {value}.")


def check_entries(potential: Parametric, name: str, needed: Collection[str], labels: Sequence[str]) -> None:
    """Raise InputError where a parameter lacks an entry that a system needs."""
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
    """Raise InputError where a length that neighbour lists are made for is declared as a parameter."""
    for field in dataclasses.fields(potential):
        if field.name in ("cutoff", "onset") and not field.metadata.get("static", False):
            raise InputError(
                f"{type(potential).__name__}.{field.name} is declared as a parameter, and neighbour lists want it fixed: declare "
                f"it as {field.name}: float = mdsens.static({getattr(potential, field.name)!r:.20})."
            )


def check_cutoff(potential: Parametric, cutoff: float) -> None:
    """Raise InputError where a cutoff is not a positive length."""
    if not (np.ndim(cutoff) == 0 and np.isfinite(cutoff) and cutoff > 0):
        raise InputError(f"{type(potential).__name__}'s cutoff must be a positive length in Å, not {cutoff!r}.")


def check_switch(potential: Parametric, onset: float, cutoff: float) -> None:
    """Raise InputError where onset and cutoff are not lengths in this order."""
    if not (isinstance(cutoff, Real) and isinstance(onset, Real) and 0 <= onset < cutoff < np.inf):
        raise InputError(
            f"{type(potential).__name__}'s onset and cutoff must be lengths in Å, 0 ≤ onset < cutoff, "
            f"not {onset!r} and {cutoff!r}."
        )


def warn_of_species(potential: Parametric, labels: Sequence[str]) -> None:
    """Warn where an element gets the numbers of another, or several elements the same numbers throughout."""
    values = [getattr(potential, field.name) for field in dataclasses.fields(potential) if "dict" in str(field.type)]
    if not values or any(isinstance(value, dict) or np.ndim(value) for value in values) or not all(map(is_element, labels)):
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
    """Return `(key, name for messages, value)` of each entry of a parameter; one, without key, where it is no dict."""
    value, where = getattr(potential, name), f"{type(potential).__name__}'s {name}"
    return [(k, f"{where}[{k!r}]", entry) for k, entry in value.items()] if isinstance(value, dict) else [(None, where, value)]
