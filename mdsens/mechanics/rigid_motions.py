"""Rigid motions, which cost no energy: with frozen atoms and rattlers the known null space of an equilibrium's Hessian.

Translations are always among them, rotations as far as the periodicity allows (three for a cluster, one about the axis of a
wire, one for a 2-D cluster): as far as they leave frozen atoms in place and move anything (a linear molecule has two rotations).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.mechanics.bound_constraints import Constraints
from mdsens.structures.system import System

_ZERO_SHARE = 1e-6
"""Share of the usual length of a motion, or of the largest singular value, below which one counts as zero."""


class RigidMotions(eqx.Module):
    """The free rigid motions: combinations `(generators, m)` of translations and of rotations about `origin`."""

    combinations: Float[Array, "generators m"]
    axes: Float[Array, "rotations dim"]
    origin: Float[Array, " dim"]
    names: tuple[str, ...] = eqx.field(static=True)

    def basis(self, positions: Any, active: Any, xp: Any = jnp) -> Any:
        """Return orthonormal displacements, raveled, zero where not active; pure JAX, or by NumPy for `xp=numpy`."""
        axes, origin, combinations = (xp.asarray(part) for part in (self.axes, self.origin, self.combinations))
        motions = _generators(xp.asarray(positions), axes, origin, xp) @ combinations
        motions = xp.where(active.ravel()[:, None], motions, 0.0)
        return xp.linalg.qr(motions)[0]


def rigid_motions(system: System, constraints: Constraints | None = None, on_device: bool = True) -> RigidMotions:
    """Return the rigid motions that `system` is free to make under its frozen atoms and other constraints [host].

    Args:
        on_device: give arrays of JAX rather than of NumPy.
    """
    positions = np.asarray(system.positions)
    dim = system.dim
    rows = np.repeat(~np.asarray(system.frozen), dim)
    if constraints is not None:
        rows = rows & ~np.asarray(constraints.held).ravel()
    axes = _rotation_axes(system)
    origin = positions.mean(axis=0)
    generators = _generators(positions, axes, origin, np)
    scale = np.linalg.norm(generators, axis=0)
    # Rotations move atoms by their distances from the origin, translations by 1.
    usual = np.ones(len(scale))
    usual[dim:] = np.linalg.norm(positions - origin)
    scale[scale <= _ZERO_SHARE * usual] = 1.0
    generators = generators / scale
    combinations = np.eye(generators.shape[1])
    if not rows.all():
        combinations = _null_space(generators[~rows])
    if constraints is not None and constraints.count:
        normals = np.asarray(constraints.normals(system))
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = normals / np.where(lengths > 0.0, lengths, 1.0)
        combinations = combinations @ _null_space(normals @ generators @ combinations)
    if combinations.shape[1]:
        _, singular, right = np.linalg.svd(generators[rows] @ combinations, full_matrices=False)
        if (singular > _ZERO_SHARE).sum() < combinations.shape[1]:
            combinations = combinations @ right[singular > _ZERO_SHARE].T
    names = [f"translation {'xyz'[k]}" for k in range(dim)] + [f"rotation {k + 1}" for k in range(len(axes))]
    if combinations.shape != (len(names), len(names)):
        names = [f"rigid motion {k + 1}" for k in range(combinations.shape[1])]
    dtype = system.positions.dtype
    arrays: Any = [part.astype(dtype) for part in (combinations / scale[:, None], axes, origin)]
    combinations, axes, origin = jax.device_put(arrays) if on_device else arrays
    return RigidMotions(combinations, axes, origin, tuple(names))


def coupled_atoms(forces: Callable[[Array], Array], flat: Float[Array, " n"]) -> Bool[Array, " atoms"]:
    """Return which atoms have a contact; rattlers have none, so that their displacement and their force have to do with no other.

    A random change of the flat unknown gives rattlers, and only them, a change of their force, by `forces`, that is exactly zero.
    """
    probe = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
    return jnp.any(forces(probe) != 0.0, axis=-1)


def _generators(positions: Any, axes: Any, origin: Any, xp: Any) -> Any:
    n, dim = positions.shape
    columns = [xp.tile(row, (n, 1)) for row in xp.eye(dim, dtype=positions.dtype)]
    arm = positions - origin
    if dim == 2 and len(axes):
        columns.append(xp.stack([-arm[:, 1], arm[:, 0]], axis=1))
    elif dim == 3:
        columns.extend(xp.cross(axis, arm) for axis in axes)
    return xp.stack([column.ravel() for column in columns], axis=1)


def _rotation_axes(system: System) -> np.ndarray:
    periodic, dim = sum(system.pbc), system.dim
    if dim == 2:
        return np.zeros((1 if periodic == 0 else 0, 2))
    if periodic == 0:
        return np.eye(3)
    if periodic == 1:
        axis = np.asarray(system.cell)[system.pbc.index(True)]
        return (axis / np.linalg.norm(axis))[None]
    return np.zeros((0, 3))


def _null_space(matrix: np.ndarray) -> np.ndarray:
    _, singular, right = np.linalg.svd(matrix, full_matrices=True)
    rank = int((singular > _ZERO_SHARE * max(1.0, singular.max(initial=0.0))).sum())
    return right[rank:].T
