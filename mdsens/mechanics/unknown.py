"""The unknown z of an equilibrium, and the `Reference` that turns it into a system."""

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError
from mdsens.common.units import stress_unit
from mdsens.common.voigt import VOIGT, from_voigt
from mdsens.implicit.trees import is_traced
from mdsens.mechanics.bound_constraints import Constraints
from mdsens.mechanics.preconditioner import CoarseGrid, coarse_grid
from mdsens.mechanics.rigid_motions import RigidMotions, rigid_motions
from mdsens.structures.system import System


class Unknown(NamedTuple):
    """z where more than positions is unknown (otherwise z is the array of positions).

    Attributes:
        positions: `(N, dim)` in the reference cell [Å].
        strain: `(m,)`, the strain's components along the directions of a `CellFreedom`, times its length [Å]; or None.
        multipliers: `(k,)`, of the constraints [eV per unit of the constraint]; or None.
    """

    positions: Float[Array, "atoms dim"]
    strain: Float[Array, " m"] | None = None
    multipliers: Float[Array, " k"] | None = None


def as_unknown(z: Any) -> Unknown:
    """Return z as an `Unknown`, where it may be the array of positions."""
    return z if isinstance(z, Unknown) else Unknown(z)


def raveled(z: Any) -> Float[np.ndarray, " n"]:
    """Return what `ravel_pytree(z)[0]` does, as NumPy's, with nothing to compile [host]."""
    parts = [np.asarray(part).ravel() for part in as_unknown(z) if part is not None]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def unraveled(flat: Any, like: Unknown | Array) -> Unknown | Array:
    """Return a flat vector as an unknown of the same shape as another, in its precision [host]."""
    parts: list[Any] = []
    flat, start = np.asarray(flat), 0
    for part in as_unknown(like):
        if part is None:
            parts.append(None)
            continue
        shape, size = np.shape(part), int(np.prod(np.shape(part)))
        parts.append(jax.device_put(flat[start : start + size].reshape(shape).astype(part.dtype)))
        start += size
    return Unknown(*parts) if isinstance(like, Unknown) else parts[0]


class CellFreedom(eqx.Module):
    """The strains that a cell may make, and its load. The deformation F = 1 + Σ_k s_k D_k / length is symmetric.

    Attributes:
        directions: `(m, dim, dim)`, symmetric and orthonormal D_k.
        length: brings curvatures along strains near those along positions, √N (V/N)^(1/dim) [Å].
        pressure: hydrostatic part of the load [eV/Å^dim].
        tension: deviatoric part, a stress, positive where it pulls [eV/Å^dim]; None without.
    """

    directions: Float[Array, "m dim dim"]
    length: Float[Array, ""]
    pressure: Float[Array, ""]
    tension: Float[Array, "dim dim"] | None

    def deformation(self, strain: Float[Array, " m"] | None) -> Float[Array, "dim dim"]:
        """Return F at some components of the strain."""
        assert strain is not None
        unity = jnp.eye(self.directions.shape[-1], dtype=strain.dtype)
        return unity + jnp.tensordot(strain, self.directions, 1) / self.length


class Reference(eqx.Module):
    """All that stays fixed while the unknown and parameters vary: the reference system with its neighbour list, and its freedom.

    Attributes:
        system: the reference: its positions and cell are those of `start`.
        motions: rigid motions that cost nothing.
        freedom: of the cell; None for a fixed one.
        constraints: equations between positions; None without.
        listed: the unknown for which the neighbour list was made; None for `start`.
        grid: for their preconditioner (`mdsens.mechanics.preconditioner`); None without.
    """

    system: System
    motions: RigidMotions
    freedom: CellFreedom | None = None
    constraints: Constraints | None = None
    listed: Unknown | None = None
    grid: CoarseGrid | None = None

    @property
    def start(self) -> Unknown | Array:
        """The unknown of the reference itself."""
        positions = self.system.positions
        count = 0 if self.constraints is None else self.constraints.count
        if self.freedom is None and not count:
            return positions
        zeros = lambda size: jax.device_put(np.zeros(size, positions.dtype))  # noqa: E731
        strain = None if self.freedom is None else zeros(len(self.freedom.directions))
        return Unknown(positions, strain, zeros(count) if count else None)

    @property
    def symmetric(self) -> bool:
        """Whether the condition of an equilibrium is the gradient of an energy: a stress that isn't hydrostatic has none."""
        return self.freedom is None or self.freedom.tension is None

    @property
    def held(self) -> Bool[Array, "atoms dim"]:
        """Components of positions that do not move."""
        # By NumPy, which compiles nothing, where it can be.
        xp: Any = jnp if is_traced(self.system.frozen) else np
        frozen = xp.repeat(xp.asarray(self.system.frozen)[:, None], self.system.dim, axis=1)
        return frozen if self.constraints is None else frozen | self.constraints.held

    def place(self, z: Unknown | Array) -> System:
        """Return the system at z; frozen atoms ride with the cell."""
        z = as_unknown(z)
        system = self.system.with_positions(z.positions)
        return system if self.freedom is None else system.deformed(self.freedom.deformation(z.strain))

    def unknown_of(self, system: System) -> Unknown | Array:
        """Return the z of another state of the same atoms, whose cell the freedom can reach."""
        start = as_unknown(self.start)
        if self.freedom is None:
            moved = start._replace(positions=system.positions)
        else:
            assert self.system.cell is not None and system.cell is not None
            # Directions that are not periodic may have no cell vector; they do not strain.
            strain = jnp.linalg.pinv(self.system.cell) @ (system.cell - self.system.cell)
            components = self.freedom.length * jnp.einsum("ab,kab->k", strain, self.freedom.directions)
            reached = self.freedom.deformation(components)
            moved = start._replace(positions=system.positions @ jnp.linalg.inv(reached), strain=components)
        return moved if isinstance(self.start, Unknown) else moved.positions

    def is_stale(self, z: Unknown | Array, interaction_range: Any) -> Bool[Array, ""]:
        """Return whether a pair within the range could be missing from the list at z. Works on tracers."""
        neighbors = self.system.neighbors
        assert neighbors is not None
        if self.freedom is None:
            return neighbors.is_stale(as_unknown(z).positions, interaction_range)
        z, listed = as_unknown(z), as_unknown(self.start) if self.listed is None else self.listed
        deformation = self.freedom.deformation(z.strain)
        relative = jnp.linalg.inv(self.freedom.deformation(listed.strain)) @ deformation
        # No vector between images that moved along became shorter than by the smallest stretch.
        room = 0.5 * neighbors.slack(interaction_range, jnp.linalg.svd(relative, compute_uv=False)[-1])
        moved = jnp.sum(((z.positions - listed.positions) @ deformation) ** 2, axis=-1)
        return (room < 0.0) | (jnp.max(moved) > room**2)


def with_coarse_grid(reference: Reference, grid: CoarseGrid | None = None) -> Reference:
    """Return the reference with a preconditioner's grid: its own, else `grid`, else one made for its system [host]."""
    if reference.grid is not None:
        return reference
    grid = coarse_grid(reference.system) if grid is None else grid
    return eqx.tree_at(lambda f: f.grid, reference, grid, is_leaf=lambda leaf: leaf is None)


def reference_at(system: System, freedom: CellFreedom | None = None, constraints: Constraints | None = None) -> Reference:
    """Return the reference that `system` itself is [host]."""
    return Reference(system, rigid_motions(system, constraints), freedom, constraints)


def cell_freedom(system: System, cell: Any, pressure: Any) -> CellFreedom | None:
    """Return the freedom that `relax(cell=, pressure=)` asks for [host]; None for a fixed cell.

    Args:
        cell: `"fixed"`, `"isotropic"`, `"free"`, or the mask of the strains that are free, `(dim, dim)` or Voigt.
        pressure: a number, or a stress, `(dim, dim)` or Voigt, positive where it pulls [GPa; in 2-D eV/Å²].

    Raises:
        InputError: a mask or stress of the wrong shape, strains along directions that are not periodic, a load on a fixed
            cell or on a system that has no volume.
    """
    load = _stress_tensor(pressure, system.dim)
    if isinstance(cell, str) and cell == "fixed":
        if np.any(load):
            raise InputError('A pressure acts on a cell that may change only: ask for cell="free" or cell="isotropic".')
        return None
    if isinstance(cell, str) and cell not in ("free", "isotropic"):
        raise InputError(f'cell must be "fixed", "isotropic", "free" or a mask of strains, not {cell!r}.')
    if not any(system.pbc):
        raise InputError("A system that is not periodic has no cell to relax: leave out cell=, or give it pbc.")
    if getattr(system.neighbors, "hides_cell", False):
        raise InputError("A wrapped jax-md energy hides its cell, so mdsens cannot strain it: use one of mdsens's own.")
    axes = _periodic_axes(system)
    if not isinstance(cell, str):
        directions = _masked_directions(cell, axes)
    elif cell == "isotropic":
        directions = axes @ axes.T[None] / np.sqrt(axes.shape[1])
    else:
        pairs = itertools.combinations_with_replacement(axes.T, 2)
        directions = np.stack([_symmetric_tensor(a, b) for a, b in pairs])
    if np.any(load) and not all(system.pbc):
        raise InputError("A pressure needs a cell that is periodic in all directions: this one has no volume of its own.")
    pressure = -np.trace(load) / system.dim
    tension = load + pressure * np.eye(system.dim)
    loaded = bool(np.abs(tension).max() > 1e-15 * np.abs(load).max()) if np.any(load) else False
    if loaded and isinstance(cell, str) and cell == "isotropic":
        raise InputError('cell="isotropic" can balance a pressure only, not a stress with other parts: ask for cell="free".')
    n, dtype = len(system), system.positions.dtype
    length = np.sqrt(n) * (periodic_volume(system) / n) ** (1.0 / axes.shape[1])
    unit = stress_unit(system.dim)
    return CellFreedom(
        jax.device_put(np.asarray(directions, dtype)),
        jax.device_put(np.asarray(length, dtype)),
        jax.device_put(np.asarray(pressure / unit, dtype)),
        jax.device_put(np.asarray(tension / unit, dtype)) if loaded else None,
    )


def _stress_tensor(pressure: Any, dim: int) -> np.ndarray:
    """Return the stress that is asked for, `(dim, dim)`, positive where it pulls [GPa; in 2-D eV/Å²]."""
    try:
        value = np.asarray(pressure, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"pressure must be a number or a stress in GPa, not {pressure!r:.80}.") from None
    if not np.isfinite(value).all():
        raise InputError(f"pressure must be finite, not {pressure!r:.80}.")
    if value.ndim == 0:
        return -float(value) * np.eye(dim)
    if value.shape == (len(VOIGT[dim]),):
        return np.asarray(from_voigt(value))
    if value.shape != (dim, dim):
        voigt = len(VOIGT[dim])
        raise InputError(f"A stress must have shape ({dim}, {dim}), or ({voigt},) in Voigt order, not {value.shape}.")
    if not np.array_equal(value, value.T):
        raise InputError("A stress must be symmetric.")
    return value


def _periodic_vectors(system: System) -> np.ndarray:
    return np.asarray(system.cell)[np.array(system.pbc)]


def force_tolerance(reference: Reference, fmax: float, smax: float | None) -> float:
    """Return the largest force on an atom or a strain's component for which forces and stress are small enough [eV/Å] [host].

    Args:
        smax: the largest component of the stress that may be left [GPa; in 2-D eV/Å²]; None for what fmax leaves.
    """
    if reference.freedom is None or smax is None:
        return fmax
    freedom, system = reference.freedom, reference.system
    per_stress = float(periodic_volume(system) / freedom.length) / np.sqrt(len(freedom.directions))
    return min(fmax, smax / stress_unit(system.dim) * per_stress)


def periodic_volume(system: System) -> float:
    """Return the volume of the cell, the area of a slab's, the length of a wire's [Å^(periodic directions)] [host]."""
    vectors = _periodic_vectors(system)
    return float(np.sqrt(np.linalg.det(vectors @ vectors.T)))


def _periodic_axes(system: System) -> np.ndarray:
    """Return orthonormal columns that span the periodic directions, Cartesian axes where they do."""
    vectors = _periodic_vectors(system)
    projector = vectors.T @ np.linalg.pinv(vectors.T)
    inside = np.flatnonzero(np.isclose(np.diag(projector), 1.0, atol=1e-12))
    if len(inside) == len(vectors):
        return np.eye(system.dim)[:, inside]
    return np.linalg.svd(vectors.T, full_matrices=False)[0]


def _symmetric_tensor(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    tensor = 0.5 * (np.outer(a, b) + np.outer(b, a))
    return tensor / np.linalg.norm(tensor)


def _masked_directions(mask: Any, axes: np.ndarray) -> np.ndarray:
    """Return the strains that are free in a mask."""
    dim = len(axes)
    mask = np.asarray(mask)
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise InputError(f"A mask of strains holds True and False, not {mask.tolist()!r:.80}.")
    mask = mask.astype(bool)
    if mask.shape == (len(VOIGT[dim]),):
        mask = from_voigt(mask)
    if mask.shape != (dim, dim) or not np.array_equal(mask, mask.T):
        voigt = len(VOIGT[dim])
        raise InputError(
            f"A mask of strains must be symmetric, of shape ({dim}, {dim}) or ({voigt},) in Voigt order, not of {mask.shape}."
        )
    if not mask.any():
        raise InputError('The mask leaves no strain free: ask for cell="fixed".')
    projector = axes @ axes.T
    directions = []
    for k, l in VOIGT[dim]:
        if not mask[k, l]:
            continue
        direction = _symmetric_tensor(np.eye(dim)[k], np.eye(dim)[l])
        if not np.allclose(projector @ direction @ projector, direction, atol=1e-9):
            raise InputError(f"The strain {'xyz'[k]}{'xyz'[l]} is free in the mask, but the system is not periodic along it.")
        directions.append(direction)
    return np.stack(directions)
