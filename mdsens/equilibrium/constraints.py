"""Constraints that a relaxation respects beside frozen atoms.

    held still      FixedComponents
    equations       FixedScaled, FixedLengths, FixedPlane, FixedLine, FixedCentreOfMass, RigidGroup, Equation
    inequalities    Wall, Inequality

Equations c(system) = 0 and inequalities c(system) >= 0 have multipliers: `relax` finds a point of Karush, Kuhn and Tucker,

    ∂U/∂x + Σ m ∂c/∂x = 0,   m of an inequality not positive, and zero where c > 0,

and says which inequalities are active. `from_ase` translates ASE's constraints.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mdsens.common.errors import InputError, explain_untraceable
from mdsens.mechanics.bound_constraints import Constraint, Constraints, bound_constraints
from mdsens.structures.system import System, holds_atoms

MIN_SINE = 1e-3
"""Sine of the angle below which three atoms count as lying on a line."""


def _atoms(atoms: Any, system: System, name: str) -> np.ndarray:
    """Return indices of atoms; negative ones count from the end."""
    index = np.arange(len(system)) if atoms is None else np.atleast_1d(_integers(atoms, name))
    if index.dtype.kind not in "iu" or index.ndim != 1 or index.size == 0:
        raise InputError(f"{name} wants indices of atoms, not {atoms!r:.80}.")
    if index.min() < -len(system) or index.max() >= len(system):
        raise InputError(f"{name} names atom {int(index[np.argmax(np.abs(index))])}, beyond the {len(system)} of the system.")
    index = index % len(system)
    if len(set(index.tolist())) < index.size:
        raise InputError(f"{name} names an atom twice.")
    return index


def _numbers(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{name} wants numbers, not {value!r:.80}.") from None


def _integers(value: Any, name: str) -> np.ndarray:
    """Return numbers as integers where all of them are whole."""
    numbers = _numbers(value, name)
    return numbers.astype(int) if np.array_equal(numbers, np.rint(numbers)) else numbers


def _vector(value: Any, dim: int, name: str) -> np.ndarray:
    vector = _numbers(value, name)
    if vector.shape != (dim,) or not np.isfinite(vector).all() or not np.linalg.norm(vector) > 0.0:
        raise InputError(f"{name} wants a direction of {dim} numbers that is not zero, not {value!r:.80}.")
    return vector / np.linalg.norm(vector)


class FixedComponents(Constraint):
    """Cartesian components that keep their value; in a free cell they ride with it, as frozen atoms do.

        ms.relax(system, potential, constraints=[FixedComponents([0, 1], "xz")])

    Args:
        atoms: indices.
        axes: `"xz"`, say.
    """

    atoms: Any
    axes: str = eqx.field(static=True)

    def bound(self, system: System) -> Constraint:
        return FixedComponents(jnp.asarray(_atoms(self.atoms, system, "FixedComponents")), self.axes)

    def held(self, system: System) -> Bool[Array, "atoms dim"]:
        known = "xyz"[: system.dim]
        if not self.axes or set(self.axes) - set(known):
            raise InputError(f"FixedComponents wants axes out of {known!r}, not {self.axes!r}.")
        mask = np.zeros(system.positions.shape, dtype=bool)
        rows = _atoms(self.atoms, system, "FixedComponents")
        mask[np.ix_(rows, np.array([known.index(axis) for axis in set(self.axes)]))] = True
        return jnp.asarray(mask)


class FixedScaled(Constraint):
    """Coordinates along cell vectors, in fractions of them, that keep their value, as in VASP's selective dynamics.

    Args:
        atoms: indices.
        vectors: numbers of the cell vectors, from 0.
    """

    atoms: Any
    vectors: Any
    start: Float[Any, "n k"] = None
    heights: Float[Any, " k"] = None

    def bound(self, system: System) -> Constraint:
        if self.start is not None:
            return self
        atoms = jnp.asarray(_atoms(self.atoms, system, "FixedScaled"))
        vectors = np.atleast_1d(np.asarray(self.vectors))
        if not set(vectors.tolist()) <= set(range(system.dim)) or len(set(vectors.tolist())) != vectors.size or not vectors.size:
            raise InputError(f"FixedScaled wants numbers of cell vectors below {system.dim}, not {self.vectors!r:.80}.")
        if system.cell is None or float(system.volume) == 0.0:
            raise InputError("FixedScaled holds coordinates along cell vectors: the system needs a whole cell.")
        heights = 1.0 / jnp.linalg.norm(jnp.linalg.inv(system.cell), axis=0)[vectors]
        unbound = FixedScaled(atoms, jnp.asarray(vectors), jnp.zeros(()), heights)
        return FixedScaled(atoms, jnp.asarray(vectors), unbound._scaled(system), heights)

    def values(self, system: System) -> Float[Array, " k"]:
        # In Å: a height is how far the coordinate's planes 0 and 1 lie apart at the start.
        return ((self._scaled(system) - self.start) * self.heights).ravel()

    def _scaled(self, system: System) -> Array:
        assert system.cell is not None
        return (system.positions[self.atoms] @ jnp.linalg.inv(system.cell))[:, self.vectors]


class FixedLengths(Constraint):
    """Distances between pairs of atoms, nearest images at the start [Å].

    Args:
        pairs: `[(i, j), ...]`.
        lengths: one for each pair; None for those of the start.
    """

    pairs: Any
    lengths: Any = None
    shift: Int[Array, "pairs dim"] | None = None

    def bound(self, system: System) -> Constraint:
        if self.shift is not None:
            return self
        pairs = _integers(self.pairs, "FixedLengths")
        if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu" or (pairs[:, 0] == pairs[:, 1]).any():
            raise InputError("FixedLengths wants pairs of different atoms: [(i, j), ...].")
        if pairs.min() < -len(system) or pairs.max() >= len(system):
            raise InputError(f"FixedLengths names an atom beyond the {len(system)} of the system.")
        d = np.asarray(system.positions)[pairs[:, 1]] - np.asarray(system.positions)[pairs[:, 0]]
        shift = _nearest_images(d, system)
        cell = 0.0 if system.cell is None else shift @ np.asarray(system.cell)
        current = np.linalg.norm(d + cell, axis=1)
        lengths = current if self.lengths is None else _numbers(self.lengths, "FixedLengths")
        if lengths.shape != (len(pairs),) or not (lengths > 0.0).all():
            raise InputError(f"FixedLengths wants {len(pairs)} positive lengths, one for each pair, not {self.lengths!r:.80}.")
        return FixedLengths(jnp.asarray(pairs), jnp.asarray(lengths), jnp.asarray(shift))

    def values(self, system: System) -> Float[Array, " k"]:
        d = system.positions[self.pairs[:, 1]] - system.positions[self.pairs[:, 0]]
        if system.cell is not None and self.shift is not None:
            d = d + self.shift.astype(d.dtype) @ system.cell
        return jnp.sqrt(jnp.sum(d * d, axis=-1)) - self.lengths


def _nearest_images(d: Any, system: System) -> np.ndarray:
    """Return cell shifts that bring vectors near their shortest images."""
    from ase.geometry import complete_cell, find_mic

    if not any(system.pbc):
        return np.zeros(d.shape, dtype=int)
    dim = system.dim
    cell, vectors = np.eye(3), np.zeros((len(d), 3))
    cell[:dim, :dim], vectors[:, :dim] = np.asarray(system.cell), d
    shortest, _ = find_mic(vectors, cell, pbc=[*system.pbc, *[False] * (3 - dim)])
    # Directions that are not periodic may have no vector.
    return np.rint((shortest - vectors) @ np.linalg.inv(complete_cell(cell))).astype(int)[:, :dim]


class _LinearConstraint(Constraint):
    """Base class of constraints under which displacements from the start vanish along some directions."""

    atoms: Any
    direction: Any
    start: Float[Any, "n dim"] = None

    def bound(self, system: System) -> Constraint:
        if self.start is not None:
            return self
        name = type(self).__name__
        atoms = _atoms(self.atoms, system, name)
        direction = _vector(self.direction, system.dim, name)
        return type(self)(jnp.asarray(atoms), jnp.asarray(direction), system.positions[atoms])

    def values(self, system: System) -> Float[Array, " k"]:
        return ((system.positions[self.atoms] - self.start) @ self._forbidden().T).ravel()

    def _forbidden(self) -> Array:
        """Return the directions `(k, dim)` that atoms do not move along."""
        raise NotImplementedError


class FixedPlane(_LinearConstraint):
    """Each of some atoms stays in the plane through its place with the normal `direction`."""

    def _forbidden(self) -> Array:
        return self.direction[None]


class FixedLine(_LinearConstraint):
    """Each of some atoms stays on the line through its place along `direction`."""

    def _forbidden(self) -> Array:
        # The other columns of a reflection that takes the first axis to the direction.
        return jnp.linalg.qr(self.direction[:, None], mode="complete")[0][:, 1:].T


class FixedCentreOfMass(Constraint):
    """The centre of mass of some atoms (None: of all) stays."""

    costs_nothing: ClassVar[bool] = True

    atoms: Any = None
    start: Float[Any, " dim"] = None

    def bound(self, system: System) -> Constraint:
        if self.start is not None:
            return self
        atoms = jnp.asarray(_atoms(self.atoms, system, "FixedCentreOfMass"))
        if not float(jnp.sum(system.masses[atoms])) > 0.0:
            raise InputError("FixedCentreOfMass wants atoms that have masses.")
        unbound = FixedCentreOfMass(atoms, jnp.zeros(system.dim))
        return FixedCentreOfMass(atoms, unbound.values(system))

    def values(self, system: System) -> Float[Array, " k"]:
        masses = system.masses[self.atoms]
        return masses @ system.positions[self.atoms] / jnp.sum(masses) - self.start


class RigidGroup(Constraint):
    """Some atoms move as one rigid body; they must not reach across a periodic boundary, nor lie on a line (in 3-D).

    The body's frame is spanned by three of its atoms (two in 2-D); the coordinates of all in it are constant: with n atoms
    3n - 6 equations in 3-D, 2n - 3 in 2-D.
    """

    atoms: Any
    start: Float[Any, " k"] = None

    def bound(self, system: System) -> Constraint:
        if self.start is not None:
            return self
        atoms = _atoms(self.atoms, system, "RigidGroup")
        if len(atoms) < 2:
            raise InputError("RigidGroup wants two atoms or more.")
        if system.dim == 3 and len(atoms) > 2:
            atoms = self._triangle_first(atoms, np.asarray(system.positions))
        unbound = RigidGroup(jnp.asarray(atoms))
        return RigidGroup(jnp.asarray(atoms), unbound._coordinates(system))

    @staticmethod
    def _triangle_first(atoms: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the atoms in an order in which the first three span the largest triangle on the first and its farthest mate."""
        arms = positions[atoms] - positions[atoms[0]]
        far = int(np.argmax(np.linalg.norm(arms, axis=1)))
        height = np.linalg.norm(np.cross(arms, arms[far]), axis=1) / np.linalg.norm(arms[far]) ** 2
        third = int(np.argmax(height))
        if height[third] < MIN_SINE:
            raise InputError("The atoms of a RigidGroup lie on a line: take FixedLengths for a bond of two atoms.")
        first = [0, far, third]
        return atoms[[*first, *[k for k in range(len(atoms)) if k not in first]]]

    def values(self, system: System) -> Float[Array, " k"]:
        return self._coordinates(system) - self.start

    def _coordinates(self, system: System) -> Array:
        """Return the group's coordinates in its own frame that are not zero by the frame's definition."""
        arms = system.positions[self.atoms[1:]] - system.positions[self.atoms[0]]
        length = jnp.sqrt(arms[0] @ arms[0])
        first = arms[0] / length
        if len(arms) == 1:
            return length[None]
        if system.dim == 2:
            axes = jnp.stack([first, jnp.array([-1.0, 1.0]) * first[::-1]])
            return jnp.concatenate([length[None], (arms[1:] @ axes.T).ravel()])
        second = arms[1] - (arms[1] @ first) * first
        second = second / jnp.sqrt(second @ second)
        axes = jnp.stack([first, second, jnp.cross(first, second)])
        return jnp.concatenate([length[None], axes[:2] @ arms[1], (arms[2:] @ axes.T).ravel()])


class Equation(Constraint):
    """`function(system) → array` vanishes; written with jax.numpy, at module level so that compiled code is found again."""

    function: Callable[..., Any] = eqx.field(static=True)

    def bound(self, system: System) -> Constraint:
        name = type(self).__name__
        if not callable(self.function):
            raise InputError(f"{name} wants a function of the system, not {self.function!r:.80}.")
        with explain_untraceable(f"The function of an {name}", "function(system) -> array"):
            shape = jax.eval_shape(lambda s: jnp.asarray(self.function(s)), system)
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            raise InputError(f"The function of an {name} gives {shape.dtype}, not real floating-point numbers.")
        return self

    def values(self, system: System) -> Float[Array, " k"]:
        return jnp.ravel(jnp.asarray(self.function(system)))


class Inequality(Equation):
    """`function(system) → array` is nowhere negative."""

    inequality: ClassVar[bool] = True


class Wall(Constraint):
    """Some atoms (None: all) stay on one side of a plane: normal · x >= offset [Å]."""

    normal: Any
    offset: Any
    atoms: Any = None

    inequality: ClassVar[bool] = True

    def bound(self, system: System) -> Constraint:
        offset = _numbers(self.offset, "Wall")
        if offset.ndim or not np.isfinite(offset):
            raise InputError(f"A Wall's offset is one number in Å, not {self.offset!r:.80}.")
        atoms = jnp.asarray(_atoms(self.atoms, system, "Wall"))
        return Wall(jnp.asarray(_vector(self.normal, system.dim, "Wall")), jnp.asarray(float(self.offset)), atoms)

    def values(self, system: System) -> Float[Array, " k"]:
        return system.positions[self.atoms] @ self.normal - self.offset


def from_ase(atoms: Any) -> tuple[System, list[Constraint]]:
    """Return `(system, constraints)` of `ase.Atoms`.

    It translates FixAtoms, FixCartesian, FixScaled (selective dynamics of POSCAR files), FixedPlane, FixedLine, FixBondLengths,
    FixCom and FixSubsetCom.

    Raises:
        InputError: another constraint, by its name.
    """
    from ase.constraints import FixAtoms

    translated: list[Constraint] = []
    plain, fix_atoms, frozen = atoms.copy(), [], np.zeros(len(atoms), dtype=bool)
    cartesian, scaled = np.zeros((2, len(atoms), 3), dtype=bool)
    straight = np.count_nonzero(atoms.cell.array - np.diag(np.diag(atoms.cell.array))) == 0
    for constraint in atoms.constraints:
        name = type(constraint).__name__
        if holds_atoms(constraint):
            fix_atoms.append(FixAtoms(constraint.index))
            frozen[constraint.index] = True
        elif name == "FixCartesian" or (name == "FixScaled" and straight):
            cartesian[constraint.index] |= np.asarray(constraint.mask, bool)
        elif name == "FixScaled":
            scaled[constraint.index] |= np.asarray(constraint.mask, bool)
        elif name in ("FixedPlane", "FixedLine"):
            kind: type[FixedPlane | FixedLine] = FixedPlane if name == "FixedPlane" else FixedLine
            translated.append(kind(np.asarray(constraint.index), np.asarray(constraint.dir)))
        elif name == "FixBondLengths":
            lengths = None if constraint.bondlengths is None else np.asarray(constraint.bondlengths)
            translated.append(FixedLengths(np.asarray(constraint.pairs), lengths))
        elif name in ("FixCom", "FixSubsetCom"):
            translated.append(FixedCentreOfMass(None if name == "FixCom" else np.asarray(constraint.index)))
        else:
            raise InputError(f"The ASE constraint {name} is not supported: write it as an Equation, or remove it.")
    scaled[frozen] = False
    masked: list[Constraint] = []
    # One constraint for all atoms with the same mask: POSCAR files come with one for each atom.
    for mask in np.unique(cartesian[cartesian.any(axis=1)], axis=0):
        axes = "".join(axis for axis, fixed in zip("xyz", mask, strict=True) if fixed)
        masked.append(FixedComponents(np.flatnonzero((cartesian == mask).all(axis=1)), axes))
    for mask in np.unique(scaled[scaled.any(axis=1)], axis=0):
        masked.append(FixedScaled(np.flatnonzero((scaled == mask).all(axis=1)), np.flatnonzero(mask)))
    plain.set_constraint(fix_atoms)
    return System.from_ase(plain), [*masked, *translated]


__all__ = [
    "Constraint",
    "Constraints",
    "Equation",
    "FixedCentreOfMass",
    "FixedComponents",
    "FixedLengths",
    "FixedLine",
    "FixedPlane",
    "Inequality",
    "RigidGroup",
    "Wall",
    "bound_constraints",
    "from_ase",
]


def __dir__() -> list[str]:
    return sorted(__all__)
