"""A structure as a pytree, from and to ASE."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from mdsens.common.errors import InputError, level_of_user
from mdsens.common.modules import with_fields
from mdsens.common.suggestions import NameSuggester
from mdsens.common.text import MAX_ENTRIES
from mdsens.implicit.trees import is_traced
from mdsens.structures import masses as known_masses
from mdsens.structures.neighbors.preparation import Preparation

if TYPE_CHECKING:
    from ase import Atoms

LABELS = "mdsens_label"
"""The array in which ASE's atoms keep labels that are no elements."""


class ListsNeighbors(Protocol):
    """An object that lists the neighbours it needs: a potential."""

    def find_neighbors(self, system: "System", *, skin: float | None = None) -> Preparation: ...


def is_concrete(*values: Any) -> bool:
    """Return whether no leaf of the values is being traced by JAX."""
    return not is_traced(values)


def as_float_array(value: Any, what: str, dtype: Any = None) -> Float[Array, "..."]:
    """Return `value` in 64 bits, or in `dtype`; raise InputError for no numbers, and for 32-bit floats without `dtype`."""
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"dtype must be float64 or float32, not {dtype!r}.")
    if dtype is None:
        if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]  # made when jax is imported
            raise InputError(
                "JAX's 64-bit mode was switched off after mdsens was imported: "
                "remove jax.config.update('jax_enable_x64', False), or ask for float32 by name with astype('float32')."
            )
        if getattr(value, "dtype", None) in (np.float16, np.float32, jnp.bfloat16):
            raise InputError(
                f"{what} is {value.dtype}, in which a relaxed structure is good to about 1e-4 only: "
                "give float64, or ask for it by name with dtype='float32' or .astype('float32')."
            )
        dtype = jnp.float64
    if isinstance(value, jax.core.Tracer):
        return value.astype(dtype)
    try:
        array = np.asarray(value)
        if np.iscomplexobj(array):
            raise InputError(f"{what} must be real numbers, not complex ones.")
        # Put on the device as it is: `jnp.asarray` compiles a program for each shape.
        return jax.device_put(array.astype(dtype))
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} must be numbers, not {value!r:.80}.") from None


class System(NameSuggester, eqx.Module):
    """Atoms with their positions, species and cell. A pytree.

        System([[0, 0, 0], [1.5, 0, 0]], species="Ar")     # a dimer, without a cell

    Attributes:
        positions: `(N, dim)` [Å], dim 2 or 3; never wrapped into the cell.
        cell: rows are the cell vectors, `(dim, dim)` [Å], or None.
        pbc: periodicity along each cell vector.
        species: `(N,)` codes into `labels`.
        labels: the species' names, sorted.
        masses: `(N,)` [amu]; by default those of the elements and of D and T, if all labels are such, else 1.
        masses_known: whether masses were given or are the labels' own; phonons ask for them otherwise.
        frozen: `(N,)`, True for atoms that never move.
        neighbors: what a potential prepared, the padded list of the last relaxation for most; or None.
        held: whether constraints beside frozen atoms hold it, as `relax` was asked to.

    Raises:
        InputError: shapes that do not fit, positions that are not finite, a cell that is singular or given
            without `pbc`, labels with a "-", "." or "/", or 32-bit positions without `dtype="float32"`.
    """

    copying: ClassVar[str] = (
        "system.with_positions(positions) is a copy with other positions, and all else is given to System(...)"
    )

    positions: Float[Array, "atoms dim"]
    cell: Float[Array, "dim dim"] | None
    species: Int[Array, " atoms"]
    masses: Float[Array, " atoms"]
    frozen: Bool[Array, " atoms"]
    neighbors: Preparation | None
    pbc: tuple[bool, ...] = eqx.field(static=True)
    labels: tuple[str, ...] = eqx.field(static=True)
    masses_known: bool = eqx.field(static=True)
    held: bool = eqx.field(static=True)

    def __init__(
        self,
        positions: ArrayLike,
        *,
        cell: ArrayLike | None = None,
        pbc: ArrayLike | None = None,
        species: str | Sequence[str] = "A",
        masses: ArrayLike | None = None,
        frozen: ArrayLike | None = None,
        dtype: Any = None,
    ) -> None:
        if hasattr(positions, "get_positions"):
            raise InputError("Atoms of ASE become a System by System.from_ase(atoms).")
        positions = as_float_array(positions, "positions", dtype)
        if positions.ndim != 2 or positions.shape[1] not in (2, 3) or positions.shape[0] == 0:
            raise InputError(f"positions must have shape (N, 2) or (N, 3) with N > 0, not {positions.shape}.")
        if is_concrete(positions) and not np.isfinite(positions).all():
            atom = int(np.argmin(np.isfinite(positions).all(axis=1)))
            raise InputError(f"The position of atom {atom} is not finite ({positions[atom]}): check the structure.")
        n, dim = positions.shape
        self.positions = positions
        self.pbc = _check_pbc(pbc, cell, dim)
        self.cell = _check_cell(cell, self.pbc, dim, dtype)
        names = _names(species, n)
        self.labels = tuple(sorted(set(names)))
        self.species = jax.device_put(np.array([self.labels.index(name) for name in names], dtype=np.int32))
        own = known_masses.default_masses(names) if masses is None else None
        self.masses_known = masses is not None or own is not None
        weights = as_float_array(own if own is not None else 1.0 if masses is None else masses, "masses", dtype)
        self.masses = jnp.full(n, weights) if weights.ndim == 0 else weights
        if is_concrete(self.masses) and not (np.isfinite(self.masses).all() and (np.asarray(self.masses) >= 0.0).all()):
            raise InputError("masses must be finite and not negative, in amu.")
        frozen = np.zeros(n, dtype=bool) if frozen is None else np.array(frozen)
        if frozen.dtype != bool:
            raise InputError("frozen must be a mask of N True or False, not indices: use mask[indices] = True.")
        self.frozen = jax.device_put(frozen)
        for name in ("masses", "frozen"):
            if getattr(self, name).shape != (n,):
                raise InputError(f"{name} must have shape ({n},), one for each atom, not {getattr(self, name).shape}.")
        self.neighbors, self.held = None, False

    def __repr__(self) -> str:
        return _line(self) if has_values(self) else super().__repr__()

    def __len__(self) -> int:
        return self.positions.shape[0]

    @property
    def dim(self) -> int:
        return self.positions.shape[1]

    @property
    def symbols(self) -> list[str]:
        """The species' name of each atom."""
        return [self.labels[code] for code in np.asarray(self.species)]

    @property
    def given_masses(self) -> Float[Array, " atoms"] | None:
        """The masses for a copy, `System(..., masses=system.given_masses)`: None where they are not known."""
        return self.masses if self.masses_known else None

    @property
    def volume(self) -> Float[Array, ""]:
        """The volume of the cell [Å³] (area in 2-D).

        Raises:
            InputError: there is no cell.
        """
        if self.cell is None:
            raise InputError("A system without a cell has no volume: stress and pressure need a cell.")
        return jnp.abs(jnp.linalg.det(self.cell))

    def with_positions(self, positions: Float[Array, "atoms dim"]) -> "System":
        """Return the system with other positions; its neighbour list is kept, and checked where it is used."""
        return with_fields(self, positions=positions)

    def deformed(self, F: Float[Array | np.ndarray, "dim dim"]) -> "System":
        """Return the system after a homogeneous deformation of space: the cell, and the atoms with it.

        Everything else is kept, the neighbour list too, whose images follow the cell. Works on traced values.

        Args:
            F: the deformation gradient `(dim, dim)`, which multiplies rows from the right: x → x F, cell → cell F. A strain ε
                has F = 1 + ε.
        """
        return with_fields(self, positions=self.positions @ F, cell=None if self.cell is None else self.cell @ F)

    def with_neighbors(self, potential: ListsNeighbors, *, skin: float | None = None) -> "System":
        """Return the system with the neighbour list that `potential` needs, complete while atoms move up to `skin / 2`."""
        return with_fields(self, neighbors=potential.find_neighbors(self, skin=skin))

    def as_held(self, held: bool) -> "System":
        """Return the system, marked as held by constraints or by none."""
        return self if held == self.held else with_fields(self, held=held)

    def astype(self, dtype: Any) -> "System":
        """Return the system in another precision, without its neighbour list. This is the way to ask for float32."""
        options: dict[str, Any] = {"cell": self.cell, "pbc": self.pbc, "species": self.symbols, "frozen": self.frozen}
        return System(self.positions, masses=self.given_masses, dtype=dtype, **options)

    @classmethod
    def from_ase(cls, atoms: "Atoms") -> "System":
        """Make a system from `ase.Atoms`: positions, cell, pbc, species, masses; `FixAtoms` becomes `frozen`.

        Raises:
            InputError: a constraint other than `FixAtoms`, or a cell mdsens refuses.
        """
        from ase import Atoms
        from ase.data import chemical_symbols

        if not isinstance(atoms, Atoms):
            raise InputError(f"from_ase wants ase.Atoms, not {type(atoms).__name__}; mdsens.read(path) reads files.")
        if len(atoms) and not 0 <= atoms.numbers.min() <= atoms.numbers.max() < len(chemical_symbols):
            raise InputError(
                f"There are atomic numbers from {atoms.numbers.min()} to {atoms.numbers.max()}, which no elements have."
            )
        frozen = np.zeros(len(atoms), dtype=bool)
        for constraint in atoms.constraints:
            if not holds_atoms(constraint):
                raise InputError(
                    f"The ASE constraint {type(constraint).__name__} is not FixAtoms, which becomes frozen: "
                    "system, constraints = ms.constraints.from_ase(atoms) translates others, for relax's constraints=."
                )
            frozen[constraint.index] = True
        cell = atoms.cell.array if atoms.cell.array.any() else None
        labels = [str(label) for label in atoms.arrays.get(LABELS, atoms.get_chemical_symbols())]
        weighed = atoms.has("masses") or (LABELS not in atoms.arrays and all(map(known_masses.is_element, labels)))
        return cls(
            atoms.positions,
            cell=cell,
            pbc=atoms.pbc if cell is not None or atoms.pbc.any() else None,
            species=labels,
            masses=atoms.get_masses() if weighed else None,
            frozen=frozen,
        )

    def to_ase(self) -> "Atoms":
        """Return `ase.Atoms`. Labels that are no elements become "X", or H, with their name in the array `mdsens_label`.

        A 2-D system lies in the plane z = 0, and stays 3-D when it comes back.
        """
        from ase import Atoms
        from ase.constraints import FixAtoms

        n, dim = self.positions.shape
        positions, cell = np.zeros((n, 3)), np.zeros((3, 3))
        positions[:, :dim] = self.positions
        if self.cell is not None:
            cell[:dim, :dim] = self.cell
        atoms = Atoms(
            [known_masses.element_of(label) for label in self.symbols],
            positions=positions,
            cell=cell,
            pbc=[*self.pbc, *[False] * (3 - dim)],
            masses=np.asarray(self.masses) if self.masses_known else None,
        )
        if not all(map(known_masses.is_element, self.labels)):
            atoms.set_array(LABELS, np.array(self.symbols))
        if self.frozen.any():
            atoms.set_constraint(FixAtoms(mask=np.asarray(self.frozen)))
        return atoms


def _check_pbc(pbc: ArrayLike | None, cell: ArrayLike | None, dim: int) -> tuple[bool, ...]:
    if pbc is None:
        if cell is not None:
            raise InputError("A cell was given without pbc: say pbc=True, or pbc=False for a cluster in a box.")
        return (False,) * dim
    flags = (bool(pbc),) * dim if np.ndim(pbc) == 0 else tuple(map(bool, np.asarray(pbc)))
    if len(flags) != dim:
        raise InputError(f"pbc must be one flag or {dim} of them, not {len(flags)}.")
    if any(flags) and cell is None:
        raise InputError("pbc=True needs a cell: give cell=, its rows being the cell vectors.")
    return flags


def _check_cell(cell: ArrayLike | None, pbc: tuple[bool, ...], dim: int, dtype: Any) -> Float[Array, "dim dim"] | None:
    if cell is None:
        return None
    cell = as_float_array(cell, "cell", dtype)
    if cell.ndim == 1 and cell.shape == (dim,):
        cell = jnp.diag(cell)
    if cell.shape != (dim, dim):
        raise InputError(f"cell must have shape ({dim}, {dim}), its rows being the cell vectors, not {cell.shape}.")
    if not is_concrete(cell):
        return cell
    vectors = np.asarray(cell, dtype=float)
    if not np.isfinite(vectors).all():
        raise InputError(f"The cell is not finite: {vectors.tolist()}.")
    lengths = np.linalg.norm(vectors, axis=1)
    if any(periodic and length == 0 for periodic, length in zip(pbc, lengths, strict=True)):
        raise InputError("The cell is singular: a periodic direction has a vector of length zero.")
    used = vectors[lengths > 0] / lengths[lengths > 0, None]
    if len(used) and np.linalg.svd(used, compute_uv=False).min() < 1e-8:
        raise InputError("The cell is singular: its vectors are linearly dependent.")
    if len(used) == dim and np.linalg.det(vectors) < 0:
        warnings.warn(
            "The cell is left-handed: its vectors are reversed, which leaves the lattice and the positions as they are.",
            UserWarning,
            stacklevel=level_of_user(),
        )
        # All of them: reduced wave vectors q become -q, with the same frequencies. In the plane that would be a rotation.
        return -cell if dim == 3 else cell.at[1].multiply(-1.0)
    return cell


def holds_atoms(constraint: Any) -> bool:
    """Return whether a constraint of ASE holds atoms still in all directions."""
    name, mask = type(constraint).__name__, getattr(constraint, "mask", None)
    return name == "FixAtoms" or (name in ("FixCartesian", "FixScaled") and bool(np.all(mask)))


def list_labels(species: str | Sequence[str] | None) -> list[str]:
    """Return the labels of one species or several as a list, empty for None."""
    return [species] if isinstance(species, str) else [str(label) for label in (() if species is None else species)]


def _names(species: str | Sequence[str], n: int) -> list[str]:
    if species is None:
        raise InputError('species must be a label, or one for each atom; leave it out for "A".')
    names = [species] * n if isinstance(species, str) else [str(label) for label in species]
    if len(names) != n:
        raise InputError(f"species must be one label or {n} of them, one for each atom, not {len(names)}.")
    if bad := [label for label in names if not label or set(label) & set("-./")]:
        raise InputError(f"The species label {bad[0]!r} is empty or has a '-', '.' or '/', which separate labels and paths.")
    return names


def has_values(system: System) -> bool:
    """Return whether a structure has values: inside `jit` and `vmap` it has none, and trees of its shape may hold anything."""
    arrays = (system.positions, system.species, system.frozen)
    return (
        all(isinstance(array, jax.Array | np.ndarray) for array in arrays) and not is_traced(system) and system.species.ndim == 1
    )


def atoms_text(system: System) -> str:
    """Return `"63 atoms in 3-D (63 Si)"`."""
    counts = Counter(system.symbols)
    shown = [f"{count} {label}" for label, count in list(counts.items())[:MAX_ENTRIES]]
    more = [f"{len(counts) - MAX_ENTRIES} more species"] if len(counts) > MAX_ENTRIES else []
    return f"{len(system)} atom{'' if len(system) == 1 else 's'} in {system.dim}-D ({', '.join(shown + more)})"


def cell_text(system: System) -> str:
    """Return `"10.8612 x 10.8612 x 10.8612 Å"`, with the angles where one is not right."""
    if system.cell is None:
        return "none"
    vectors = np.asarray(system.cell, dtype=float)
    lengths = np.linalg.norm(vectors, axis=1)
    text = " x ".join(f"{length:.4f}" for length in lengths) + " Å"
    if not (lengths > 0.0).all():
        return text
    cosines = (vectors / lengths[:, None]) @ (vectors / lengths[:, None]).T
    pairs = [(1, 2), (0, 2), (0, 1)] if len(lengths) == 3 else [(0, 1)]
    angles = [np.degrees(np.arccos(np.clip(cosines[pair], -1.0, 1.0))) for pair in pairs]
    return text if np.allclose(angles, 90.0, atol=1e-3) else f"{text}, {', '.join(f'{angle:.5g}' for angle in angles)}°"


def periodicity_text(system: System) -> str:
    """Return `"periodic along xyz"`."""
    along = "".join(name for name, flag in zip("xyz", system.pbc, strict=False) if flag)
    return f"periodic along {along}" if along else "periodic along no direction"


def _line(system: System) -> str:
    frozen = int(system.frozen.sum())
    parts = [atoms_text(system), f"cell {cell_text(system)}", periodicity_text(system), f"{frozen} frozen" if frozen else ""]
    return f"System({', '.join(part for part in parts if part)})"
