"""Harmonics on the unit sphere in four dimensions, where SNAP places neighbours, and exact integrals of their products.

With twice the angular momentum j = 0, 1, 2, ... the (j + 1)² real harmonics u_a of level j are the independent components of
the matrices of rotations, and their kernel is a Chebyshev polynomial of the second kind: Σ_a u_a(p) u_a(q) = U_j(p·q).

D. A. Varshalovich, A. N. Moskalev, V. K. Khersonskii, Quantum Theory of Angular Momentum (World Scientific, 1987), chapter 4.
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int

ROUNDING = 1e-10
"""Integrals smaller than this are zero; the smallest others are a hundred thousand times larger."""

NORTH = np.array([1.0, 0.0, 0.0, 0.0])


@dataclasses.dataclass(frozen=True, eq=False)
class Sphere:
    """Harmonics of the levels 0 to `twojmax`, and a quadrature that is exact for products of three, if their levels' sum is even.

    Attributes:
        level: the level of each harmonic.
        weight: the weights of the quadrature's points, their sum 1.
        values: the harmonics at these points.
        north: the harmonics at (1, 0, 0, 0).
        samples: a few points, as many as the highest level has harmonics, that tell the harmonics of a level apart.
        from_samples: for each level, the coefficients of a sum of its harmonics from the values at the samples.
    """

    level: Int[np.ndarray, " harmonics"]
    weight: Float[np.ndarray, " points"]
    values: Float[np.ndarray, "harmonics points"]
    north: Float[np.ndarray, " harmonics"]
    samples: Float[np.ndarray, "samples 4"]
    from_samples: tuple[Float[np.ndarray, "of_level samples"], ...]


@functools.cache
def sphere(twojmax: int, dtype: Any = "float64") -> Sphere:
    """Return the tables up to a level.

    In points √(1-t) exp(i (φ + ψ)/2), √t exp(i (φ - ψ)/2) a product of three is a polynomial in t, of period 2π in φ and ψ.
    """
    degree = (3 * twojmax - twojmax % 2) // 2
    t, weight = np.polynomial.legendre.leggauss(degree // 2 + 1)
    angle = 2.0 * np.pi * np.arange(degree + 1) / (degree + 1)
    t, phi, psi = (x.ravel() for x in np.meshgrid(0.5 * (t + 1.0), angle, angle, indexing="ij"))
    a, b = np.sqrt(1.0 - t) * np.exp(0.5j * (phi + psi)), np.sqrt(t) * np.exp(0.5j * (phi - psi))
    points = np.stack([a.real, a.imag, b.real, b.imag], axis=1)
    level = np.repeat(np.arange(twojmax + 1), (np.arange(twojmax + 1) + 1) ** 2)
    values = _harmonics(points, twojmax)
    # Pivots of a QR decomposition are columns far from dependent.
    best = scipy.linalg.qr(values[level == twojmax], mode="r", pivoting=True)[1][: (twojmax + 1) ** 2]
    from_samples = [np.linalg.pinv(values[level == j][:, best].T) for j in range(twojmax + 1)]
    weight = np.repeat(0.5 * weight, len(angle) ** 2) / len(angle) ** 2
    north = _harmonics(NORTH[None], twojmax)[:, 0]
    weight, values, north, samples = (array.astype(dtype) for array in (weight, values, north, points[best]))
    return Sphere(level, weight, values, north, samples, tuple(matrix.astype(dtype) for matrix in from_samples))


def _harmonics(points: Any, twojmax: int) -> Float[np.ndarray, "harmonics points"]:
    """Return the harmonics at some points, by the recursion in j, VMK 4.8.2, for the upper half of each matrix and VMK 4.4.2."""
    a, b = points[:, 0] + 1j * points[:, 1], points[:, 2] + 1j * points[:, 3]
    u = np.ones((1, 1, len(points)), complex)
    harmonics = [u.real[0]]
    for j in range(1, twojmax + 1):
        if j % 2 == 0:
            sign = (-1.0) ** np.arange(1 - j // 2, j - j // 2 + 1)[:, None]
            u = np.concatenate([u, (sign * u[-1]).conj()[None, ::-1]])
        row, column = np.arange(j // 2 + 1)[:, None, None], np.arange(j)[:, None]
        longer = np.zeros((j // 2 + 1, j + 1, len(points)), complex)
        longer[:, :-1] += np.sqrt((j - column) / (j - row)) * a.conj() * u
        longer[:, 1:] -= np.sqrt((column + 1) / (j - row)) * b.conj() * u
        u = longer
        # Above the middle each component stands for two.
        upper = [u[: (j + 1) // 2].reshape(-1, len(points)), *([u[j // 2, : j // 2]] if j % 2 == 0 else [])]
        harmonics += [np.sqrt(2.0) * part for half in upper for part in (half.real, half.imag)]
        if j % 2 == 0:
            harmonics.append(u[j // 2, j // 2].real[None])
    return np.concatenate(harmonics)


@dataclasses.dataclass(frozen=True, eq=False)
class TripleIntegrals:
    """⟨u_a u_b u_c⟩ where it is not zero, by pairs of harmonics a ≥ b.

    Attributes:
        place: the number of the pair of two harmonics; one beyond the last where they have no integral.
        first, second: a and b of each pair.
        count: how many integrals each pair has, in increasing order.
        third: the c of each pair, filled up with zeros.
        integral: ⟨u_a u_b u_c⟩, filled up with zeros.
    """

    place: Int[np.ndarray, "harmonics harmonics"]
    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    count: Int[np.ndarray, " pairs"]
    third: Int[np.ndarray, "most pairs"]
    integral: Float[np.ndarray, "most pairs"]


@functools.cache
def triple_integrals(twojmax: int) -> TripleIntegrals:
    """Return all of them, by quadrature."""
    rule, n = sphere(twojmax), len(sphere(twojmax).level)
    blocks = [np.flatnonzero(rule.level == j) for j in range(twojmax + 1)]
    triples, integrals = [], []
    for j1, j2 in itertools.combinations_with_replacement(range(twojmax, -1, -1), 2):
        products = rule.values[blocks[j1], None] * rule.values[blocks[j2]] * rule.weight
        for j in range(j1 - j2, j2 + 1, 2):
            integral = np.tensordot(products, rule.values[blocks[j]], (2, 1))
            nonzero = np.nonzero(np.abs(integral) > ROUNDING)
            triple = np.stack([blocks[level][p] for level, p in zip((j1, j2, j), nonzero, strict=True)])
            triples += [triple[list(order)] for order in itertools.permutations(range(3))]
            integrals += [integral[nonzero]] * 6
    a, b, c = np.concatenate(triples, axis=1)
    _, first_places = np.unique((a * n + b) * n + c, return_index=True)
    entry = first_places[a[first_places] >= b[first_places]]
    pairs, start, count = np.unique(a[entry] * n + b[entry], return_index=True, return_counts=True)
    # Pairs with the same number of integrals one after the other.
    order = np.argsort(count, kind="stable")
    pairs, start, count = pairs[order], start[order], count[order]
    entry = np.concatenate([entry[s : s + size] for s, size in zip(start, count, strict=True)])
    start = np.cumsum(count) - count
    rank, pair = np.arange(len(entry)) - np.repeat(start, count), np.repeat(np.arange(len(pairs)), count)
    third, integral = np.zeros((count.max(), len(pairs)), int), np.zeros((count.max(), len(pairs)))
    third[rank, pair], integral[rank, pair] = c[entry], np.concatenate(integrals)[entry]
    place = np.full((n, n), len(pairs))
    first, second = np.divmod(pairs, n)
    place[first, second] = place[second, first] = np.arange(len(pairs))
    return TripleIntegrals(place, first, second, count, third, integral)
