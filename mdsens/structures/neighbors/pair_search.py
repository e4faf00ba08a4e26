"""All pairs of atoms within a distance, by vesin within its limits.

Where its grid would have more than 10⁵ cells vesin (0.6) takes fewer along each axis, in proportion, and none along a thin
one: a large layer or film, or a long wire, ends the process. Here an open axis that is thin is made longer first, by two points
that nothing reaches; beside a periodic one cells become larger, and the pairs beyond the distance are left out.
"""

import numpy as np
from jaxtyping import Bool, Float

from mdsens.common.errors import InputError

CELLS = 1e5
"""Cells of vesin's grid, at most."""

MARGIN = 3.0
"""Cells along each axis, at least: with two roundings of their ratios one is left."""

MAX_DISTANCE = 1e8
"""Distance from the origin in ranges, or cells, at which positions have half of their digits."""

MAX_PAIRS = 2e10
"""Pairs that may be examined."""

CELL_COST = 100.0
"""Time for a pair of cells, in those for a pair of atoms."""

MIN_WIDTH = 1e-9
"""Least width that counts, as a share of a cell's size."""

CELL_GROWTH = 1.2
"""Factor between two sizes of cells that are tried."""


def pairs_within(
    points: Float[np.ndarray, "atoms 3"], box: Float[np.ndarray, "3 3"], pbc: Bool[np.ndarray, " 3"], reach: float
) -> tuple[np.ndarray, ...]:
    """Return `(i, j, S, d)`: two atoms, the image of the second `(pairs, 3)`, their distance [Å]; each pair from both sides.

    Args:
        box: rows are the cell vectors [Å], zero for missing ones.

    Raises:
        InputError: an atom that is too far away to tell distances, more pairs than can be, a distance of nearly zero.
    """
    from vesin import NeighborList

    axes = _axes(box, pbc)
    inverse = np.linalg.inv(axes)
    shares = points @ inverse
    distant = np.abs(np.concatenate([points / reach, shares * pbc], axis=1)).max(axis=1)
    if distant.max() > MAX_DISTANCE:
        atom = int(distant.argmax())
        raise InputError(
            f"Atom {atom} is too far away to tell distances, at {points[atom]} Å: check the structure and its units."
        )
    # Widths between the cell's faces along each axis, between the outermost atoms where it is open.
    widths = np.where(pbc, 1.0, np.ptp(shares, axis=0)) / np.linalg.norm(inverse, axis=0)
    longer, search, work = _grid(len(points), widths, pbc, reach)
    if work > MAX_PAIRS:
        raise InputError(
            f"About {work:.0e} pairs would have to be examined for those within {reach:g} Å, which is too many: check the "
            "cell, its units, and the range of the potential."
        )
    if longer.any():
        points = np.concatenate([points, points.mean(axis=0) + np.outer([-1.0, 1.0], longer @ axes)])
    # Vesin has a smallest cutoff of its own. A power of two changes no digit.
    unit = 2.0 ** np.rint(np.log2(search)) if 0.0 < search < np.inf else 1.0
    try:
        i, j, S, d = NeighborList(cutoff=search / unit, full_list=True).compute(
            points=points / unit, box=box / unit, periodic=pbc.tolist(), quantities="ijSd"
        )
    except RuntimeError as error:
        raise InputError(f"Neighbours within {reach:g} Å cannot be listed ({error}): check the potential's range.") from None
    pairs = (i, j, S, unit * d)
    return pairs if search == reach else tuple(values[pairs[3] < reach] for values in pairs)


def _axes(box: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Return the periodic cell vectors, with unit vectors perpendicular to all of them for the others."""
    axes = np.where(pbc[:, None], box, 0.0)
    if not pbc.all():
        axes[~pbc] = np.linalg.svd(axes)[2][pbc.sum() :]
    return axes


def _grid(n: int, widths: np.ndarray, pbc: np.ndarray, reach: float) -> tuple[np.ndarray, float, float]:
    """Return the distance of two added points along each open axis [Å], zero for none; the size of cells [Å]; the work.

    The work is in pairs of `n` atoms, spread evenly, or in the equivalent number of cells.
    """
    widths, search, longer = widths.copy(), reach, np.zeros(3)
    while True:
        cells = np.maximum(np.floor(widths / search), 1.0)
        left = cells * min(1.0, np.cbrt(CELLS / cells.prod()))
        thin = left < np.minimum(cells, MARGIN)
        if not thin.any():
            beside = np.where(
                pbc | (cells > 1.0), 2.0 * np.ceil(search * left / np.maximum(widths, search * MIN_WIDTH)) + 1.0, 1.0
            )
            return longer, search, max(n**2 / left.prod(), CELL_COST * left.prod()) * beside.prod()
        if (thin & pbc).any():
            search *= CELL_GROWTH
        else:
            widths[thin] = 2.0 * np.maximum(widths[thin], search)
            longer[thin] = widths[thin]
