"""Texts of lists, counts and modules."""

import dataclasses
import textwrap
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import numpy as np

WIDTH = 110
"""Characters of a printed line."""

MAX_ENTRIES = 6
"""Entries of a list that are written out."""


def short_list(parts: Iterable[str]) -> str:
    """Return the first `MAX_ENTRIES` parts with commas between them, and how many there are beyond."""
    parts = list(parts)
    return ", ".join(parts if len(parts) <= MAX_ENTRIES else [*parts[:MAX_ENTRIES], f"{len(parts) - MAX_ENTRIES} more"])


def count_text(count: int, noun: str) -> str:
    """Return `"1 unit"`, `"2 units"`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def module_text(module: eqx.Module) -> str:
    """Return the text of a module, a potential say, with its numbers; longer arrays by their shape."""
    if len(line := _line(module)) <= WIDTH:
        return line
    name, _, fields = line.removesuffix(")").partition("(")
    lines = textwrap.wrap(fields, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"{name}(", *(f"  {line}" for line in lines), ")"])


def _line(module: eqx.Module) -> str:
    names = [field.name for field in dataclasses.fields(module) if field.repr and hasattr(module, field.name)]
    values = {name: getattr(module, name) for name in names}
    shown = [f"{name}={_value(value)}" for name, value in values.items() if not (isinstance(value, tuple) and value == ())]
    return f"{type(module).__name__}({', '.join(shown)})"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + short_list(f"{key}: {_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + short_list(map(_value, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 and not isinstance(value, jax.core.Tracer):
        return f"{value.item():.6g}"
    if isinstance(value, eqx.Module):
        return _line(value)
    return repr(value) if isinstance(value, str | float | int | None) else eqx.tree_pformat(value, width=1000)
