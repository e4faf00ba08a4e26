"""The linear systems behind every derivative of an equilibrium: A = ∂F/∂z, B = ∂F/∂θ, dz/dθ = -A⁻¹B.

Here z is flat. Motions that cost no energy are projected out (`mdsens.mechanics.rigid_motions`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import ConvergenceError, InputError, LinearSolveError
from mdsens.common.progress import bar
from mdsens.derivatives.selection import Selection, restrict
from mdsens.equilibrium.descent import residual_forces, with_tight_list
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.implicit import NullSpace, differentiable_solution, root_jvp, root_vjp
from mdsens.implicit.bound import error_bound, other_point
from mdsens.implicit.linear_system import LinearSolver
from mdsens.implicit.root import adjoint_solution
from mdsens.mechanics import evaluation
from mdsens.mechanics.evaluation import evaluate, slopes_by_parameters
from mdsens.mechanics.forces import slopes_of_work
from mdsens.mechanics.hessian import BATCHED_SIZE, Hessian
from mdsens.mechanics.hessian_operator import Operator
from mdsens.mechanics.scales import spacing
from mdsens.mechanics.softest_modes import columns_at
from mdsens.mechanics.spectrum import examine_hessian
from mdsens.mechanics.unknown import Unknown, raveled, unraveled
from mdsens.potentials.base import Potential
from mdsens.solvers import Status

BATCH = 64
"""Right-hand sides solved together, at most."""

FEW_PARAMETERS = 16
"""Parameters up to which ∂F/∂θ of all of them costs no more than the transposed product that one gradient needs."""

KEPT_SLOPES = 5 * 10**7
"""Numbers, at most, in the slopes ∂F/∂θ that are kept with a Hessian."""

CURVATURE_CHANGE = 100.0
"""Change of curvatures over a mean distance between atoms, in units of the highest: thrice that of Lennard-Jones's pairs. Where
it matters the curvatures are computed."""

MAX_SOFTENING = 0.05
"""Share by which the lowest curvature may change between a state and the true equilibrium before it is computed there."""

MAX_FORCE_GROWTH = 100.0
"""Factor by which forces may grow when part of a state is replaced, while it still counts as an equilibrium."""

MAX_OFFSET = 1e-5
"""Distance to the next equilibrium, as a share of that between atoms, up to which such a state counts as one too."""

Defects = Callable[[Unknown | Array, np.ndarray], tuple[np.ndarray, float]]
"""A function of z and columns dz/dθ: `(‖A dz/dθ + B‖ of each column, ‖F‖)`."""


def differentiable_hessian(eq: Equilibrium, linear_solver: LinearSolver | None, *, parameters: bool = True) -> Hessian:
    """Return the Hessian of an equilibrium that has a derivative [host].

    Args:
        parameters: whether the derivative is one in the potential's parameters.

    Raises:
        ConvergenceError: it has no derivative.
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
        eq = _reexamine(eq)
    hessian = eq.hessian
    if hessian.spectrum.index != eq.index:
        raise ConvergenceError(
            f"The lowest curvature is {hessian.spectrum.lowest:.1e} eV/Å²: "
            f"{(Status.WRONG_INDEX if eq.index else Status.SADDLE).value}."
        )
    if linear_solver is None:
        return hessian
    if not isinstance(linear_solver, LinearSolver):
        raise InputError(f"linear_solver must be one of mdsens.implicit's, such as implicit.CG(), not {linear_solver!r}.")
    return hessian.solved_by(linear_solver)


def _reexamine(eq: Equilibrium) -> Equilibrium:
    """Return a state of which part was replaced after it was relaxed, without what was known of it before [host].

    Raises:
        ConvergenceError: it is no equilibrium of what it has now.
    """
    listed = with_tight_list(eq.system, eq.potential)
    eq = dataclasses.replace(eq, system=listed, spectrum=None).as_made()
    hessian = eq.hessian
    norm = float(residual_forces(hessian.z, hessian.landscape)[1])
    by_distance = MAX_OFFSET * spacing(listed) * hessian.spectrum.nearest_zero
    if not norm <= max(by_distance, MAX_FORCE_GROWTH * max(eq.fmax, hessian.rounding)):
        raise ConvergenceError(
            "The potential, structure or conditions of this equilibrium were replaced after it was relaxed, and it is none of "
            f"what it has now (largest force {norm:.1e} eV/Å): relax it again, eq.again(potential)."
        )
    return eq


class Response(NamedTuple):
    """The solutions of an equilibrium's linear systems, outside the null space.

    Attributes:
        columns: `(k, n)`, dz/dθ for each parameter value.
        step: `(n,)`, -A⁻¹F to three digits, the Newton step to the true equilibrium.
        residuals: `(k,)`, relative, of the columns.
        force: ‖F‖, what is left of the forces.
    """

    columns: np.ndarray
    step: np.ndarray
    residuals: np.ndarray
    force: float


def changes(
    hessian: Hessian, z: Unknown | Array, selection: Selection, directions: np.ndarray, columns: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return `(A dz + B dθ, F)` at some z, for each direction dθ and column dz together [host]. With `columns` None it is B dθ.

    Directions come in `batches`.
    """
    if not hessian.is_stored:
        compiled = _changes(hessian, z, selection, directions, columns)
        return np.asarray(compiled[0]), np.asarray(compiled[1])
    rows = np.zeros((len(directions), hessian.size))
    if directions.any():
        rows = slopes_by_parameters(z, hessian.landscape, selection.among_all(directions))
    if columns is not None:
        rows = rows + columns_at(z, hessian.landscape)(np.asarray(columns, float).T).T
    return rows, raveled(evaluate(z, hessian.landscape).residual)


def all_slopes(hessian: Hessian) -> np.ndarray | None:
    """Return ∂F/∂θ for all parameters [host]; None where they are neither known nor quickly computed."""
    count, aside = sum(leaf.size for leaf in jax.tree.leaves(hessian.potential)), hessian.aside.value
    if aside.slopes is None and hessian.is_stored and count <= FEW_PARAMETERS and count * hessian.size <= KEPT_SLOPES:
        aside.slopes = slopes_by_parameters(hessian.z, hessian.landscape, np.eye(count, dtype=hessian.dtype))
    return aside.slopes


def keep_slopes(hessian: Hessian, selection: Selection, slopes: np.ndarray) -> None:
    """Keep ∂F/∂θ of selected parameters with the Hessian, if it is all of them and not too much [host]."""
    count = sum(leaf.size for leaf in jax.tree.leaves(hessian.potential))
    if hessian.is_stored and len(selection.places) == count and slopes.size <= KEPT_SLOPES:
        hessian.aside.value.slopes = slopes


@eqx.filter_jit
def _changes(
    hessian: Hessian, z: Unknown | Array, selection: Selection, directions: Array | np.ndarray, columns: Array | np.ndarray | None
) -> tuple[Array, Array]:
    parameters = selection.parameters
    _, unravel_parameters = ravel_pytree(parameters)
    _, unravel = ravel_pytree(z)

    def condition(z: Unknown | Array, parameters: Potential) -> Array:
        return ravel_pytree(hessian.condition(z, eqx.combine(parameters, selection.rest)))[0]

    def change(dz: Array, direction: Array) -> Array:
        return jax.jvp(condition, (z, parameters), (unravel(dz), unravel_parameters(direction)))[1]

    if columns is None:
        by_parameters = jax.linearize(lambda parameters: condition(z, parameters), parameters)[1]
        return jax.vmap(lambda direction: by_parameters(unravel_parameters(direction)))(directions), condition(z, parameters)
    return jax.vmap(change)(jnp.asarray(columns), jnp.asarray(directions)), condition(z, parameters)


def solutions(hessian: Hessian, b: np.ndarray, rest: np.ndarray, weights: np.ndarray) -> Response:
    """Solve for several right-hand sides, once for each direction that they share [host].

    Right-hand sides of one potential lie in few directions: where energies scale, some are parallel, and some are what is
    left of the forces. So an orthonormal basis of them is solved for, each vector as accurately as it matters.

    Args:
        b: `(k, n)`, ∂F/∂θ.
        rest: F.
        weights: `(k,)`, the parameters' own sizes, since errors of θ dz/dθ compare.

    Returns:
        the response, whose residuals are bounds. Where θ ∂F/∂θ is no larger than what is left of F, or than rounding, it is
        solved to three digits of that, and its residual is relative to them.
    """
    if hessian.systems.is_factorised:
        return _factorised_solutions(hessian, b, rest, weights)
    nothing = hessian.rounding
    weight = np.append(weights, 1.0)
    sides = weight[:, None] * hessian.systems.outside(np.concatenate([b, rest[None]]).astype(float))
    sizes = np.linalg.norm(sides, axis=1)
    rtol, left = hessian.solver.tolerances(rest.dtype)[0], sizes[-1]
    if not np.isfinite(sizes).all():
        return Response(np.full(b.shape, np.nan), rest * np.nan, np.full(len(b), np.nan), left)
    scales = np.maximum(sizes, hessian.solver.atol * weight)
    aims = np.maximum(rtol * sizes, hessian.solver.atol * weight)
    small = sizes <= max(2.0 * left, nothing)
    # If all derivatives are that small, the largest of them keeps its digits.
    aims[small] = np.maximum(aims[small], max(min(1e-3 * left, 1e-9 * sizes.max()), 1e-3 * nothing))
    aims[-1] = max(aims[-1], 1e-3 * left)
    scales[small] = aims[small] / max(rtol, np.finfo(rest.dtype).eps)

    basis, shares, order = scipy.linalg.qr(sides.T, mode="economic", pivoting=True, overwrite_a=True)
    shares = shares[:, np.argsort(order)]
    needed = np.divide(aims, np.abs(shares), out=np.full(shares.shape, np.inf), where=shares != 0.0).min(axis=1)
    solved_for = needed < 1.0
    solved, residuals = hessian.systems.solve(np.where(solved_for, basis, 0.0).T, np.minimum(needed, 1.0))
    answers = (-(shares.T @ solved) / weight[:, None]).astype(rest.dtype)
    errors = np.abs(shares).T @ np.where(solved_for, residuals, 1.0)
    residuals = np.divide(errors, scales, out=np.zeros_like(errors), where=scales > 0.0)
    return Response(answers[:-1], answers[-1], residuals[:-1], left)


def _factorised_solutions(hessian: Hessian, b: np.ndarray, rest: np.ndarray, weights: np.ndarray) -> Response:
    """Return what `solutions` does, where a factor gives every answer to rounding."""
    sides = np.concatenate([b, rest[None]])
    sizes = np.linalg.norm(hessian.systems.outside(sides), axis=1)
    answers, errors = hessian.systems.solve(-sides)
    # If a right-hand side is rounding, its residual is relative to the size of rounding.
    scales = np.maximum(sizes, hessian.rounding / np.append(weights, 1.0))
    residuals = np.divide(errors, scales, out=np.zeros_like(errors), where=errors > 0.0)
    return Response(answers[:-1], answers[-1], residuals[:-1], float(sizes[-1]))


def along(hessian: Hessian, direction: Potential) -> tuple[np.ndarray, float]:
    """Return `(dz raveled, its relative residual)` along one direction in parameter space [host]."""
    columns, residuals = along_all(hessian, _flat_parameters(direction)[None].astype(hessian.dtype))
    return columns[0], float(residuals[0])


def along_all(hessian: Hessian, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `(dz raveled, its relative residual)` along each of several directions in the space of all parameters [host]."""
    if not hessian.is_stored:
        compiled = _along_all(hessian, directions)
        return np.asarray(compiled[0]), np.asarray(compiled[1])
    known = all_slopes(hessian)
    sides = slopes_by_parameters(hessian.z, hessian.landscape, directions) if known is None else directions @ known
    answers, errors = hessian.systems.solve(-sides)
    return answers, relative(errors, hessian.systems.outside(sides))


@eqx.filter_jit
def _along_all(hessian: Hessian, directions: Any) -> tuple[Array, Array]:
    unravel = ravel_pytree(hessian.potential)[1]

    def moved(direction: Array) -> tuple[Array, Array]:
        args = ((hessian.potential,), (unravel(direction),))
        dz, residual = root_jvp(hessian.condition, hessian.z, *args, project=True, probe=False, **_options(hessian))
        return ravel_pytree(dz)[0], residual

    return (
        jax.vmap(moved)(jnp.asarray(directions)) if hessian.size <= BATCHED_SIZE else jax.lax.map(moved, jnp.asarray(directions))
    )


def _flat_parameters(tree: Potential) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def relative(errors: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return residuals relative to the right-hand sides that they belong to; 0 where these vanish."""
    sizes = np.linalg.norm(sides, axis=1)
    return np.where(np.isfinite(sizes), np.divide(errors, sizes, out=np.zeros_like(errors), where=sizes > 0.0), np.nan)


def adjoint_gradients(hessian: Hessian, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `(gradients in θ, relative residuals)` of functions whose gradients in z are rows, by an adjoint solve each [host].

    Returns:
        the gradients with all parameters raveled, `(k, parameters)`.
    """
    if not hessian.is_stored:
        together = hessian.size <= BATCHED_SIZE and len(slopes) > 1
        compiled = (_adjoints_together if together else _adjoints)(hessian, slopes)
        return np.asarray(compiled[0]), np.asarray(compiled[1])
    w, errors = hessian.systems.solve(slopes)
    known = all_slopes(hessian)
    gradients = -(w @ known.T) if known is not None else -evaluation.slopes_of_work(hessian.z, hessian.landscape, w)
    return gradients, relative(errors, hessian.systems.outside(slopes))


@eqx.filter_jit
def _adjoints(hessian: Hessian, slopes: np.ndarray) -> tuple[Array, Array]:
    unravel = ravel_pytree(hessian.z)[1]

    def adjoint(slope: Array) -> tuple[Array, Array]:
        args = (hessian.condition, hessian.z, (hessian.potential,), unravel(slope))
        w, residual = adjoint_solution(*args, **_options(hessian))
        work = slopes_of_work(hessian.z, hessian.landscape, jax.tree.map(jnp.negative, w))
        return ravel_pytree(work)[0], residual

    return jax.lax.map(adjoint, jnp.asarray(slopes))


@eqx.filter_jit
def _adjoints_together(hessian: Hessian, slopes: np.ndarray) -> tuple[Array, Array]:
    """Return what `_adjoints` does: several slopes share ∂F/∂θ."""
    unravel = ravel_pytree(hessian.z)[1]

    def adjoint(slope: Array) -> tuple[Array, Array]:
        args = (hessian.condition, hessian.z, (hessian.potential,), unravel(slope))
        (implicit,), residual = root_vjp(*args, probe=False, **_options(hessian))
        return ravel_pytree(implicit)[0], residual

    return jax.vmap(adjoint)(jnp.asarray(slopes))


def _options(hessian: Hessian) -> dict[str, Any]:
    return {"operator": hessian.product, "linear_solver": hessian.solver, **hessian.options}


def solution(hessian: Hessian, potential: Potential) -> Unknown | Array:
    """Return z of a potential near the state's own, for derivatives of any order at the state; pure JAX."""
    solve = differentiable_solution(
        _state_of,
        _condition_of,
        symmetric=hessian.reference.symmetric,
        linear_solver=hessian.solver,
        null_space=_null_space_of,
        operator=_operator_of,
        project=True,
    )
    # The state goes in as the start, which has no derivative, and comes back as the witness.
    return solve(hessian, potential)[0]


def _state_of(hessian: Hessian, potential: Potential) -> tuple[Unknown | Array, Hessian]:
    return hessian.z, hessian


def _condition_of(z: Unknown | Array, hessian: Hessian, potential: Potential) -> Unknown | Array:
    return hessian.condition(z, potential)


def _null_space_of(z: Unknown | Array, hessian: Hessian, potential: Potential) -> NullSpace:
    return hessian.null_space


def _operator_of(z: Unknown | Array, hessian: Hessian, potential: Potential) -> Operator:
    return hessian.product_at(z, potential)


def dot_test(hessian: Hessian, selection: Selection, columns: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Compare ⟨w, dz·v⟩ by the columns dz/dθ and by an adjoint solve: w a random unit vector, v random shares of each θ's size.

    Returns:
        `(the difference, ‖dz·v‖)`. The shares add up to one, so that the former compares with a bound on θ dz/dθ [host].
    """
    random = np.random.default_rng(2)
    w = hessian.systems.outside(random.normal(size=(1, hessian.size)))
    size = np.linalg.norm(w)
    w = w / (size if size > 0.0 else 1.0)
    shares = random.normal(size=len(columns))
    v = weights * shares / np.abs(shares).sum()
    dz = v @ columns
    if hessian.is_stored:
        known = hessian.aside.value.slopes
        if known is None:
            direction = np.zeros((batch_size(len(v)), len(v)), columns.dtype)
            direction[0] = v
            change = changes(hessian, hessian.z, selection, direction, None)[0][0]
        else:
            change = v @ known[selection.places]
        adjoint = -(hessian.systems.solve(w)[0][0] @ change)
    else:
        adjoint = adjoint_gradients(hessian, w.astype(hessian.dtype))[0][0, selection.places] @ v
    return float(abs(w[0] @ dz - adjoint)), float(np.linalg.norm(dz))


def error_bounds(
    hessian: Hessian, selection: Selection, response: Response, weights: np.ndarray, defects: Defects | None = None
) -> np.ndarray:
    """Return bounds on ‖dz/dθ - dz*/dθ‖, one for each column [host]: `implicit.jacobian_bound` for all columns together.

    Args:
        weights: the parameters' own sizes.
        defects: None to compute them by products of the potential.
    """
    flat, eps = raveled(hessian.z), float(np.finfo(hessian.dtype).eps)
    unravel = lambda flat: unraveled(flat, hessian.z)  # noqa: E731
    columns, step, spectrum = response.columns, response.step, hessian.spectrum
    defects = functools.partial(_defects, hessian, selection) if defects is None else defects
    defect, left = defects(unravel(flat + step), columns)
    size, reached = np.linalg.norm(columns, axis=1), float(np.linalg.norm(step))
    alpha = spectrum.nearest_zero
    distance = left / alpha if alpha > 0.0 else np.inf
    other, length = other_point(flat, step, distance, hessian.null_space)
    falling = CURVATURE_CHANGE * spectrum.highest / spacing(hessian.reference.system)
    if falling * (reached + distance) < MAX_SOFTENING * alpha:
        alpha = alpha - falling * reached
    elif np.isfinite(reached + distance):
        # The state is so soft, or so far from the equilibrium, that α may be another there.
        examine = lambda point: examine_hessian(unravel(point), hessian.reference, selection.potential).spectrum  # noqa: E731
        lowest_at = lambda point: examine(point).nearest_zero  # noqa: E731
        at_other, alpha = alpha if other is flat else lowest_at(other), lowest_at(flat + step)
        falling = abs(at_other - alpha) / length
    return _approximation_errors(hessian, selection, alpha, size) + error_bound(
        defect + hessian.rounding / weights,
        reached,
        left,
        slope=lambda: (defect if other is flat else defect + defects(unravel(other), columns)[0]) / length,
        softening=lambda: falling,
        lowest=alpha,
        highest=spectrum.highest,
        size=size,
        eps=eps,
        noise=eps * spectrum.highest * float(np.linalg.norm(flat)),
    )


def _defects(hessian: Hessian, selection: Selection, z: Unknown | Array, columns: np.ndarray) -> tuple[np.ndarray, float]:
    """Return `(‖A dz/dθ + B‖ of each column, ‖F‖)` at some z, outside the null space."""
    norms, left = [], 0.0
    for k, directions in enumerate(batches(len(columns), columns.dtype, False)):
        part = columns[k * len(directions) : (k + 1) * len(directions)]
        filled = np.pad(part, ((0, len(directions) - len(part)), (0, 0)))
        rows, rest = changes(hessian, z, selection, directions, filled)
        norms.append(np.linalg.norm(hessian.systems.outside(rows), axis=1)[: len(part)])
        left = float(np.linalg.norm(hessian.systems.outside(rest[None])))
    return np.concatenate(norms), left


def _approximation_errors(hessian: Hessian, selection: Selection, lowest: float, size: np.ndarray) -> np.ndarray | float:
    """Return the errors that approximate second derivatives add to columns of some sizes."""
    approximation = hessian.potential.approximation(hessian.reference.system)
    if approximation is None:
        return 0.0
    mixed = _flat_parameters(restrict(approximation.mixed, selection.parameters))
    softest = lowest - approximation.hessian
    return (approximation.hessian * size + mixed) / softest if softest > 0.0 else np.inf


def batch_size(count: int) -> int:
    """Return how many of some directions are treated together: equally many each time, or nearly, and at most `BATCH`."""
    return -(-count // -(-count // BATCH)) if count else 0


def batches(count: int, dtype: Any, progress: bool | None) -> Iterator[np.ndarray]:
    """Yield one-hot directions, `batch_size` at a time; the last batch is filled up with zeros."""
    batch = batch_size(count)
    starts = range(0, count, batch)
    wanted = False if len(starts) == 1 else progress
    for start in bar(starts, wanted, desc="sensitivity", unit_scale=batch, unit="parameter"):
        rows = np.arange(start, start + batch)
        yield (rows[:, None] == np.arange(count)).astype(dtype)


def split_last_axis(stacked: np.ndarray, tree: Potential) -> Potential:
    """Cut the last axis, over all values of a tree, into leaves of shape `(..., *leaf.shape)` and their precision [host]."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(stacked, ends, axis=-1)
    lead = stacked.shape[:-1]
    shaped = [part.astype(leaf.dtype).reshape((*lead, *leaf.shape)) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, jax.device_put(shaped))


def check_residual(residual: float, hessian: Hessian) -> None:
    """Raise LinearSolveError where a solve failed."""
    if residual <= hessian.fail_rtol:
        return
    spectrum = hessian.spectrum
    loose = f"; {spectrum.floppy} mode(s) beyond the known zero modes cost no energy" if spectrum.floppy else ""
    raise LinearSolveError(
        f"The linear system of the derivative was solved to a relative residual of {residual:.1e} only "
        f"(lowest curvature {spectrum.lowest:.1e} eV/Å²{loose}): relax further, or ask with throw=False and look at "
        "the certificate."
    )
