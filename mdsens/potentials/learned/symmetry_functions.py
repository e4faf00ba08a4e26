"""Behler's atom-centred symmetry functions of one site, and functions that bring them to zero at the cutoff.

J. Behler, J. Chem. Phys. 134, 074106 (2011), doi:10.1063/1.3553717.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError, did_you_mean
from mdsens.potentials.checks import check_cutoff


def cosine(x: Array) -> Array:
    """Return ½ (cos πx + 1), x = r / r_c: one continuous derivative."""
    return 0.5 * (jnp.cos(jnp.pi * x) + 1.0)


def tanh3(x: Array) -> Array:
    """Return tanh³(1 - x): two continuous derivatives."""
    return jnp.tanh(1.0 - x) ** 3


def quintic(x: Array) -> Array:
    """Return 1 - 10 x³ + 15 x⁴ - 6 x⁵: two continuous derivatives."""
    return 1.0 + x**3 * (-10.0 + x * (15.0 - 6.0 * x))


def exponential(x: Array) -> Array:
    """Return exp(1 - 1 / (1 - x²)): all derivatives are continuous."""
    return jnp.exp(1.0 - 1.0 / (1.0 - x * x))


CUTOFFS = {"cosine": (cosine, 1), "tanh3": (tanh3, 2), "quintic": (quintic, 2), "exponential": (exponential, np.inf)}
"""The function of r / r_c by its name, and how many of its derivatives are continuous at 1."""

_NEAR = 1.0 - 1e-9
"""The share of the cutoff beyond which the exponential is zero to rounding, and its derivatives have poles."""


def cutoff_function(name: str, r: Array, cutoff: float, mask: Array) -> Float[Array, "..."]:
    """Return f_c(r) where `mask` holds and r lies within the cutoff, else 0."""
    mask = mask & (r < _NEAR * cutoff)
    return jnp.where(mask, CUTOFFS[name][0](jnp.where(mask, r / cutoff, 0.5)), 0.0)


def check_radial(potential: Any) -> None:
    """Raise InputError for a cutoff, a `cutoff_function`, or `eta` and `Rs` that no potential of symmetry functions can have."""
    name = type(potential).__name__
    check_cutoff(potential, potential.cutoff)
    if potential.cutoff_function not in CUTOFFS:
        near = did_you_mean(str(potential.cutoff_function), CUTOFFS)
        raise InputError(f"{name}'s cutoff_function {potential.cutoff_function!r} is not known.{near}")
    if potential.eta.shape != potential.Rs.shape or potential.eta.ndim != 1:
        raise InputError(f"{name} needs one Rs for each eta, not {potential.Rs.shape} for {potential.eta.shape}.")


def radial(r: Float[Array, " neighbors"], fc: Array, eta: Array, Rs: Array) -> Float[Array, "functions neighbors"]:
    """Return G² before the sum over neighbours: exp(-η (r - R_s)²) f_c(r)."""
    return jnp.exp(-eta[:, None] * (r - Rs[:, None]) ** 2) * fc


def angular(
    kind: str,
    d: Float[Array, "neighbors dim"],
    r: Float[Array, " neighbors"],
    mask: Bool[Array, " neighbors"],
    *,
    eta: Float[Array, " functions"],
    zeta: Sequence[int],
    lam: Sequence[int],
    cutoff: float,
    function: str,
) -> Float[Array, "functions neighbors neighbors"]:
    """Return G⁴ or G⁵ before the sum over pairs of neighbours j ≠ k.

    G⁴: 2^(1-ζ) (1 + λ cos θ)^ζ exp(-η (r_ij² + r_ik² + r_jk²)) f_c(r_ij) f_c(r_ik) f_c(r_jk); G⁵ is without the terms of r_jk.
    """
    unit, fc = d / r[:, None], cutoff_function(function, r, cutoff, mask)
    cosine_of_angle = unit @ unit.T
    others = mask[:, None] & mask[None, :] & ~jnp.eye(len(r), dtype=bool)
    squares = (r * r)[:, None] + (r * r)[None, :]
    weight = fc[:, None] * fc[None, :]
    if kind == "G4":
        apart = jnp.where(others, jnp.sum((d[:, None] - d[None, :]) ** 2, axis=-1), 0.25 * cutoff**2)
        squares, weight = squares + apart, weight * cutoff_function(function, jnp.sqrt(apart), cutoff, others)
    weight = jnp.where(others, weight, 0.0)
    lobes = jnp.stack([2.0 ** (1 - z) * (1.0 + sign * cosine_of_angle) ** z for z, sign in zip(zeta, lam, strict=True)])
    return lobes * jnp.exp(-eta[:, None, None] * squares) * weight
