"""Derivatives of what can only be evaluated, by central differences whose step and error are measured [host, NumPy].

Of two steps, h and 2h, Richardson's combination leaves an error of h⁴. The noise of a function shows in its sixth differences
over steps so short that nothing else does (Hamming; J. J. Moré, S. M. Wild, SIAM J. Sci. Comput. 33, 1292 (2011),
doi:10.1137/100786125); of a few steps that one is taken whose truncation and noise together are least.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mdsens.common.differences import richardson_difference

ORDER = 6
"""Of the differences that show noise."""

RATIO = 4.0
"""Of the steps that are tried."""

TRIED = 7
"""How many."""

SPREAD = math.sqrt(130.0) / 12.0
"""Noise of Richardson's combination in units of the function's own, over h."""


class Step(NamedTuple):
    """A step, the derivative by it, and the error that it is good to.

    Attributes:
        length: h.
        derivative: f'(0), of f's shape.
        truncation: 2-norm of what the step's length leaves.
        noise: 2-norm of what the function's noise makes of it.
    """

    length: float
    derivative: np.ndarray
    truncation: float
    noise: float


def central(function: Callable[[float], np.ndarray], h: float) -> np.ndarray:
    """f'(0) from four values."""
    near, far = function(h) - function(-h), function(2.0 * h) - function(-2.0 * h)
    return richardson_difference(near, far, h)


def noise_of(function: Callable[[float], np.ndarray], spacing: float) -> float:
    """Standard deviation of the noise of each component of f, at least a rounding of the largest."""
    values = np.stack([function(k * spacing) for k in range(ORDER + 1)])
    differences = np.diff(values, ORDER, axis=0)[0]
    seen = np.sqrt(np.mean(differences**2) / math.comb(2 * ORDER, ORDER))
    return float(max(seen, np.finfo(float).eps * np.abs(values).max()))


def best_step(function: Callable[[float], np.ndarray], longest: float, noise: float) -> Step:
    """The step for `central`, among the longest over 4, 16, ... 1024."""
    lengths = longest / RATIO ** np.arange(TRIED)
    plain = [(function(h) - function(-h)) / (2.0 * h) for h in lengths]
    # Of an error larger than that of `central`, whose steps are nearer each other.
    combined = [(RATIO**2 * fine - coarse) / (RATIO**2 - 1.0) for coarse, fine in itertools.pairwise(plain)]
    found = []
    for k, (here, finer) in enumerate(itertools.pairwise(combined)):
        h = lengths[k + 1]
        found.append(Step(float(h), finer, float(np.linalg.norm(here - finer)), SPREAD * noise / h * math.sqrt(here.size)))
    return min(found, key=lambda step: step.truncation + step.noise)
