"""What is printed: the width of a line, and lists that are cut."""

from collections.abc import Iterable

WIDTH = 110
"""Characters of a line."""

FEW = 6
"""Entries of a list that are written out."""


def first_few(parts: Iterable[str]) -> str:
    """Return the first `FEW` parts with commas between them, and how many there are beyond."""
    parts = list(parts)
    return ", ".join(parts if len(parts) <= FEW else [*parts[:FEW], f"{len(parts) - FEW} more"])


def counted(count: int, noun: str) -> str:
    """ "1 unit", "2 units"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
