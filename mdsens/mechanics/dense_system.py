"""The linear system of a small structure: its Hessian as a dense matrix, with Cholesky's factor, which proves a minimum."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Array

from mdsens.mechanics.assembly import Listed
from mdsens.mechanics.softest_modes import exact_ends
from mdsens.mechanics.spectrum import FLOPPY_SHARE, LOWEST_COUNT, Spectrum
from mdsens.mechanics.unknown import Reference, Unknown, as_unknown
from mdsens.solvers.host_lbfgs import Flat

FACTOR_MARGIN = 1e4
"""Lowest eigenvalue, in roundings of the highest, above which a matrix is factorised."""


class DenseSystem(NamedTuple):
    """The Hessian between the components that can move.

    Attributes:
        matrix: `(k, k)`, symmetric.
        lower: Cholesky's factor of the matrix with the null space made stiff.
        free: `(k,)`, components of z.
        basis: `(k, m)`, the null space.
        rattlers: atoms without contact.
        size: components of z.
        stored: the second derivatives that it is made of.
    """

    matrix: np.ndarray
    lower: np.ndarray
    free: np.ndarray
    basis: np.ndarray
    rattlers: tuple[int, ...]
    size: int
    stored: Listed

    def solve(self, right: Flat) -> Flat:
        """Return A⁻¹ of a right-hand side, outside the null space."""
        part = right[self.free]
        part = part - self.basis @ (self.basis.T @ part)
        answer = scipy.linalg.lapack.dpotrs(self.lower, part, lower=1)[0]
        whole = np.zeros(self.size)
        whole[self.free] = answer - self.basis @ (self.basis.T @ answer)
        return whole


def dense_system(z: Unknown | Array, reference: Reference, matrix: np.ndarray, stored: Listed) -> DenseSystem | None:
    """Return the linear system at z, by ∂F/∂z there; None where it is not positive outside its null space."""
    held, size = np.asarray(reference.held), len(matrix)
    acting = np.any(matrix != 0.0, axis=1)[: held.size].reshape(held.shape).any(axis=1)
    rattlers = tuple(np.flatnonzero(~acting & ~held.all(axis=1)).tolist())
    active = ~held & acting[:, None]
    basis = reference.motions.basis(as_unknown(z).positions, active, np)
    free = np.flatnonzero(np.append(active, np.ones(size - held.size, bool)))
    moving = free[free < held.size]
    basis = np.concatenate([basis[moving], np.zeros((len(free) - len(moving), basis.shape[1]))])
    basis = basis[:, basis.any(axis=0)]
    if len(free) <= basis.shape[1]:
        return None
    between = matrix if len(free) == size else matrix[np.ix_(free, free)]
    between = 0.5 * (between + between.T)
    stiff = np.abs(np.diag(between)).max()
    lower, failed = scipy.linalg.lapack.dpotrf(between + stiff * (basis @ basis.T), lower=1, clean=0)
    if failed or not np.isfinite(lower[-1, -1]):
        return None
    return DenseSystem(between, lower, free, basis, rattlers, size, stored)


def spectrum_of(dense: DenseSystem) -> Spectrum | None:
    """Return the ends of the spectrum of a minimum; None where it is too soft for that to be certain."""
    values, highest = exact_ends(dense.matrix, dense.basis)
    lowest = float(values[0])
    if not lowest > max(FLOPPY_SHARE, FACTOR_MARGIN * np.finfo(float).eps) * highest:
        return None
    few = tuple(float(value) for value in values[:LOWEST_COUNT])
    return Spectrum(lowest, highest, 0, dense.rattlers, True, few, 0, lowest)
