"""Phonons: frequencies at wave vectors and along paths, density of states, Grüneisen parameters.

They are the phonons of the system's cell, which may be the primitive one; no supercell is needed (see `lattice_dynamics`). All
derivatives go through the equilibrium; the derivative of a degenerate band is the mean over the bands that are degenerate.
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase.dft.kpoints import parse_path_string
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from mdsens.common.errors import InputError
from mdsens.derivatives.nonfinite import MAX_FORCE_SHARE, check_rest
from mdsens.implicit import Direct, NullSpace, linear_solve
from mdsens.observables.lattice_dynamics import ForceConstants, force_constants, in_terahertz, prepare_crystal, vanishing
from mdsens.potentials.base import Potential, total_energy
from mdsens.structures.system import System, as_float_array, is_concrete


class _AtWaveVectors(eqx.Module):
    """An observable at wave vectors, and the direction from which they come to Γ."""

    q: Float[Array, "*q dim"] | None
    direction: Float[Array, " dim"] | None

    def __init__(self, q: ArrayLike | None = None, direction: ArrayLike | None = None) -> None:
        self.q = None if q is None else _wave_vectors(q)
        self.direction = None if direction is None else _direction(direction)

    def checked(self, system: System, potential: Potential) -> tuple[Array, System, Potential, Array | None]:
        """Return `(q, system, potential, direction)` for the compiled part; raise InputError where they do not fit."""
        if self.direction is not None and len(self.direction) != system.dim:
            raise InputError(f"direction has {len(self.direction)} components, but the system has {system.dim} dimensions.")
        system = prepare_crystal(system, potential)
        q = jnp.zeros(system.dim) if self.q is None else self.q
        if q.shape[-1] != system.dim:
            raise InputError(f"q has {q.shape[-1]} components, but the system has {system.dim} dimensions.")
        if is_concrete(q) and np.asarray(q)[..., ~np.array(system.pbc)].any():
            raise InputError("q has a component along a direction that is not periodic, where there are no waves: set it to 0.")
        return q.astype(system.positions.dtype), system, potential, self.direction


class phonon_frequencies(_AtWaveVectors):
    """`phonon_frequencies(q)`: frequencies ν = ω/2π in ascending order [THz], `(bands,)`, or `(q, bands)` for a list of q.

    Imaginary frequencies are negative numbers (ν = -|ω|/2π), as in phonopy. Where ω² is no more than rounding, as for acoustic
    modes at Γ, the frequency is exactly 0, and so are its derivatives.

    The derivative of a degenerate band is that of the mean over the bands that are degenerate there. It is each band's own where
    a parameter keeps the symmetry; a perturbation that splits the bands has no linear derivative for each of them. Second
    derivatives follow the same rule, third ones are NaN. Constants are those of CODATA 2014, as in `ase.units`.

    Args:
        q: wave vector in units of the reciprocal cell vectors, `(dim,)`, or several, `(q, dim)`; Γ by default.
        direction: the direction from which q comes to Γ, in the same units, `(dim,)`. With charges (`Ewald`) the longitudinal
            mode along it has its field; without a direction Γ has no field, and all optical modes are transverse there.
            Elsewhere it has no effect.

    Raises:
        InputError: a q of another shape, or with a component along a direction that is not periodic; a system without
            periodicity, with frozen atoms or atoms without mass; a wrapped jax-md energy.

    Example:
        g = ms.observables.phonon_frequencies([0.5, 0.5, 0.0])
        frequencies, slopes = g(eq.system, eq.potential), ms.jacobian(g, eq)
    """

    def __init__(self, q: ArrayLike | None = None, direction: ArrayLike | None = None) -> None:
        super().__init__(q, direction)

    def __call__(self, system: System, potential: Potential) -> Array:
        frequencies, unrest = _frequencies(*self.checked(system, potential))
        check_rest(unrest, "phonons")
        return frequencies


class dynamical_matrix(_AtWaveVectors):
    """`dynamical_matrix(q)`: D(q) [eV/(Å² amu)], complex and Hermitian, `(bands, bands)`, or `(q, bands, bands)`.

    Rows and columns are atoms and then directions; phases are those of lattice translations, exp(2πi q·R). Arguments and errors
    are those of `phonon_frequencies`.
    """

    def __init__(self, q: ArrayLike | None = None, direction: ArrayLike | None = None) -> None:
        super().__init__(q, direction)

    def __call__(self, system: System, potential: Potential) -> Array:
        return _matrices(*self.checked(system, potential))


class gruneisen_parameters(_AtWaveVectors):
    """`gruneisen_parameters(q)`: mode Grüneisen parameters γ = -(V/ν) dν/dV, `(bands,)` or `(q, bands)`, in order of ν.

    The volume changes by an isotropic strain of the cell, after which the atoms go to their new equilibrium; q is fixed in units
    of the reciprocal vectors. Degenerate bands have their mean. Where the frequency is 0, at Γ say, γ is 0 too. Second
    derivatives are NaN. Arguments and errors are those of `phonon_frequencies`; the cell must be periodic in all directions.
    """

    def __init__(self, q: ArrayLike | None = None, direction: ArrayLike | None = None) -> None:
        super().__init__(q, direction)

    def __call__(self, system: System, potential: Potential) -> Array:
        if system.cell is not None and not all(system.pbc):
            raise InputError("Grüneisen parameters are derivatives in the volume: the cell must be periodic in all directions.")
        parameters, unrest = _gruneisen(*self.checked(system, potential))
        check_rest(unrest, "Grüneisen parameters")
        return parameters


class phonon_dos(eqx.Module):
    """`phonon_dos(mesh, frequencies, width)`: density of states on a grid of frequencies [1/THz], a Gaussian for each mode.

    Its integral is the number of bands, dim·N. It is smooth in the parameters.

    Args:
        mesh: q-points along each reciprocal vector, Γ among them; an int for the same along all periodic ones.
        frequencies: the grid [THz], `(points,)`.
        width: standard deviation of the Gaussians [THz].

    Raises:
        InputError: a mesh, grid or width that makes no sense, and as `phonon_frequencies`.
    """

    frequencies: Float[Array, " points"]
    width: float = eqx.field(static=True)
    mesh: int | tuple[int, ...] = eqx.field(static=True)

    def __init__(self, mesh: int | Sequence[int], frequencies: ArrayLike, width: float) -> None:
        self.mesh, self.frequencies = checked_mesh(mesh), as_float_array(frequencies, "frequencies")
        if self.frequencies.ndim != 1:
            raise InputError(f"frequencies must be a list of numbers in THz, not of shape {self.frequencies.shape}.")
        if not (isinstance(width, Real) and 0.0 < width < np.inf):
            raise InputError(f"width must be a positive number in THz, not {width!r}.")
        self.width = float(width)

    def __call__(self, system: System, potential: Potential) -> Array:
        modes, weights = mesh_frequencies(self.mesh, system, potential)
        return _density_of_states(modes, weights, self.frequencies, self.width)


@dataclasses.dataclass(frozen=True)
class PhononPath:
    """A path through the Brillouin zone.

    Attributes:
        q: `(points, dim)`, in units of the reciprocal vectors: `phonon_frequencies(path.q)`.
        distances: along the path, `(points,)` [1/Å, with 2π]; a jump has no length.
        ticks, labels: distances of the special points, and their names; `"U|K"` at a jump.
    """

    q: np.ndarray
    distances: np.ndarray
    ticks: np.ndarray
    labels: tuple[str, ...]


def phonon_path(system: System, path: str | None = None, points: int = 100) -> PhononPath:
    """Return a path between special points of the system's Brillouin zone, as ASE names them [host].

    Args:
        path: such as `"GXWKGL"` or, with a jump, `"GXU,KGL"`; ASE's standard path of the lattice by default.
        points: approximate number of q-points; each leg has its ends, and a share by its length.

    Raises:
        InputError: a system without periodicity, fewer than two points, a path that the lattice does not have.

    Example:
        path = ms.observables.phonon_path(system, "GXWKGL")
        frequencies = ms.observables.phonon_frequencies(path.q)(system, potential)
    """
    if system.cell is None or not any(system.pbc):
        raise InputError("A path through the Brillouin zone wants a periodic structure: give the system a cell and pbc.")
    if not (isinstance(points, Integral) and points >= 2):
        raise InputError(f"points must be an integer of at least 2, not {points!r}.")
    atoms = system.to_ase()
    lattice = atoms.cell.bandpath(npoints=0, pbc=atoms.pbc)
    special, pieces = lattice.special_points, parse_path_string(lattice.path if path is None else path)
    if any(len(piece) < 2 or not set(piece) <= set(special) for piece in pieces):
        raise InputError(f"The path {path!r} is none in this lattice: join two or more of its points {', '.join(special)}.")
    reciprocal = 2.0 * np.pi * atoms.cell.reciprocal().array
    lengths = [[np.linalg.norm((special[b] - special[a]) @ reciprocal) for a, b in pairwise(piece)] for piece in pieces]
    spacing, end = sum(map(sum, lengths)) / points, 0.0
    q, distances, ticks, labels = [], [], [0.0], [""]
    for piece, sizes in zip(pieces, lengths, strict=True):
        labels[-1] = f"{labels[-1]}|{piece[0]}".lstrip("|")
        for leg, ((a, b), length) in enumerate(zip(pairwise(piece), sizes, strict=True)):
            share = np.linspace(0.0, 1.0, max(1, round(length / spacing)) + 1)[leg > 0 :]
            q.append(special[a] + share[:, None] * (special[b] - special[a]))
            distances.append(end + share * length)
            end += length
            ticks.append(end)
            labels.append(b)
    names = tuple(label.replace("G", "Γ") for label in labels)
    return PhononPath(np.concatenate(q)[:, : system.dim], np.concatenate(distances), np.array(ticks), names)


def checked_mesh(mesh: int | Sequence[int]) -> int | tuple[int, ...]:
    """Return a mesh as hashable integers; raise InputError where they are not positive."""
    entries = np.asarray(mesh)
    if entries.ndim > 1 or entries.dtype.kind not in "iu" or not (entries >= 1).all() or entries.size == 0:
        raise InputError(f"mesh must be a positive integer, or one for each reciprocal vector, not {mesh!r}.")
    return int(entries) if entries.ndim == 0 else tuple(int(entry) for entry in entries)


def q_mesh(mesh: int | tuple[int, ...], system: System) -> tuple[np.ndarray, np.ndarray]:
    """Return `(q, weights)` of a uniform mesh around Γ, one of q and -q, whose frequencies are equal; weights add up to 1.

    Raises:
        InputError: a mesh of another dimension, or with several points along a direction that is not periodic.
    """
    if isinstance(mesh, int):
        mesh = tuple(mesh if periodic else 1 for periodic in system.pbc)
    if len(mesh) != system.dim:
        raise InputError(f"The mesh {mesh} has {len(mesh)} entries, but the system has {system.dim} dimensions.")
    if any(count > 1 and not periodic for count, periodic in zip(mesh, system.pbc, strict=True)):
        raise InputError(f"The mesh {mesh} has several points along a direction that is not periodic: give 1 there.")
    counts = np.array(mesh)
    steps = np.stack(np.meshgrid(*map(np.arange, mesh), indexing="ij"), axis=-1).reshape(-1, system.dim)
    number, opposite = (np.ravel_multi_index(tuple((sign * steps % counts).T), mesh) for sign in (1, -1))
    chosen, weights = np.unique(np.minimum(number, opposite), return_counts=True)
    q = steps[chosen] / counts
    return q - np.round(q), weights / len(steps)


def mesh_frequencies(
    mesh: int | tuple[int, ...], system: System, potential: Potential
) -> tuple[Float[Array, "q bands"], np.ndarray]:
    """Return `(frequencies [THz], weights of the q)` on a mesh, Γ first; raise as `phonon_frequencies` and `q_mesh`."""
    prepare_crystal(system, potential)
    q, weights = q_mesh(mesh, system)
    return phonon_frequencies(q)(system, potential), weights


@eqx.filter_jit
def _frequencies(q: Array, system: System, potential: Potential, direction: Array | None) -> tuple[Array, Array]:
    constants = force_constants(system, potential, direction)
    frequencies = in_terahertz(*constants.squared_frequencies(q.reshape(-1, system.dim)))
    return _if_relaxed(frequencies, constants.unrest).reshape(*q.shape[:-1], -1), constants.unrest


@eqx.filter_jit
def _matrices(q: Array, system: System, potential: Potential, direction: Array | None) -> Array:
    matrix = force_constants(system, potential, direction).dynamical_matrix
    return matrix(q) if q.ndim == 1 else jax.lax.map(matrix, q)


@eqx.filter_jit
def _gruneisen(q: Array, system: System, potential: Potential, direction: Array | None) -> tuple[Array, Array]:
    def squared_frequencies(positions: Array, cell: Array) -> tuple[Array, Any]:
        constants = force_constants(_at(system, positions, cell), potential, direction)
        squared, tolerance = constants.squared_frequencies(q.reshape(-1, system.dim))
        return squared, (tolerance, constants)

    squared, change, (tolerance, constants) = jax.linearize(squared_frequencies, system.positions, system.cell, has_aux=True)
    slope = change(system.positions + _response_to_expansion(system, potential, constants), system.cell)
    zero = vanishing(squared, tolerance)
    # ω² ∝ ν², and dV/V is dim times the strain.
    gamma = -slope / (2.0 * system.dim * jnp.where(zero, 1.0, squared))
    gamma = _if_relaxed(jnp.where(zero, 0.0, gamma), constants.unrest)
    return gamma.reshape(*q.shape[:-1], -1), constants.unrest


def _if_relaxed(values: Array, unrest: Array) -> Array:
    """The values, or NaN where the structure is not relaxed."""
    return jnp.where(unrest > MAX_FORCE_SHARE, jnp.nan, values)


def _response_to_expansion(system: System, potential: Potential, constants: ForceConstants) -> Float[Array, "atoms dim"]:
    """The displacement per isotropic strain that brings atoms back to equilibrium after they followed the cell [Å]."""
    assert system.cell is not None
    n, dim = system.positions.shape
    arms = system.positions[constants.column] - system.positions[constants.row] + constants.shift @ system.cell
    slope = jax.ops.segment_sum(jnp.einsum("cab,cb->ca", constants.block, arms), constants.row, n)
    hessian = jnp.zeros((n, n, dim, dim), slope.dtype).at[constants.row, constants.column].add(constants.block)
    if constants.charges:
        reference = system.cell

        # The energy of charges is no sum over arms.
        def condition(stretch: Array) -> Array:
            cell = stretch * reference
            return jax.grad(lambda x: total_energy(potential, _at(system, x, cell)))(stretch * system.positions)

        unity = jnp.ones((), slope.dtype)
        slope = jax.jvp(condition, (unity,), (unity,))[1]
        hessian = hessian + sum(waves.at_gamma() for waves in constants.charges)
    hessian = jnp.swapaxes(hessian, 1, 2).reshape(n * dim, n * dim)
    translations = NullSpace(None, jnp.tile(jnp.eye(dim, dtype=slope.dtype), (n, 1)) / np.sqrt(n))
    b = -slope.ravel()
    u, _ = linear_solve(lambda u: hessian @ u, b, solver=Direct(), symmetric=True, null_space=translations, throw=False)
    return u.reshape(n, dim)


def _at(system: System, positions: Array, cell: Array) -> System:
    return eqx.tree_at(lambda s: (s.positions, s.cell), system, (positions, cell))


@eqx.filter_jit
def _density_of_states(modes: Array, weights: np.ndarray, frequencies: Array, width: float) -> Array:
    def density(frequency: Array) -> Array:
        x = (frequency - modes) / width
        return weights @ jnp.sum(jnp.exp(-0.5 * x * x), axis=1) / (width * np.sqrt(2.0 * np.pi))

    return jax.lax.map(density, frequencies)


def _wave_vectors(q: ArrayLike) -> Array:
    q = as_float_array(q, "q")
    if q.ndim not in (1, 2) or q.size == 0:
        raise InputError(f"q must be one wave vector (dim,) or a list of them (q, dim), not of shape {q.shape}.")
    if is_concrete(q) and not np.isfinite(q).all():
        raise InputError("q is not finite: give wave vectors in units of the reciprocal cell vectors.")
    return q


def _direction(direction: ArrayLike) -> Array:
    direction = as_float_array(direction, "direction")
    if direction.ndim != 1 or (is_concrete(direction) and not (np.isfinite(direction).all() and np.any(direction))):
        raise InputError("direction must be a vector in units of the reciprocal cell vectors, (dim,), and not zero.")
    return direction
