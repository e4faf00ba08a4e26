"""Volume, lattice constants, distances, angles."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from mdsens.common.errors import InputError
from mdsens.observables.images import nearest_vectors
from mdsens.potentials.base import Potential
from mdsens.structures.system import System, is_concrete


def volume(system: System, potential: Potential) -> Float[Array, ""]:
    """Volume of the cell [Å³], in 2-D its area [Å²].

    Raises:
        InputError: there is no cell.
    """
    return system.volume


def lattice_constants(system: System, potential: Potential) -> Float[Array, " constants"]:
    """Lengths of the cell vectors [Å] and the angles between them [degrees]: a, b, c, α, β, γ; in 2-D a, b, γ.

    α is the angle between b and c, β between a and c, γ between a and b. Differentiable at right angles too.

    Raises:
        InputError: no cell, or one with a vector of length zero.
    """
    if system.cell is None:
        raise InputError("A system without a cell has no lattice constants: give it one, System(..., cell=..., pbc=True).")
    if is_concrete(system.cell) and not np.asarray(system.cell).any(axis=1).all():
        raise InputError("The cell has a vector of length zero, whose angles are undefined: give it a length.")
    sides = ((1, 2), (0, 2), (0, 1)) if system.dim == 3 else ((0, 1),)
    first, second = (system.cell[np.array(side)] for side in zip(*sides, strict=True))
    return jnp.concatenate([jnp.linalg.norm(system.cell, axis=1), _angle(first, second)])


class distances(eqx.Module):
    """`distances(pairs)`: lengths between pairs of atoms, nearest images [Å], shape `(n_pairs,)`.

    Args:
        pairs: `[(i, j), ...]`.

    Raises:
        InputError: no pairs of two different atoms, or an atom that does not exist.
    """

    pairs: Int[Array, "pairs 2"]

    def __init__(self, pairs: ArrayLike) -> None:
        self.pairs = _atom_groups(pairs, 2, "distances wants pairs of different atoms: [(i, j), ...].")

    def __call__(self, system: System, potential: Potential) -> Array:
        _check_atoms(self, self.pairs, system)
        d = nearest_vectors(system, self.pairs)
        return jnp.sqrt(jnp.sum(d * d, axis=-1))


class angles(eqx.Module):
    """`angles(triplets)`: angles at the atoms j between the nearest images of i and k [degrees], shape `(n_triplets,)`.

    An angle of exactly 0 or 180 degrees is the tip of a cone and has no derivative: it is NaN there, and so refused, within
    1e-8 rad. Near such an angle value and derivative are accurate. W. Kahan, "How futile are mindless assessments of
    roundoff in floating-point computation?" (2006), section 12: 2 atan(‖u/|u| - v/|v|‖ / ‖u/|u| + v/|v|‖).

    Args:
        triplets: `[(i, j, k), ...]`, the angle being at j.

    Raises:
        InputError: no triplets of three different atoms, or an atom that does not exist.
    """

    triplets: Int[Array, "triplets 3"]

    def __init__(self, triplets: ArrayLike) -> None:
        self.triplets = _atom_groups(
            triplets, 3, "angles wants triplets of different atoms, the angle at the middle: [(i, j, k), ...]."
        )

    def __call__(self, system: System, potential: Potential) -> Array:
        _check_atoms(self, self.triplets, system)
        return _angle(*_bonds(system, self.triplets, (1, 0), (1, 2)))


class dihedrals(eqx.Module):
    """`dihedrals(quadruplets)`: angles between the planes (i, j, k) and (j, k, l) [degrees], shape `(n_quadruplets,)`.

    In (-180, 180], positive where, seen along j → k, the bond k → l is turned clockwise from j → i (IUPAC); 0 is cis.
    NaN where three neighbouring atoms of the four lie on a line.

    Args:
        quadruplets: `[(i, j, k, l), ...]`; each bond goes to the nearest image.

    Raises:
        InputError: no quadruplets of four different atoms, an atom that does not exist, or a 2-D system.
    """

    quadruplets: Int[Array, "quadruplets 4"]

    def __init__(self, quadruplets: ArrayLike) -> None:
        self.quadruplets = _atom_groups(quadruplets, 4, "dihedrals wants quadruplets of different atoms: [(i, j, k, l), ...].")

    def __call__(self, system: System, potential: Potential) -> Array:
        if system.dim != 3:
            raise InputError("Dihedral angles are between planes, and a 2-D system has only one: use angles.")
        _check_atoms(self, self.quadruplets, system)
        u, v, w = _bonds(system, self.quadruplets, (0, 1), (1, 2), (2, 3))
        m, n = jnp.cross(u, v), jnp.cross(v, w)

        def straight(a: Array, b: Array, normal: Array) -> Array:
            return jnp.sum(normal**2, axis=-1) <= float(jnp.finfo(a.dtype).eps) * jnp.sum(a**2, axis=-1) * jnp.sum(b**2, axis=-1)

        sine = jnp.linalg.norm(v, axis=-1) * jnp.sum(u * n, axis=-1)
        angle = jnp.rad2deg(jnp.arctan2(sine, jnp.sum(m * n, axis=-1)))
        return jnp.where(straight(u, v, m) | straight(v, w, n), jnp.nan, angle)


def _angle(u: Array, v: Array) -> Array:
    """Angles between the rows of u and v [degrees]; NaN as derivative where the angle squared [rad²] is below rounding."""
    u, v = (a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (u, v))

    def norm(a: Array) -> Array:
        squares = jnp.sum(a**2, axis=-1)
        # The slope of a root at zero, times the factor zero, makes the derivative at the tip of a cone NaN in both modes.
        return jnp.sqrt(squares * jnp.where(squares > float(jnp.finfo(a.dtype).eps), 1.0, 0.0))

    return jnp.rad2deg(2.0 * jnp.arctan2(norm(u - v), norm(u + v)))


def _bonds(system: System, groups: Int[Array, "groups size"], *ends: tuple[int, int]) -> list[Array]:
    """The nearest vectors between two atoms of each group, for each pair of places in the group."""
    pairs = jnp.concatenate([groups[:, np.array(places)] for places in ends])
    return jnp.split(nearest_vectors(system, pairs), len(ends))


def _atom_groups(atoms: ArrayLike, size: int, sentence: str) -> Int[Array, "groups size"]:
    """Return groups of different atoms as an array; raise InputError with the sentence for anything else."""
    try:
        groups: Any = np.asarray(atoms)
    except ValueError:
        raise InputError(sentence) from None
    if groups.ndim != 2 or groups.shape[1] != size or groups.dtype.kind not in "iu" or len(groups) == 0:
        raise InputError(sentence)
    if (np.diff(np.sort(groups, axis=1), axis=1) == 0).any():
        raise InputError(sentence)
    return groups


def _check_atoms(observable: eqx.Module, atoms: Array, system: System) -> None:
    """Raise InputError where an observable names an atom that the system does not have."""
    n = len(system)
    if is_concrete(atoms) and not (-n <= np.min(atoms) and np.max(atoms) < n):
        raise InputError(f"{type(observable).__name__} names an atom beyond the {n} of the system.")
