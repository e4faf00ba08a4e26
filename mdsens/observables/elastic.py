"""Elastic constants at relaxed positions: the affine (Born) response and the non-affine one, without a strain step.

Atoms are carried along by a small symmetric strain ε and then displaced: x = (x₀ + u)(1 + ε), cell = cell₀ (1 + ε). With
e_k the unit strains of Voigt's notation and λ_k = du/dε_k the non-affine displacements,

    A λ_k = -∂²U/∂u∂ε_k,        ∂²U/∂ε_k∂ε_l = Q((λ_k, e_k), (λ_l, e_l)),

where Q is the second derivative of U in (u, ε), a bilinear form, and A = ∂²U/∂u∂u. Q is stationary in λ, so that its
derivative in positions, cell and parameters is the one at fixed λ: it needs no solves but those for λ.

J. F. Lutsko, J. Appl. Phys. 65, 2991 (1989), doi:10.1063/1.342716; C. E. Maloney, A. Lemaître, Phys. Rev. E 74, 016118
(2006), doi:10.1103/PhysRevE.74.016118.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from mdsens.common.errors import InputError, LinearSolveError, did_you_mean
from mdsens.common.modules import with_fields
from mdsens.common.suggestions import suggest_names
from mdsens.common.units import NEWTON_PER_METRE, stress_unit
from mdsens.common.voigt import unit_strains
from mdsens.derivatives.nonfinite import MAX_FORCE_SHARE, check_free, check_rest
from mdsens.implicit import CG, NullSpace, linear_solve
from mdsens.mechanics import hessian_operator
from mdsens.mechanics.assembly import assemble
from mdsens.mechanics.hessian_operator import is_stored
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.programs import Slopes, energy_and_slopes, second_derivatives, traced_slopes
from mdsens.mechanics.rigid_motions import coupled_atoms
from mdsens.mechanics.softest_modes import is_assembled
from mdsens.mechanics.strained_bonds import StoredDerivatives, stored_derivatives, strain_form, strain_slopes
from mdsens.mechanics.unknown import CellFreedom, Reference, reference_at
from mdsens.observables import moduli
from mdsens.potentials.base import Potential, total_energy
from mdsens.potentials.forms.stored_stiffness import LocalStiffness
from mdsens.potentials.wrapped.jaxmd_energy import JaxMDEnergy
from mdsens.structures.system import System, is_concrete

DEFINITIONS = ("stress-strain", "thermodynamic", "energy")

SHEET_TOLERANCE = 1e-3
"""Share of its stiffness that a sheet may have across its plane, and sine of the angle at which it may be tilted."""

BOND_STIFFNESS = 8.0
"""Stiffness of an atom times the square of its distance to others, over ∂²U/∂ε² per atom: a typical value."""

SOLVER = CG(rtol=1e-11)
"""The error of the constants is of second order in that of λ, the error of their derivatives of first order."""


@suggest_names
def elastic_constants(
    system: System,
    potential: Potential,
    *,
    definition: str = "stress-strain",
    relaxed: bool = True,
    sheet: bool | None = None,
) -> Float[Array, "voigt voigt"]:
    """The elastic constants of a relaxed structure in Voigt's notation.

    The state may be stressed, but the forces in it must be relaxed. Without stress all definitions agree.
    With σ the stress, η the Lagrangian strain and e_k the unit strains (shears with off-diagonals ½):

        "energy"           (1/V) ∂²U/∂ε_k∂ε_l at deformation gradients 1 + ε, ε symmetric
        "thermodynamic"    (1/V) ∂²U/∂η_k∂η_l = C^energy_kl - ½ σ:(e_k e_l + e_l e_k)
        "stress-strain"    ∂σ_k/∂ε_l without rotation = C^thermodynamic_kl + σ:(e_k e_l + e_l e_k) - σ_k tr e_l

    The last are Birch's coefficients, from which the stress after a strain, sound speeds and stability follow. They are not
    symmetric where the stress is not hydrostatic.

    Args:
        relaxed: True for relaxed ions; False if the atoms only follow the strain (clamped ions, the Born term).
        sheet: whether the constants are those of a sheet, per area. By default where two of three directions are periodic;
            True for a sheet in a periodic box with vacuum above it.

    Returns:
        6×6 in the order xx, yy, zz, yz, xz, xy [GPa]; in 2-D 3×3, xx, yy, xy [eV/Å²]; of a sheet 3×3 in its plane, xx, yy, xy
        for one at a right angle to z [N/m]. Frozen atoms follow the strain, and so do rattlers, which have no energy.

    Warns:
        UserWarning: forces are left in the structure.

    Raises:
        InputError: an unknown definition; a system that is neither a bulk nor a sheet; a structure that is not relaxed or is
            held by constraints; a wrapped jax-md energy, which cannot be strained; what `Potential.energy` refuses.
        LinearSolveError: the solve for the non-affine displacements fails, since the state is no minimum. (NaN where the values
            are traced.)

    Example:
        C = ms.observables.elastic_constants(eq.system, eq.potential)
        dC = ms.jacobian(ms.observables.elastic_constants, eq)

    D. C. Wallace, Solid State Physics 25, 301 (1970); T. H. K. Barron, M. L. Klein, Proc. Phys. Soc. 85, 523 (1965).
    """
    flat = _is_sheet(system, sheet)
    _check(system, potential, definition)
    if relaxed:
        check_free(system, "elastic constants of relaxed ions")
    traced = not is_concrete(system.positions, system.cell)
    # Strains are infinitesimal: a list without a skin is long enough, and a short list is fast.
    system = potential.prepared(system) if traced else system.with_neighbors(potential, skin=0.0)
    if traced or not is_concrete(potential) or not _is_stored(system, potential):
        response = _response(system, potential, relaxed, flat)
    else:
        response = _known_response(system, potential, relaxed, flat)
    check_rest(response.unrest, "elastic constants")
    if is_concrete(response.across) and response.across > SHEET_TOLERANCE:
        raise InputError(
            "The structure is no sheet at a right angle to x, y or z: strains across it cost energy, or its cell vectors are "
            "tilted against it. Turn it, and leave vacuum above it that is wider than the potential's range."
        )
    constants = _by_definition(definition, response.curvature, response.stress, 2 if flat else system.dim)
    if is_concrete(constants) and not np.isfinite(constants).all():
        raise LinearSolveError(
            "The atoms' displacements under strain could not be found, since the Hessian is not positive or is singular beyond "
            "the known zero modes: relax the structure to a minimum first, or ask for relaxed=False."
        )
    return constants


def compliance(system: System, potential: Potential, **options: Any) -> Float[Array, "voigt voigt"]:
    """The inverse of the elastic constants [1/GPa; in 2-D Å²/eV, of a sheet m/N], shears twice; options as for these."""
    return moduli.compliance(elastic_constants(system, potential, **options))


def bulk_modulus(system: System, potential: Potential, *, average: str = "hill", **options: Any) -> Float[Array, ""]:
    """Bulk modulus of an untextured polycrystal [GPa; in 2-D eV/Å², of a sheet N/m]: `average` is "voigt", "reuss" or "hill".

    "reuss" is that of the single crystal under pressure, V dp/dV. Other options as for `elastic_constants`.
    """
    return moduli.bulk(elastic_constants(system, potential, **options), average)


def shear_modulus(system: System, potential: Potential, *, average: str = "hill", **options: Any) -> Float[Array, ""]:
    """Shear modulus of an untextured polycrystal [GPa; in 2-D eV/Å², of a sheet N/m]; options as for `bulk_modulus`."""
    return moduli.shear(elastic_constants(system, potential, **options), average)


def young_modulus(
    system: System, potential: Potential, *, along: ArrayLike | None = None, average: str = "hill", **options: Any
) -> Float[Array, ""]:
    """Young's modulus [GPa; in 2-D eV/Å², of a sheet N/m]: of the crystal pulled along a direction, or of a polycrystal."""
    return moduli.young(elastic_constants(system, potential, **options), along=along, average=average)


def poisson_ratio(
    system: System,
    potential: Potential,
    *,
    along: ArrayLike | None = None,
    across: ArrayLike | None = None,
    average: str = "hill",
    **options: Any,
) -> Float[Array, ""]:
    """Poisson's ratio: of the crystal pulled along one direction and seen across another, or of a polycrystal."""
    return moduli.poisson(elastic_constants(system, potential, **options), along=along, across=across, average=average)


def linear_compressibility(system: System, potential: Potential, **options: Any) -> Float[Array, " dim"]:
    """Shortening -d ln(length)/dp along each axis [1/GPa; in 2-D Å²/eV, of a sheet m/N]; their sum is the volume's."""
    return moduli.linear_compressibility(elastic_constants(system, potential, **options))


def universal_anisotropy(system: System, potential: Potential, **options: Any) -> Float[Array, ""]:
    """The distance between the bounds on an untextured polycrystal's moduli; 0 for an isotropic solid. See `moduli`."""
    return moduli.universal_anisotropy(elastic_constants(system, potential, **options))


def elastic_stability(system: System, potential: Potential, **options: Any) -> Float[Array, ""]:
    """The lowest stiffness against homogeneous strain [GPa; in 2-D eV/Å², of a sheet N/m]; positive in a stable crystal.

    It is the lowest eigenvalue of the symmetric part of Birch's coefficients, a criterion that holds under stress too (without
    stress it is Born's). It has a derivative where no second eigenvalue equals it.

    J. Wang, J. Li, S. Yip, S. Phillpot, D. Wolf, Phys. Rev. B 52, 12627 (1995), doi:10.1103/PhysRevB.52.12627.
    """
    return moduli.stiffnesses(elastic_constants(system, potential, **options))[0]


def _check(system: System, potential: Potential, definition: str) -> None:
    if definition not in DEFINITIONS:
        raise InputError(
            f"There are no elastic constants by the definition {definition!r}.{did_you_mean(str(definition), DEFINITIONS)}"
        )
    if any(isinstance(part, JaxMDEnergy) for part in potential.parts()):
        raise InputError("A wrapped jax-md energy hides its cell, so mdsens cannot strain it: use one of mdsens's own.")
    potential.check(system)


def is_sheet(system: System, sheet: bool | None) -> bool:
    """Return whether elastic constants are per area of a sheet in three dimensions: `sheet`, or by the periodicity."""
    return system.dim == 3 and (sum(system.pbc) == 2 if sheet is None else sheet)


def _is_sheet(system: System, sheet: bool | None) -> bool:
    """Return `is_sheet`; raise InputError for a system that is neither a bulk nor a sheet."""
    missing = system.dim - sum(system.pbc)
    if system.cell is None or missing > (0 if system.dim == 2 or sheet is False else 1):
        raise InputError(
            "Elastic constants are those of a bulk or of a sheet: the system must have a cell, periodic in all directions, or in "
            "two of three."
        )
    return is_sheet(system, sheet)


@eqx.filter_jit
def _by_definition(definition: str, curvature: Array, stress: Array, dim: int) -> Array:
    """Elastic constants from ∂²U/∂ε_k∂ε_l and ∂U/∂ε_k, both per volume."""
    strains = jnp.asarray(unit_strains(dim), stress.dtype)
    tensor = jnp.tensordot(stress, strains * (2.0 - np.eye(dim)), 1)
    product = jnp.einsum("kab,lbc,ac->kl", strains, strains, tensor)
    turning = product + product.T  # σ:(e_k e_l + e_l e_k)
    if definition == "energy":
        return curvature
    if definition == "thermodynamic":
        return curvature - 0.5 * turning
    return curvature + 0.5 * turning - jnp.outer(stress, jnp.trace(strains, axis1=1, axis2=2))


class _Response(NamedTuple):
    """Response of the energy to strains, per volume, or per area of a sheet.

    Attributes:
        curvature: ∂²U/∂ε_k∂ε_l.
        stress: ∂U/∂ε_k.
        unrest: the largest force that is left, as a share of one that moves an atom to its neighbour.
        across: sine of a sheet's tilt, or the share of its stiffness that it has across its plane, the larger; 0 for a bulk.
    """

    curvature: Float[Array, "voigt voigt"]
    stress: Float[Array, " voigt"]
    unrest: Float[Array, ""]
    across: Float[Array, ""]


@eqx.filter_jit
def _response(system: System, potential: Potential, relaxed: bool, flat: bool) -> _Response:
    if _is_stored(system, potential):
        known = stored_derivatives(system, potential)
        slopes, curvature = known.slopes, _stored_curvature(system, known, relaxed)
    else:
        slopes, curvature = traced_slopes(system, potential, deforms=True), _strain_curvature(system, potential, relaxed)
    return _per_volume(system, potential.ranges, slopes, curvature, relaxed, flat)


def _known_response(system: System, potential: Potential, relaxed: bool, flat: bool) -> _Response:
    """Return what `_response` does, by programs that a relaxation has compiled [host]."""
    slopes, ranges = energy_and_slopes(system, potential, deforms=True), np.asarray(potential.ranges)
    unit = CellFreedom(np.asarray(unit_strains(system.dim)), np.ones(()), np.zeros(()), None)  # type: ignore[arg-type]  # of NumPy
    reference = reference_at(system, unit)
    if relaxed and is_assembled(reference, potential):
        return _volume_response(system, ranges, slopes, _assembled_curvature(reference, potential), relaxed, flat)
    stiffness, neighbors = second_derivatives(system, potential)
    return _stored_response(system, ranges, StoredDerivatives(slopes, stiffness, neighbors), relaxed, flat)


def _assembled_curvature(reference: Reference, potential: Potential) -> Any:
    """∂²U/∂ε_k∂ε_l [eV], by the matrix of all second derivatives [host]; NaN where it is not positive between atoms."""
    matrix, size = assemble(reference.start, Landscape(reference, potential)).matrix, reference.system.positions.size
    acting = np.flatnonzero(np.diff(matrix.indptr)[:size])
    active = np.zeros(reference.held.shape, bool)
    active.ravel()[acting] = True
    basis = reference.motions.basis(reference.system.positions, active, np)[acting]
    among, mixed, strains = (part.toarray() for part in (matrix[acting][:, acting], matrix[size:, acting], matrix[size:, size:]))
    stiff = np.abs(np.diag(among)).max(initial=0.0)
    mixed = mixed - (mixed @ basis) @ basis.T
    if len(acting) <= basis.shape[1]:
        # Atoms that can only move together, which costs nothing.
        return strains
    try:
        factor = scipy.linalg.cho_factor(among + stiff * (basis @ basis.T))
    except np.linalg.LinAlgError:
        return np.full(strains.shape, np.nan)
    curvature = strains - mixed @ scipy.linalg.cho_solve(factor, mixed.T)
    return 0.5 * (curvature + curvature.T)


@eqx.filter_jit
def _stored_response(system: System, ranges: Any, known: StoredDerivatives, relaxed: bool, flat: bool) -> _Response:
    """Return what `_response` does, from known derivatives of the energy."""
    return _per_volume(system, ranges, known.slopes, _stored_curvature(system, known, relaxed), relaxed, flat)


def _per_volume(system: System, ranges: Any, slopes: Slopes, curvature: Array, relaxed: bool, flat: bool) -> _Response:
    stress = jnp.einsum("ab,kab->k", slopes.deformation, _strains(system))
    # No other check sees the list of traced positions.
    assert system.neighbors is not None
    stale = system.neighbors.is_stale(*jax.lax.stop_gradient((system.positions, ranges)))
    size, across = system.volume, jnp.zeros(())
    if flat:
        chosen, size, across = _plane(system, curvature, relaxed)
        curvature, stress = curvature[chosen][:, chosen], stress[chosen]
    unit = jnp.where(stale | (across > SHEET_TOLERANCE), jnp.nan, NEWTON_PER_METRE if flat else stress_unit(system.dim)) / size
    unrest = jnp.zeros(())
    if relaxed:
        left = jnp.max(jnp.linalg.norm(jnp.where(system.frozen[:, None], 0.0, slopes.positions), axis=1))
        apart = jnp.minimum((size / len(system)) ** (1.0 / (2 if flat else system.dim)), jnp.max(ranges))
        # All bonds of an atom hold it, and a strain stretches a part of them by a part of their length.
        unrest = jax.lax.stop_gradient(left * apart * len(system) / (BOND_STIFFNESS * jnp.max(jnp.abs(curvature))))
    return _Response(jnp.where(unrest > MAX_FORCE_SHARE, jnp.nan, unit) * curvature, unit * stress, unrest, across)


def _is_stored(system: System, potential: Potential) -> bool:
    return is_stored(Reference(system, None), potential)  # type: ignore[arg-type]  # no rigid motions are asked for


def _strains(system: System) -> Array:
    return jnp.asarray(unit_strains(system.dim), system.positions.dtype)


_volume_response: Any = eqx.filter_jit(_per_volume)


def _plane(system: System, curvature: Array, relaxed: bool) -> tuple[Array, Array, Array]:
    """Indices of the strains in the plane of a sheet, the area of its cell, and `_Response.across`."""
    cell = system.cell
    assert cell is not None
    sides = jnp.stack([jnp.cross(cell[k - 2], cell[k - 1]) for k in range(3)])
    stiff = jnp.abs(jax.lax.stop_gradient(curvature))
    if all(system.pbc):
        axis = jnp.argmin(jnp.diagonal(stiff)[:3])
        side = sides[jnp.argmax(jnp.abs(cell[:, axis]))]
    else:
        side = sides[system.pbc.index(False)]
        axis = jnp.argmax(jnp.abs(side))
    area = jnp.linalg.norm(side)
    across = jnp.sqrt(jnp.sum(jnp.where(jnp.arange(3) == axis, 0.0, side) ** 2)) / area
    chosen = jnp.array([[1, 2, 3], [0, 2, 4], [0, 1, 5]])[axis]
    if all(system.pbc) and relaxed:
        outside = jnp.ones(len(stiff), bool).at[chosen].set(False)
        across = jnp.maximum(across, jnp.max(jnp.where(outside, jnp.max(stiff, axis=1), 0.0)) / jnp.max(stiff))
    return chosen, area, jax.lax.stop_gradient(across)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _stored_curvature(system: System, known: StoredDerivatives, relaxed: bool) -> Array:
    """∂²U/∂ε_k∂ε_l [eV], where second derivatives of the atoms' energies are stored."""
    return _stored_form(system, known, _stored_displacements(system, known, relaxed))


@_stored_curvature.defjvp
def _stored_curvature_jvp(relaxed: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    system, known = primals
    # Second derivatives go through the displacements, as through all other arguments of the first.
    displacements = _stored_displacements(system, known, relaxed)

    def form(positions: Array, cell: Array, slope: Array, stiffness: LocalStiffness) -> Array:
        moved = with_fields(system, positions=positions, cell=cell)
        changed = known._replace(slopes=known.slopes._replace(positions=slope), stiffness=stiffness)
        return _stored_form(moved, changed, displacements)

    def parts(system: System, known: StoredDerivatives) -> tuple[Any, ...]:
        return system.positions, system.cell, known.slopes.positions, known.stiffness

    return jax.jvp(form, parts(*primals), parts(*tangents))


def _stored_form(system: System, known: StoredDerivatives, displacements: Array) -> Float[Array, "voigt voigt"]:
    form = strain_form(system, known, displacements, _strains(system))
    return 0.5 * (form + form.T)


def _stored_displacements(system: System, known: StoredDerivatives, relaxed: bool) -> Float[Array, "voigt atoms dim"]:
    """The non-affine displacements λ, zero for frozen atoms and rattlers; NaN where the solve fails."""
    strains = _strains(system)
    if not relaxed:
        return jnp.zeros((len(strains), *system.positions.shape), system.positions.dtype)
    reference = Reference(system, None)  # type: ignore[arg-type]  # the null space is computed below
    product = hessian_operator.StoredOperator(system.positions, reference, known.neighbors, known.stiffness, None)
    change = jnp.where(system.frozen[:, None], 0.0, strain_slopes(system, known, strains))
    return _solve_displacements(system, product, change)


def _solve_displacements(system: System, product: Callable[[Array], Array], change: Array) -> Array:
    null = jax.lax.stop_gradient(_null_space(system, product))

    def solve(b: Array) -> Array:
        return linear_solve(product, -b.ravel(), solver=SOLVER, symmetric=True, null_space=null, throw=False)[0]

    # One right-hand side at a time: the working set of one product fills the cache.
    return jax.lax.map(solve, change).reshape(change.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _strain_curvature(system: System, potential: Potential, relaxed: bool) -> Array:
    """∂²U/∂ε_k∂ε_l [eV]."""
    return _form(system, potential, _displacements(system, potential, relaxed))


@_strain_curvature.defjvp
def _strain_curvature_jvp(relaxed: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    system, potential = primals
    # Second derivatives go through the displacements, as through all other arguments of the first.
    displacements = _displacements(system, potential, relaxed)
    state = (tangents[0].positions, tangents[0].cell, tangents[1])
    # The slopes do not depend on the direction: many directions, or cotangents, cost as much as one.
    slopes = _form_slopes(system, potential, displacements)
    parts = jax.tree.map(lambda slope, tangent: jnp.tensordot(slope, tangent, tangent.ndim), slopes, state)
    count = len(displacements)
    rows, columns = np.triu_indices(count)
    order = np.zeros((count, count), dtype=int)
    order[rows, columns] = order[columns, rows] = np.arange(len(rows))
    return _form(system, potential, displacements), jnp.asarray(sum(jax.tree.leaves(parts)))[order]


def _displacements(system: System, potential: Potential, relaxed: bool) -> Float[Array, "voigt atoms dim"]:
    """The non-affine displacements λ, zero for frozen atoms and rattlers; NaN where the solve fails."""
    shape, count = system.positions.shape, len(unit_strains(system.dim))
    if not relaxed:
        return jnp.zeros((count, *shape), system.positions.dtype)
    u, strain = _undeformed(system)
    force = jax.grad(_deformed_energy(system, potential))
    change = jax.lax.map(lambda unit: jax.jvp(lambda s: force(u, s), (strain,), (unit,))[1], jnp.eye(count, dtype=strain.dtype))
    reference = Reference(system, None)  # type: ignore[arg-type]  # the null space is computed below
    product = hessian_operator.hessian_operator(system.positions, Landscape(reference, potential))
    return _solve_displacements(system, product, change)


def _null_space(system: System, product: Callable[[Array], Array]) -> NullSpace:
    """The null space of the Hessian: frozen atoms and rattlers, and translations of the others where none is frozen."""
    forces = lambda v: product(v).reshape(system.positions.shape)  # noqa: E731
    active = ~system.frozen & coupled_atoms(forces, system.positions.ravel())
    free = jnp.where(jnp.any(system.frozen), 0.0, 1.0) / jnp.sqrt(jnp.maximum(jnp.sum(active), 1))
    translations = jnp.where(active[:, None, None], free * jnp.eye(system.dim, dtype=system.positions.dtype), 0.0)
    return NullSpace(jnp.repeat(active, system.dim), translations.reshape(-1, system.dim))


def _form(system: System, potential: Potential, displacements: Array) -> Float[Array, "voigt voigt"]:
    """Q((λ_k, e_k), (λ_l, e_l)) [eV]."""
    zero = _undeformed(system)
    slope = jax.grad(_deformed_energy(system, potential), argnums=(0, 1))
    directions = (displacements, jnp.eye(len(displacements), dtype=displacements.dtype))
    force, stress = jax.lax.map(lambda direction: jax.jvp(slope, zero, direction)[1], directions)
    form = stress + jnp.einsum("kia,lia->kl", force, displacements)
    return 0.5 * (form + form.T)


def _form_slopes(system: System, potential: Potential, displacements: Array) -> Any:
    """∂Q/∂(positions, cell, potential) at fixed λ for each pair of strains, in the order of `np.triu_indices`."""
    zero, count = _undeformed(system), len(displacements)
    units = jnp.eye(count, dtype=displacements.dtype)

    def slope(u: Array, strain: Array) -> Any:
        def energy(positions: Array, cell: Array, potential: Potential) -> Array:
            state = eqx.tree_at(lambda s: (s.positions, s.cell), system, (positions, cell))
            return _deformed_energy(state, potential)(u, strain)

        return jax.grad(energy, argnums=(0, 1, 2))(system.positions, system.cell, potential)

    def second(pair: tuple[Array, Array]) -> Any:
        first, other = ((displacements[k], units[k]) for k in pair)
        return jax.jvp(lambda *at: jax.jvp(slope, at, first)[1], zero, other)[1]

    return jax.lax.map(second, tuple(jnp.asarray(index) for index in np.triu_indices(count)))


def _deformed_energy(system: System, potential: Potential) -> Callable[[Array, Array], Array]:
    """Return the energy U(u, ε) as a function, ε in Voigt's notation [eV]."""
    strains = jnp.asarray(unit_strains(system.dim), system.positions.dtype)

    def energy(u: Array, strain: Array) -> Array:
        deformation = jnp.eye(system.dim, dtype=strain.dtype) + jnp.tensordot(strain, strains, 1)
        return total_energy(potential, system.with_positions(system.positions + u).deformed(deformation))

    return energy


def _undeformed(system: System) -> tuple[Array, Array]:
    return jnp.zeros_like(system.positions), jnp.zeros(len(unit_strains(system.dim)), system.positions.dtype)
