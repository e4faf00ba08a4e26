"""Derivatives of an equilibrium with respect to every parameter of its potential.

Forward: dX/dθ = -A⁻¹B, one solve a parameter. Adjoint: dg/dθ = ∂g/∂θ - (A⁻¹ ∂g/∂X)ᵀB, one solve for all parameters.
A = ∂²U/∂X², B = ∂²U/∂X∂θ; motions that cost no energy are projected out (`mdsens.gauge`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens import stiffness
from mdsens.certificate import Certificate, certify
from mdsens.equilibrium import Equilibrium
from mdsens.errors import ConvergenceError, InputError, LinearSolveError, did_you_mean
from mdsens.implicit import CG, Gauge, linear_solve, root_jvp, root_vjp
from mdsens.implicit.bound import error_bound, probe_displacement
from mdsens.implicit.linear_system import LinearSolver
from mdsens.potentials.base import Potential, parameter_paths
from mdsens.solvers import Status

BATCH = 32
"""Right-hand sides solved together."""

MAX_BYTES = 4e9
"""Size of a full sensitivity above which it is refused unless a larger one is asked for."""

Observable = Callable[[Any, Potential], Any]


class Sensitivity(eqx.Module):
    """dX/dθ for the parameters θ of a potential.

    Attributes:
        positions: a tree of the potential's shape whose leaves are dX/dθ, `(N, dim, *θ.shape)` [Å per unit of θ]; None
            for parameters that were not asked for.
        cell: the same for the cell; None, since the cell is fixed.
        certificate: how far to trust it.
        potential: the parameters θ.
    """

    positions: Potential
    cell: None
    certificate: Certificate = eqx.field(static=True)
    potential: Potential

    def scaled(self) -> "Sensitivity":
        """θ dX/dθ [Å], the form in which parameters compare: the displacement by a change of θ of 100 %, to first order."""
        scaled = jax.tree.map(
            lambda theta, dx: None if dx is None else theta * dx,
            self.potential,
            self.positions,
            is_leaf=lambda leaf: leaf is None,
        )
        return Sensitivity(scaled, self.cell, self.certificate, self.potential)


def sensitivity(
    eq: Equilibrium,
    *,
    wrt: Sequence[str] | None = None,
    linear_solver: Any = None,
    max_bytes: float = MAX_BYTES,
    throw: bool = True,
    progress: bool | None = None,
) -> Sensitivity:
    """dX/dθ of relaxed positions for every parameter θ, or for those in `wrt`.

    Args:
        wrt: names or paths: `["sigma", "epsilon.A-B"]`.
        linear_solver: `implicit.CG(...)` (default), `implicit.Direct()`.
        max_bytes: refuse an answer larger than this.
        throw: raise if a linear system failed; otherwise its columns are NaN and the certificate says so.
        progress: show a bar over the parameters; by default only at a terminal and for long work.

    Raises:
        ConvergenceError: the state did not converge or is no minimum.
        InputError: a name in `wrt` that does not exist, or an answer that would not fit.
        LinearSolveError: with the residual, if `throw`.
    """
    found, how = _usable(eq, linear_solver)
    moving, resting = _select(eq.potential, wrt)
    flat, _ = ravel_pytree(moving)
    size = flat.size * eq.system.positions.nbytes
    if size > max_bytes:
        raise InputError(
            f"The sensitivity of {len(eq.system)} atoms to {flat.size} parameter values would take {size / 1e9:.3g} GB: "
            "choose parameters with wrt=, or ask for gradient(g, eq) or jvp(eq, direction), which cost one solve; "
            f"or allow it with max_bytes={1.1 * size:.1e}."
        )
    positions, frame = eq.system.positions, eq.frame
    columns, residuals = [], []
    for directions in _batches(flat.size, flat.dtype, progress):
        still = jnp.zeros((len(directions), *positions.shape), positions.dtype)
        b, rest = _changes(positions, frame, moving, resting, directions, still)
        dx, step, residual = _solutions(positions, frame, eq.potential, b, rest, how)
        kept = slice(0, min(BATCH, flat.size - len(columns) * BATCH))
        columns.append(dx[kept])
        residuals.append(residual[kept])
    columns, residual = jnp.concatenate(columns), float(jnp.max(jnp.concatenate(residuals)))
    _check_residual(residual, found, throw, how)
    errors = _errors(eq, moving, resting, columns, step, found, how)
    certificate = certify(eq, found, how.solver, residual, float(np.max(np.abs(flat) * errors)))
    return Sensitivity(_split_last(jnp.moveaxis(columns, 0, -1), moving), None, certificate, eq.potential)


def _errors(eq, moving, resting, columns, step, found, how):
    """Bounds on ‖dX/dθ - dX*/dθ‖, one for each column [host]: what `implicit.jacobian_bound` does, for all together.

    Args:
        columns: dX/dθ, `(parameters, N, dim)`.
        step: the Newton step to the true equilibrium.
    """
    positions, frame = eq.system.positions, eq.frame

    def defects(point):
        """`(‖A dX/dθ + B‖ of each column, ‖F‖)` outside the null space."""
        norms = []
        for k, directions in enumerate(_batches(len(columns), columns.dtype, False)):
            part = columns[k * BATCH : (k + 1) * BATCH]
            filled = jnp.concatenate([part, jnp.zeros((len(directions) - len(part), *part.shape[1:]), part.dtype)])
            changes, rest = _changes(point, frame, moving, resting, directions, filled)
            sizes = np.asarray(_sizes(jnp.concatenate([changes, rest[None]]), how.null))
            norms.append(sizes[: len(part)])
        return np.concatenate(norms), float(sizes[-1])

    probe, length = probe_displacement(positions.ravel(), step.ravel(), how.null)
    defect, left = defects(positions + step)
    return error_bound(
        defect,
        float(jnp.linalg.norm(step)),
        left,
        lambda: defects(positions + step + probe.reshape(positions.shape))[0] / length,
        probe_length=length,
        lowest=found.lowest,
        highest=found.highest,
        size=np.linalg.norm(columns.reshape(len(columns), -1), axis=1),
        eps=float(jnp.finfo(positions.dtype).eps),
    )


def value_and_gradient(g: Observable, eq: Equilibrium, *, linear_solver: Any = None) -> tuple[Array, Potential]:
    """An observable and its total derivative with respect to every parameter, by one adjoint solve.

    Args:
        g: `g(system, potential)` → a real scalar, made of `jax.numpy`.

    Returns:
        `(value, dg)`, dg being potential-shaped: `dg.sigma`.

    Raises:
        InputError: g is not scalar (see `jacobian`), not real, not finite or not differentiable.
        ConvergenceError, LinearSolveError: as for `sensitivity`.
    """
    found, how = _usable(eq, linear_solver)
    shape = _observable_shape(g, eq)
    if shape.shape != ():
        raise InputError(f"The observable has shape {shape.shape}, not (): use jacobian(g, eq) for arrays.")
    value, total, residual = _adjoint(g, eq.system.positions, eq.frame, eq.potential, how)
    _check_finite(value, *jax.tree.leaves(total), residual=float(residual), how=how)
    _check_residual(float(residual), found, True, how)
    return value, total


def gradient(g: Observable, eq: Equilibrium, *, linear_solver: Any = None) -> Potential:
    """Total derivative of a scalar observable with respect to every parameter; see `value_and_gradient`."""
    return value_and_gradient(g, eq, linear_solver=linear_solver)[1]


def jacobian(g: Observable, eq: Equilibrium, *, linear_solver: Any = None) -> Potential:
    """Total derivative of an array-valued observable; leaves have shape `(*g.shape, *θ.shape)`.

    Forward (one solve a parameter) or adjoint (one solve a component of g), whichever needs fewer solves.

    Raises:
        as `value_and_gradient`.
    """
    found, how = _usable(eq, linear_solver)
    shape = _observable_shape(g, eq)
    flat, _ = ravel_pytree(eq.potential)
    forward = flat.size <= shape.size
    product = _forward_rows if forward else _adjoint_rows
    count = flat.size if forward else shape.size
    rows, residuals = [], []
    for directions in _batches(count, flat.dtype, None):
        row, residual, value = product(g, eq.system.positions, eq.frame, eq.potential, directions, how)
        kept = slice(0, min(BATCH, count - len(rows) * BATCH))
        rows.append(row[kept])
        residuals.append(residual[kept])
    matrix, residual = jnp.concatenate(rows), float(jnp.max(jnp.concatenate(residuals)))
    _check_finite(value, matrix, residual=residual, how=how)
    _check_residual(residual, found, True, how)
    matrix = jnp.moveaxis(matrix, 0, -1) if forward else matrix.reshape(*shape.shape, flat.size)
    return _split_last(matrix, eq.potential)


def jvp(eq: Equilibrium, direction: Potential, *, linear_solver: Any = None) -> Float[Array, "atoms dim"]:
    """dX along one direction in parameter space (potential-shaped; None leaves do not move), by one solve [Å].

    Raises:
        InputError: a direction that is not of the potential's shape.
        ConvergenceError, LinearSolveError: as for `sensitivity`.
    """
    found, how = _usable(eq, linear_solver)
    try:
        direction = jax.tree.map(
            lambda theta, step: jnp.zeros_like(theta) if step is None else jnp.asarray(step, theta.dtype).reshape(theta.shape),
            eq.potential,
            direction,
            is_leaf=lambda leaf: leaf is None,
        )
    except (ValueError, TypeError):
        raise InputError(
            "The direction must have the potential's shape: jax.tree.map(jnp.zeros_like, potential), then set leaves."
        ) from None
    dx, residual = _along(eq.system.positions, eq.frame, eq.potential, direction, how)
    _check_residual(float(residual), found, True, how)
    return dx


def _slope(frame):
    """The equilibrium condition F(x, θ) = ∂U/∂x."""
    return lambda positions, potential: stiffness.gradient(positions, (frame, potential))


def _operator(frame):
    """∂F/∂x at (x, θ), as `root_jvp` wants it."""
    return lambda positions, potential: stiffness.hessian_operator(positions, (frame, potential))


class _Solve(eqx.Module):
    """How the linear systems of a state are solved: the solver, and the null space found with its curvature."""

    solver: Any = eqx.field(static=True)
    null: Gauge
    fail_rtol: float = eqx.field(static=True)

    @property
    def options(self):
        return {"symmetric": True, "linear_solver": self.solver, "gauge": self.null}


@eqx.filter_jit
def _changes(positions, frame, moving, resting, directions, columns):
    """`(A dX + B dθ, F)` at some positions, for each direction dθ and column dX together. Without dX it is B dθ."""
    _, unravel = ravel_pytree(moving)

    def condition(x, selected):
        return _slope(frame)(x, eqx.combine(selected, resting))

    def change(dx, direction):
        return jax.jvp(condition, (positions, moving), (dx, unravel(direction)))[1]

    return jax.vmap(change)(columns, directions), condition(positions, moving)


@eqx.filter_jit
def _solutions(positions, frame, potential, b, rest, how):
    """`(-A⁻¹b for each b, -A⁻¹F, relative residuals of the former)`."""
    product = _operator(frame)(positions, potential)
    options = {"solver": how.solver, "symmetric": True, "gauge": how.null}
    right = -jnp.concatenate([b, rest[None]]).reshape(len(b) + 1, -1).T
    solved, residuals = linear_solve(product, right, throw=False, **options)
    columns = solved.T.reshape(-1, *positions.shape)
    return columns[:-1], columns[-1], residuals[:-1]


@eqx.filter_jit
def _sizes(vectors, null):
    return jax.vmap(lambda vector: jnp.linalg.norm(null.project(vector.ravel())))(vectors)


@eqx.filter_jit
def _along(positions, frame, potential, direction, how):
    options = {"operator": _operator(frame), **how.options}
    return root_jvp(_slope(frame), positions, (potential,), (direction,), project=True, **options)


def _observe(g, frame):
    return lambda positions, potential: jnp.asarray(g(frame.system.with_positions(positions), potential))


@eqx.filter_jit
def _adjoint(g, positions, frame, potential, how):
    value, pullback = jax.vjp(_observe(g, frame), positions, potential)
    slope, explicit = pullback(jnp.ones_like(value))
    options = {"operator": _operator(frame), **how.options}
    (implicit,), residual = root_vjp(_slope(frame), positions, (potential,), slope, **options)
    return value, jax.tree.map(jnp.add, explicit, implicit), residual


@eqx.filter_jit
def _adjoint_rows(g, positions, frame, potential, directions, how):
    value, pullback = jax.vjp(_observe(g, frame), positions, potential)
    options = {"operator": _operator(frame), **how.options}

    def row(direction):
        slope, explicit = pullback(direction.reshape(value.shape))
        (implicit,), residual = root_vjp(_slope(frame), positions, (potential,), slope, **options)
        return ravel_pytree(jax.tree.map(jnp.add, explicit, implicit))[0], residual

    return *jax.vmap(row)(directions), value


@eqx.filter_jit
def _forward_rows(g, positions, frame, potential, directions, how):
    _, unravel = ravel_pytree(potential)
    options = {"operator": _operator(frame), **how.options}

    def row(direction):
        tangent = unravel(direction)
        dx, residual = root_jvp(_slope(frame), positions, (potential,), (tangent,), project=True, **options)
        return jax.jvp(_observe(g, frame), (positions, potential), (dx, tangent))[1], residual

    return *jax.vmap(row)(directions), _observe(g, frame)(positions, potential)


def _observable_shape(g, eq) -> jax.ShapeDtypeStruct:
    try:
        shape = jax.eval_shape(_observe(g, eq.frame), eq.system.positions, eq.potential)
    except (jax.errors.JAXTypeError, TypeError) as error:
        raise InputError(
            "The observable cannot be traced: write it with jax.numpy, as g(system, potential) -> array, without float(), "
            f"NumPy functions or `if` on values ({str(error).splitlines()[0][:160]})."
        ) from error
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        raise InputError(f"The observable is {shape.dtype}: it must be real floating-point numbers to be differentiated.")
    return shape


def _batches(count: int, dtype, progress):
    """One-hot directions, `BATCH` at a time; the last batch is filled up with zeros."""
    from tqdm import tqdm

    batch = min(BATCH, count)
    starts = range(0, count, batch)
    disable = True if progress is False or len(starts) == 1 else (None if progress is None else False)
    for start in tqdm(starts, desc="sensitivity", unit_scale=batch, unit="parameter", disable=disable, delay=1.0, leave=False):
        rows = np.arange(start, start + batch)
        yield jnp.asarray(rows[:, None] == np.arange(count)[None, :], dtype)


def _split_last(stacked, tree):
    """The last axis, over all values of a tree, cut into leaves of shape `(..., *leaf.shape)`."""
    leaves, structure = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = jnp.split(stacked, ends, axis=-1)
    shaped = [part.reshape(*stacked.shape[:-1], *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def _select(potential, wrt):
    """The potential split into the parameters that are asked for and the rest, each None where the other has them."""
    paths = parameter_paths(potential)
    if wrt is None:
        chosen = [True] * len(paths)
    else:
        names = [wrt] if isinstance(wrt, str) else list(wrt)
        known = dict.fromkeys([*(path.split(".")[0] for path in paths), *paths])
        for name in names:
            if name not in known:
                raise InputError(f"{type(potential).__name__} has no parameter {name!r}.{did_you_mean(name, known)}")
        chosen = [any(path == name or path.startswith(f"{name}.") for name in names) for path in paths]
    if not any(chosen):
        raise InputError("No parameter was asked for: leave wrt= out for all of them.")
    leaves, structure = jax.tree.flatten(potential)
    return (
        jax.tree.unflatten(structure, [leaf if keep else None for leaf, keep in zip(leaves, chosen, strict=True)]),
        jax.tree.unflatten(structure, [None if keep else leaf for leaf, keep in zip(leaves, chosen, strict=True)]),
    )


def _usable(eq: Equilibrium, linear_solver):
    """The curvature of a state that has a derivative, and how its linear systems are solved.

    Raises:
        ConvergenceError: it has none.
    """
    if not eq.converged:
        raise ConvergenceError(f"This state has no derivative that means anything: {eq.status.value}.")
    if not jax.tree.leaves(eq.potential):
        raise InputError("The potential has no parameters, so there is nothing to differentiate in.")
    found = eq.curvature
    if found is None:
        found = stiffness.curvature(eq.system.positions, eq.frame, eq.potential)
    if found.negative:
        raise ConvergenceError(f"The lowest curvature is {found.lowest:.1e} eV/Å²: {Status.SADDLE.value}.")
    null = stiffness.known_gauge(eq.system.positions, eq.frame, found.rattlers)
    solver = CG() if linear_solver is None else linear_solver
    if not isinstance(solver, LinearSolver):
        raise InputError(f"linear_solver must be one of mdsens.implicit's, such as implicit.CG(), not {solver!r}.")
    return found, _Solve(solver, null, solver.tolerances(eq.system.positions.dtype)[1])


def _check_finite(*arrays, residual, how):
    """NaN behind a solver that did not fail came in from the observable."""
    solver_failed = np.isfinite(residual) and residual > how.fail_rtol
    if not solver_failed and not all(np.isfinite(a).all() for a in arrays):
        raise InputError(
            "The observable or its derivative is not finite at the equilibrium: it must be finite and differentiable there."
        )


def _check_residual(residual, found, throw, how):
    if throw and not residual <= how.fail_rtol:
        loose = f"; {found.floppy} mode(s) beyond the known zero modes cost no energy" if found.floppy else ""
        raise LinearSolveError(
            f"The linear system of the derivative was solved to a relative residual of {residual:.1e} only "
            f"(lowest curvature {found.lowest:.1e} eV/Å²{loose}): relax further, or ask with throw=False and look at "
            "the certificate."
        )
