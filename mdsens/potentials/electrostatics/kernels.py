"""Interactions of smeared-out charges and dipoles in units of e and Å; times `COULOMB` they are energies."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_NEAR = 0.25
"""(r/c)² below which erf(r/c)/r is summed as a series."""

_SERIES = np.array([(-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(14)]) * 2.0 / math.sqrt(math.pi)
"""erf(x)/x in powers of x²; what is left out is below 1e-18 up to `_NEAR`."""


def separations(positions: Float[Array, "atoms dim"]) -> tuple[Array, Array]:
    """Return `(d, others)`: vectors d_ij = x_i - x_j `(N, N, dim)` [Å], and `(N, N)`, False for an atom and itself."""
    return positions[:, None, :] - positions[None, :, :], ~jnp.eye(len(positions), dtype=bool)


def gaussian_coulomb(r2: Float[Array, "..."], c2: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return erf(r/c)/r [1/Å] as a function of r² and c² [Å²], with all its derivatives at r = 0 too.

    It is the interaction of two unit charges of Gaussian density ∝ exp(-r²/2s²) with widths s₁, s₂ and c² = 2(s₁² + s₂²).
    """
    x2 = r2 / c2
    near = x2 < _NEAR
    series = jnp.polyval(jnp.asarray(_SERIES[::-1], x2.dtype), jnp.where(near, x2, 0.0)) / jnp.sqrt(c2)
    r = jnp.sqrt(jnp.where(near, c2, r2))
    return jnp.where(near, series, jax.scipy.special.erf(r / jnp.sqrt(c2)) / r)


def thole_factors(r2: Array, polarizability: Array, thole: Array) -> tuple[Array, Array]:
    """Return `(λ₃, λ₅)`, the damping of a field ∝ 1/r³ and of a dipole field's part ∝ 1/r⁵, `(N, N)`.

    λ₃ = 1 - exp(-a u³), λ₅ = 1 - (1 + a u³) exp(-a u³), u = r / (α_i α_j)^(1/6): the charge is smeared out with the
    density 3a/4π exp(-a u³).

    B. T. Thole, Chem. Phys. 59, 341 (1981), doi:10.1016/0301-0104(81)85176-2; this density as P. Ren, J. W. Ponder, J. Phys.
    Chem. B 107, 5933 (2003), doi:10.1021/jp027815+.
    """
    au3 = thole * r2 * jnp.sqrt(r2) / jnp.sqrt(polarizability[:, None] * polarizability[None, :])
    return -jnp.expm1(-au3), -jnp.expm1(-au3) - au3 * jnp.exp(-au3)
