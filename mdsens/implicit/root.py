"""Derivatives of a solution z of F(z, θ) = 0, whatever found it: dz/dθ = -A⁻¹B with A = ∂F/∂z, B = ∂F/∂θ.

Blondel et al. 2021, section 2.1: eq. (2) for the Jacobian; "root_jvp" and "root_vjp" for its products.
"""

import functools
from collections.abc import Callable, Sequence
from operator import index as operator_index
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.errors import InputError, LinearSolveError
from mdsens.implicit.auxiliary import refused_tangent
from mdsens.implicit.checks import (
    check_answer,
    check_closures,
    check_condition,
    check_root,
    check_static,
    is_root,
    is_traced,
    outline,
)
from mdsens.implicit.linear import linear_solve
from mdsens.implicit.linear_system import Gauge, LinearSolver, Matvec
from mdsens.implicit.optimality import FixedPointCondition

PyTree = Any

ROOT_TOL = 1e-3
"""‖F‖ relative to the terms it is made of, above which an answer is no root at all: a net for gross errors."""

ROOT_STEP = 1e-6
"""Distance to a root within which an answer always counts as one (where `ROOT_TOL` is asked for)."""


def linearised(
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
    gauge: Gauge | None = None,
    precondition: Callable[..., Any] | None = None,
    operator: Callable[..., Any] | None = None,
    project: bool = False,
    throw: bool = True,
) -> tuple[PyTree, jax.Array]:
    """`(dz, residual)`: how the root z of `optimality(z, *args) == 0` moves when `args` moves along `tangents`.

    Args:
        optimality: F(z, *args), of the structure of z.
        tangents: like `args`, None for leaves that do not move.
        symmetric: whether ∂F/∂z is (z minimises an energy).
        linear_solver, gauge, precondition, throw: as for `linear_solve`, on z raveled.
        operator: `operator(z, *args) -> (u ↦ ∂F/∂z u)` on z raveled, where there is a faster way than to linearise F; pure
            JAX, since higher derivatives go through it.
        project: drop what of B lies along the left null space. Otherwise, where it is more than rounding, no motion of z
            keeps F = 0, and that is an error.

    Returns:
        the tangent of z, and the relative residual of the linear system.

    Raises:
        InputError: structures that do not fit.
        LinearSolveError: a failed solve, if `throw` and the values are concrete; dz is NaN there otherwise.
    """
    _check_args(args)
    moving, resting = moving_and_resting(args, tangents)
    product, unravel = linearised(optimality, z, args, operator)
    _, change = jax.jvp(lambda m: optimality(z, *eqx.combine(m, resting)), (moving,), (tangents,))
    b = -ravel_pytree(change)[0]
    flat, residual = linear_solve(
        product,
        b,
        solver=linear_solver,
        symmetric=symmetric,
        gauge=gauge,
        precondition=precondition,
        project=gauge is None or project,
        # b is made of such terms as F is, and has their rounding.
        negligible=0.0 if gauge is None or project else _rounding(product, z),
        throw=throw,
    )
    return unravel(flat), residual


def moving_and_resting(args: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
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
    gauge: Gauge | None = None,
    precondition: Callable[..., Any] | None = None,
    operator: Callable[..., Any] | None = None,
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
    _check_args(args)
    args = jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf, args)
    chosen = _chosen(argnums, args)
    options: dict[str, Any] = {
        "symmetric": symmetric,
        "linear_solver": linear_solver,
        "gauge": gauge,
        "precondition": precondition,
    }
    w, residual = adjoint_solution(optimality, z, args, cotangent, operator=operator, throw=throw, **options)
    moving, resting = eqx.partition(args, tuple(eqx.is_inexact_array if k in chosen else False for k in range(len(args))))
    _, pullback = jax.vjp(lambda m: optimality(z, *eqx.combine(m, resting)), moving)
    slopes = pullback(jax.tree.map(jnp.negative, w))[0]
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
    gauge: Gauge | None = None,
    precondition: Callable[..., Any] | None = None,
    operator: Callable[..., Any] | None = None,
    throw: bool = True,
) -> tuple[PyTree, jax.Array]:
    """`(w, residual)` with Aᵀw = the cotangent, all as for `root_vjp`: the gradient in the arguments is that of -⟨w, F⟩."""
    if outline(cotangent) != outline(z):
        raise InputError(f"The cotangent must look like the unknown, {outline(z)}, not {outline(cotangent)}.")
    product, unravel = linearised(optimality, z, args, operator)
    flat = ravel_pytree(cotangent)[0]
    helper, null = precondition, gauge
    transposed = product
    if not symmetric:
        transposed = _transposed(product, flat)
        helper = None if precondition is None else _transposed(precondition, flat)
        null = None if gauge is None else gauge.transposed
    w, residual = linear_solve(
        transposed,
        flat,
        solver=linear_solver,
        symmetric=symmetric,
        gauge=null,
        precondition=helper,
        throw=throw,
    )
    return unravel(w), residual


def _poisoned(bad: Array, tangent: Array) -> Array:
    """NaN where bad, in reverse mode too: a `where` would send a zero back."""
    return jnp.where(bad, jnp.nan, 1.0).astype(tangent.dtype) * tangent


def _transposed(product: Matvec, like: PyTree) -> Matvec:
    transpose = jax.linear_transpose(product, like)
    return lambda v: transpose(v)[0]


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _check_args(args: object) -> None:
    if not isinstance(args, tuple):
        raise InputError(f"args must be the tuple of the condition's arguments behind the unknown, not a {type(args).__name__}.")


def _chosen(argnums: Any, args: tuple[Any, ...]) -> list[int]:
    count = len(args)
    try:
        numbers = range(count) if argnums is None else [operator_index(n) for n in np.atleast_1d(argnums).tolist()]
    except TypeError:
        raise InputError(f"argnums must be an integer or several, not {argnums!r}.") from None
    for number in numbers:
        if not -count <= number < count:
            raise InputError(f"argnums has {number}, but the condition has {count} argument(s) behind the unknown, from 0.")
        if argnums is not None and not any(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(args[number])):
            raise InputError(f"argnums has {number}, but that argument has no floating-point array to differentiate in.")
    return [number % count for number in numbers]


def differentiable_solution(
    solve: Callable[..., Any],
    optimality: Callable[..., Any],
    *,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    gauge: Callable[..., Any] | None = None,
    precondition: Callable[..., Any] | None = None,
    operator: Callable[..., Any] | None = None,
    project: bool = False,
    root_tol: float | None = None,
    report: bool = False,
) -> Callable[..., Any]:
    """Make a solver's answer differentiable by its optimality condition; `custom_root` is the common form of it.

    Args:
        solve: `solve(z0, *args) -> (z, witness)`. The witness is what the condition needs beside the arguments and what
            has no derivative (a neighbour list, an active set).
        optimality: F(z, witness, *args).
        gauge: `gauge(z, witness, *args) -> Gauge`, the null space of ∂F/∂z at the answer.
        precondition: `precondition(z, witness, *args) -> (r ↦ M r)` on z raveled, M near (∂F/∂z)⁻¹.
        operator: `operator(z, witness, *args)`, and project: as for `root_jvp`.
        root_tol: as for `custom_root`; None for solvers that see to their convergence themselves.
        report: the witness is for the user: its floating-point leaves refuse to be differentiated, where those of a witness
            that only serves the condition count as constants.

    Returns:
        a function of `(z0, *args)` that gives `(z, witness)`, for `jvp`, `vjp`, `jacfwd`, `jacrev`, `hessian`, `jit`, `vmap`.
        The start z0 has no influence on the answer and gets a zero derivative.
    """

    def solution(z0: PyTree, *args: Any) -> tuple[Any, Any]:
        check_closures(solver=solve, condition=optimality, null_space=gauge, preconditioner=precondition)
        arrays, static = eqx.partition(jax.tree.map(_plain, (z0, args)), eqx.is_array)
        check_static(static)

        @jax.custom_jvp
        def answer(arrays: Any) -> tuple[Any, Any]:
            # A Python number that is differentiated arrives as one.
            start, values = eqx.combine(jax.tree.map(jnp.asarray, arrays), static)
            return solve(start, *values)

        @answer.defjvp
        def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
            # The answer itself is asked for again rather than solved: nested derivatives peel off one level at a time,
            # and at the innermost the solver sees concrete values.
            primal = jax.tree.map(jnp.asarray, primals[0])
            z, witness = answer(primal)
            witness = jax.lax.stop_gradient(witness)
            _, values = eqx.combine(primal, static)
            moving = jax.tree.map(lambda a, t: t if eqx.is_inexact_array(a) else None, primal[1], tangents[0][1])
            options = {"symmetric": symmetric, "linear_solver": linear_solver, "project": project, "operator": operator}
            z_dot, residual = _tangent(optimality, gauge, precondition, z, (witness, *values), (None, *moving), options)
            if not is_traced(z_dot, residual) and not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(z_dot)):
                raise LinearSolveError(
                    f"The linear system of the derivative was solved to a relative residual of {float(residual):.1e} only: the "
                    "condition is singular at this root (beyond its known null space), or its derivatives are not finite there."
                )
            if root_tol is not None:
                z_dot = _at_root(optimality, z, (witness, *values), root_tol, z_dot)
            # The start moves no answer, but who knows what it does to a report.
            sources = [t for t in jax.tree.leaves(tangents[0]) if jnp.issubdtype(getattr(t, "dtype", float), jnp.inexact)]
            resting = functools.partial(refused_tangent, tangents=sources) if report else _no_tangent
            return (z, witness), (z_dot, jax.tree.map(resting, witness))

        return answer(arrays)

    return solution


@eqx.filter_jit
def _tangent(
    optimality: Callable[..., Any],
    gauge: Callable[..., Gauge] | None,
    precondition: Callable[..., Matvec] | None,
    z: PyTree,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    options: dict[str, Any],
) -> tuple[PyTree, Array]:
    # What only helps the solve is held fixed: second derivatives are those of the linear system alone.
    fixed_z, fixed_args = jax.lax.stop_gradient((z, eqx.filter(args, eqx.is_array)))
    fixed_args = eqx.combine(fixed_args, args)
    null = None if gauge is None else gauge(fixed_z, *fixed_args)
    helper = None if precondition is None else precondition(fixed_z, *fixed_args)
    return root_jvp(optimality, z, args, tangents, gauge=null, precondition=helper, **options)


def _at_root(optimality: Callable[..., Any], z: PyTree, args: tuple[Any, ...], tolerance: float, z_dot: PyTree) -> PyTree:
    """The tangent if z is a root; an error, or NaN where the values are traced, if it is none."""
    error, scale = jax.lax.stop_gradient(_root_error(optimality, z, args))
    if not is_traced(error, scale):
        check_root(float(error), float(scale), tolerance)
        return z_dot
    return jax.tree.map(functools.partial(_poisoned, ~is_root(error, scale, tolerance)), z_dot)


@eqx.filter_jit
def _root_error(optimality: Callable[..., Any], z: PyTree, args: tuple[Any, ...]) -> tuple[Array, Array]:
    """`(‖F‖, ‖A z‖ + ‖B θ‖ + floor)`: the condition beside the terms that have to cancel in it.

    The floor is what a change of all components of z by `ROOT_STEP` makes: beside terms that vanish with z no residual is small.
    """
    moving, resting = eqx.partition(args, eqx.is_inexact_array)
    value, along_z = jax.jvp(lambda unknown: optimality(unknown, *args), (z,), (z,))
    _, along_args = jax.jvp(lambda m: optimality(z, *eqx.combine(m, resting)), (moving,), (moving,))
    flat, unravel = ravel_pytree(z)
    signs = unravel(jax.random.rademacher(jax.random.key(0), flat.shape, flat.dtype))
    _, anyhow = jax.jvp(lambda unknown: optimality(unknown, *args), (z,), (signs,))
    norms = [jnp.linalg.norm(ravel_pytree(part)[0]) for part in (value, along_z, along_args, anyhow)]
    return norms[0], norms[1] + norms[2] + ROOT_STEP / ROOT_TOL * norms[3]


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
        null_space: `null_space(z, *args) -> Gauge`, the known null space of ∂F/∂z; the derivative has no component there.
        precondition: `precondition(z, *args) -> (r ↦ M r)` on z raveled, M near (∂F/∂z)⁻¹, symmetric positive for CG.
        root_tol: refuse to differentiate where ‖F‖ exceeds this share of the terms that F is made of, ‖A z‖ + ‖B θ‖ (unless
            a change of z by 1e-6 makes as much); None to look away.

    Raises, when called:
        InputError: an answer that is no pytree of floating-point arrays (or no pair), a function that closes over a value
            traced by JAX; when differentiated, a condition of another structure.
        ConvergenceError, when differentiated: the answer is no root, or not finite (NaN where the values are traced).
        LinearSolveError, in forward mode on concrete values: a failed linear solve.

    Elsewhere a failed linear solve gives NaN; `root_vjp` raises, with the residual. Where ∂F/∂z is singular beyond
    the known null space, a tangent that the condition allows is that of least norm.

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
            _Answering(solve, has_aux),
            _WithoutWitness(optimality),
            symmetric=symmetric,
            linear_solver=linear_solver,
            gauge=None if null_space is None else _WithoutWitness(null_space),
            precondition=None if precondition is None else _WithoutWitness(precondition),
            root_tol=root_tol,
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


class _Answering:
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


def _plain(leaf: Any) -> Any:
    """NumPy's booleans and integers as Python's: settings, not numbers to trace."""
    return leaf.item() if isinstance(leaf, np.bool_ | np.integer) else leaf


def _no_tangent(leaf: Any) -> Any:
    return refused_tangent(leaf, ())
