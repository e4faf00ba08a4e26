"""Functions that bring a pair energy smoothly to zero between `onset` and `cutoff`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

SMOOTHNESS = {"quintic": 2, "xplor": 1, "shifted_force": 1, "truncated": -1, "force_switch": 2}
"""Number of continuous derivatives of a switched energy; -1 where the energy itself jumps."""

ONSET_SWITCHES = ("quintic", "xplor", "force_switch")
"""Switches that act between an onset and the cutoff."""

DEFAULT_ONSET = 0.8
"""Onset as a share of the cutoff, where none is given."""


def quintic(r: Array, onset: Any, cutoff: Any) -> Array:
    """Return 1 - 10 x³ + 15 x⁴ - 6 x⁵ with x = (r - onset) / (cutoff - onset): two continuous derivatives."""
    x = jnp.clip((r - onset) / (cutoff - onset), 0.0, 1.0)
    return 1.0 + x**3 * (-10.0 + x * (15.0 - 6.0 * x))


def xplor(r: Array, onset: Any, cutoff: Any) -> Array:
    """Return (c² - r²)² (c² + 2 r² - 3 o²) / (c² - o²)³: one continuous derivative.

    X-PLOR's switch (Brünger 1992), as in LAMMPS's `lj/charmm` and jax-md's `multiplicative_isotropic_cutoff`.
    """
    r2, o2, c2 = r * r, onset * onset, cutoff * cutoff
    between = (c2 - r2) ** 2 * (c2 + 2.0 * r2 - 3.0 * o2) / (c2 - o2) ** 3
    return jnp.where(r < onset, 1.0, jnp.where(r < cutoff, between, 0.0))


def force_switch(phi: Callable[..., Any], r: Array, onset: Any, cutoff: Any) -> Array:
    """Return φ(r) + A x³/3 + B x⁴/4 + C with x = r - onset, 0 below it: the force gains a quadratic and a cubic term.

    A, B and C make φ, φ' and φ'' zero at the cutoff, so that two derivatives are continuous. GROMACS's force-switch, as in
    LAMMPS's `zbl` and `lj/gromacs`.
    """
    edge, width = jnp.asarray(cutoff, r.dtype), cutoff - onset
    slope, curvature = jax.value_and_grad(jax.grad(phi))(edge)
    a = (width * curvature - 3.0 * slope) / width**2
    b = (2.0 * slope - width * curvature) / width**3
    c = 0.5 * width * slope - width**2 * curvature / 12.0 - phi(edge)
    x = jnp.maximum(r - onset, 0.0)
    return phi(r) + x**3 * (a / 3.0 + b / 4.0 * x) + c
