"""The linear systems behind every derivative of an equilibrium: A = ∂F/∂z, B = ∂F/∂θ, dz/dθ = -A⁻¹B.

Here z is flat. Motions that cost no energy are projected out (`mdsens.mechanics.rigid_motions`).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import ConvergenceError, InputError, LinearSolveError
from mdsens.common.progress import bar
from mdsens.equilibrium.descent import listed_tightly, unbalanced
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.implicit import CG, GMRES, MINRES, Direct, Gauge, differentiable_solution, linear_solve, root_jvp, root_vjp
from mdsens.implicit.bound import ROUNDING, error_bound, other_point
from mdsens.implicit.linear import DIRECT_LIMIT
from mdsens.implicit.linear_system import LinearSolver
from mdsens.implicit.root import adjoint_solution
from mdsens.mechanics import forces, hessian_operator
from mdsens.mechanics.curvature import curvature, kept_hessian
from mdsens.mechanics.factorised_hessian import KeptHessian
from mdsens.mechanics.softest_modes import Curvature
from mdsens.mechanics.unknown import Frame
from mdsens.potentials.base import Potential
from mdsens.solvers import Status
from mdsens.structures.system import System

BATCH = 64
"""Right-hand sides solved together."""

TOGETHER = 3000
"""Unknowns up to which linear systems are solved together; beyond, one fills the cache, and each takes its own time."""

LOOSEST = 1e-4
"""Relative residual that is asked for, at least, where the operator is approximate."""

STEEP = 100.0
"""How much curvatures change over a mean distance between atoms, in units of the highest; pairs of Lennard-Jones's a third as
much. Where that matters they are looked at."""

NOTICED = 0.05
"""Share by which the lowest curvature may change between a state and the true equilibrium before it is looked at."""

STILL, NEAR = 100.0, 1e-5
"""A state of which something was replaced is still an equilibrium if forces are up to so many times what was left before, or if
it is so near to one, as a share of the distance between atoms."""

KRYLOV = 300
"""Size of GMRES's space, for stresses that are not hydrostatic."""


class Words(str):
    """A text that is no part of what is compiled: to compiled code all are the same."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Words)

    def __hash__(self) -> int:
        return hash(Words)


class State(eqx.Module):
    """An equilibrium as its linear systems see it.

    Attributes:
        z: the unknown.
        frame: what it lives in.
        null: the null space of A that was found with the curvature.
        inverse: a preconditioner that is nearly exact, of a factorised Hessian; None without.
        hessian: ∂F/∂z at z with the equilibrium's potential, as an operator that was kept; None without.
        solver: of the linear systems.
        fail_rtol: relative residual beyond which a solve has failed.
        preconditioner: what helps the solver, in words; empty without.
    """

    z: Any
    frame: Frame
    null: Gauge
    inverse: Any
    hessian: Any
    solver: LinearSolver = eqx.field(static=True)
    fail_rtol: float = eqx.field(static=True)
    preconditioner: Words = eqx.field(static=True)

    @property
    def options(self) -> dict[str, Any]:
        return {"symmetric": self.frame.symmetric, "gauge": self.null}

    @property
    def size(self) -> int:
        return ravel_pytree(self.z)[0].size

    def condition(self, z: Any, potential: Potential) -> Any:
        """F(z, θ)."""
        return forces.gradient(z, (self.frame, potential))

    def operator(self, z: Any, potential: Potential) -> Callable[..., Any]:
        """∂F/∂z, as `root_jvp` wants it."""
        return self._with_inverse(hessian_operator.hessian_operator(z, (self.frame, potential)))

    def own_operator(self, z: Any, potential: Potential) -> Callable[..., Any]:
        """The same at the state's own z and potential, which has no derivative in them where it was kept."""
        return self.operator(z, potential) if self.hessian is None else self._with_inverse(self.hessian)

    def _with_inverse(self, operator: Any) -> Callable[..., Any]:
        return (
            operator if self.inverse is None else hessian_operator.Preconditioned(operator, jax.lax.stop_gradient(self.inverse))
        )

    @property
    def method(self) -> str:
        """How its linear systems are solved, in words."""
        return f"{self.solver!r}, preconditioned by {self.preconditioner}" if self.preconditioner else repr(self.solver)


def usable(eq: Equilibrium, linear_solver: LinearSolver | None, *, parameters: bool = True) -> tuple[Curvature, State]:
    """The curvature of a state that has a derivative, and the state.

    Args:
        parameters: whether the derivative is one in the potential's parameters.

    Raises:
        ConvergenceError: it has none.
        InputError: something else than an equilibrium, a potential without parameters, no linear solver of mdsens's.
    """
    if not isinstance(eq, Equilibrium):
        raise InputError(f"An Equilibrium is wanted, as relax returns it, not {type(eq).__name__}.")
    if not eq.converged:
        raise ConvergenceError(f"This state has no derivative that means anything: {eq.status.value}.")
    if parameters and not jax.tree.leaves(eq.potential):
        raise InputError(
            f"{type(eq.potential).__name__} has no parameters, so there is nothing to differentiate in: fields of its class are, "
            "with a type and no mdsens.static (kappa: float)."
        )
    if not eq.is_as_relaxed:
        eq = _looked_at_again(eq)
    frame = eq.frame
    z = eq.unknown_in(frame)
    found, kept = curvature(z, frame, eq.potential) if eq.curvature is None else (eq.curvature, eq.kept)
    if found.index != eq.index:
        raise ConvergenceError(
            f"The lowest curvature is {found.lowest:.1e} eV/Å²: {(Status.WRONG_INDEX if eq.index else Status.SADDLE).value}."
        )
    null = hessian_operator.known_gauge(z, frame, found.rattlers)
    solver = _default_solver(eq, frame, z) if linear_solver is None else linear_solver
    if not isinstance(solver, LinearSolver):
        raise InputError(f"linear_solver must be one of mdsens.implicit's, such as implicit.CG(), not {solver!r}.")
    if linear_solver is None and not kept:
        kept = kept_hessian(z, frame, eq.potential, found, null)
    approximation = eq.potential.approximation(eq.system)
    if linear_solver is None and approximation is not None:
        solver = _within(approximation, found, solver, eq.system.positions.dtype)
    inverse, preconditioner = None, Words()
    if linear_solver is None and kept.factor is not None:
        inverse, preconditioner = kept.factor.inverse(), Words(kept.factor)
    elif frame.grid is not None and solver.iterative and hessian_operator.is_stored(frame, eq.potential):
        preconditioner = Words("a coarse grid")
    fail_rtol = solver.tolerances(eq.system.positions.dtype)[1]
    return found, State(z, frame, null, inverse, kept.operator, solver, fail_rtol, preconditioner)


def _looked_at_again(eq: Equilibrium) -> Equilibrium:
    """A state of which something was replaced after it was relaxed, without what was known of it before [host].

    Raises:
        ConvergenceError: it is no equilibrium of what it has now.
    """
    listed = listed_tightly(eq.system, eq.potential)
    eq = dataclasses.replace(eq, system=listed, curvature=None, kept=KeptHessian())
    frame = eq.frame
    z = eq.unknown_in(frame)
    norm = float(unbalanced(z, (frame, eq.potential))[1])
    found = curvature(z, frame, eq.potential, keep=False)[0]
    if not norm <= max(NEAR * spacing(listed) * found.nearest_zero, STILL * max(eq.fmax, rounding(listed, found.highest))):
        raise ConvergenceError(
            "The potential, structure or conditions of this equilibrium were replaced after it was relaxed, and it is none of "
            f"what it has now (largest force {norm:.1e} eV/Å): relax it again, eq.again(potential)."
        )
    return eq


def _default_solver(eq: Equilibrium, frame: Frame, z: Any) -> Any:
    if not frame.symmetric:
        small = ravel_pytree(z)[0].size <= DIRECT_LIMIT
        return Direct() if small else GMRES(restart=KRYLOV)
    return MINRES() if eq.index or eq.multipliers is not None else CG()


def _within(approximation: Any, found: Any, solver: Any, dtype: Any) -> Any:
    """A solver that asks for no smaller a residual than the error of the operator leaves."""
    rtol, fail_rtol = solver.tolerances(dtype)
    reachable = min(approximation.hessian / found.nearest_zero, LOOSEST)
    if not reachable > rtol:
        return solver
    # In whole powers, so that compiled code is found again.
    reachable = float(10.0 ** np.ceil(np.log10(reachable)))
    return dataclasses.replace(solver, rtol=reachable, fail_rtol=max(fail_rtol, 10.0 * reachable))


@eqx.filter_jit
def changes(state: State, z: Any, moving: Any, resting: Any, directions: Array | np.ndarray, columns: Any) -> tuple[Array, Array]:
    """`(A dz + B dθ, F)` at some z, for each direction dθ and column dz together. With `columns` None it is B dθ."""
    _, unravel_parameters = ravel_pytree(moving)
    _, unravel = ravel_pytree(z)

    def condition(z: Any, selected: Any) -> Array:
        return ravel_pytree(state.condition(z, eqx.combine(selected, resting)))[0]

    def change(dz: Array, direction: Any) -> Array:
        return jax.jvp(condition, (z, moving), (unravel(dz), unravel_parameters(direction)))[1]

    if columns is None:
        by_parameters = jax.linearize(lambda selected: condition(z, selected), moving)[1]
        return jax.vmap(lambda direction: by_parameters(unravel_parameters(direction)))(directions), condition(z, moving)
    return jax.vmap(change)(columns, directions), condition(z, moving)


def solutions(
    state: State, potential: Potential, b: Any, rest: Any, weights: np.ndarray, nothing: float
) -> tuple[np.ndarray, Array, np.ndarray, float]:
    """The answers to several right-hand sides, with each direction that they share solved for once [host].

    Right-hand sides of one potential lie in few directions: where energies scale, some are parallel, and some are what is
    left of the forces. So an orthonormal basis of them is solved for, each of its vectors to what it matters.

    Args:
        b: `(k, n)`, ∂F/∂θ.
        rest: F.
        weights: `(k,)`, the parameters' own sizes, since errors of θ dz/dθ compare.
        nothing: what rounding leaves of θ ∂F/∂θ.

    Returns:
        `(-A⁻¹b for each b, -A⁻¹F to three digits, relative residuals of the former, ‖F‖ outside the null space)`. The
        residuals are bounds. Where θ ∂F/∂θ is no larger than what is left of F or of rounding, three digits of that are enough,
        and such a residual is relative to them.
    """
    weight = np.append(weights, 1.0)
    sides = weight[:, None] * np.asarray(_outside(state.null, b, rest), dtype=float)
    sizes = np.linalg.norm(sides, axis=1)
    rtol, left = state.solver.tolerances(rest.dtype)[0], sizes[-1]
    if not np.isfinite(sizes).all():
        return np.full(b.shape, np.nan), rest * np.nan, np.full(len(b), np.nan), left
    scales = np.maximum(sizes, state.solver.atol * weight)
    aims = np.maximum(rtol * sizes, state.solver.atol * weight)
    small = sizes <= max(2.0 * left, nothing)
    # Unless nothing but such derivatives was asked for.
    aims[small] = np.maximum(aims[small], max(min(1e-3 * left, 1e-9 * sizes.max()), 1e-3 * nothing))
    aims[-1] = max(aims[-1], 1e-3 * left)
    scales[small] = aims[small] / max(rtol, np.finfo(rest.dtype).eps)

    basis, shares, order = scipy.linalg.qr(sides.T, mode="economic", pivoting=True, overwrite_a=True)
    shares = shares[:, np.argsort(order)]
    needed = np.divide(aims, np.abs(shares), out=np.full(shares.shape, np.inf), where=shares != 0.0).min(axis=1)
    solved_for = needed < 1.0
    columns = np.where(solved_for, basis, 0.0).T.astype(rest.dtype)
    solved, residuals = _solved(state, potential, columns, np.minimum(needed, 1.0).astype(rest.dtype))
    answers = (-(shares.T @ np.asarray(solved, dtype=float)) / weight[:, None]).astype(rest.dtype)
    errors = np.abs(shares).T @ np.where(solved_for, residuals, 1.0)
    residuals = np.divide(errors, scales, out=np.zeros_like(errors), where=scales > 0.0)
    return answers[:-1], jnp.asarray(answers[-1]), residuals[:-1], left


@eqx.filter_jit
def _outside(null: Gauge, b: Any, rest: Any) -> Array:
    return jax.vmap(null.project)(jnp.concatenate([b, rest[None]]))


@eqx.filter_jit
def _solved(state: State, potential: Potential, columns: Any, aims: Any) -> tuple[Array, Array]:
    """`(A⁻¹ of each column, residuals)`, each to what is aimed at."""
    product = state.own_operator(state.z, potential)

    def solved(column: Array, aim: Array) -> tuple[Array, Array]:
        return linear_solve(product, column, solver=state.solver, atol=aim, throw=False, **state.options)

    if state.solver.iterative and state.size > TOGETHER:
        return jax.lax.map(lambda both: solved(*both), (columns, aims))
    return jax.vmap(solved)(columns, aims)


@eqx.filter_jit
def along(state: State, potential: Potential, direction: Any) -> tuple[Any, Array]:
    """`(dz, residual)` along one direction in parameter space, z-shaped."""
    return root_jvp(state.condition, state.z, (potential,), (direction,), project=True, probe=False, **_own_options(state))


def pulled_back(state: State, potential: Potential, slope: Any) -> tuple[Any, Array]:
    """`(the gradient in θ of a function of z whose gradient in z is `slope`, residual)`, by one adjoint solve."""
    w, residual = adjoint_solution(state.condition, state.z, (potential,), slope, **_own_options(state))
    return forces.slopes_of_work(state.z, (state.frame, potential), jax.tree.map(jnp.negative, w)), residual


def pulled_back_each(state: State, potential: Potential, slope: Any) -> tuple[Any, Array]:
    """The same under `vmap`, for several slopes: they share ∂F/∂θ."""
    (implicit,), residual = root_vjp(state.condition, state.z, (potential,), slope, probe=False, **_own_options(state))
    return implicit, residual


def _own_options(state: State) -> dict[str, Any]:
    return {"operator": state.own_operator, "linear_solver": state.solver, **state.options}


def solution(state: State, potential: Potential) -> Any:
    """z of a potential near the state's own, for derivatives of any order at it. Pure JAX."""
    found = differentiable_solution(
        _at_the_state,
        _condition_of,
        symmetric=state.frame.symmetric,
        linear_solver=state.solver,
        gauge=_gauge_of,
        operator=_operator_of,
        project=True,
    )
    # The state travels as the start, which has no derivative, and comes back as the witness.
    return found(state, potential)[0]


def _at_the_state(state: State, potential: Potential) -> tuple[Any, State]:
    return state.z, state


def _condition_of(z: Any, state: State, potential: Potential) -> Any:
    return state.condition(z, potential)


def _gauge_of(z: Any, state: State, potential: Potential) -> Gauge:
    return state.null


def _operator_of(z: Any, state: State, potential: Potential) -> Callable[..., Any]:
    return state.operator(z, potential)


@eqx.filter_jit
def _sizes(vectors: Array, vector: Any, null: Gauge) -> tuple[Array, Array]:
    size = lambda vector: jnp.linalg.norm(null.project(vector))  # noqa: E731
    return jax.vmap(size)(vectors), size(vector)


@eqx.filter_jit
def dot_test(state: State, potential: Potential, moving: Any, columns: Any, weights: Any) -> tuple[Array, Array]:
    """⟨w, dz·v⟩ by the columns dz/dθ and by an adjoint solve, for a random unit vector w and random shares v of each θ's size.

    Returns:
        `(their difference, ‖dz·v‖)`. The shares add up to one, so that the former compares with a bound on θ dz/dθ.
    """
    flat, unravel = ravel_pytree(state.z)
    w = state.null.project(jax.random.normal(jax.random.key(2), flat.shape, flat.dtype))
    size = jnp.linalg.norm(w)
    w = w / jnp.where(size > 0.0, size, 1.0)
    shares = jax.random.normal(jax.random.key(3), columns.shape[:1], columns.dtype)
    v = weights * shares / jnp.sum(jnp.abs(shares))
    dz = v @ columns
    slope, _ = pulled_back(state, potential, unravel(w))
    chosen = jax.tree.map(lambda kept, value: None if kept is None else value, moving, slope, is_leaf=lambda leaf: leaf is None)
    return jnp.abs(w @ dz - ravel_pytree(chosen)[0] @ v), jnp.linalg.norm(dz)


def errors(
    state: State,
    found: Curvature,
    moving: Any,
    resting: Any,
    columns: np.ndarray,
    step: Any,
    weights: np.ndarray,
    together: Any = None,
) -> np.ndarray:
    """Bounds on ‖dz/dθ - dz*/dθ‖, one for each column [host]: what `implicit.jacobian_bound` does, for all together.

    Args:
        columns: dz/dθ, `(parameters, n)`, NumPy's.
        weights: the parameters' own sizes.
        step: the Newton step to the true equilibrium.
        together: a `many_parameters.Together`, where they were solved for so.
    """
    flat, unravel = ravel_pytree(state.z)

    def defects(point: Any) -> tuple[np.ndarray, float]:
        """`(‖A dz/dθ + B‖ of each column, ‖F‖)` outside the null space."""
        if together is not None:
            return together.defects(unravel(point), columns)
        norms = []
        for k, directions in enumerate(batches(len(columns), columns.dtype, False)):
            part = columns[k * BATCH : (k + 1) * BATCH]
            filled = np.pad(part, ((0, len(directions) - len(part)), (0, 0)))
            sizes, left = _sizes(*changes(state, unravel(point), moving, resting, directions, filled), state.null)
            norms.append(np.asarray(sizes)[: len(part)])
        return np.concatenate(norms), float(left)

    defect, left = defects(flat + step)
    size, reached, eps = np.linalg.norm(columns, axis=1), float(jnp.linalg.norm(step)), float(jnp.finfo(flat.dtype).eps)
    alpha = found.nearest_zero
    distance = left / alpha if alpha > 0.0 else np.inf
    other, length = other_point(flat, step, distance, state.null)
    falling = STEEP * found.highest / spacing(state.frame.system)
    if falling * (reached + distance) < NOTICED * alpha:
        alpha = alpha - falling * reached
    elif np.isfinite(reached + distance):
        # So soft, or so far from the equilibrium, that α may be another there.
        potential = eqx.combine(moving, resting)
        lowest_at = lambda point: curvature(unravel(point), state.frame, potential, keep=False)[0].nearest_zero  # noqa: E731
        at_other, alpha = alpha if other is flat else lowest_at(other), lowest_at(flat + step)
        falling = abs(at_other - alpha) / length
    return _approximated(state, alpha, moving, resting, size) + error_bound(
        defect + rounding(state.frame.system, found.highest) / weights,
        reached,
        left,
        slope=lambda: (defect if other is flat else defect + defects(other)[0]) / length,
        softening=lambda: falling,
        lowest=alpha,
        highest=found.highest,
        size=size,
        eps=eps,
        noise=eps * found.highest * float(jnp.linalg.norm(flat)),
    )


def rounding(system: System, highest: float) -> float:
    """What rounding leaves of θ ∂F/∂θ where it should be zero, by symmetry or because nothing depends on θ [eV/Å]."""
    return float(ROUNDING * jnp.finfo(system.positions.dtype).eps) * highest * spacing(system)


def spacing(system: System) -> float:
    """A mean distance between atoms [Å] [host]."""
    n, dim = system.positions.shape
    if system.cell is not None and all(system.pbc):
        return float(abs(np.linalg.det(system.cell)) / n) ** (1.0 / dim)
    arms = np.asarray(system.positions) - np.mean(system.positions, axis=0)
    return 2.0 * float(np.sqrt(np.mean(np.sum(arms**2, axis=1)))) / n ** (1.0 / dim)


def _approximated(state: State, lowest: float, moving: Any, resting: Any, size: Any) -> Any:
    """What second derivatives that are not exact add to the errors of columns of some sizes."""
    approximation = eqx.combine(moving, resting).approximation(state.frame.system)
    if approximation is None:
        return 0.0
    is_none = lambda leaf: leaf is None  # noqa: E731
    mixed = jax.tree.map(lambda kept, error: None if kept is None else error, moving, approximation.mixed, is_leaf=is_none)
    softest = lowest - approximation.hessian
    return (approximation.hessian * size + np.asarray(ravel_pytree(mixed)[0])) / softest if softest > 0.0 else np.inf


def batches(count: int, dtype: Any, progress: bool | None) -> Iterator[Any]:
    """One-hot directions, `BATCH` at a time; the last batch is filled up with zeros."""
    batch = min(BATCH, count)
    starts = range(0, count, batch)
    wanted = False if len(starts) == 1 else progress
    for start in bar(starts, wanted, desc="sensitivity", unit_scale=batch, unit="parameter"):
        rows = np.arange(start, start + batch)
        yield (rows[:, None] == np.arange(count)).astype(dtype)


def split_last(stacked: Any, tree: Any) -> Any:
    """The last axis, over all values of a tree, cut into leaves of shape `(..., *leaf.shape)` [host]."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(np.asarray(stacked), ends, axis=-1)
    shaped = [jnp.asarray(part.reshape((*stacked.shape[:-1], *leaf.shape))) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def check_residual(residual: float, found: Curvature, state: State) -> None:
    """Raises LinearSolveError where a solve failed."""
    if residual <= state.fail_rtol:
        return
    loose = f"; {found.floppy} mode(s) beyond the known zero modes cost no energy" if found.floppy else ""
    raise LinearSolveError(
        f"The linear system of the derivative was solved to a relative residual of {residual:.1e} only "
        f"(lowest curvature {found.lowest:.1e} eV/Å²{loose}): relax further, or ask with throw=False and look at "
        "the certificate."
    )
