"""Derivatives by finite differences."""

from typing import Any


def richardson_difference(near: Any, far: Any, step: Any) -> Any:
    """Return f'(x) by Richardson's central difference, exact for polynomials of the fourth degree.

    Args:
        near: f(x + h) - f(x - h), numbers or arrays.
        far: f(x + 2h) - f(x - 2h).
        step: h.
    """
    return (8.0 * near - far) / (12.0 * step)
