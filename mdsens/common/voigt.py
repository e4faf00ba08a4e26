"""Voigt's order of the components of a symmetric tensor: xx, yy, zz, yz, xz, xy; in 2-D xx, yy, xy."""

import numpy as np
from jaxtyping import Array

VOIGT = {2: ((0, 0), (1, 1), (0, 1)), 3: ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))}
"""`(row, column)` of each component, by dimension."""


def unit_strains(dim: int) -> np.ndarray:
    """Return the strain tensors of which Voigt's strains are the coefficients, with shears γ = 2ε: `(6 or 3, dim, dim)`."""
    units = np.zeros((len(VOIGT[dim]), dim, dim))
    for k, (i, j) in enumerate(VOIGT[dim]):
        units[k, i, j] += 0.5
        units[k, j, i] += 0.5
    return units


def to_voigt(tensor: Array) -> Array:
    """Return stress-like tensors `(..., dim, dim)` as vectors `(..., 6 or 3)`; shears are not doubled."""
    rows, columns = zip(*VOIGT[tensor.shape[-1]], strict=True)
    return tensor[..., rows, columns]


def from_voigt(vector: Array | np.ndarray) -> Array:
    """Return the symmetric tensor of a stress-like vector of 6 or 3 components."""
    return vector[np.array(((0, 5, 4), (5, 1, 3), (4, 3, 2)) if len(vector) == 6 else ((0, 2), (2, 1)))]
