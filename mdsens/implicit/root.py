"""Derivatives of a solution z of F(z, θ) = 0, by any method: dz/dθ = -A⁻¹B with A = ∂F/∂z, B = ∂F/∂θ.

Blondel et al. 2021, section 2.1: eq. (2) for the Jacobian; "root_jvp" and "root_vjp" for its products.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
from mdsens.implicit.trees import PyTree, is_traced


def linearise(
    optimality: Callable[..., Any], z: PyTree, args: tuple[Any, ...], operator: Callable[..., Matvec] | None = None
) -> tuple[Matvec, Callable[[Array], PyTree]]:
    """Return `(A, unravel)`: u ↦ ∂F/∂z u on flat vectors, and the way back to z's structure.

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
    """Return `(dz, residual)`: how the root z of `optimality(z, *args) == 0` moves when `args` moves along `tangents`.

        dz, _ = root_jvp(lambda z, a: z**2 - a, jnp.array(2.0), (jnp.array(4.0),), (jnp.array(1.0),))  # dz/da = 1/4

    Args:
        optimality: F(z, *args), of the structure of z.
        tangents: like `args`, None for leaves that do not move.
        symmetric: whether ∂F/∂z is (z minimises an energy).
        linear_solver, null_space, precondition, throw: as for `linear_solve`, on z raveled.
        operator: `operator(z, *args) -> (u ↦ ∂F/∂z u)` on z raveled, where there is a faster way than to linearise F; pure
            JAX, since higher derivatives go through it.
        project: drop the part of B along the left null space. Otherwise such a part, where it is more than rounding, is an
            error: no motion of z keeps F = 0.
        probe: check that ∂F/∂z is as symmetric as declared, has the declared null space, is regular beyond it, and that F has
            no kink at z: otherwise no derivative exists.

    Returns:
        the tangent of z, and the relative residual of the linear system.

    Raises:
        InputError: structures that do not fit; a fault that the probe finds on concrete values (dz is NaN on traced ones).
        LinearSolveError: a failed solve, if `throw` and the values are concrete (dz is NaN otherwise).
    """
    options = DerivativeOptions(symmetric, linear_solver, null_space, precondition, operator, project, probe, throw)
    return _probed_jvp(optimality, z, args, tangents, options)[:2]


class DerivativeOptions(NamedTuple):
    """How the derivative of a root is computed; each field as for `root_jvp`."""

    symmetric: bool = False
    linear_solver: LinearSolver | None = None
    null_space: NullSpace | None = None
    precondition: Matvec | None = None
    operator: Callable[..., Matvec] | None = None
    project: bool = False
    probe: bool = False
    throw: bool = True

    def solve(self, product: Matvec, b: Array, **others: Any) -> tuple[Array, Array]:
        """Solve A u = b by `linear_solve`."""
        return linear_solve(
            product,
            b,
            solver=self.linear_solver,
            symmetric=self.symmetric,
            null_space=self.null_space,
            precondition=self.precondition,
            unique=self.probe,
            throw=self.throw,
            **others,
        )


def _probed_jvp(
    optimality: Callable[..., Any], z: PyTree, args: tuple[Any, ...], tangents: tuple[Any, ...], options: DerivativeOptions
) -> tuple[PyTree, Array, Array | None]:
    """Return `(dz, residual, faults)` of `root_jvp`; without a probe the faults are None."""
    check_args(args)
    moving, resting = split_arguments(args, tangents)
    product, unravel = linearise(optimality, z, args, options.operator)
    null_space = options.null_space
    flags = None
    if options.probe:
        flags = faults(optimality, z, args, product, symmetric=options.symmetric, null_space=null_space)
        # At both ends, of the tangents and of dz: a slope that is exactly zero on the way, a `where`, would drop a NaN.
        tangents = refuse_faults(flags, z, tangents)
    _, change = jax.jvp(lambda m: optimality(z, *eqx.combine(m, resting)), (moving,), (tangents,))
    projects = null_space is None or options.project
    # b is made of such terms as F is, and has their rounding.
    negligible = 0.0 if projects else _rounding(product, z)
    flat, residual = options.solve(product, -ravel_pytree(change)[0], project=projects, negligible=negligible)
    dz = unravel(flat)
    return (dz if flags is None else refuse_faults(flags, z, dz)), residual, flags


def split_arguments(args: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the leaves of `args` that have a tangent, and the others; raise InputError for tangents that are not like args."""
    try:
        if len(tangents) != len(args):
            raise ValueError(f"{len(tangents)} for {len(args)}")
        is_none = lambda leaf: leaf is None  # noqa: E731
        moving = jax.tree.map(lambda t, a: None if t is None else a, tangents, args, is_leaf=is_none)
        resting = jax.tree.map(lambda t, a: a if t is None else None, tangents, args, is_leaf=is_none)
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
    """Return `(dargs, residual)`: the gradient in `args` of a function of the root z whose gradient in z is `cotangent`.

        (da,), _ = root_vjp(lambda z, a: z**2 - a, jnp.array(2.0), (jnp.array(4.0),), jnp.array(1.0))  # dz/da = 1/4

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
    options = DerivativeOptions(symmetric, linear_solver, null_space, precondition, operator, probe=probe, throw=throw)
    w, residual = adjoint_solution(optimality, z, args, cotangent, **options._asdict())
    moving, resting = eqx.partition(args, tuple(eqx.is_inexact_array if k in chosen else False for k in range(len(args))))
    _, pullback = jax.vjp(lambda m: optimality(z, *eqx.combine(m, resting)), moving)
    slopes = pullback(jax.tree.map(jnp.negative, w))[0]
    if probe:
        slopes = jax.tree.map(functools.partial(poison, ~jnp.isfinite(ravel_pytree(w)[0]).all()), slopes)
    if argnums is None:
        return slopes, residual
    return (slopes[chosen[0]] if np.ndim(argnums) == 0 else tuple(slopes[k] for k in chosen)), residual


def adjoint_solution(
    optimality: Callable[..., Any], z: PyTree, args: tuple[Any, ...], cotangent: PyTree, **settings: Any
) -> tuple[PyTree, jax.Array]:
    """Return `(w, residual)` with Aᵀw = the cotangent: the gradient in the arguments of `root_vjp` is that of -⟨w, F⟩.

    Args:
        settings: those of `DerivativeOptions`.
    """
    if outline(cotangent) != outline(z):
        raise InputError(f"The cotangent must look like the unknown, {outline(z)}, not {outline(cotangent)}.")
    options = DerivativeOptions(**settings)
    null_space, precondition = options.null_space, options.precondition
    product, unravel = linearise(optimality, z, args, options.operator)
    flat = ravel_pytree(cotangent)[0]
    if options.symmetric:
        flat, residual = options.solve(product, flat)
    else:
        helper = None if precondition is None else _transpose(precondition, flat)
        null = None if null_space is None else null_space.transposed
        flat, residual = options._replace(null_space=null, precondition=helper).solve(_transpose(product, flat), flat)
    w = unravel(flat)
    if options.probe:
        w = refuse_faults(faults(optimality, z, args, product, symmetric=options.symmetric, null_space=null_space), z, w)
    return w, residual


def _transpose(product: Matvec, like: PyTree) -> Matvec:
    transpose = jax.linear_transpose(product, like)
    return lambda v: transpose(v)[0]


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
        root_tol: as for `custom_root`; None for solvers that check their convergence themselves.
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
            # The answer is called again rather than solved: nested derivatives peel off one level at a time,
            # and at the innermost the solver sees concrete values.
            primal = jax.tree.map(jnp.asarray, primals[0])
            z, witness = answer(primal)
            witness = jax.lax.stop_gradient(witness)
            _, values = eqx.combine(primal, static)
            moving = jax.tree.map(lambda a, t: t if eqx.is_inexact_array(a) else None, primal[1], tangents[0][1])
            options = DerivativeOptions(symmetric, linear_solver, operator=operator, project=project, probe=probe)
            helpers = (null_space, precondition)
            z_dot, residual, flags = _tangent(optimality, z, (witness, *values), (None, *moving), helpers, options=options)
            z_dot = z_dot if flags is None else refuse_faults(flags, z, z_dot)
            if not is_traced(z_dot, residual) and not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(z_dot)):
                raise LinearSolveError(
                    f"The linear system of the derivative (relative residual of {float(residual):.1e}) has no single answer that "
                    "can be relied on: the condition is singular at this root beyond its known null space, or nearly so, or its "
                    "derivatives are not finite there."
                )
            # The start moves no answer, but it may change a report.
            sources = [t for t in jax.tree.leaves(tangents[0]) if jnp.issubdtype(getattr(t, "dtype", float), jnp.inexact)]
            resting = functools.partial(refuse_tangent, tangents=sources if report else ())
            return (z, witness), (z_dot, jax.tree.map(resting, witness))

        return answer(arrays)

    return solution


@eqx.filter_jit
def _tangent(
    optimality: Callable[..., Any],
    z: PyTree,
    args: tuple[Any, ...],
    tangents: tuple[Any, ...],
    helpers: tuple[Callable[..., NullSpace] | None, Callable[..., Matvec] | None],
    *,
    options: DerivativeOptions,
) -> tuple[PyTree, Array, Array | None]:
    """Return the tangent as `_probed_jvp` does, with the null space and the preconditioner by two functions of the answer."""
    # The helpers of the solve are constants: second derivatives are those of the linear system alone.
    fixed_z, fixed_args = jax.lax.stop_gradient((z, eqx.filter(args, eqx.is_array)))
    fixed_args = eqx.combine(fixed_args, args)
    null = None if helpers[0] is None else helpers[0](fixed_z, *fixed_args)
    helper = None if helpers[1] is None else helpers[1](fixed_z, *fixed_args)
    options = options._replace(null_space=null, precondition=helper)
    return _probed_jvp(optimality, z, args, tangents, options)


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

        @custom_root(lambda z, a: z**2 - a)
        def solve(z0, a): ...                            # any solver; jax.grad(solve, 1)(1.0, 4.0) is 1/4

    Unknown and arguments may be any pytrees; leaves that are no floating-point arrays have no derivative. Works in
    forward and reverse mode, to any order, whatever the solver does inside.

    Args:
        optimality: F(z, *args), of the structure of z, zero at the answer.
        has_aux: the solver returns `(z, aux)`, and so does the decorated one. What it reports (a status, an error) has no
            derivative: that of a floating-point one is refused in reverse mode, and NaN in forward mode. Compute from z,
            outside, what should be differentiated.
        symmetric: whether ∂F/∂z is, as for the minimum of an energy.
        linear_solver: `CG()`, `MINRES()`, `GMRES()`, `Direct()`, ...; None for `automatic`.
        null_space: `null_space(z, *args) -> NullSpace`, the known null space of ∂F/∂z; the derivative has no component there.
        precondition: `precondition(z, *args) -> (r ↦ M r)` on z raveled, M near (∂F/∂z)⁻¹, symmetric positive for CG.
        root_tol: refuse an answer where ‖F‖ exceeds this share of the terms that F is made of, ‖A z‖ + ‖B θ‖ (unless
            a change of z by 1e-6 makes as much); None for no check.

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
    """Return F(z, *args) = T(z, *args) - z; two of the same T are equal, so that compiled code is found again."""
    return fixed_point if isinstance(fixed_point, FixedPointCondition) else FixedPointCondition(fixed_point, ())


@dataclasses.dataclass(frozen=True)
class _WithoutWitness:
    """`f(z, *args)` as `f(z, witness, *args)`; equal for the same function, so that compiled code is found again."""

    function: Callable[..., Any]

    def __call__(self, z: PyTree, witness: Any, *args: Any) -> Any:
        return self.function(z, *args)


@dataclasses.dataclass(frozen=True)
class _CheckedSolver:
    """A solver whose answer is checked before anything is made of it."""

    solve: Callable[..., Any]
    has_aux: bool

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
    """Return NumPy's booleans and integers as Python's: they are settings, not numbers to trace."""
    return leaf.item() if isinstance(leaf, np.bool_ | np.integer) else leaf
