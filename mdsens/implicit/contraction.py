"""The spectral radius of ∂T/∂z, which decides whether and how fast z ← T(z, θ) converges."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import ConvergenceError, InputError
from mdsens.implicit.linear_system import Matvec
from mdsens.implicit.trees import PyTree, is_traced

DENSE_LIMIT = 300
"""Unknowns up to which all eigenvalues are computed from the assembled derivative."""

ARNOLDI_VECTORS = 40
"""Size of ARPACK's Krylov space."""

ARNOLDI_RTOL = 1e-10
"""Relative accuracy of ARPACK's eigenvalue."""

REMEDY = "damp the map, z ← (1 - m) z + m T(z) with 0 < m < 1, or solve T(z) - z = 0 by Newton's method"


def spectral_radius(fixed_point: Callable[..., Any], z: Any, *args: Any) -> float:
    """Return ρ = max |eigenvalue of ∂T/∂z| of `fixed_point(z, *args)` at z [host].

        spectral_radius(lambda z, a: a * z, jnp.ones(2), 0.5)     # 0.5

    Near a fixed point, where ρ < 1, the distance to it falls by this factor with every z ← T(z) in the long run. All
    eigenvalues up to `DENSE_LIMIT` unknowns, beyond that the largest by ARPACK, matrix-free.

    Args:
        fixed_point: T(z, *args), of the structure of z.
        z: the point, any pytree of arrays.

    Raises:
        InputError: traced values, a map that gives something else than z, a derivative that is not finite.
        ConvergenceError: ARPACK found no eigenvalue.

    R. B. Lehoucq, D. C. Sorensen, C. Yang, ARPACK Users' Guide, SIAM (1998).
    """
    if is_traced(z, args):
        raise InputError("A spectral radius is computed on the host from concrete values: ask for it outside jit, vmap and grad.")
    flat, image = ravel_pytree(z)[0], jax.eval_shape(lambda unknown: ravel_pytree(fixed_point(unknown, *args))[0], z)
    if image.shape != flat.shape:
        raise InputError(f"The map turns {flat.size} unknowns into {image.size} numbers: a fixed point needs as many of both.")
    if flat.size <= DENSE_LIMIT:
        matrix = np.asarray(_matrix(fixed_point, z, args))
        _check_finite(matrix)
        return float(np.abs(np.linalg.eigvals(matrix)).max(initial=0.0))
    return _arnoldi(fixed_point, z, args, flat)


def check_contraction(
    fixed_point: Callable[..., Any], z: Any, *args: Any, what: str = "The map T", remedy: str = REMEDY
) -> float:
    """Return the spectral radius of ∂T/∂z at z, if it is below 1 [host].

    Args:
        what: the map's name, for the message.
        remedy: what to do, for the message.

    Raises:
        ConvergenceError: the map does not contract; the sentence has the spectral radius.
        InputError: as `spectral_radius`.
    """
    radius = spectral_radius(fixed_point, z, *args)
    if not radius < 1.0:
        raise ConvergenceError(
            f"{what} does not contract: the spectral radius of its derivative is {radius:.6g}, where a deviation from the fixed "
            f"point dies out only below 1, so that z ← T(z) does not arrive; {remedy}."
        )
    return radius


def _flat_map(fixed_point: Callable[..., Any], z: PyTree, args: tuple[Any, ...]) -> tuple[Array, Matvec]:
    flat, unravel = ravel_pytree(z)
    return flat, lambda v: ravel_pytree(fixed_point(unravel(v), *args))[0]


@eqx.filter_jit
def _matrix(fixed_point: Callable[..., Any], z: PyTree, args: tuple[Any, ...]) -> Array:
    flat, image = _flat_map(fixed_point, z, args)
    return jax.jacfwd(image)(flat)


@eqx.filter_jit
def _product(fixed_point: Callable[..., Any], z: PyTree, args: tuple[Any, ...], v: Array) -> Array:
    flat, image = _flat_map(fixed_point, z, args)
    return jax.jvp(image, (flat,), (v,))[1]


def _arnoldi(fixed_point: Callable[..., Any], z: PyTree, args: tuple[Any, ...], flat: Array) -> float:
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

    def product(v: np.ndarray) -> np.ndarray:
        return np.asarray(_product(fixed_point, z, args, jnp.asarray(v.ravel(), flat.dtype)))

    start = np.random.default_rng(0).standard_normal(flat.size)
    change = product(start)
    _check_finite(change)
    if not change.any():  # ARPACK refuses an operator that is zero
        return 0.0
    operator = LinearOperator((flat.size, flat.size), matvec=product, dtype=flat.dtype)
    try:
        values = eigs(operator, k=1, v0=start, ncv=ARNOLDI_VECTORS, tol=ARNOLDI_RTOL, return_eigenvectors=False)
    except ArpackNoConvergence:
        raise ConvergenceError(
            "ARPACK found no largest eigenvalue of the map's derivative: many are of nearly the same size; "
            "watch how fast z ← T(z) approaches its fixed point instead."
        ) from None
    return float(np.abs(values).max())


def _check_finite(derivative: np.ndarray) -> None:
    if not np.isfinite(derivative).all():
        raise InputError("The derivative of the map is not finite at the point given: choose another point.")
