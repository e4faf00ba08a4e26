"""`jumps_at`: jumps of forces or second derivatives at a state, of which a potential of the user's need not say anything."""

import jax
import numpy as np

from mdsens.derivatives.certificate import distance_to_kinks
from mdsens.derivatives.linear_response import batch_size, changes
from mdsens.derivatives.selection import Selection
from mdsens.implicit.bound import MIN_PROBE
from mdsens.mechanics.hessian import Hessian
from mdsens.mechanics.scales import spacing
from mdsens.mechanics.unknown import raveled, unraveled
from mdsens.potentials import SHIPPED

STEP = 1e-6
"""Displacement at which forces are compared, as a share of the distance between atoms."""

JUMP_RATIO = 0.75
"""Change over one step, as a share of that over two, above which something jumps: 0.5 is usual, 1 a jump."""

NOTICEABLE_SHARE = 1e-2
"""Share of the largest change above which another counts."""

NOISE = 1e4
"""Size of a product of the Hessian, in roundings, up to which it means nothing."""


def jumps_at(hessian: Hessian, selection: Selection) -> bool:
    """Return whether forces or their derivatives jump at a state [host]; False where the potential says that they do not.

    It uses the compiled program of the bound on the error.
    """
    potential, shipped = hessian.potential, set(SHIPPED.values())
    known = all(type(part) in shipped for part in (potential, *potential.parts()))
    kinks = distance_to_kinks(potential)
    if potential.approximation(hessian.reference.system) is not None or (known and (kinks is None or not np.isnan(kinks))):
        return False
    flat = raveled(hessian.z)
    count, eps = len(selection.places), float(np.finfo(flat.dtype).eps)
    active = np.asarray(hessian.null_space.active)
    if not active.any():
        return False
    random = np.where(active, np.random.default_rng(6).normal(size=(batch_size(count) + 1, flat.size)), 0.0).astype(flat.dtype)
    way, columns = random[0] / np.abs(random).max(), random[1:]
    still = np.zeros((len(columns), count), flat.dtype)
    distance = spacing(hessian.reference.system)
    step = max(STEP * distance, 10.0 * MIN_PROBE * eps * float(np.abs(flat).max(initial=0.0)))

    def at(k: int) -> list[np.ndarray]:
        return list(changes(hessian, unraveled(flat + k * step * way, hessian.z), selection, still, columns))

    near, far = (jax.tree.map(np.subtract, at(k), at(-k)) for k in (1, 2))
    lengths = np.array([np.linalg.norm(columns, axis=1).max(initial=0.0), distance])
    noise = NOISE * eps * hessian.spectrum.highest * lengths
    return any(_is_jump(*both) for both in zip(near, far, noise, strict=True))


def _is_jump(near: np.ndarray, far: np.ndarray, noise: float) -> bool:
    near, far = np.abs(near), np.abs(far)
    noticed = near > max(noise, NOTICEABLE_SHARE * far.max(initial=0.0))
    return bool((noticed & (near > JUMP_RATIO * far)).any())
