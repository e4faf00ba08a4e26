"""Moduli from a matrix of elastic constants: pure functions, in the unit of the matrix.

The matrix is in Voigt's notation, 6×6 (xx, yy, zz, yz, xz, xy) or, in 2-D, 3×3 (xx, yy, xy); S = C⁻¹ has shears twice. It
need not be symmetric. In d dimensions an isotropic solid is C = d K P_h + 2 G P_d, with the projectors on hydrostatic and on
deviatoric strain, of which there are m = 5 (d = 3) or m = 2.

R. Hill, Proc. Phys. Soc. A 65, 349 (1952), doi:10.1088/0370-1298/65/5/307; in 2-D the same averages by the projectors.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from mdsens.common.errors import InputError, did_you_mean
from mdsens.structures.system import as_float_array, is_concrete

SINGULARITY = 1e-7
"""Share of the largest stiffness below which a stiffness counts as zero."""

AVERAGES = ("voigt", "reuss", "hill")


def compliance(C: Float[Array, "voigt voigt"]) -> Float[Array, "voigt voigt"]:
    """S = C⁻¹ [1/unit of C].

    Raises:
        InputError: a singular matrix (NaN where the values are traced), or one that is neither 6×6 nor 3×3.
    """
    _dim(C)
    sizes = jnp.linalg.svd(jax.lax.stop_gradient(jnp.asarray(C)), compute_uv=False)
    singular = sizes[-1] <= SINGULARITY * sizes[0]
    if is_concrete(singular) and singular:
        raise InputError(
            "These elastic constants are singular: some strain costs nothing, as across a sheet in vacuum, so that they have no "
            "compliance and no moduli. Ask for those of the sheet, sheet=True, or give the system pbc=False across the vacuum."
        )
    return jnp.where(singular, jnp.nan, jnp.linalg.inv(jnp.where(singular, jnp.eye(len(C)), C)))


def bulk(C: Float[Array, "voigt voigt"], average: str = "hill") -> Float[Array, ""]:
    """Bulk modulus: K = C_iijj/d² at equal strain (Voigt), 1/K = S_iijj at equal stress (Reuss), or their mean (Hill).

    Raises:
        InputError: another average, or as `compliance`.
    """
    return _average(C, average, lambda C, d: jnp.sum(C[:d, :d]) / d**2, lambda S, d: 1.0 / jnp.sum(S[:d, :d]))


def shear(C: Float[Array, "voigt voigt"], average: str = "hill") -> Float[Array, ""]:
    """Shear modulus: 2 m G = C_ijij - C_iijj/d (Voigt), m/(2 G) = S_ijij - S_iijj/d (Reuss), or their mean; raises as `bulk`."""

    def voigt(C: Array, dim: int) -> Array:
        return (_trace(C, dim, 2.0) - jnp.sum(C[:dim, :dim]) / dim) / (2 * _deviators(dim))

    def reuss(S: Array, dim: int) -> Array:
        return 0.5 * _deviators(dim) / (_trace(S, dim, 0.5) - jnp.sum(S[:dim, :dim]) / dim)

    return _average(C, average, voigt, reuss)


def young(C: Float[Array, "voigt voigt"], *, along: ArrayLike | None = None, average: str = "hill") -> Float[Array, ""]:
    """Young's modulus: 1/E(n) = n_i n_j S_ijkl n_k n_l along n; 2 d² K G/(d (d - 1) K + 2 G) of an average.

    Args:
        along: a direction, of any length.

    Raises:
        InputError: as `bulk`; a direction without a length or of another dimension.
    """
    dim = _dim(C)
    if along is not None:
        n = _dyad(along, dim)
        return 1.0 / (n @ compliance(C) @ n)
    K, G = bulk(C, average), shear(C, average)
    return 2 * dim**2 * K * G / (dim * (dim - 1) * K + 2 * G)


def poisson(
    C: Float[Array, "voigt voigt"], *, along: ArrayLike | None = None, across: ArrayLike | None = None, average: str = "hill"
) -> Float[Array, ""]:
    """Poisson's ratio: ν(n, m) = -E(n) m_i m_j S_ijkl n_k n_l; (d K - 2 G)/(d (d - 1) K + 2 G) of an average.

    Args:
        along: the direction n of the pull.
        across: the direction m, at a right angle to n, in which the crystal shrinks.

    Raises:
        InputError: as `young`; one direction without the other, or directions that are not at a right angle.
    """
    dim = _dim(C)
    if (along is None) != (across is None):
        raise InputError("Poisson's ratio of a crystal wants two directions: along= which it is pulled, and across=.")
    if along is not None and across is not None:
        n, m = _dyad(along, dim), _dyad(across, dim)
        weights = np.array([1.0] * dim + [2.0] * (len(C) - dim))
        if is_concrete(n, m) and abs(float(jnp.sum(weights * n * m))) > 1e-12:
            raise InputError("Poisson's ratio wants directions along= and across= at a right angle.")
        S = compliance(C)
        return -(m @ S @ n) / (n @ S @ n)
    K, G = bulk(C, average), shear(C, average)
    return (dim * K - 2 * G) / (dim * (dim - 1) * K + 2 * G)


def linear_compressibility(C: Float[Array, "voigt voigt"]) -> Float[Array, " dim"]:
    """Relative shortening along each Cartesian axis under pressure, Σ_k S_iikk [1/unit of C]."""
    dim = _dim(C)
    return jnp.sum(compliance(C)[:dim, :dim], axis=1)


def universal_anisotropy(C: Float[Array, "voigt voigt"]) -> Float[Array, ""]:
    """K_V/K_R + m G_V/G_R - (m + 1): zero for an isotropic solid, positive otherwise.

    S. I. Ranganathan, M. Ostoja-Starzewski, Phys. Rev. Lett. 101, 055504 (2008), doi:10.1103/PhysRevLett.101.055504.
    """
    m = _deviators(_dim(C))
    return bulk(C, "voigt") / bulk(C, "reuss") + m * shear(C, "voigt") / shear(C, "reuss") - (m + 1)


def stiffnesses(C: Float[Array, "voigt voigt"]) -> Float[Array, " voigt"]:
    """Eigenvalues of the symmetric part of C as a map of strain tensors, ascending: the same in any orientation.

    A cubic crystal has 2 C44 (three times), C11 - C12 (twice) and C11 + 2 C12.
    """
    dim = _dim(C)
    # Kelvin's notation: shears by √2, so that the length of a vector is that of the tensor.
    root = np.sqrt([1.0] * dim + [2.0] * (len(C) - dim))
    return jnp.linalg.eigvalsh(0.5 * root[:, None] * (C + C.T) * root)


def is_stable(C: Float[Array, "voigt voigt"]) -> bool:
    """Return whether every homogeneous strain costs energy beyond the work of the stress [concrete values]."""
    return bool(stiffnesses(C)[0] > 0.0)


def _trace(matrix: Array, dim: int, shears: float) -> Array:
    """The sum of the components ijij; `shears` is their weight in Voigt's notation."""
    diagonal = jnp.diagonal(matrix)
    return jnp.sum(diagonal[:dim]) + shears * jnp.sum(diagonal[dim:])


def _average(C: Array, average: str, voigt: Callable[[Array, int], Array], reuss: Callable[[Array, int], Array]) -> Array:
    """Return an average from Voigt's, of C, and Reuss's, of S; a singular matrix is refused for both."""
    dim = _dim(C)
    if average not in AVERAGES:
        raise InputError(f"There is no average {average!r} of elastic constants.{did_you_mean(str(average), AVERAGES)}")
    S = compliance(C)
    if average == "hill":
        return 0.5 * (voigt(C, dim) + reuss(S, dim))
    return voigt(C, dim) if average == "voigt" else reuss(S, dim)


def _deviators(dim: int) -> int:
    """The number m of independent deviatoric strains."""
    return dim * (dim + 1) // 2 - 1


def _dim(C: Array) -> int:
    """Return the number of dimensions; raise InputError for a matrix of another shape."""
    if jnp.shape(C) not in ((6, 6), (3, 3)):
        raise InputError(f"Elastic constants are a 6×6 matrix, in 2-D a 3×3 one, not an array of shape {jnp.shape(C)}.")
    return 3 if len(C) == 6 else 2


def _dyad(direction: ArrayLike, dim: int) -> Array:
    """The products n_i n_j of a unit vector in Voigt's notation, without doubling."""
    n = as_float_array(direction, "a direction")
    if n.shape != (dim,) or (is_concrete(n) and not (np.isfinite(n).all() and np.any(n != 0.0))):
        raise InputError(f"A direction must be a vector of {dim} numbers that are not all zero, not {direction!r:.80}.")
    n = n / jnp.linalg.norm(n)
    i, j = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)) if dim == 3 else ((0, 1, 0), (0, 1, 1))
    return n[np.array(i)] * n[np.array(j)]
