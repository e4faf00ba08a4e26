"""Voigt's order of the components of a symmetric tensor: xx, yy, zz, yz, xz, xy; in 2-D xx, yy, xy."""

import numpy as np

VOIGT = {2: ((0, 0), (1, 1), (0, 1)), 3: ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))}
"""`(row, column)` of each component, by dimension."""


def to_voigt(tensor):
    """`(..., dim, dim)` → `(..., 6 or 3)`, for stress-like tensors (shears are not doubled)."""
    rows, columns = zip(*VOIGT[tensor.shape[-1]], strict=True)
    return tensor[..., rows, columns]


def from_voigt(vector) -> np.ndarray:
    """The symmetric tensor of a stress-like vector of 6 or 3 components."""
    dim = {3: 2, 6: 3}[len(vector)]
    tensor = np.zeros((dim, dim), dtype=np.asarray(vector).dtype)
    for value, (k, l) in zip(vector, VOIGT[dim], strict=True):
        tensor[k, l] = tensor[l, k] = value
    return tensor
