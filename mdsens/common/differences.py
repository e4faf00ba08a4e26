"""Derivatives by finite differences."""

from collections.abc import Callable
from typing import Any

import numpy as np


def richardson_difference(near: Any, far: Any, step: Any) -> Any:
    """Return f'(x) by Richardson's central difference, exact for polynomials of the fourth degree.

    Args:
        near: f(x + h) - f(x - h), numbers or arrays.
        far: f(x + 2h) - f(x - 2h).
        step: h.
    """
    return (8.0 * near - far) / (12.0 * step)


def central_difference(function: Callable[[float], np.ndarray], step: float) -> np.ndarray:
    """Return f'(0) by Richardson's central difference, from four values."""
    near, far = (function(k * step) - function(-k * step) for k in (1.0, 2.0))
    return np.asarray(richardson_difference(near, far, step))
