"""Random packings of particles."""

from collections.abc import Mapping

import numpy as np

from mdsens.common.errors import InputError
from mdsens.structures.system import System


def random_packing(
    n: int, diameters: Mapping[str, float], *, packing_fraction: float = 1.0, dim: int = 2, seed: int = 0
) -> System:
    """Place particles at random in a periodic square or cubic box, in equal shares of each label.

    With 128 particles, `{"A": 1.0, "B": 0.6}` and packing fraction 1.0 in 2-D this is where the experiment of Blondel et
    al. 2021 (section 4.4) starts.

    Args:
        n: number of particles, a multiple of the number of labels.
        diameters: by label; they set the size of the box.
        packing_fraction: volume of all particles (overlaps counted twice) over the volume of the box.

    Raises:
        InputError: numbers that make no packing.
    """
    if n < 1 or n % max(1, len(diameters)):
        raise InputError(f"random_packing wants a multiple of {len(diameters)} particles, in equal shares, not {n}.")
    if dim not in (2, 3) or not packing_fraction > 0.0 or not all(d > 0.0 for d in diameters.values()):
        raise InputError("random_packing wants dim 2 or 3 and positive diameters and packing fraction.")
    labels = [label for label in diameters for _ in range(n // len(diameters))]
    sizes = np.array([diameters[label] for label in labels])
    with np.errstate(over="ignore"):
        volume = (np.pi / 4.0 * sizes**2 if dim == 2 else np.pi / 6.0 * sizes**3).sum() / packing_fraction
    side = volume ** (1.0 / dim)
    if not np.isfinite(side):
        raise InputError(f"random_packing wants diameters and a packing fraction that make a finite box, not {side} wide.")
    positions = np.random.default_rng(seed).uniform(0.0, side, (n, dim))
    return System(positions, cell=np.eye(dim) * side, pbc=True, species=labels)
