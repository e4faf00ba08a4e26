"""The linear system of a small structure: its Hessian as a dense matrix, with Cholesky's factor, which proves a minimum."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float

from mdsens.mechanics.spectrum import FLOPPY_SHARE, LOWEST_COUNT, MAX_ASYMMETRY, Spectrum
from mdsens.mechanics.unknown import Reference
from mdsens.solvers.host_lbfgs import Flat

FACTOR_MARGIN = 1e4
"""Lowest eigenvalue, in roundings of the highest, above which a matrix is factorised."""


class DenseSystem(NamedTuple):
    """The Hessian between the components that can move.

    Attributes:
        matrix: `(k, k)`, symmetric.
        lower: Cholesky's factor of the matrix with the null space made stiff, `(k, k)`, zero above the diagonal.
        free: `(k,)`, components of z.
        basis: `(k, m)`, the null space.
        rattlers: atoms without contact.
        size: components of z.
    """

    matrix: np.ndarray
    lower: np.ndarray
    free: np.ndarray
    basis: np.ndarray
    rattlers: tuple[int, ...]
    size: int

    def solve(self, right: Flat) -> Flat:
        """Return A⁻¹ of a right-hand side, outside the null space."""
        whole = len(self.free) == self.size
        part = right if whole else right[self.free]
        part = part - self.basis @ (self.basis.T @ part)
        # As an upper factor it lies in the order that LAPACK wants.
        answer = scipy.linalg.lapack.dpotrs(self.lower.T, part, lower=0)[0]
        answer = answer - self.basis @ (self.basis.T @ answer)
        if whole:
            return answer  # type: ignore[no-any-return]
        image = np.zeros(self.size)
        image[self.free] = answer
        return image


class Freedom(NamedTuple):
    """The components of z that can move, and the motions of them that cost nothing."""

    free: np.ndarray
    basis: np.ndarray
    rattlers: tuple[int, ...]


def dense_systems(
    positions: Float[np.ndarray, "k atoms dim"],
    references: Sequence[Reference],
    held: Bool[np.ndarray, "k atoms dim"],
    matrices: Float[np.ndarray, "k n n"],
) -> list[DenseSystem | None]:
    """Return the linear systems of several structures of one kind, by ∂F/∂z at each; None for what is no minimum.

    Args:
        references: of the structures' unknowns.
        held: components of positions that do not move.
    """
    count, size = len(matrices), matrices.shape[1]
    acting: Any = (matrices[:, : held[0].size] != 0.0).any(axis=2).reshape(held.shape).any(axis=2)
    known: dict[Any, Freedom] = {}
    groups: dict[int, list[int]] = {}
    freedoms = []
    for k, (reference, x) in enumerate(zip(references, positions, strict=True)):
        # Translations are the same in all of a kind; rotations depend on the positions.
        turns = len(reference.motions.axes) > 0
        key = k if turns else (held[k].tobytes(), acting[k].tobytes())
        if key not in known:
            known[key] = _freedom(x, reference, held[k], acting[k], size)
        freedoms.append(known[key])
        groups.setdefault(id(known[key]), []).append(k)
    found: list[DenseSystem | None] = [None] * count
    for chosen in groups.values():
        free, basis, rattlers = freedoms[chosen[0]]
        if len(free) <= basis.shape[1]:
            continue
        between = matrices[chosen] if len(free) == size else matrices[np.ix_(np.array(chosen), free, free)]
        sound = _is_sound(between, basis)
        stiff = np.abs(np.diagonal(between, axis1=1, axis2=2)).max(axis=1)
        shifted = between + stiff[:, None, None] * (basis @ basis.T)
        for k, matrix, lower, fine in zip(chosen, between, _factors(shifted), sound, strict=True):
            if fine and lower is not None:
                found[k] = DenseSystem(matrix, lower, free, basis, rattlers, size)
    return found


def _freedom(x: np.ndarray, reference: Reference, held: np.ndarray, acting: np.ndarray, size: int) -> Freedom:
    active = ~held & acting[:, None]
    basis = reference.motions.basis(x, active, np)
    free = np.flatnonzero(np.append(active, np.ones(size - held.size, bool)))
    moving = free[free < held.size]
    basis = np.concatenate([basis[moving], np.zeros((len(free) - len(moving), basis.shape[1]))])
    rattlers = tuple(np.flatnonzero(~acting & ~held.all(axis=1)).tolist())
    return Freedom(free, basis[:, basis.any(axis=0)], rattlers)


def _is_sound(matrices: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return which matrices are symmetric, by their work on two random displacements, and cost rigid motions nothing.

    What is not is looked at closely by `mechanics.spectrum.examine_hessian`, when the structure is relaxed alone.
    """
    v, w = np.random.default_rng(1).normal(size=(2, matrices.shape[1]))
    images = matrices @ np.concatenate([v[:, None], w[:, None], basis], axis=1)
    there, back = images[:, :, 0], images[:, :, 1]
    sizes = np.sqrt(0.5 * ((there * there).sum(axis=1) + (back * back).sum(axis=1)))
    small = np.sqrt(np.finfo(float).eps)
    is_symmetric = np.abs(there @ w - back @ v) <= small * MAX_ASYMMETRY * sizes
    rigid = np.linalg.norm(images[:, :, 2:], axis=1).max(axis=1, initial=0.0)
    return is_symmetric & (rigid <= 10.0 * small * np.abs(matrices).sum(axis=2).max(axis=1))  # type: ignore[no-any-return]


def _factors(matrices: np.ndarray) -> list[np.ndarray | None]:
    """Return Cholesky's lower factors; None for what is not positive to working precision."""
    try:
        return list(np.linalg.cholesky(matrices))
    except np.linalg.LinAlgError:
        return [None] if len(matrices) == 1 else [_factors(matrix[None])[0] for matrix in matrices]


def spectra_of(systems: Sequence[DenseSystem]) -> list[Spectrum | None]:
    """Return the ends of the spectra of minima of one size; None for one that is too soft for that to be certain."""
    matrices, bases = (np.stack([getattr(dense, name) for dense in systems]) for name in ("matrix", "basis"))
    tops = np.abs(matrices).sum(axis=2).max(axis=1)
    # Null vectors are exact but for rounding: made stiff, they come last.
    values = np.linalg.eigvalsh(matrices + 2.0 * tops[:, None, None] * (bases @ np.swapaxes(bases, 1, 2)))
    values = values[:, : values.shape[1] - bases.shape[2]]
    return [_spectrum(dense, ends) for dense, ends in zip(systems, values, strict=True)]


def _spectrum(dense: DenseSystem, values: np.ndarray) -> Spectrum | None:
    lowest, highest = float(values[0]), float(np.abs(values).max())
    if not lowest > max(FLOPPY_SHARE, FACTOR_MARGIN * np.finfo(float).eps) * highest:
        return None
    few = tuple(float(value) for value in values[:LOWEST_COUNT])
    return Spectrum(lowest, highest, 0, dense.rattlers, True, few, 0, lowest)
