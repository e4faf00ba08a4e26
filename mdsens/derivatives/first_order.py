"""Derivatives of an equilibrium with respect to every parameter of its potential.

Forward: dz/dθ = -A⁻¹B, one solve a parameter. Adjoint: dg/dθ = ∂g/∂θ - (A⁻ᵀ ∂g/∂z)ᵀB, one solve for all parameters.
z is the unknown of the equilibrium (positions, the cell's strain, multipliers); see `mdsens.derivatives.linear_response`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens.common.by_values import WantsValues, asking
from mdsens.common.errors import InputError, explain_untraceable
from mdsens.common.suggestions import suggest_names
from mdsens.derivatives import linear_response
from mdsens.derivatives.from_values import derivatives_so_far, forward_from_values, has_values
from mdsens.derivatives.nonfinite import explain_nonfinite
from mdsens.derivatives.selection import Direction, check_direction
from mdsens.derivatives.states import (
    Hessians,
    Observable,
    States,
    displacements,
    hessian_list,
    is_several,
    map_states,
    named_hessians,
    of_each,
    prepare,
    unknowns_of,
)
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.implicit.linear_system import LinearSolver
from mdsens.mechanics.hessian import BATCHED_SIZE, Hessian
from mdsens.potentials.base import Potential


@overload
def value_and_gradient(g: Observable, eq: States, *, linear_solver: LinearSolver | None = None) -> tuple[Array, Potential]: ...
@overload
def value_and_gradient(
    g: Observable, eq: Sequence[Equilibrium], *, linear_solver: LinearSolver | None = None
) -> list[tuple[Array, Potential]]: ...
@suggest_names
def value_and_gradient(g: Observable, eq: Any, *, linear_solver: LinearSolver | None = None) -> Any:
    """Return an observable and its total derivative in every parameter, by one adjoint solve for each state.

    Args:
        g: `g(system, potential)` → a real scalar, made of `jax.numpy`.
        eq: an equilibrium; or several of one potential by name, and then g takes a dict of systems:
            `g = lambda states, potential: potential.energy(states["saddle"]) - potential.energy(states["minimum"])`. Of a list
            g is asked for each, and the results are a list.

    Returns:
        `(value, dg)`, dg being potential-shaped: `dg.sigma`.

    Raises:
        InputError: g is not scalar (see `jacobian`), not real, not finite or not differentiable; states of several
            potentials.
        ConvergenceError, LinearSolveError: as for `sensitivity`.
    """
    if is_several(eq):
        return of_each(lambda one: value_and_gradient(g, one, linear_solver=linear_solver), eq, None, "gradients")
    g, hessians, potential = prepare(g, eq, linear_solver)
    check_callable(g)
    try:
        with asking(has_values(g, hessians, potential)), explain_untraceable("The observable", "g(system, potential) -> array"):
            value, slopes, explicit = _slopes(g, hessians, potential)
    except WantsValues:
        value, matrix = _from_values(g, hessians, potential)
        _check_scalar(value)
        return value, linear_response.split_last_axis(matrix, potential)
    slopes, explicit = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (slopes, explicit))
    implicit, residuals = _pulled(hessians, slopes)
    total = linear_response.split_last_axis(_raveled(explicit)[0] + implicit[0], potential)
    _check(g, hessians, potential, residuals, value, *jax.tree.leaves(total))
    return value, total


@overload
def gradient(g: Observable, eq: States, *, linear_solver: LinearSolver | None = None) -> Potential: ...
@overload
def gradient(g: Observable, eq: Sequence[Equilibrium], *, linear_solver: LinearSolver | None = None) -> list[Potential]: ...
@suggest_names
def gradient(g: Observable, eq: Any, *, linear_solver: LinearSolver | None = None) -> Any:
    """Return the total derivative of a scalar observable: `gradient(observables.volume, eq).sigma`; see `value_and_gradient`."""
    found = value_and_gradient(g, eq, linear_solver=linear_solver)
    return [derivative for _, derivative in found] if is_several(eq) else found[1]


@overload
def jacobian(g: Observable, eq: States, *, linear_solver: LinearSolver | None = None) -> Potential: ...
@overload
def jacobian(g: Observable, eq: Sequence[Equilibrium], *, linear_solver: LinearSolver | None = None) -> list[Potential]: ...
@suggest_names
def jacobian(g: Observable, eq: Any, *, linear_solver: LinearSolver | None = None) -> Any:
    """Return the total derivative of an array-valued observable; see `value_and_jacobian`."""
    found = value_and_jacobian(g, eq, linear_solver=linear_solver)
    return [derivative for _, derivative in found] if is_several(eq) else found[1]


@overload
def value_and_jacobian(g: Observable, eq: States, *, linear_solver: LinearSolver | None = None) -> tuple[Array, Potential]: ...
@overload
def value_and_jacobian(
    g: Observable, eq: Sequence[Equilibrium], *, linear_solver: LinearSolver | None = None
) -> list[tuple[Array, Potential]]: ...
@suggest_names
def value_and_jacobian(g: Observable, eq: Any, *, linear_solver: LinearSolver | None = None) -> Any:
    """Return an array-valued observable and its total derivative, whose leaves have shape `(*g.shape, *θ.shape)`.

    It goes forward (one solve a parameter) or backward (one adjoint solve a component of g), whichever needs fewer solves. Of a
    list of equilibria the results are a list.

    Raises:
        as `value_and_gradient`.
    """
    if is_several(eq):
        return of_each(lambda one: value_and_jacobian(g, one, linear_solver=linear_solver), eq, None, "jacobians")
    g, hessians, potential = prepare(g, eq, linear_solver)
    try:
        with asking(has_values(g, hessians, potential)):
            shape = observable_shape(g, hessians, potential)
    except WantsValues:
        value, matrix = _from_values(g, hessians, potential)
        return value, linear_response.split_last_axis(matrix, potential)
    count = sum(leaf.size for leaf in jax.tree.leaves(potential))
    forward = count <= shape.size
    rows: list[np.ndarray] = []
    residuals: list[np.ndarray] = []
    for directions in linear_response.batches(count if forward else shape.size, potential.dtype, None):
        row, residual, value = (_forward_rows if forward else _adjoint_rows)(g, hessians, potential, directions)
        rows.append(row)
        residuals.append(residual)
    # The last batch was filled up.
    matrix = np.concatenate(rows)[: count if forward else shape.size]
    _check(g, hessians, potential, np.max(np.concatenate(residuals, axis=1), axis=1, initial=0.0), value, matrix)
    matrix = np.moveaxis(matrix, 0, -1) if forward else matrix.reshape(*shape.shape, count)
    return value, linear_response.split_last_axis(matrix, potential)


Displacement = tuple[Float[Array, "atoms dim"], Float[Array, "dim dim"] | None]


@overload
def jvp(
    eq: Equilibrium, direction: Direction, *, linear_solver: LinearSolver | None = None, return_cell: Literal[False] = False
) -> Float[Array, "atoms dim"]: ...
@overload
def jvp(
    eq: Equilibrium, direction: Direction, *, linear_solver: LinearSolver | None = None, return_cell: Literal[True]
) -> Displacement: ...
@suggest_names
def jvp(
    eq: Equilibrium, direction: Direction, *, linear_solver: LinearSolver | None = None, return_cell: bool = False
) -> Float[Array, "atoms dim"] | Displacement:
    """Return dX along one direction in parameter space, by one solve [Å].

        displacement = ms.jvp(eq, {"sigma": 0.01})  # (N, dim), to first order

    Args:
        direction: potential-shaped, None where nothing moves; or steps by name or path, `{"sigma": 1.0, "epsilon.A-B": 0.1}`.
        return_cell: return `(dX, dh)`, dh being the cell's change, None for a fixed one.

    Raises:
        InputError: a direction that is not of the potential's shape.
        ConvergenceError, LinearSolveError: as for `sensitivity`.
    """
    hessian = linear_response.differentiable_hessian(eq, linear_solver)
    dz, residual = linear_response.along(hessian, check_direction(eq.potential, direction))
    linear_response.check_residual(residual, hessian)
    moved, strained = displacements(hessian, dz[None].astype(hessian.dtype))
    positions, cell = jnp.asarray(moved[0]), None if strained is None else jnp.asarray(strained[0])
    return (positions, cell) if return_cell else positions


def check_finite(g: Observable, hessians: Hessians, potential: Potential, *arrays: Any) -> None:
    """Raise InputError where an observable or its derivative is not finite."""
    if not all(np.isfinite(a).all() for a in arrays):
        systems = map_states(lambda hessian: hessian.reference.system, hessians)
        raise InputError(
            "The observable or its derivative is not finite at the equilibrium: it must be finite and differentiable there. "
            f"{explain_nonfinite(g, systems, potential)}".strip()
        )


def observed(g: Observable, hessians: Hessians) -> Callable[[Any, Potential], Array]:
    """Return g as a function of `(z, potential)`, z being the unknown of the state, or those of the states by name."""

    def value(z: Any, potential: Potential) -> Array:
        if isinstance(hessians, Hessian):
            return jnp.asarray(g(hessians.reference.place(z), potential))
        return jnp.asarray(g({name: hessian.reference.place(z[name]) for name, hessian in hessians.items()}, potential))

    return value


def _pulled(hessians: Hessians, slopes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return `(the implicit parts of gradients (k, parameters), residuals (states, k))` from k slopes in the unknowns [host]."""
    gradients, residuals = [], []
    for name, hessian in named_hessians(hessians):
        gradient, residual = linear_response.adjoint_gradients(hessian, _raveled(slopes if name is None else slopes[name]))
        gradients.append(gradient)
        residuals.append(residual)
    return np.sum(gradients, axis=0), np.stack(residuals)


def _raveled(tree: Any) -> np.ndarray:
    """Return a tree of arrays as rows, `(k, numbers)`; of arrays without an axis of rows as one row."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _map_rows(row: Callable[..., Any], hessians: Hessians) -> Callable[..., Any]:
    """Return a function of many directions: together in small systems, one after the other where one fills the cache."""
    if sum(hessian.size for hessian in hessian_list(hessians)) <= BATCHED_SIZE:
        return jax.vmap(row)
    return lambda directions: jax.lax.map(row, directions)


@eqx.filter_jit
def _slopes(g: Observable, hessians: Hessians, potential: Potential) -> tuple[Array, Any, Potential]:
    """Return an observable and its explicit derivatives in the unknowns and in θ."""

    def scalar(z: Any, potential: Potential) -> Array:
        value = observed(g, hessians)(z, potential)
        # While it is traced: once for each observable.
        _check_scalar(value)
        return value

    value, pullback = jax.vjp(scalar, unknowns_of(hessians), potential)
    return value, *pullback(jnp.ones_like(value))


@eqx.filter_jit
def _slope_rows(g: Observable, hessians: Hessians, potential: Potential, directions: np.ndarray) -> tuple[Any, Potential, Array]:
    """Return the explicit derivatives of weighted sums of an observable's components, one for each direction."""
    value, pullback = jax.vjp(observed(g, hessians), unknowns_of(hessians), potential)
    return *_map_rows(lambda weights: pullback(weights.reshape(value.shape)), hessians)(directions), value


def _adjoint_rows(
    g: Observable, hessians: Hessians, potential: Potential, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Array]:
    slopes, explicit, value = _slope_rows(g, hessians, potential, directions)
    implicit, residuals = _pulled(hessians, slopes)
    return _raveled(explicit) + implicit, residuals, value


def _forward_rows(
    g: Observable, hessians: Hessians, potential: Potential, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Array]:
    moved, residuals = {}, []
    for name, hessian in named_hessians(hessians):
        columns, residual = linear_response.along_all(hessian, directions)
        moved[name] = columns.astype(hessian.dtype)
        residuals.append(residual)
    rows, value = _changes(g, hessians, potential, directions, moved.get(None, moved))
    return np.asarray(rows), np.stack(residuals), value


def _from_values(g: Observable, hessians: Hessians, potential: Potential) -> tuple[Array, np.ndarray]:
    """Return an observable and its derivatives in all parameters, along a last axis.

    The first time it is traced as a whole, so that what could not be compiled later on is refused from the start; mdsens's own
    can.
    """
    own = getattr(g, "__module__", "").startswith("mdsens.")
    if not own and derivatives_so_far(g, hessians, potential) == 0:
        observable_shape(g, hessians, potential)
    value, matrix, residuals = forward_from_values(g, hessians, potential)
    _check_real(value)
    _check(g, hessians, potential, residuals, value, matrix)
    return value, matrix


@eqx.filter_jit
def _changes(g: Observable, hessians: Hessians, potential: Potential, directions: np.ndarray, moved: Any) -> tuple[Array, Array]:
    """Return the changes of an observable along directions in θ, the unknowns changing with them."""
    unknowns, unravel = unknowns_of(hessians), ravel_pytree(potential)[1]

    def change(both: Any) -> tuple[Array, Array]:
        direction, dz = both
        shaped = map_states(lambda hessian: ravel_pytree(hessian.z)[1], hessians)
        dz = shaped(dz) if isinstance(hessians, Hessian) else {name: shaped[name](dz[name]) for name in hessians}
        # The value is the same for all, and is traced once with them.
        return jax.jvp(observed(g, hessians), (unknowns, potential), (dz, unravel(direction)))

    values, changes = _map_rows(change, hessians)((directions, moved))
    return changes, values[0]


def check_scalar(g: Observable, hessians: Hessians, potential: Potential) -> None:
    """Raise InputError for an observable that is no real scalar."""
    _check_scalar(observable_shape(g, hessians, potential))


def _check_scalar(value: Any) -> None:
    _check_real(value)
    if value.shape != ():
        raise InputError(f"The observable has shape {value.shape}, not (): use jacobian(g, eq) for arrays.")


def _check_real(value: Any) -> None:
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(f"The observable is {value.dtype}: it must be real floating-point numbers to be differentiated.")


def observable_shape(g: Observable, hessians: Hessians, potential: Potential) -> jax.ShapeDtypeStruct:
    """Return the shape of an observable.

    Raises:
        InputError: it cannot be traced, or is not real.
    """
    check_callable(g)
    with explain_untraceable("The observable", "g(system, potential) -> array"):
        shape = jax.eval_shape(observed(g, hessians), unknowns_of(hessians), potential)
    _check_real(shape)
    return shape


def check_callable(g: Observable) -> None:
    """Raise InputError for what is no observable at all."""
    if not callable(g):
        raise InputError(f"An observable is a function g(system, potential), such as ms.observables.volume, not {g!r:.80}.")
    if isinstance(g, type):
        raise InputError(f"{g.__name__} makes an observable: give what {g.__name__}(...) returns.")


def _check(g: Observable, hessians: Hessians, potential: Potential, residuals: Array | np.ndarray, *arrays: Any) -> None:
    """Raise LinearSolveError for a failed solve, and InputError for an observable that is not finite although none failed."""
    solves = list(zip(hessian_list(hessians), np.asarray(residuals, dtype=float).reshape(-1).tolist(), strict=True))
    for hessian, residual in solves:
        if np.isfinite(residual):
            linear_response.check_residual(residual, hessian)
    check_finite(g, hessians, potential, *arrays)
    for hessian, residual in solves:
        linear_response.check_residual(residual, hessian)
