"""The known null space of a Hessian: motions that cost no energy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.implicit.linear_system import NullSpace
from mdsens.mechanics.hessian_operator import hessian_operator
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.rigid_motions import coupled_atoms
from mdsens.mechanics.unknown import Reference, Unknown, as_unknown


def rigid_null_space(z: Unknown | Array, landscape: Landscape) -> NullSpace:
    """Return the null space that forces respect by themselves: frozen atoms and free rigid motions."""
    reference = landscape.reference
    return null_space_of(z, reference, ~reference.held)


def null_space(z: Unknown | Array, landscape: Landscape) -> NullSpace:
    """Return the null space of the Hessian at a state: rattlers too, on which a general right-hand side may act."""
    reference, product = landscape.reference, hessian_operator(z, landscape)
    flat, unravel = ravel_pytree(z)
    coupled = coupled_atoms(lambda v: as_unknown(unravel(product(v))).positions, flat)
    return null_space_of(z, reference, ~reference.held & coupled[:, None])


def known_null_space(z: Unknown | Array, reference: Reference, rattlers: tuple[int, ...]) -> NullSpace:
    """Return what `null_space` does, where the rattlers are known already, by NumPy [host]."""
    active = ~np.asarray(reference.held)
    active[np.array(rattlers, dtype=int)] = False
    return null_space_of(z, reference, active, np)


def null_space_of(z: Unknown | Array, reference: Reference, active: Any, xp: Any = jnp) -> NullSpace:
    """Return the null space of rigid motions of the active components `(N, dim)` and of those that are not."""
    basis = reference.motions.basis(as_unknown(z).positions, active, xp)
    more = sum(0 if part is None else part.size for part in as_unknown(z)[1:])
    return NullSpace(xp.concatenate([active.ravel(), xp.ones(more, bool)]), xp.pad(basis, ((0, more), (0, 0))))
