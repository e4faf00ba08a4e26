"""Objects in a few words, for who prints them: what `repr` of structures, potentials and results says."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

WIDTH = 110
"""Of a line."""

FEW = 6
"""Entries that are written out."""


def _few(parts: Iterable[str]) -> str:
    parts = list(parts)
    return ", ".join(parts if len(parts) <= FEW else [*parts[:FEW], f"{len(parts) - FEW} more"])
