"""The response of an energy to strains, with atoms that follow or relax, as functions that can be traced.

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
from jaxtyping import Array, Float

from mdsens.common.modules import with_fields
from mdsens.common.units import NEWTON_PER_METRE, stress_unit
from mdsens.common.voigt import unit_strains
from mdsens.derivatives.nonfinite import MAX_FORCE_SHARE
from mdsens.implicit import CG, NullSpace, linear_solve
from mdsens.mechanics import hessian_operator
from mdsens.mechanics.hessian_operator import is_stored
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.programs import Slopes, traced_slopes
from mdsens.mechanics.rigid_motions import coupled_atoms
from mdsens.mechanics.strained_bonds import StoredDerivatives, stored_derivatives, strain_form, strain_slopes
from mdsens.mechanics.unknown import Reference
from mdsens.potentials.base import Potential, total_energy
from mdsens.potentials.forms.stored_stiffness import LocalStiffness
from mdsens.structures.system import System

SHEET_TOLERANCE = 1e-3
"""Share of its stiffness that a sheet may have across its plane, and sine of the angle at which it may be tilted."""

BOND_STIFFNESS = 8.0
"""Stiffness of an atom times the square of its distance to others, over ∂²U/∂ε² per atom: a typical value."""

SOLVER = CG(rtol=1e-11)
"""The error of the constants is of second order in that of λ, the error of their derivatives of first order."""


class StrainResponse(NamedTuple):
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
def strain_response(system: System, potential: Potential, relaxed: bool, flat: bool) -> StrainResponse:
    """Return the response of a structure, per area where it is `flat`, from `system.neighbors` as it is; pure JAX.

    Args:
        relaxed: whether atoms relax after they followed the strain.
    """
    if is_stored_in(system, potential):
        known = stored_derivatives(system, potential)
        slopes, curvature = known.slopes, _stored_curvature(system, known, relaxed)
    else:
        slopes, curvature = traced_slopes(system, potential, deforms=True), _strain_curvature(system, potential, relaxed)
    return per_volume(system, potential.ranges, slopes, curvature, relaxed, flat)


def per_volume(system: System, ranges: Any, slopes: Slopes, curvature: Array, relaxed: bool, flat: bool) -> StrainResponse:
    """Return the response from an energy's slopes and ∂²U/∂ε_k∂ε_l [eV]; NaN where the structure is not relaxed."""
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
    return StrainResponse(jnp.where(unrest > MAX_FORCE_SHARE, jnp.nan, unit) * curvature, unit * stress, unrest, across)


def is_stored_in(system: System, potential: Potential) -> bool:
    """Return whether the potential stores its second derivatives for a structure."""
    return is_stored(Reference(system, None), potential)  # type: ignore[arg-type]  # no rigid motions are asked for


def by_definition(
    definition: str, curvature: Float[Array, "voigt voigt"], stress: Float[Array, " voigt"], dim: int
) -> Float[Array, "voigt voigt"]:
    """Return elastic constants from ∂²U/∂ε_k∂ε_l and ∂U/∂ε_k, both per volume."""
    strains = jnp.asarray(unit_strains(dim), stress.dtype)
    tensor = jnp.tensordot(stress, strains * (2.0 - np.eye(dim)), 1)
    product = jnp.einsum("kab,lbc,ac->kl", strains, strains, tensor)
    turning = product + product.T  # σ:(e_k e_l + e_l e_k)
    if definition == "energy":
        return curvature
    if definition == "thermodynamic":
        return curvature - 0.5 * turning
    return curvature + 0.5 * turning - jnp.outer(stress, jnp.trace(strains, axis1=1, axis2=2))


def _strains(system: System) -> Array:
    return jnp.asarray(unit_strains(system.dim), system.positions.dtype)


def _plane(system: System, curvature: Array, relaxed: bool) -> tuple[Array, Array, Array]:
    """Indices of the strains in the plane of a sheet, the area of its cell, and `StrainResponse.across`."""
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
    return _stored_form(system, known, stored_displacements(system, known, relaxed))


@_stored_curvature.defjvp
def _stored_curvature_jvp(relaxed: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    system, known = primals
    # Second derivatives go through the displacements, as through all other arguments of the first.
    displacements = stored_displacements(system, known, relaxed)

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


def stored_displacements(system: System, known: StoredDerivatives, relaxed: bool) -> Float[Array, "voigt atoms dim"]:
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
