"""Second derivatives of an equilibrium in its potential's parameters: products with Hessians, and Taylor's series."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens.common.errors import InputError, LinearSolveError
from mdsens.common.suggestions import suggest_names
from mdsens.derivatives.first_order import check_finite, check_scalar, observed, value_and_gradient
from mdsens.derivatives.linear_response import differentiable_hessian, solution
from mdsens.derivatives.selection import Direction, check_direction
from mdsens.derivatives.states import Hessians, Observable, States, map_states, prepare
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.implicit.linear_system import LinearSolver
from mdsens.mechanics.hessian import Hessian
from mdsens.mechanics.unknown import Unknown
from mdsens.potentials.base import Potential
from mdsens.structures.system import System

NO_SECOND = (
    "The linear systems of the second derivative were not solved, or the observable has none: relax further, or try "
    "linear_solver=implicit.Direct()."
)


@suggest_names
def hessian_vector(g: Observable, eq: States, direction: Direction, *, linear_solver: LinearSolver | None = None) -> Potential:
    """Return (d²g/dθ²) v, the change of an observable's total gradient along a direction v in parameter space.

    It is exact, by forward over reverse differentiation of the implicit solution: a few solves for each state, whatever the
    number of parameters; d²g/dθ² itself is never formed.

        change = ms.hessian_vector(ms.observables.volume, eq, {"sigma": 1.0}).epsilon  # d²V/dε dσ

    Args:
        g, eq: as for `value_and_gradient`.
        direction: v, potential-shaped, or steps by name: `{"sigma": 1.0}`.

    Returns:
        potential-shaped: `.sigma` is Σ_k d²g/dσdθ_k v_k.

    Raises:
        as `value_and_gradient`.
    """
    prepared, hessians, potential = prepare(g, eq, linear_solver, order=2)
    check_scalar(prepared, hessians, potential)
    product = _hessian_vector(prepared, hessians, potential, check_direction(potential, direction))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(product)):
        check_finite(prepared, hessians, potential, *jax.tree.leaves(value_and_gradient(g, eq, linear_solver=linear_solver)))
        raise LinearSolveError(NO_SECOND)
    return product


@eqx.filter_jit
def _hessian_vector(g: Observable, hessians: Hessians, potential: Potential, direction: Potential) -> Potential:
    return jax.jvp(jax.grad(lambda parameters: _total(g, hessians, parameters)), (potential,), (direction,))[1]


def derivatives_along(
    g: Observable, eq: States, direction: Direction, *, linear_solver: LinearSolver | None = None
) -> tuple[Array, Array]:
    """Return `(dg/dt, d²g/dt²)` of an array-valued observable along θ + t v, by a few linear solves for each state.

    Args:
        g, eq: as for `value_and_jacobian`.
        direction: v, as for `hessian_vector`.

    Raises:
        as `hessian_vector`.
    """
    g, hessians, potential = prepare(g, eq, linear_solver, order=2)
    first, second = _derivatives_along(g, hessians, potential, check_direction(potential, direction))
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        check_finite(g, hessians, potential, first)
        raise LinearSolveError(NO_SECOND)
    return first, second


@eqx.filter_jit
def _derivatives_along(g: Observable, hessians: Hessians, potential: Potential, direction: Potential) -> tuple[Array, Array]:
    def along(t: Array) -> Array:
        return _total(g, hessians, step_along(potential, direction, t))

    zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(potential)))
    return jax.jvp(lambda t: jax.jvp(along, (t,), (jnp.ones_like(t),))[1], (zero,), (jnp.ones_like(zero),))


def _total(g: Observable, hessians: Hessians, parameters: Potential) -> Array:
    """Return g at the equilibria of other parameters."""
    z = map_states(lambda hessian: solution(hessian, parameters), hessians)
    return observed(g, hessians)(z, parameters)


@dataclasses.dataclass(frozen=True)
class Taylor:
    """The equilibrium along θ + t v to second order in t: z(t) = z + t z' + ½ t² z''.

    Attributes:
        positions: `(dX/dt, d²X/dt²)`, each `(N, dim)` [Å].
        cell: `(dh/dt, d²h/dt²)` of a free cell, each `(dim, dim)`; None for a fixed one.
        first, second: z' and z'', flat.
        hessian: at the start.
        potential, direction: θ and v.
    """

    positions: tuple[Float[Array, "atoms dim"], Float[Array, "atoms dim"]]
    cell: tuple[Float[Array, "dim dim"], Float[Array, "dim dim"]] | None
    first: Float[Array, " n"] = dataclasses.field(repr=False)
    second: Float[Array, " n"] = dataclasses.field(repr=False)
    hessian: Hessian = dataclasses.field(repr=False)
    potential: Potential
    direction: Potential

    def unknown(self, t: float, order: int = 2) -> Unknown | Array:
        """Return z(t) to first or second order."""
        flat, unravel = ravel_pytree(self.hessian.z)
        return unravel(flat + t * self.first + (0.5 * t**2 * self.second if order == 2 else 0.0))

    def system(self, t: float, order: int = 2) -> System:
        """Return the structure at z(t)."""
        return self.hessian.reference.place(self.unknown(t, order))

    def parameters(self, t: float) -> Potential:
        """Return θ + t v."""
        return step_along(self.potential, self.direction, t)


@suggest_names
def taylor(eq: Equilibrium, direction: Direction, *, linear_solver: LinearSolver | None = None) -> Taylor:
    """Compute dX/dt and d²X/dt² along one direction in parameter space, by a few linear solves.

        guess = ms.taylor(eq, {"sigma": 1.0}).system(0.01)  # the structure at sigma + 0.01

    Args:
        direction: v, potential-shaped, or steps by name: `{"sigma": 1.0}`.

    Raises:
        InputError: a direction that is not of the potential's shape.
        ConvergenceError, LinearSolveError: as for `sensitivity`.
    """
    hessian = differentiable_hessian(eq, linear_solver)
    direction = check_direction(eq.potential, direction)
    first, second, placed = _taylor(hessian, eq.potential, direction)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise LinearSolveError(
            "The linear systems of the second derivative were not solved: relax further, or try linear_solver=implicit.Direct()."
        )
    positions, cell = zip(*placed, strict=True)
    return Taylor(positions, None if hessian.reference.freedom is None else cell, first, second, hessian, eq.potential, direction)


@eqx.filter_jit
def _taylor(hessian: Hessian, potential: Potential, direction: Potential) -> tuple[Array, Array, Any]:
    def along(t: Array) -> tuple[Array, Any]:
        z = solution(hessian, step_along(potential, direction, t))
        system = hessian.reference.place(z)
        cell = jnp.zeros(()) if hessian.reference.freedom is None else system.cell
        return ravel_pytree(z)[0], (system.positions, cell)

    def slope(t: Array) -> tuple[Array, Any]:
        return jax.jvp(along, (t,), (jnp.ones_like(t),))[1]

    zero = jnp.zeros((), ravel_pytree(hessian.z)[0].dtype)
    (first, placed), (second, bent) = jax.jvp(slope, (zero,), (jnp.ones_like(zero),))
    return first, second, (placed, bent)


def step_along(potential: Potential, direction: Potential, t: float | Array) -> Potential:
    """Return θ + t v."""
    return jax.tree.map(lambda theta, step: theta + t * step, potential, direction)


def direction_to(potential: Potential, new: Potential) -> Potential:
    """Return the difference of two potentials of the same kind.

    Raises:
        InputError: another class, other settings or other species.
    """
    if jax.tree.structure(new) != jax.tree.structure(potential):  # type: ignore[operator]  # of jax's stubs
        raise InputError(
            f"The new potential is not of the same kind: it must be a {type(potential).__name__} with the same settings "
            "and keys, so that only its parameters differ."
        )
    return jax.tree.map(lambda a, b: jnp.asarray(b, a.dtype) - a, potential, new)
