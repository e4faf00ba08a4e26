"""`HarmonicBonds`: springs between given pairs of atoms, as in elastic networks."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mdsens.common.errors import CoincidingAtoms, InputError
from mdsens.potentials.base import constant_range
from mdsens.potentials.checks import check_positive
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.species import Atom, static
from mdsens.structures.neighbors.preparation import Preparation
from mdsens.structures.neighbors.search import COINCIDENCE, find_neighbors, neighbors_of
from mdsens.structures.system import System, is_concrete


class HarmonicBonds(PairPotential):
    """The energy U = Σ_bonds ½ k (r - r₀)², whatever the distance.

    Args:
        k: stiffness [eV/Å²]: one number, one value per bond, or keyed by the pair of species.
        r0: rest length r₀ [Å], likewise.
        bonds: pairs of atoms `((0, 1), (0, 2), ...)`, counted from 0; static. In a periodic cell a bond goes to the nearest
            image, and must be shorter than half the cell is wide.

    LAMMPS's `bond_style harmonic` has K = k/2.

    M. M. Tirion, Phys. Rev. Lett. 77, 1905 (1996), doi:10.1103/PhysRevLett.77.1905.
    """

    units: ClassVar = {"k": "eV Angstrom-2", "r0": "Angstrom"}

    k: Float[Any, "*bonds"] | dict[str, Float[Any, ""]]
    r0: Float[Any, "*bonds"] | dict[str, Float[Any, ""]]
    bonds: Sequence[Sequence[int]] | Int[np.ndarray, "bonds 2"] = static()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bonds", _as_pairs(self.bonds))
        super().__post_init__()

    def __check_init__(self) -> None:
        for name in ("k", "r0"):
            shape = () if isinstance(value := getattr(self, name), dict) else np.shape(value)
            if shape not in ((), (len(self.bonds),)):
                raise InputError(
                    f"HarmonicBonds's {name} must be one number, or one for each of {len(self.bonds)} bonds, not {shape}."
                )
        check_positive(self, "r0", or_zero=True)

    @classmethod
    def at_rest(cls, system: System, cutoff: float, k: Float[Any, "*bonds"] | dict[str, Float[Any, ""]] = 1.0) -> "HarmonicBonds":
        """Return a network without stress: all pairs within `cutoff` [Å] are bonds, whose rest lengths are those in the system.

        `ms.HarmonicBonds.at_rest(system, cutoff=1.5)`
        """
        listed = find_neighbors(system.positions, system.cell, system.pbc, radius=cutoff, skin=0.0)
        atoms, places = np.nonzero(np.asarray(listed.mask))
        pairs = np.column_stack([atoms, np.asarray(listed.index)[atoms, places]])
        bonds = pairs[pairs[:, 0] < pairs[:, 1]]
        if len(np.unique(bonds, axis=0)) < 0.5 * len(pairs):
            raise InputError(f"Within {cutoff} Å an atom sees itself, or another one twice: repeat the cell.")
        return cls(k=k, r0=_nearest_images(system, bonds)[1], bonds=bonds)

    @property
    def range(self) -> Float[Array, ""]:
        return constant_range(np.inf)

    @property
    def smoothness(self) -> float:
        return np.inf

    def check(self, system: System) -> None:
        super().check(system)
        if (highest := max(map(max, self.bonds))) >= len(system):
            raise InputError(f"HarmonicBonds has a bond of atom {highest}, but the system has {len(system)} atoms, from 0.")

    def find_neighbors(self, system: System, *, skin: float | None = None) -> Preparation:
        if not is_concrete(system.positions, system.cell):
            return super().find_neighbors(system, skin=skin)  # says what is missing
        positions, bonds = np.asarray(system.positions), np.asarray(self.bonds)
        image, length = _nearest_images(system, bonds)
        if length.min() < COINCIDENCE:
            i, j = bonds[length.argmin()]
            raise CoincidingAtoms(positions, f"The bonded atoms {i} and {j} coincide: move them apart.")
        i, j = np.concatenate([bonds, bonds[:, ::-1]]).T
        # Bonds remain what they are, however far the atoms move.
        return neighbors_of(positions, i, j, np.concatenate([image, -image]), radius=np.inf, skin=0.0)

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        return 0.5 * self._of_bond(self.k, i, j) * (r - self._of_bond(self.r0, i, j)) ** 2

    def _of_bond(self, parameter: Any, i: Atom, j: Atom) -> Array:
        if isinstance(parameter, dict) or parameter.ndim == 0:
            return self.pair(parameter, i, j)
        keys = _keys(*np.asarray(self.bonds).T)
        order = np.argsort(keys)
        place = jnp.searchsorted(keys[order], _keys(i.index, j.index))
        # Unused places of a list are no bond, and may be beyond all of them.
        return parameter[jnp.asarray(order)[jnp.minimum(place, len(order) - 1)]]


def _keys(i: Any, j: Any) -> Any:
    """Return one number for each pair of atoms, the same in both orders."""
    module = jnp if isinstance(i, jax.Array) else np
    return module.minimum(i, j).astype("int64") * 2**31 + module.maximum(i, j)


def _as_pairs(bonds: Any) -> tuple[tuple[int, int], ...]:
    """Return bonds, however they were written, as pairs of whole numbers."""
    try:
        pairs = np.array(bonds)
    except ValueError:
        pairs = np.zeros(0)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or not np.issubdtype(pairs.dtype, np.integer):
        raise InputError("HarmonicBonds wants bonds as pairs of atoms' numbers, ((0, 1), (0, 2), ...), at least one.")
    if pairs.min() < 0 or (pairs[:, 0] == pairs[:, 1]).any():
        raise InputError("HarmonicBonds has a bond of an atom with itself, or with a negative number: atoms count from 0.")
    _, first, times = np.unique(_keys(*pairs.T), return_index=True, return_counts=True)
    if (times > 1).any():
        raise InputError(f"HarmonicBonds has the bond {tuple(pairs[first[times.argmax()]].tolist())} twice: give it once.")
    return tuple(map(tuple, pairs.tolist()))


def _nearest_images(system: System, bonds: Int[np.ndarray, "bonds 2"]) -> tuple[np.ndarray, np.ndarray]:
    """Return `(image, length)`: the image of the second atom nearest to the first, in cell vectors, and its distance [host].

    Raises:
        InputError: a bond so long that another image may soon be the nearest.
    """
    from ase.geometry import complete_cell, find_mic

    positions, dim = np.asarray(system.positions), system.dim
    d = np.zeros((len(bonds), 3))
    d[:, :dim] = positions[bonds[:, 1]] - positions[bonds[:, 0]]
    if not any(system.pbc):
        return np.zeros((len(bonds), dim), dtype=int), np.linalg.norm(d, axis=1)
    pbc, cell = np.array([*system.pbc, *[False] * (3 - dim)]), np.zeros((3, 3))
    cell[:dim, :dim] = system.cell
    # Directions that are not periodic are perpendicular to the others.
    cell = complete_cell(np.where(pbc[:, None], cell, 0.0))
    nearest, length = find_mic(d, cell, pbc)
    width = (1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0))[pbc].min()
    if length.max() >= 0.5 * width:
        i, j = bonds[length.argmax()]
        raise InputError(
            f"The bond of atoms {i} and {j} is {length.max():.3g} Å long, more than half of the cell's width {width:.3g} Å, "
            "so that its image is not clear: repeat the cell."
        )
    return np.rint((nearest - d) @ np.linalg.inv(cell)).astype(int)[:, :dim], length
