"""Derivatives of a solution z of F(z, θ) = 0, whatever found it: dz/dθ = -A⁻¹B with A = ∂F/∂z, B = ∂F/∂θ.

Blondel et al. 2021, section 2.1: eq. (2) for the Jacobian; "root_jvp" and "root_vjp" for its products.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import InputError, LinearSolveError
from mdsens.implicit.auxiliary import refuse_tangent
from mdsens.implicit.checks import (
    check_answer,
    check_args,
    check_closures,
    check_condition,
    check_static,
    chosen_arguments,
    outline,
)
from mdsens.implicit.linear import linear_solve
from mdsens.implicit.linear_system import LinearSolver, Matvec, NullSpace
from mdsens.implicit.optimality import FixedPointCondition
from mdsens.implicit.probes import ROOT_TOL, faults, poison, refuse_faults, require_root
from mdsens.implicit.trees import is_traced

PyTree = Any


def linearise(
    optimality: Callable[..., Any], z: PyTree, args: tuple[Any, ...], operator: Callable[..., Any] | None = None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`(A, unravel)`: u ↦ ∂F/∂z u on flat vectors, and the way back to z's structure.

    Args:
        operator: as for `root_jvp`.

    Raises:
        InputError: a condition of another structure than z's.
    """
    flat, unravel = ravel_pytree(z)
    check_condition(jax.eval_shape(lambda unknown: optimality(unknown, *args), z), z)
    if operator is not None:
        return operator(z, *args), unravel
    _, product = jax.linearize(lambda v: ravel_pytree(optimality(unravel(v), *args))[0], flat)
    return product, unravel


def root_jvp(
    optimality: Callable[..., Any],
    z: PyTree,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    null_space: NullSpace | None = None,
    precondition: Callable[..., Any] | None = None,
    operator: Callable[..., Any] | None = None,
    project: bool = False,
    probe: bool = True,
    throw: bool = True,
) -> tuple[PyTree, jax.Array]:
    """`(dz, residual)`: how the root z of `optimality(z, *args) == 0` moves when `args` moves along `tangents`.

    Args:
        optimality: F(z, *args), of the structure of z.
        tangents: like `args`, None for leaves that do not move.
        symmetric: whether ∂F/∂z is (z minimises an energy).
        linear_solver, null_space, precondition, throw: as for `linear_solve`, on z raveled.
        operator: `operator(z, *args) -> (u ↦ ∂F/∂z u)` on z raveled, where there is a faster way than to linearise F; pure
            JAX, since higher derivatives go through it.
        project: drop what of B lies along the left null space. Otherwise, where it is more than rounding, no motion of z
            keeps F = 0, and that is an error.
        probe: see that ∂F/∂z is as symmetric and has the null space that it is said to, that it is regular beyond it, and that
            F has no kink at z: otherwise no derivative exists.

    Returns:
        the tangent of z, and the relative residual of the linear system.

    Raises:
        InputError: structures that do not fit; what a probe finds on concrete values, dz is NaN there otherwise.
        LinearSolveError: a failed solve, if `throw` and the values are concrete; dz is NaN there otherwise.
    """
    options: dict[str, Any] = {
        "symmetric": symmetric,
        "linear_solver": linear_solver,
        "null_space": null_space,
        "precondition": precondition,
    }
    dz, residual, _ = _probed_jvp(
        optimality, z, args, tangents, operator=operator, project=project, probe=probe, throw=throw, **options
    )
    return dz, residual


def _probed_jvp(
    optimality: Callable[..., Any],
    z: PyTree,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    symmetric: bool,
    linear_solver: LinearSolver | None,
    null_space: NullSpace | None,
    precondition: Callable[..., Any] | None,
    operator: Callable[..., Any] | None,
    project: bool,
    probe: bool,
    throw: bool,
) -> tuple[PyTree, Array, Array | None]:
    """`(dz, residual, faults)` of `root_jvp`; without a probe the faults are None."""
    check_args(args)
    moving, resting = split_arguments(args, tangents)
    product, unravel = linearise(optimality, z, args, operator)
    found = faults(optimality, z, args, product, symmetric, null_space) if probe else None
    if found is not None:
        # At both ends: on the way from either a slope that is exactly zero, a `where`, loses what is no number.
        tangents = refuse_faults(found, z, tangents)
    _, change = jax.jvp(lambda m: optimality(z, *eqx.combine(m, resting)), (moving,), (tangents,))
    b = -ravel_pytree(change)[0]
    flat, residual = linear_solve(
        product,
        b,
        solver=linear_solver,
        symmetric=symmetric,
        null_space=null_space,
        precondition=precondition,
        project=null_space is None or project,
        # b is made of such terms as F is, and has their rounding.
        negligible=0.0 if null_space is None or project else _rounding(product, z),
        unique=probe,
        throw=throw,
    )
    dz = unravel(flat)
    return (dz if found is None else refuse_faults(found, z, dz)), residual, found


def split_arguments(args: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The leaves of `args` that have a tangent, and those that have None, each None where the other has them.

    Raises:
        InputError: tangents that are not like args.
    """
    try:
        if len(tangents) != len(args):
            raise ValueError(f"{len(tangents)} for {len(args)}")
        moving = jax.tree.map(lambda t, a: None if t is None else a, tangents, args, is_leaf=_is_none)
        resting = jax.tree.map(lambda t, a: a if t is None else None, tangents, args, is_leaf=_is_none)
        if outline(moving) != outline(tangents):
            raise ValueError(f"{outline(tangents)} for {outline(moving)}")
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"tangents must be a tuple like args, with None for what does not move ({reason}).") from None
    return moving, resting


def _rounding(product: Matvec, z: PyTree) -> Array:
    flat = ravel_pytree(z)[0]
    return jax.lax.stop_gradient(1e3 * jnp.finfo(flat.dtype).eps * jnp.linalg.norm(product(flat)))


def root_vjp(
    optimality: Callable[..., Any],
    z: PyTree,
    args: tuple[Any, ...],
    cotangent: PyTree,
    *,
    argnums: int | Sequence[int] | None = None,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    null_space: NullSpace | None = None,
    precondition: Callable[..., Any] | None = None,
    operator: Callable[..., Any] | None = None,
    probe: bool = True,
    throw: bool = True,
) -> tuple[tuple[Any, ...], jax.Array]:
    """`(dargs, residual)`: the gradient in `args` of a function of the root z whose gradient in z is `cotangent`.

    One solve with Aᵀ serves all arguments. Leaves of `args` that are no floating-point arrays give None.

    Args:
        argnums: which of `args`, as for `jax.grad`: an integer for one gradient, several for a tuple; None for all.
        precondition: M near A⁻¹, not transposed.
        others: as for `root_jvp`. The part of the cotangent along the null space has no effect, since z does not move there.

    Raises:
        as `root_jvp`.
    """
    check_args(args)
    args = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf, args)
    chosen = chosen_arguments(argnums, args)
    options: dict[str, Any] = {
        "symmetric": symmetric,
        "linear_solver": linear_solver,
        "null_space": null_space,
        "precondition": precondition,
    }
    w, residual = adjoint_solution(optimality, z, args, cotangent, operator=operator, probe=probe, throw=throw, **options)
    moving, resting = eqx.partition(args, tuple(eqx.is_inexact_array if k in chosen else False for k in range(len(args))))
    _, pullback = jax.vjp(lambda m: optimality(z, *eqx.combine(m, resting)), moving)
    slopes = pullback(jax.tree.map(jnp.negative, w))[0]
    if probe:
        slopes = jax.tree.map(functools.partial(poison, ~jnp.isfinite(ravel_pytree(w)[0]).all()), slopes)
    if argnums is None:
        return slopes, residual
    return (slopes[chosen[0]] if np.ndim(argnums) == 0 else tuple(slopes[k] for k in chosen)), residual


def adjoint_solution(
    optimality: Callable[..., Any],
    z: PyTree,
    args: tuple[Any, ...],
    cotangent: PyTree,
    *,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    null_space: NullSpace | None = None,
    precondition: Callable[..., Any] | None = None,
    operator: Callable[..., Any] | None = None,
    probe: bool = False,
    throw: bool = True,
) -> tuple[PyTree, jax.Array]:
    """`(w, residual)` with Aᵀw = the cotangent, all as for `root_vjp`: the gradient in the arguments is that of -⟨w, F⟩."""
    if outline(cotangent) != outline(z):
        raise InputError(f"The cotangent must look like the unknown, {outline(z)}, not {outline(cotangent)}.")
    product, unravel = linearise(optimality, z, args, operator)
    flat = ravel_pytree(cotangent)[0]
    helper, null = precondition, null_space
    transposed = product
    if not symmetric:
        transposed = _transpose(product, flat)
        helper = None if precondition is None else _transpose(precondition, flat)
        null = None if null_space is None else null_space.transposed
    w, residual = linear_solve(
        transposed,
        flat,
        solver=linear_solver,
        symmetric=symmetric,
        null_space=null,
        precondition=helper,
        unique=probe,
        throw=throw,
    )
    w = unravel(w)
    return (refuse_faults(faults(optimality, z, args, product, symmetric, null_space), z, w) if probe else w), residual


def _transpose(product: Matvec, like: PyTree) -> Matvec:
    transpose = jax.linear_transpose(product, like)
    return lambda v: transpose(v)[0]


def _is_none(leaf: Any) -> bool:
    return leaf is None


def differentiable_solution(
    solve: Callable[..., Any],
    optimality: Callable[..., Any],
    *,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    null_space: Callable[..., Any] | None = None,
    precondition: Callable[..., Any] | None = None,
    operator: Callable[..., Any] | None = None,
    project: bool = False,
    root_tol: float | None = None,
    probe: bool = False,
    report: bool = False,
) -> Callable[..., Any]:
    """Make a solver's answer differentiable by its optimality condition; `custom_root` is the common form of it.

    Args:
        solve: `solve(z0, *args) -> (z, witness)`. The witness is what the condition needs beside the arguments and what
            has no derivative (a neighbour list, an active set).
        optimality: F(z, witness, *args).
        null_space: `null_space(z, witness, *args) -> NullSpace`, the null space of ∂F/∂z at the answer.
        precondition: `precondition(z, witness, *args) -> (r ↦ M r)` on z raveled, M near (∂F/∂z)⁻¹.
        operator: `operator(z, witness, *args)`, and project: as for `root_jvp`.
        root_tol: as for `custom_root`; None for solvers that see to their convergence themselves.
        probe: as for `root_jvp`.
        report: the witness is for the user: its floating-point leaves refuse to be differentiated, where those of a witness
            that only serves the condition count as constants.

    Returns:
        a function of `(z0, *args)` that gives `(z, witness)`, for `jvp`, `vjp`, `jacfwd`, `jacrev`, `hessian`, `jit`, `vmap`.
        The start z0 has no influence on the answer and gets a zero derivative.
    """

    def solution(z0: PyTree, *args: Any) -> tuple[Any, Any]:
        check_closures(solver=solve, condition=optimality, null_space=null_space, preconditioner=precondition)
        arrays, static = eqx.partition(jax.tree.map(_as_python, (z0, args)), eqx.is_array)
        check_static(static)

        @jax.custom_jvp
        def answer(arrays: Any) -> tuple[Any, Any]:
            # A Python number that is differentiated arrives as one.
            start, values = eqx.combine(jax.tree.map(jnp.asarray, arrays), static)
            z, witness = solve(start, *values)
            return (z if root_tol is None else require_root(optimality, z, (witness, *values), root_tol)), witness

        @answer.defjvp
        def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
            # The answer itself is asked for again rather than solved: nested derivatives peel off one level at a time,
            # and at the innermost the solver sees concrete values.
            primal = jax.tree.map(jnp.asarray, primals[0])
            z, witness = answer(primal)
            witness = jax.lax.stop_gradient(witness)
            _, values = eqx.combine(primal, static)
            moving = jax.tree.map(lambda a, t: t if eqx.is_inexact_array(a) else None, primal[1], tangents[0][1])
            options = {
                "symmetric": symmetric,
                "linear_solver": linear_solver,
                "project": project,
                "operator": operator,
                "probe": probe,
            }
            z_dot, residual, found = _tangent(
                optimality, null_space, precondition, z, (witness, *values), (None, *moving), options
            )
            z_dot = z_dot if found is None else refuse_faults(found, z, z_dot)
            if not is_traced(z_dot, residual) and not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(z_dot)):
                raise LinearSolveError(
                    f"The linear system of the derivative (relative residual of {float(residual):.1e}) has no single answer that "
                    "can be relied on: the condition is singular at this root beyond its known null space, or nearly so, or its "
                    "derivatives are not finite there."
                )
            # The start moves no answer, but who knows what it does to a report.
            sources = [t for t in jax.tree.leaves(tangents[0]) if jnp.issubdtype(getattr(t, "dtype", float), jnp.inexact)]
            resting = functools.partial(refuse_tangent, tangents=sources) if report else _no_tangent
            return (z, witness), (z_dot, jax.tree.map(resting, witness))

        return answer(arrays)

    return solution


@eqx.filter_jit
def _tangent(
    optimality: Callable[..., Any],
    null_space: Callable[..., NullSpace] | None,
    precondition: Callable[..., Matvec] | None,
    z: PyTree,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    options: dict[str, Any],
) -> tuple[PyTree, Array, Array | None]:
    # What only helps the solve is held fixed: second derivatives are those of the linear system alone.
    fixed_z, fixed_args = jax.lax.stop_gradient((z, eqx.filter(args, eqx.is_array)))
    fixed_args = eqx.combine(fixed_args, args)
    null = None if null_space is None else null_space(fixed_z, *fixed_args)
    helper = None if precondition is None else precondition(fixed_z, *fixed_args)
    return _probed_jvp(optimality, z, args, tangents, null_space=null, precondition=helper, throw=True, **options)


def custom_root(
    optimality: Callable[..., Any],
    *,
    has_aux: bool = False,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    null_space: Callable[..., Any] | None = None,
    precondition: Callable[..., Any] | None = None,
    root_tol: float | None = ROOT_TOL,
) -> Callable[..., Any]:
    """Decorate a solver `solve(z0, *args)` of `optimality(z, *args) == 0`, so that its answer is differentiable in `args`.

    Unknown and arguments may be any pytrees; leaves that are no floating-point arrays have no derivative. Works in
    forward and reverse mode, to any order, whatever the solver does inside.

    Args:
        optimality: F(z, *args), of the structure of z, zero at the answer.
        has_aux: the solver returns `(z, aux)`, and so does the decorated one. What it reports (a status, an error) has no
            derivative: asking for that of a floating-point one is refused in reverse mode, and NaN in forward mode. What
            should be differentiated is computed from z, outside.
        symmetric: whether ∂F/∂z is, as for the minimum of an energy.
        linear_solver: `CG()`, `MINRES()`, `GMRES()`, `Direct()`, ...; None for `automatic`.
        null_space: `null_space(z, *args) -> NullSpace`, the known null space of ∂F/∂z; the derivative has no component there.
        precondition: `precondition(z, *args) -> (r ↦ M r)` on z raveled, M near (∂F/∂z)⁻¹, symmetric positive for CG.
        root_tol: refuse an answer where ‖F‖ exceeds this share of the terms that F is made of, ‖A z‖ + ‖B θ‖ (unless
            a change of z by 1e-6 makes as much); None to look away.

    Raises, when called:
        InputError: an answer that is no pytree of floating-point arrays (or no pair), a function that closes over a value
            traced by JAX; when differentiated, a condition of another structure, one that is not symmetric or has not the null
            space as promised, one with a kink at the answer.
        ConvergenceError: the answer is no root, or not finite (NaN where the values are traced).
        LinearSolveError, in forward mode on concrete values: a failed linear solve, and where ∂F/∂z is singular beyond the known
            null space, or nearly so: no derivative exists there that does not depend on how it is computed.

    Elsewhere these give NaN, in forward and reverse mode alike; `root_vjp` raises, with the residual.

    Blondel et al. 2021, section 2.1 (`@custom_root`).
    """

    for name, function in (("condition", optimality), ("null_space", null_space), ("precondition", precondition)):
        if not callable(function) and (function is not None or name == "condition"):
            raise InputError(f"The {name} must be a function, not {function!r:.80}.")
    if linear_solver is not None and not isinstance(linear_solver, LinearSolver):
        raise InputError(f"linear_solver must be one of mdsens.implicit's, such as CG() or Direct(), not {linear_solver!r:.80}.")

    def decorate(solve: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(solve):
            raise InputError(f"The solver must be a function solve(z0, *args), not {solve!r:.80}.")
        solution = differentiable_solution(
            _CheckedSolver(solve, has_aux),
            _WithoutWitness(optimality),
            symmetric=symmetric,
            linear_solver=linear_solver,
            null_space=None if null_space is None else _WithoutWitness(null_space),
            precondition=None if precondition is None else _WithoutWitness(precondition),
            root_tol=root_tol,
            probe=True,
            report=True,
        )

        @functools.wraps(solve)
        def decorated(z0: PyTree, *args: Any) -> Any:
            z, aux = solution(z0, *args)
            return (z, aux) if has_aux else z

        return decorated

    return decorate


def custom_fixed_point(fixed_point: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Decorate a solver `solve(z0, *args)` of `z == fixed_point(z, *args)`; options as for `custom_root`.

    Args:
        fixed_point: T(z, *args), or an entry of `implicit.optimality` that has one.

    Blondel et al. 2021, eq. (3): the root condition is F(z, θ) = T(z, θ) - z.
    """
    return custom_root(fixed_point_condition(fixed_point), **options)


def fixed_point_condition(fixed_point: Callable[..., Any]) -> Callable[..., Any]:
    """F(z, *args) = T(z, *args) - z; equal for the same T, so that compiled code is found again."""
    return fixed_point if isinstance(fixed_point, FixedPointCondition) else FixedPointCondition(fixed_point, ())


class _WithoutWitness:
    """`f(z, *args)` as `f(z, witness, *args)`; equal for the same function, so that compiled code is found again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, z: PyTree, witness: Any, *args: Any) -> Any:
        return self.function(z, *args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _WithoutWitness) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.function)


class _CheckedSolver:
    """A solver whose answer is looked at before anyone relies on it."""

    def __init__(self, solve: Callable[..., Any], has_aux: bool) -> None:
        self.solve, self.has_aux = solve, has_aux

    def __call__(self, z0: PyTree, *args: Any) -> tuple[PyTree, Any]:
        try:
            answer = self.solve(z0, *args)
        except jax.errors.JAXTypeError as error:
            if not is_traced(z0, args):
                raise
            raise InputError(
                "The solver cannot be traced: it asks for the values of its arguments (by NumPy, SciPy, float() or `if`). Call "
                "it outside jit and vmap, or take one of mdsens.solvers."
            ) from error
        return check_answer(answer, self.has_aux)


def _as_python(leaf: Any) -> Any:
    """NumPy's booleans and integers as Python's: settings, not numbers to trace."""
    return leaf.item() if isinstance(leaf, np.bool_ | np.integer) else leaf


def _no_tangent(leaf: Any) -> Any:
    return refuse_tangent(leaf, ())
