"""Whether forces or second derivatives jump at a state: what a potential that is not one of mdsens's may not say, or not know."""

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from mdsens.derivatives.certificate import distance_to_kinks
from mdsens.derivatives.linear_response import BATCH, changes
from mdsens.derivatives.selection import Selection
from mdsens.implicit.bound import SEEN
from mdsens.mechanics.hessian import Hessian
from mdsens.mechanics.scales import spacing
from mdsens.potentials import SHIPPED

STEP = 1e-6
"""Displacement at which forces are looked at, as a share of the distance between atoms."""

JUMP_RATIO = 0.75
"""What is twice as long is twice as large where nothing jumps, and as large where something does: in between."""

NOTICEABLE_SHARE = 1e-2
"""Share of the largest change at which another is looked at."""

NOISE = 1e4
"""Roundings of a product of the Hessian up to which it means nothing."""


def jumps_at(hessian: Hessian, selection: Selection) -> bool:
    """Whether forces or their derivatives differ on both sides of a state [host]; where the potential is known not to, False.

    By the program that the bound on the error has been computed with.
    """
    potential, shipped = hessian.potential, set(SHIPPED.values())
    known = all(type(part) in shipped for part in (potential, *potential.parts()))
    kinks = distance_to_kinks(potential)
    if potential.approximation(hessian.reference.system) is not None or (known and (kinks is None or not np.isnan(kinks))):
        return False
    flat, unravel = ravel_pytree(hessian.z)
    count, eps = ravel_pytree(selection.parameters)[0].size, float(np.finfo(flat.dtype).eps)
    active = np.asarray(hessian.null_space.active)
    if not active.any():
        return False
    random = np.where(active, np.random.default_rng(6).normal(size=(min(BATCH, count) + 1, flat.size)), 0.0).astype(flat.dtype)
    way, columns = random[0] / np.abs(random).max(), random[1:]
    still = np.zeros((len(columns), count), flat.dtype)
    distance = spacing(hessian.reference.system)
    step = max(STEP * distance, 10.0 * SEEN * eps * float(np.abs(flat).max(initial=0.0)))

    def at(k: int) -> list[np.ndarray]:
        return [np.asarray(part) for part in changes(hessian, unravel(flat + k * step * way), selection, still, columns)]

    near, far = (jax.tree.map(np.subtract, at(k), at(-k)) for k in (1, 2))
    lengths = np.array([np.linalg.norm(columns, axis=1).max(initial=0.0), distance])
    noise = NOISE * eps * hessian.spectrum.highest * lengths
    return any(_is_jump(*both) for both in zip(near, far, noise, strict=True))


def _is_jump(near: np.ndarray, far: np.ndarray, noise: float) -> bool:
    near, far = np.abs(near), np.abs(far)
    noticed = near > max(noise, NOTICEABLE_SHARE * far.max(initial=0.0))
    return bool((noticed & (near > JUMP_RATIO * far)).any())
