"""Derivatives of an equilibrium in its loads: pressure, and homogeneous strain."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.common.same_function import same_function
from mdsens.common.suggestions import suggest_names
from mdsens.common.units import stress_unit
from mdsens.common.voigt import unit_strains
from mdsens.derivatives.first_order import check_finite, observable_shape, observed
from mdsens.derivatives.linear_response import check_residual, differentiable_hessian
from mdsens.derivatives.states import Observable
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.implicit import root_jvp
from mdsens.implicit.linear_system import LinearSolver
from mdsens.mechanics.hessian import Hessian
from mdsens.mechanics.unknown import Unknown
from mdsens.potentials.base import total_energy
from mdsens.structures.system import System


@suggest_names
def pressure_derivative(g: Observable, eq: Equilibrium, *, linear_solver: LinearSolver | None = None) -> Array:
    """Return dg/dp of an observable where the cell is free: positions and cell follow the pressure, by one solve.

    The derivative of the volume is -V/K. A pressure is added to a stress that is not hydrostatic.

        bulk_modulus = -volume / ms.pressure_derivative(ms.observables.volume, eq)  # [GPa]

    Returns:
        of g's shape [per GPa; in 2-D per eV/Å²].

    Raises:
        InputError: a fixed cell; an observable that is not real or not finite.
        ConvergenceError, LinearSolveError: as for `sensitivity`.
    """
    hessian = differentiable_hessian(eq, linear_solver, parameters=False)
    if hessian.reference.freedom is None:
        raise InputError('A pressure acts on a cell that may change only: relax with cell="free" or cell="isotropic".')
    if not all(eq.system.pbc):
        raise InputError("A pressure needs a cell that is periodic in all directions: this one has no volume of its own.")
    return _checked_derivative(_by_pressure, g, hessian)


def _checked_derivative(by: Callable[..., tuple[Array, Array]], g: Observable, hessian: Hessian) -> Array:
    """Return the derivative that `by` computes, with its solve and its numbers checked."""
    g = same_function(g)
    observable_shape(g, hessian, hessian.potential)
    change, residual = by(g, hessian)
    check_residual(float(residual), hessian)
    check_finite(g, hessian, hessian.potential, change)
    return change


@eqx.filter_jit
def _by_pressure(g: Observable, hessian: Hessian) -> tuple[Array, Array]:
    reference, potential, unit = hessian.reference, hessian.potential, stress_unit(hessian.reference.system.dim)
    freedom = reference.freedom
    assert freedom is not None

    def condition(z: Unknown | Array, pressure: Array) -> Unknown | Array:
        loaded = eqx.tree_at(lambda f: f.freedom.pressure, reference, freedom.pressure + pressure / unit)
        return eqx.tree_at(lambda s: s.reference, hessian, loaded).condition(z, potential)

    options = {"operator": lambda z, _: hessian.product(z), "linear_solver": hessian.solver, **hessian.options}
    zero = jnp.zeros_like(freedom.pressure)
    dz, residual = root_jvp(condition, hessian.z, (zero,), (jnp.ones_like(zero),), project=True, probe=False, **options)
    return jax.jvp(lambda z: observed(g, hessian)(z, potential), (hessian.z,), (dz,))[1], residual


@suggest_names
def strain_derivative(g: Observable, eq: Equilibrium, *, linear_solver: LinearSolver | None = None) -> Array:
    """Return dg/dε_k of an observable under homogeneous strain of a fixed cell with relaxed atoms, by one solve a strain.

    The derivative of the stress is Birch's matrix of elastic constants; that of positions is both affine and non-affine.

    Returns:
        `(*g.shape, 6)`, in 2-D `(*g.shape, 3)`, in Voigt's order with shears γ = 2ε.

    Raises:
        InputError: a cell that is free, or not periodic in all directions; constraints; an observable that is not real or not
            finite.
        ConvergenceError, LinearSolveError: as for `sensitivity`.
    """
    hessian = differentiable_hessian(eq, linear_solver, parameters=False)
    if hessian.reference.freedom is not None or not all(eq.system.pbc):
        raise InputError('A strain is applied to a fixed cell that is periodic in all directions: relax with cell="fixed".')
    if eq.constraints is not None:
        raise InputError("strain_derivative knows frozen atoms only, no other constraints: how would they strain?")
    return _checked_derivative(_by_strain, g, hessian)


@eqx.filter_jit
def _by_strain(g: Observable, hessian: Hessian) -> tuple[Array, Array]:
    system, potential, dim = hessian.reference.system, hessian.potential, hessian.reference.system.dim
    units = jnp.asarray(unit_strains(dim), system.positions.dtype)

    def strained(x: Array, strain: Array) -> System:
        return system.with_positions(x).deformed(jnp.eye(dim, dtype=strain.dtype) + jnp.tensordot(strain, units, 1))

    def condition(x: Array, strain: Array) -> Array:
        slope = jax.grad(lambda x: total_energy(potential, strained(x, strain)))(x)
        return jnp.where(hessian.reference.held, 0.0, slope)

    options = {"operator": lambda x, _: hessian.product(x), "linear_solver": hessian.solver, **hessian.options}
    zero = jnp.zeros(len(units), system.positions.dtype)

    def along(unit: Array) -> tuple[Array, Array]:
        dx, residual = root_jvp(condition, hessian.z, (zero,), (unit,), project=True, probe=False, **options)
        change = jax.jvp(lambda x, strain: jnp.asarray(g(strained(x, strain), potential)), (hessian.z, zero), (dx, unit))[1]
        return change, residual

    changes, residuals = jax.lax.map(along, jnp.eye(len(units), dtype=zero.dtype))
    return jnp.moveaxis(changes, 0, -1), jnp.max(residuals)
