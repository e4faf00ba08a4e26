"""Derivatives of functions that can only be evaluated: central differences whose step and error are measured [host, NumPy].

Of two steps, h and 2h, Richardson's combination leaves an error of h⁴. The noise of a function shows in its sixth differences
over steps so short that nothing else does (Hamming; J. J. Moré, S. M. Wild, SIAM J. Sci. Comput. 33, 1292 (2011),
doi:10.1137/100786125). Of a few steps that one is taken whose truncation and noise together are least.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

NOISE_ORDER = 6
"""Order of the differences that show noise."""

RATIO = 4.0
"""Ratio of each step that is tried to the next shorter one."""

N_STEPS = 7
"""Number of steps that are tried."""

NOISE_FACTOR = math.sqrt(130.0) / 12.0
"""Noise of Richardson's combination times h, in units of the function's own noise."""


class Step(NamedTuple):
    """A step of differences, the derivative by it, and its error.

    Attributes:
        length: h.
        derivative: f'(0), of f's shape.
        truncation: 2-norm of the error that comes from the step's length.
        noise: 2-norm of the error that comes from the function's noise.
    """

    length: float
    derivative: np.ndarray
    truncation: float
    noise: float


def measure_noise(function: Callable[[float], np.ndarray], spacing: float) -> float:
    """Return the standard deviation of the noise of a component of f, at least a rounding of the largest one."""
    values = np.stack([function(k * spacing) for k in range(NOISE_ORDER + 1)])
    differences = np.diff(values, NOISE_ORDER, axis=0)[0]
    seen = np.sqrt(np.mean(differences**2) / math.comb(2 * NOISE_ORDER, NOISE_ORDER))
    return float(max(seen, np.finfo(float).eps * np.abs(values).max()))


def best_step(function: Callable[[float], np.ndarray], longest: float, noise: float) -> Step:
    """Return the step for `central_difference` with the smallest error, among the longest over 4, 16, ... 1024."""
    lengths = longest / RATIO ** np.arange(N_STEPS)
    plain = [(function(h) - function(-h)) / (2.0 * h) for h in lengths]
    # Their errors are larger than those of `central_difference`, whose steps are nearer each other.
    combined = [(RATIO**2 * fine - coarse) / (RATIO**2 - 1.0) for coarse, fine in itertools.pairwise(plain)]
    steps = [
        Step(float(h), finer, float(np.linalg.norm(here - finer)), NOISE_FACTOR * noise / h * math.sqrt(here.size))
        for h, (here, finer) in zip(lengths[1:-1], itertools.pairwise(combined), strict=True)
    ]
    return min(steps, key=lambda step: step.truncation + step.noise)
