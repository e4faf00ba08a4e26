"""The spectrum of a Hessian, which says whether a state is a minimum, and how soft it is."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.implicit.linear_system import NullSpace
from mdsens.mechanics import softest_modes
from mdsens.mechanics.assembly import Listed
from mdsens.mechanics.evaluation import evaluate
from mdsens.mechanics.hessian_operator import StoredOperator, hessian_operator
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.null_space import known_null_space, null_space, null_space_of
from mdsens.mechanics.softest_modes import (
    Columns,
    MatrixColumns,
    columns_at,
    exact_ends,
    random_vectors,
    search_ends,
    softest_vector,
)
from mdsens.mechanics.unknown import Reference, Unknown, as_unknown, raveled
from mdsens.potentials.base import Potential
from mdsens.potentials.forms.stored_stiffness import LocalStiffness, SiteStiffness, SumStiffness
from mdsens.structures.neighbors.neighbor_list import Neighbors

LOWEST_COUNT = 4
"""Eigenvalues that are kept of a whole spectrum: the lowest."""

BATCH_LANCZOS_STEPS = 48
"""Steps of Lanczos' method towards a negative eigenvalue of each of many structures."""

NEGATIVE_SHARE = 1e-7
"""Share of the largest eigenvalue: one below minus that counts as negative."""

PROBED_ATOMS = 64
"""Atoms whose unused places are looked at, for each place of a list."""

MAX_ASYMMETRY = 1e3
"""Difference of a Hessian from its transpose, as a share of it, beyond which its forces are no gradient; in roots of the rounding
error, since networks may compute in single precision. Ten times the error of a Hessian by differences is allowed beside it."""

FLOPPY_SHARE = 1e-9
"""Share of the largest eigenvalue within which one counts as zero."""


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The ends of a Hessian's spectrum outside its known null space, and along constraints [eV/Å²].

    Attributes:
        lowest: lowest eigenvalue; from `exact = False` (large systems) an upper bound by LOBPCG.
        highest: largest eigenvalue, or its estimate from below.
        floppy: how many eigenvalues vanish beyond the known ones (as far as they were computed).
        rattlers: atoms without contact, which were left out.
        exact: whether they come from the whole spectrum.
        few: the lowest eigenvalues, in order.
        index: how many are negative (as far as they were computed): 0 at a minimum, 1 at a first-order saddle point.
        nearest_zero: the smallest magnitude of an eigenvalue of ∂F/∂z, which multipliers are part of.
    """

    lowest: float
    highest: float
    floppy: int
    rattlers: tuple[int, ...]
    exact: bool
    few: tuple[float, ...]
    index: int
    nearest_zero: float


class Examination(NamedTuple):
    """A spectrum, with what was made to compute it.

    Attributes:
        columns: products with the Hessian; None where the spectrum was known before.
        matrix: the Hessian between free components; None in large systems.
    """

    spectrum: Spectrum
    columns: Columns | None
    matrix: np.ndarray | None


def examine_hessian(z: Unknown | Array, reference: Reference, potential: Potential) -> Examination:
    """Compute the ends of the Hessian's spectrum at a state [host]: exactly up to `DENSE_LIMIT` unknowns, else by a search.

    Lanczos' method for A x = μ M⁻¹x, M being the preconditioner of CG, sees a negative eigenvalue of any size early, since M
    brings all others near each other. From its vector LOBPCG goes to the lowest eigenvalue of A itself.

    A. V. Knyazev, SIAM J. Sci. Comput. 23, 517 (2001).

    Raises:
        InputError: forces that are no gradient; a site's energy that counts unused places; a rigid motion that should cost
            nothing and does not, so that the energy has a geometry of its own.
    """
    columns = columns_at(z, Landscape(reference, potential))
    size = as_unknown(z).positions.size
    image = columns(random_vectors(columns.size, 1))[:size, 0].reshape(-1, reference.system.dim)
    moving = ~np.asarray(reference.held) & np.any(image != 0.0, axis=1)[:, None]
    loose = ~moving.any(axis=1) & ~np.asarray(reference.held).all(axis=1)
    rattlers = tuple(int(atom) for atom in np.flatnonzero(loose))
    null = known_null_space(z, reference, rattlers)
    rigid = np.asarray(null.basis)
    if reference.constraints is not None:
        null = _tangent_null_space(z, reference, null)
    active, basis = np.asarray(null.active), np.asarray(null.basis)
    free = np.flatnonzero(active)
    if free.size <= basis.shape[1]:
        return Examination(Spectrum(np.inf, 0.0, 0, rattlers, True, (), 0, np.inf), columns, None)
    exact = free.size <= softest_modes.DENSE_LIMIT
    _check_masks(columns, potential)
    matrix = columns.submatrix(free) if exact else None
    _check_symmetric(matrix, columns, active, reference, potential)
    values, highest = exact_ends(matrix, basis[free]) if matrix is not None else search_ends(columns, null)
    _check_rigid(columns(rigid), highest, z, reference, potential)
    nearest = float(np.abs(values).min())
    if exact and reference.constraints is not None:
        nearest = _nearest_zero(columns, z, reference, moving)
    floppy, index = int((np.abs(values) <= FLOPPY_SHARE * highest).sum()), int((values < -NEGATIVE_SHARE * highest).sum())
    few = tuple(float(value) for value in values[:LOWEST_COUNT])
    spectrum = Spectrum(float(values.min()), highest, floppy, rattlers, exact, few, index, nearest)
    return Examination(spectrum, columns, matrix)


def is_saddle(positions: Array, reference: Reference, potential: Potential) -> Array:
    """Return whether a few steps of Lanczos' method meet a negative eigenvalue at a state of positions alone; pure JAX."""
    landscape = Landscape(reference, potential)
    product = hessian_operator(positions, landscape)
    null = null_space(positions, landscape)
    start = jnp.asarray(random_vectors(positions.size, 1)[:, 0], positions.dtype)
    vector = softest_vector(product, None, null, start, min(positions.size, BATCH_LANCZOS_STEPS))
    highest = jnp.linalg.norm(product(null.project(start))) / jnp.linalg.norm(null.project(start))
    return vector @ product(vector) < -NEGATIVE_SHARE * highest * (vector @ vector)


def _check_symmetric(
    matrix: np.ndarray | None, columns: Columns, active: np.ndarray, reference: Reference, potential: Potential
) -> None:
    """Raise InputError where forces are no gradient, by the whole matrix, or by its work on two random displacements."""
    if matrix is None:
        v, w = (random_vectors(active.size, 3)[:, 1:] * active[:, None]).T
        there, back = columns(v[:, None])[:, 0], columns(w[:, None])[:, 0]
        # For a random matrix both estimate its norm.
        size, off = np.sqrt(0.5 * (there @ there + back @ back)), abs(w @ there - v @ back)
    else:
        size, off = np.linalg.norm(matrix), np.linalg.norm(matrix - matrix.T)
    approximation = potential.approximation(reference.system)
    known = 0.0 if approximation is None else 10.0 * approximation.hessian * np.sqrt(active.sum())
    if off > np.sqrt(np.finfo(columns.dtype).eps) * MAX_ASYMMETRY * size + known:
        raise InputError(
            f"The forces of {type(potential).__name__} are no gradient of an energy: second derivatives differ from their "
            f"transpose by {off / size:.1e} of their size. A pair energy must be the same for i, j and j, i, and a calculator's "
            "forces minus the gradient of its energy; mdsens.testing.check_potential looks closer."
        )


def _check_masks(columns: Columns, potential: Potential) -> None:
    """Raise InputError where a site's energy depends on unused places of its list."""
    source: Any = columns.stored if isinstance(columns, MatrixColumns) else columns.function
    if not isinstance(source, Listed | StoredOperator):
        return
    stored, whole = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (source.stiffness, source.neighbors))
    if counts_unused_places(stored, whole):
        raise InputError(
            f"The energy of a site in {type(potential).__name__} counts places where its mask is False, which hold a "
            "harmless vector and nobody: multiply by jnp.where(mask, 1.0, 0.0) before summing over neighbours."
        )


def counts_unused_places(stored: LocalStiffness, whole: Neighbors) -> bool:
    """Return whether a site's energy depends on unused places of its list, in any of several structures `(k, ...)`."""
    lists = whole.shorter if isinstance(stored, SumStiffness) else (whole,)
    for part, listed in zip(stored.terms if isinstance(stored, SumStiffness) else (stored,), lists, strict=True):
        if not isinstance(part, SiteStiffness):
            continue
        unused, blocks = ~(np.asarray((listed or whole).opposite) >= 0), np.asarray(part.blocks)
        for place in range(unused.shape[1]):
            some = np.nonzero(unused[:, place])
            some = tuple(index[:: max(1, len(index) // PROBED_ATOMS)] for index in some)
            if np.any(blocks[:, place, :, place][some[0], :, :, some[1]] != 0.0):
                return True
    return False


def _nearest_zero(columns: Columns, z: Unknown | Array, reference: Reference, moving: Any) -> float:
    """Return the smallest magnitude of an eigenvalue of the matrix with its multipliers."""
    null = null_space_of(z, reference, moving)
    free = np.flatnonzero(np.asarray(null.active))
    values, _ = exact_ends(columns.submatrix(free), np.asarray(null.basis)[free])
    return float(np.abs(values).min())


@eqx.filter_jit
def _tangent_null_space(z: Unknown | Array, reference: Reference, null: NullSpace) -> NullSpace:
    """Return the null space of a spectrum under constraints: motions along them are left, multipliers are no motions."""
    flat, unravel = ravel_pytree(z)
    constraints = reference.constraints
    assert constraints is not None and null.active is not None and null.basis is not None
    normals = jax.jacrev(lambda x: constraints.values(reference.place(unravel(x))))(flat).T
    active = null.active.at[null.active.size - constraints.count :].set(False)
    basis = jnp.linalg.qr(jnp.where(active[:, None], jnp.concatenate([null.basis, normals], axis=1), 0.0))[0]
    return NullSpace(active, basis)


def _check_rigid(images: np.ndarray, highest: float, z: Unknown | Array, reference: Reference, potential: Potential) -> None:
    """Raise InputError where a rigid motion changes the energy, by its products with the Hessian."""
    # A rotation turns the forces; for a displacement of unit length by an angle that falls with the size of the system.
    dim = reference.system.dim
    angle = float(np.abs(np.asarray(reference.motions.combinations)[dim:]).max(initial=0.0))
    rounding = 10.0 * np.sqrt(np.finfo(as_unknown(z).positions.dtype).eps) * highest
    for name, size in zip(reference.motions.names, np.linalg.norm(images, axis=0), strict=True):
        if size > rounding and size > rounding + 10.0 * angle * np.linalg.norm(
            raveled(evaluate(z, Landscape(reference, potential)).residual)
        ):
            raise InputError(
                f"The energy changes under a rigid motion of all atoms ({name}, by {size:.1e} eV/Å²): "
                "give the system the cell and pbc that the energy itself uses, or freeze an atom."
            )
