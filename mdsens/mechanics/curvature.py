"""The lowest curvatures of an equilibrium: whether it is a minimum, and how soft it is."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.implicit.linear_system import Gauge
from mdsens.mechanics import softest_modes
from mdsens.mechanics.factorised_hessian import DenseFactor, DenseMatrix, KeptHessian, SparseFactor
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.hessian_matrix import hessian
from mdsens.mechanics.hessian_operator import (
    Preconditioned,
    StoredOperator,
    gauge,
    gauge_of,
    hessian_operator,
    is_stored,
    known_gauge,
    stored_size,
)
from mdsens.mechanics.softest_modes import (
    Columns,
    Curvature,
    exact_ends,
    operator_at,
    random_vectors,
    search_ends,
    softest_vector,
)
from mdsens.mechanics.unknown import Frame, as_unknown
from mdsens.potentials.base import Potential
from mdsens.potentials.forms.stored_stiffness import SiteStiffness, SumStiffness

FEW = 4
"""Curvatures that are kept of a whole spectrum, from the lowest."""

FEW_STEPS = 48
"""Steps of Lanczos towards a negative curvature of each of many structures."""

NEGATIVE = 1e-7
"""Share of the largest curvature below minus which a curvature counts as negative."""

WELL_POSED = 1e4
"""Lowest curvature, in roundings of the highest, above which a matrix is worth factorising."""

KEPT_NUMBERS = 2 * 10**7
"""Numbers in an operator that is kept with its state, at most."""

LOOKED_AT = 64
"""Atoms, for each place of a list, whose unused places are looked at."""

ASYMMETRIC = 1e3
"""Difference of a Hessian from its transpose, as a share of it, beyond which its forces are no gradient, in roots of the rounding
error: energies of networks may be in single precision inside. Beside it ten times the error of a Hessian by differences."""

FLOPPY = 1e-9
"""Share of the largest curvature within which a curvature counts as zero."""


def curvature(z: Any, frame: Frame, potential: Potential, *, keep: bool = True) -> tuple[Curvature, KeptHessian]:
    """The ends of the spectrum at a state [host]: exact up to `DENSE_LIMIT` unknowns, else sought; and what is kept.

    Factors are kept of minima without constraints, if the whole matrix is there or stays sparse (see `factorised_hessian`).

    Lanczos' method for A x = μ M⁻¹x with the preconditioner M, which CG would stop at a negative curvature with, sees one of
    any size early, since M brings all others near each other; and LOBPCG goes from what it saw to the lowest curvature of A
    itself.

    A. V. Knyazev, SIAM J. Sci. Comput. 23, 517 (2001).

    Raises:
        InputError: a rigid motion that should cost nothing does, so the energy has a geometry of its own.
    """
    flat = ravel_pytree(z)[0]
    columns = Columns(operator_at(z, (frame, potential)), flat.size, flat.dtype)
    image = as_unknown(ravel_pytree(z)[1](columns(random_vectors(flat.size, 1))[:, 0])).positions
    moving = ~np.asarray(frame.held) & np.any(np.asarray(image) != 0.0, axis=1)[:, None]
    loose = ~moving.any(axis=1) & ~np.asarray(frame.held).all(axis=1)
    rattlers = tuple(int(atom) for atom in np.flatnonzero(loose))
    null, rigid = _outside(z, frame, moving, rattlers)
    active, basis = np.asarray(null.active), np.asarray(null.basis)
    free = np.flatnonzero(active)
    if free.size <= basis.shape[1]:
        return Curvature(np.inf, 0.0, 0, rattlers, True, (), 0, np.inf), KeptHessian()
    exact = free.size <= softest_modes.DENSE_LIMIT
    _check_masks(columns.function, potential)
    matrix = columns.between(free) if exact else None
    _check_symmetric(matrix, columns, active, frame, potential)
    values, highest = exact_ends(matrix, basis[free]) if exact else search_ends(columns, null)
    _check_rigid(columns(rigid), highest, z, frame, potential)
    nearest = float(np.abs(values).min())
    if exact and frame.constraints is not None:
        nearest = _nearest_zero(columns, z, frame, moving)
    found = Curvature(
        float(values.min()),
        highest,
        int((np.abs(values) <= FLOPPY * highest).sum()),
        rattlers,
        exact,
        tuple(float(value) for value in values[:FEW]),
        int((values < -NEGATIVE * highest).sum()),
        nearest,
    )
    return found, _kept(found, lambda: matrix, columns, basis[free], free, frame, potential) if keep else KeptHessian()


def kept_hessian(z: Any, frame: Frame, potential: Potential, found: Curvature, null: Any) -> KeptHessian:
    """What comes with a curvature, of a state whose curvature and null space are known [host]."""
    stored = is_stored(frame, potential) and stored_size(frame.system, potential) <= KEPT_NUMBERS
    if not (stored or _has_factors(found, frame, potential)):
        return KeptHessian()
    active = np.asarray(null.active)
    free = np.flatnonzero(active)
    columns = Columns(operator_at(z, (frame, potential)), active.size, frame.system.positions.dtype)
    return _kept(found, lambda: columns.between(free), columns, np.asarray(null.basis)[free], free, frame, potential)


def _has_factors(found: Any, frame: Frame, potential: Potential) -> bool:
    """Whether the matrix is definite, and small or, in the plane, sparse."""
    rounding = np.finfo(frame.system.positions.dtype).eps * found.highest
    if not (frame.symmetric and frame.constraints is None and WELL_POSED * rounding < found.lowest < np.inf):
        return False
    return found.exact or (frame.freedom is None and frame.system.dim == 2 and is_stored(frame, potential))


def _kept(
    found: Any, matrix: Any, columns: "Columns", null: Any, free: np.ndarray, frame: Frame, potential: Potential
) -> KeptHessian:
    """`matrix()` is the one between the free components, `columns` are those of the operator."""
    dtype, operator = frame.system.positions.dtype, _light(columns)
    if not _has_factors(found, frame, potential):
        return KeptHessian(operator)
    try:
        if not found.exact:
            return KeptHessian(operator, SparseFactor(hessian(frame.system, potential).tocsr(), null, free))
        whole = matrix()
        whole = 0.5 * (whole + whole.T)
        return KeptHessian(DenseMatrix(jnp.asarray(whole, dtype), jnp.asarray(free)), DenseFactor(whole, null, free, dtype))
    except (np.linalg.LinAlgError, RuntimeError):  # not positive, or singular, to working precision
        return KeptHessian(operator)


def _light(columns: "Columns") -> Any:
    """An operator whose numbers are few enough to be kept; None for others."""
    operator = columns.function
    if not isinstance(operator, StoredOperator) or sum(np.size(leaf) for leaf in jax.tree.leaves(operator)) > KEPT_NUMBERS:
        return None
    return operator if columns.preconditioner is None else Preconditioned(operator, columns.preconditioner)


@eqx.filter_jit
def _force(z: Any, data: Any) -> Array:
    return jnp.linalg.norm(ravel_pytree(gradient(z, data))[0])


def is_saddle(positions: Array, frame: Frame, potential: Potential) -> Array:
    """Whether a few steps of Lanczos' method meet a negative curvature at a state of positions alone; pure JAX."""
    product = hessian_operator(positions, (frame, potential))
    null = gauge(positions, (frame, potential))
    start = jnp.asarray(random_vectors(positions.size, 1)[:, 0], positions.dtype)
    vector = softest_vector(product, None, null, start, min(positions.size, FEW_STEPS))
    highest = jnp.linalg.norm(product(null.project(start))) / jnp.linalg.norm(null.project(start))
    return vector @ product(vector) < -NEGATIVE * highest * (vector @ vector)


def _check_symmetric(matrix: Any, columns: "Columns", active: np.ndarray, frame: Frame, potential: Potential) -> None:
    """Raises InputError where forces are no gradient: by the whole matrix, or by its work on two random displacements."""
    if matrix is None:
        v, w = (random_vectors(active.size, 3)[:, 1:] * active[:, None]).T
        there, back = columns(v[:, None])[:, 0], columns(w[:, None])[:, 0]
        # Of a random matrix both are its norm.
        size, off = np.sqrt(0.5 * (there @ there + back @ back)), abs(w @ there - v @ back)
    else:
        size, off = np.linalg.norm(matrix), np.linalg.norm(matrix - matrix.T)
    approximation = potential.approximation(frame.system)
    known = 0.0 if approximation is None else 10.0 * approximation.hessian * np.sqrt(active.sum())
    if off > np.sqrt(np.finfo(columns.dtype).eps) * ASYMMETRIC * size + known:
        raise InputError(
            f"The forces of {type(potential).__name__} are no gradient of an energy: second derivatives differ from their "
            f"transpose by {off / size:.1e} of their size. A pair energy must be the same for i, j and j, i, and a calculator's "
            "forces minus the gradient of its energy; mdsens.testing.check_potential looks closer."
        )


def _check_masks(operator: Any, potential: Potential) -> None:
    """Raises InputError where a site's energy depends on places of its list that nobody is in."""
    if not isinstance(operator, StoredOperator):
        return
    stored, whole = operator.stiffness, operator.neighbors
    lists = whole.shorter if isinstance(stored, SumStiffness) else (whole,)
    for part, listed in zip(stored.terms if isinstance(stored, SumStiffness) else (stored,), lists, strict=True):
        if not isinstance(part, SiteStiffness):
            continue
        used, blocks = np.asarray((listed or whole).used), np.asarray(part.blocks)
        for place in range(len(used)):
            if np.any(np.abs(blocks[place, :, place][..., np.flatnonzero(~used[place])[:LOOKED_AT]]) > 0.0):
                raise InputError(
                    f"The energy of a site in {type(potential).__name__} counts places where its mask is False, which hold a "
                    "harmless vector and nobody: multiply by jnp.where(mask, 1.0, 0.0) before summing over neighbours."
                )


def _nearest_zero(columns: "Columns", z: Any, frame: Frame, moving: Any) -> float:
    """Of the matrix with its multipliers."""
    null: Any = gauge_of(z, frame, moving)
    free = np.flatnonzero(null.active)
    values, _ = exact_ends(columns.between(free), np.asarray(null.basis)[free])
    return float(np.abs(values).min())


def _outside(z: Any, frame: Frame, moving: np.ndarray, rattlers: tuple[int, ...]) -> tuple[Gauge, np.ndarray]:
    """`(the gauge of the spectrum, rigid motions)`: constraints leave the motions along them only, multipliers are no motions."""
    null = known_gauge(z, frame, rattlers)
    rigid = np.asarray(null.basis)
    if frame.constraints is None:
        return null, rigid
    return _along(z, frame, null), rigid


@eqx.filter_jit
def _along(z: Any, frame: Frame, null: Any) -> Gauge:
    """The gauge of motions along constraints."""
    flat, unravel = ravel_pytree(z)
    normals = jax.jacrev(lambda x: frame.constraints.values(frame.place(unravel(x))))(flat).T
    active = null.active.at[null.active.size - frame.constraints.count :].set(False)
    basis = jnp.linalg.qr(jnp.where(active[:, None], jnp.concatenate([null.basis, normals], axis=1), 0.0))[0]
    return Gauge(active, basis)


def _check_rigid(images: Any, highest: float, z: Any, frame: Frame, potential: Potential) -> None:
    # A rotation turns the forces: by an angle that is the smaller the larger the system is for a displacement of unit length.
    # Rounding grows with the root of the precision.
    dim = frame.system.dim
    angle = float(np.abs(np.asarray(frame.motions.combinations)[dim:]).max(initial=0.0))
    rounding = 10.0 * np.sqrt(np.finfo(as_unknown(z).positions.dtype).eps) * highest
    for name, size in zip(frame.motions.names, np.linalg.norm(images, axis=0), strict=True):
        if size > rounding and size > rounding + 10.0 * angle * _force(z, (frame, potential)):
            raise InputError(
                f"The energy changes under a rigid motion of all atoms ({name}, by {size:.1e} eV/Å²): "
                "give the system the cell and pbc that the energy itself uses, or freeze an atom."
            )
