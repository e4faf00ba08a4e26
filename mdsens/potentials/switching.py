"""Functions that bring a pair energy smoothly to zero between `onset` and `cutoff`."""

import jax.numpy as jnp

SMOOTHNESS = {"quintic": 2, "xplor": 1, "shifted_force": 1, "truncated": -1}
"""Continuous derivatives of a switched energy (-1: the energy itself jumps)."""


def quintic(r, onset, cutoff):
    """1 - 10 x³ + 15 x⁴ - 6 x⁵ with x = (r - onset) / (cutoff - onset): two continuous derivatives."""
    x = jnp.clip((r - onset) / (cutoff - onset), 0.0, 1.0)
    return 1.0 + x**3 * (-10.0 + x * (15.0 - 6.0 * x))


def xplor(r, onset, cutoff):
    """(c² - r²)² (c² + 2 r² - 3 o²) / (c² - o²)³: one continuous derivative.

    X-PLOR's switch (Brünger 1992), as in LAMMPS's `lj/charmm` and jax-md's `multiplicative_isotropic_cutoff`.
    """
    r2, o2, c2 = r * r, onset * onset, cutoff * cutoff
    between = (c2 - r2) ** 2 * (c2 + 2.0 * r2 - 3.0 * o2) / (c2 - o2) ** 3
    return jnp.where(r < onset, 1.0, jnp.where(r < cutoff, between, 0.0))
