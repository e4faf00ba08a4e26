"""Linear systems A u = b with a known null space, differentiable to any order.

The null space is a border, never a shift: with orthonormal bases Q of it and L of that of Aᵀ,

    [ A   L ] [ u ]   [ b ]
    [ Qᵀ  0 ] [ λ ] = [ 0 ]

has one answer, the u without a component along Q, and λ takes up what part of b no u can balance. A shift of the
diagonal would change u (by half its size for a soft solid). `lax.custom_linear_solve` differentiates the bordered
system, so that derivatives do not go through the iterations.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError, LinearSolveError
from mdsens.implicit.checks import outline
from mdsens.implicit.direct import Cholesky, Direct
from mdsens.implicit.krylov import GMRES, MINRES
from mdsens.implicit.linear_system import LinearSolver, Matvec, NullSpace, bases, linear_system
from mdsens.implicit.trees import PyTree, is_traced

SYMMETRIC_DIRECT_LIMIT = 100
"""Unknowns up to which a symmetric operator is assembled and factorised by default."""

DIRECT_LIMIT = 1000
"""Unknowns up to which an operator without symmetry is, for which iterations are less sure."""

KNOWN_ANSWER = {(False, "float64"): 1e-5, (False, "float32"): 1e-2, (True, "float64"): 1e-3, (True, "float32"): 1e-1}
"""Relative error of a known answer up to which a system counts as regular; an iterative solver (True) leaves more."""


def automatic(n: int, symmetric: bool) -> LinearSolver:
    """Return the solver that is used where none is asked for.

    Small systems are factorised (`Direct`). Beyond, `MINRES` where the operator is symmetric, since it needs no positive
    curvature, and `GMRES` where it is not; never normal equations, which square the condition number.
    """
    if n <= (SYMMETRIC_DIRECT_LIMIT if symmetric else DIRECT_LIMIT):
        return Direct()
    return MINRES() if symmetric else GMRES()


def linear_solve(
    matvec: Matvec,
    b: Float[Array, " n"] | Float[Array, "n k"],
    *,
    solver: LinearSolver | None = None,
    symmetric: bool = False,
    null_space: NullSpace | None = None,
    precondition: Matvec | None = None,
    start: Float[Array, " n"] | Float[Array, "n k"] | None = None,
    project: bool = True,
    negligible: float | Float[Array, ""] = 0.0,
    atol: float | Float[Array, "*k"] | None = None,
    unique: bool = False,
    throw: bool = True,
) -> tuple[Float[Array, "*b"], Float[Array, "*k"]]:
    """Solve A u = b outside the known null space of A.

        u, residual = linear_solve(lambda u: A @ u, b)

    Args:
        matvec: u ↦ A u, linear, on vectors `(n,)`.
        b: one right-hand side, or k of them as columns, for which a direct solver factorises once.
        solver: None for `automatic`.
        symmetric: whether A is.
        null_space: the null spaces; u has no component along the right one, and b's along the left one is dropped.
        precondition: r ↦ M r with M near A⁻¹, linear; by default `matvec.precondition` where the operator brings one.
            Symmetric positive for `CG` and `MINRES`; a transposed solve uses Mᵀ.
        start: a guess of u. It changes the road only.
        project: False to count a part of b along the left null space as residual, since no u balances it.
        negligible: size up to which such a part is dropped as rounding even then.
        atol: residual that is good enough whatever the right-hand side, one for all or for each; by default the solver's.
        unique: fail where A is singular beyond its known null space, or so nearly that its answers are rounding. The test is
            that known answers are found again; with iterative solvers and `SparseDirect` up to 1000 unknowns only.
        throw: raise where the solver failed and the values are concrete (u is NaN otherwise).

    Returns:
        `(u, residual)`: the residual ‖A u - b‖/‖b‖ is recomputed from u (for b = 0 it is 0, for b below the solver's
        `atol` it is relative to that). A singular but compatible system has the answer of least norm, as far as the
        solver can tell: MINRES, NormalCG and the direct ones can.

    Raises:
        InputError: a solver for symmetric operators and one that is not declared so; shapes that do not fit.
        LinearSolveError: with the residual, if `throw`.
    """
    null_space = NullSpace() if null_space is None else null_space
    precondition = getattr(matvec, "precondition", None) if precondition is None else precondition
    b = jnp.asarray(b)
    _check(matvec, b, start, solver, symmetric=symmetric, null_space=null_space)
    solver = automatic(b.shape[0], symmetric) if solver is None else solver
    start = None if start is None else jax.lax.stop_gradient(jnp.asarray(start, b.dtype))
    options: dict[str, Any] = {"symmetric": symmetric, "null_space": null_space, "precondition": precondition}
    options |= {"project": project, "negligible": negligible, "unique": unique}
    atol = jnp.broadcast_to(jnp.asarray(solver.atol if atol is None else atol, b.dtype), b.shape[1:])

    def column(b: Array, start: Array | None, atol: Array) -> tuple[Array, Array]:
        return _solve_one(matvec, b, start, atol, solver, **options)

    if b.ndim == 2:
        column = jax.vmap(column, in_axes=(1, None if start is None else 1, 0), out_axes=(1, 0))
    u, residual = column(b, start, atol)
    if throw and not is_traced(residual):
        broken = broken_promises(matvec, b.shape[0], b.dtype, symmetric=symmetric, null_space=null_space)
        for is_broken, sentence in zip(broken, PROMISES, strict=True):
            if is_broken:
                raise InputError(sentence)
        worst, limit = float(jnp.max(residual)), solver.tolerances(b.dtype)[1]
        if not (worst <= limit and jnp.isfinite(u).all()):
            raise LinearSolveError(
                f"{type(solver).__name__} left a relative residual of {worst:.1e} where {limit:.0e} is allowed: the operator is "
                "singular beyond its known null space, or the right-hand side lies along it, or it is not as definite as the "
                "solver needs, or too ill-conditioned: try Direct(), give the null space, or a preconditioner."
            )
    return u, residual


def _solve_one(
    matvec: Matvec,
    b: Array,
    start: Array | None,
    good_enough: Array,
    solver: LinearSolver,
    *,
    symmetric: bool,
    null_space: NullSpace,
    precondition: Matvec | None,
    project: bool,
    negligible: float | Array,
    unique: bool,
) -> tuple[Array, Array]:
    n, dtype = b.size, b.dtype
    rtol, fail_rtol = solver.tolerances(dtype)
    active = None if null_space.active is None else null_space.active.astype(dtype)
    right, left = bases(null_space, n, dtype)

    def bordered(unknown: PyTree) -> Array:
        u, multiplier = unknown[:n], unknown[n:]
        image = matvec(u) if active is None else active * matvec(active * u) + (1.0 - active) * u
        return jnp.concatenate([image + left @ multiplier, right.T @ u])

    def solve_with(null_space: NullSpace, precondition: Matvec | None, start: Array | None, project: bool) -> Callable[..., Any]:
        # Seen from the transposed operator left and right change places.
        right, left = bases(null_space, n, dtype)

        def solve(operator: Matvec, right_hand_side: Array) -> tuple[Array, Array]:
            def image(u: Array) -> Array:
                return operator(jnp.concatenate([u, jnp.zeros_like(right[0])]))[:n]

            def transpose(v: Array) -> Array:
                return image(v) if symmetric else jax.linear_transpose(image, b)(v)[0]

            # In units of its own size: squares of small numbers underflow, in float32 soon.
            size = jnp.max(jnp.abs(right_hand_side), initial=0.0)
            size = jnp.where((size > 0.0) & jnp.isfinite(size), size, 1.0)
            b_u, b_border = right_hand_side[:n] / size, right_hand_side[n:] / size
            # Of a right-hand side along the null space the projection leaves rounding, which is nothing to be solved for.
            atol = jnp.maximum(good_enough / size, 10.0 * jnp.finfo(dtype).eps * jnp.linalg.norm(b_u))
            ask = solver.prepare(linear_system(image, transpose, precondition, null_space, b_u))
            whole = jnp.linalg.norm(null_space.project_equations(b_u))
            scale = jnp.maximum(whole, atol)
            # b_border is zero for the question asked; a derivative of the answer may ask with another one.
            u = right @ b_border
            if start is not None:
                u = u + null_space.project(start) / size
            goal = jnp.maximum(rtol * whole, atol)
            refined = functools.partial(_refine, ask, solver, image, null_space)
            if unique and (n <= DIRECT_LIMIT or type(solver) in (Direct, Cholesky)):
                # One program for three questions: two have answers that are known. A single one may by chance be across
                # what A does not see.
                known = jax.vmap(null_space.project)(jax.random.normal(jax.random.key(2), (2, n), dtype))
                tests = jax.lax.map(image, known)
                goals = rtol * jnp.linalg.norm(tests, axis=1)
                several = ((b_u, tests), (u, jnp.zeros_like(known)), (goal, goals))
                answers, rests, lost = jax.lax.map(refined, tuple(jnp.concatenate([a[None], b]) for a, b in several))
                u, rest, failed = answers[0], rests[0], jnp.any(lost) | ~_reproduces(answers[1:], known, solver)
            else:
                u, rest, failed = refined((b_u, u, goal))
            error = jnp.linalg.norm(null_space.project_equations(rest))
            if not project:
                lost = jnp.linalg.norm(b_u - null_space.project_equations(b_u))
                error = jnp.where(lost > negligible / size, jnp.hypot(error, lost), error)
                scale = jnp.maximum(scale, jnp.linalg.norm(b_u))
            residual = error / jnp.where(scale > 0.0, scale, 1.0)
            failed = failed | ~(error <= jnp.maximum(fail_rtol * scale, 10.0 * atol))
            return size * jnp.concatenate([jnp.where(failed, jnp.nan, u), left.T @ rest]), residual

        return solve

    if null_space.active is not None:
        b = jnp.where(null_space.active, b, 0.0)
    transposed = precondition
    if precondition is not None and not symmetric:
        transposed = lambda r: jax.linear_transpose(precondition, b)(r)[0]  # noqa: E731
    # One vector, not a pair: JAX transposes the solve only if all of the right-hand side depends on what is transposed.
    solution, residual = jax.lax.custom_linear_solve(
        bordered,
        jnp.concatenate([b, jnp.zeros_like(right[0])]),
        solve_with(null_space, precondition, start, project),
        # A cotangent may well lie along the null space: the answer has no component there, whatever it is.
        transpose_solve=solve_with(null_space.transposed, transposed, None, True),
        symmetric=symmetric,
        has_aux=True,
    )
    return solution[:n], jax.lax.stop_gradient(residual)


def _refine(
    ask: Callable[..., Any], solver: LinearSolver, image: Matvec, null_space: NullSpace, question: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """Return `(u, b - A u, failed)` for `(b, u, goal)`, by a few rounds of asking for what is left."""
    b, u, goal = question

    def ask_once(u: Array, aim: Array | float) -> tuple[Array, Array, Array]:
        rest = b - image(u)
        correction, failed = ask(null_space.project_equations(rest), aim)
        return u + correction, rest, failed

    def body(k: Array, carry: Any) -> tuple[Array, Array, Array]:
        # The last round of an iteration only recomputes the residual: an aim that is met at once.
        u, rest, failed = ask_once(carry[0], jnp.where(k < solver.rounds, goal, jnp.inf))
        return u, rest, failed | carry[2]

    start = (u, b, jnp.asarray(False))
    if solver.iterative:
        return jax.lax.fori_loop(0, solver.rounds + 1, body, start)
    u, _, failed = jax.lax.fori_loop(0, solver.rounds, body, start)
    return u, b - image(u), failed


def _reproduces(answers: Array, known: Array, solver: LinearSolver) -> Array:
    """Return whether a solver found the known answers, which it cannot where A is singular beyond its known null space."""
    error, size = jnp.max(jnp.abs(answers - known), axis=1), jnp.max(jnp.abs(known), axis=1)
    return jnp.all(error <= KNOWN_ANSWER.get((solver.iterative, str(known.dtype)), 0.1) * size)


PROMISES = (
    "The operator is not symmetric, though symmetric=True says so: leave it out, for GMRES or Direct.",
    "A null space must be given by orthonormal columns: take them from jnp.linalg.qr.",
    "That is no null space of the operator: A Q must vanish, and Aᵀ L where there is a left one or A is not symmetric.",
)
"""Messages for the broken promises about an operator, in the order of `broken_promises`."""


def broken_promises(
    matvec: Matvec, n: int, dtype: jnp.dtype, *, symmetric: bool, null_space: NullSpace, null_tolerance: float = 1e-3
) -> Bool[Array, " 3"]:
    """Return which of `PROMISES` an operator breaks: its symmetry, its null spaces. A few products; pure JAX.

    Args:
        null_tolerance: size that A Q may have, relative to A times a vector of the same size.
    """
    if not symmetric and null_space.basis is None:
        return jnp.zeros(len(PROMISES), bool)
    rounding = 1e3 * jnp.sqrt(n * 1.0) * jnp.finfo(dtype).eps
    v, w = (null_space.project(jax.random.normal(jax.random.key(k), (n,), dtype)) for k in range(2))
    Aw = matvec(w)
    size = jnp.linalg.norm(Aw) / jnp.where(jnp.any(w != 0.0), jnp.linalg.norm(w), 1.0)
    broken = [jnp.zeros((), bool)] * len(PROMISES)
    if symmetric:
        unlike = jnp.abs(v @ Aw - w @ matvec(v))
        broken[0] = unlike > jnp.sqrt(rounding) * size * jnp.linalg.norm(v) * jnp.linalg.norm(w)
    for basis in (null_space.basis, null_space.left):
        if basis is not None:
            unlike = jnp.abs(basis.T @ basis - jnp.diag(jnp.any(basis != 0.0, axis=0)))
            broken[1] = broken[1] | (jnp.max(unlike, initial=0.0) > jnp.sqrt(rounding))
    if null_space.basis is not None:
        left = bases(null_space, n, dtype)[1]
        transposed = lambda r: jax.linear_transpose(matvec, w)(r)[0]  # noqa: E731
        for product, basis in [(matvec, null_space.basis)] if symmetric else [(matvec, null_space.basis), (transposed, left)]:
            # With components that are held at zero, only what the others see counts.
            images = jax.vmap(lambda q, product=product: NullSpace(null_space.active).project(product(q)), 1, 1)(basis)
            broken[2] = broken[2] | (jnp.max(jnp.linalg.norm(images, axis=0), initial=0.0) > null_tolerance * size)
    return jnp.stack(broken)


def _check(
    matvec: Matvec, b: Array, start: Array | None, solver: LinearSolver | None, *, symmetric: bool, null_space: NullSpace
) -> None:
    if b.ndim not in (1, 2) or b.shape[0] == 0:
        raise InputError(f"linear_solve wants a right-hand side of shape (n,) or (n, k), not {b.shape}.")
    if not jnp.issubdtype(b.dtype, jnp.floating):
        raise InputError(f"linear_solve wants a real floating-point right-hand side, not {b.dtype}.")
    if start is not None and jnp.shape(start) != b.shape:
        raise InputError(f"The start has shape {jnp.shape(start)}, the right-hand side {b.shape}: they must be the same.")
    if solver is not None and not isinstance(solver, LinearSolver):
        raise InputError(f"solver must be one of mdsens.implicit's linear solvers, such as CG() or Direct(), not {solver!r}.")
    if solver is not None and solver.symmetric and not symmetric:
        raise InputError(
            f"{type(solver).__name__} is for symmetric operators: declare symmetric=True, or choose GMRES or Direct."
        )
    for name, part, ndim in (("active", null_space.active, 1), ("basis", null_space.basis, 2)):
        if part is not None and (part.ndim != ndim or part.shape[0] != b.shape[0]):
            raise InputError(f"The null space's {name} has shape {part.shape}: {b.shape[0]} unknowns want as many rows.")
    if not callable(matvec):
        raise InputError(
            f"linear_solve wants the operator as a function u ↦ A u, not a {type(matvec).__name__}: lambda u: A @ u."
        )
    vector = jax.ShapeDtypeStruct(b.shape[:1], b.dtype)
    image = jax.eval_shape(matvec, vector)
    if outline(image) != outline(vector):
        raise InputError(f"The operator turns a vector {outline(vector)} into {outline(image)}.")
    if symmetric and null_space.left is not None:
        raise InputError("A symmetric operator has one null space for both sides: leave left= out.")
