"""A step of Newton's method: by a factor of the Hessian's matrix where that is small, else by conjugate gradients.

The potential is in none of the programs that a step compiles, where its second derivatives are stored.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Array

from mdsens.implicit import NullSpace
from mdsens.mechanics.hessian_operator import Operator, PreconditionedOperator, is_stored, stored_operator
from mdsens.mechanics.landscape import Landscape, LandscapeLike
from mdsens.mechanics.null_space import known_null_space
from mdsens.mechanics.softest_modes import MatrixColumns, columns_at, is_assembled
from mdsens.mechanics.unknown import Reference, Unknown, raveled, unraveled
from mdsens.solvers import Newton, Problem, Solver, take_step


class KnownSystem(NamedTuple):
    """The operator of a step's linear system, and its null space."""

    operator: Operator
    null_space: NullSpace


ALGEBRA = Problem(
    lambda z, data: z, operator=lambda z, data: data.operator, null_space=lambda z, data: data.null_space, symmetric=True
)
"""A problem of which only a linear system is asked; its data is a `KnownSystem`."""


def whole_step(
    problem: Problem, solver: Solver, z: Unknown | Array, residual: Any, data: LandscapeLike, tolerance: float
) -> tuple[Unknown | Array, Any]:
    """Return `(where a whole step leads, whether to go there)` [host]; see `solvers.Newton.move`."""
    reference, potential = data.reference, data.potential
    newton = isinstance(solver, Newton) and solver.linear_solver is None
    if not newton or not problem.symmetric or not is_stored(reference, potential):
        return take_step(problem, solver, z, residual, data, tolerance)
    operator: Operator
    if is_assembled(reference, potential):
        columns = columns_at(z, Landscape(reference, potential))
        assert isinstance(columns, MatrixColumns)
        move = _factorised_move(columns, -raveled(residual), z, reference)
        if move is not None:
            limit = getattr(solver, "max_step", None)
            return unraveled(raveled(z) + move, z), limit is None or np.abs(move).max(initial=0.0) <= limit
        operator = columns.dense()
    else:
        operator, precondition = stored_operator(z, data)
        operator = operator if precondition is None else PreconditionedOperator(operator, precondition)
    null = known_null_space(z, reference, ())
    return take_step(ALGEBRA, solver, z, residual, KnownSystem(operator, null), tolerance)


def _factorised_move(columns: MatrixColumns, force: np.ndarray, z: Unknown | Array, reference: Reference) -> np.ndarray | None:
    """Return A⁻¹ of a force by Cholesky's factor; None where a curvature is not positive, or a force acts on a loose atom."""
    free = columns.acting
    coupled = np.zeros(len(reference.system), bool)
    coupled[free[free < reference.held.size] // reference.system.dim] = True
    null = known_null_space(z, reference, tuple(np.flatnonzero(~coupled).tolist()))
    matrix, basis = columns.submatrix(free), np.asarray(null.basis)[free]
    stiff, right = np.abs(np.diag(matrix)).max(initial=0.0), force[free] - basis @ (basis.T @ force[free])
    if np.any(np.delete(force, free) != 0.0):
        return None
    try:
        factor = scipy.linalg.cho_factor(matrix + stiff * (basis @ basis.T), check_finite=False, overwrite_a=True)
    except np.linalg.LinAlgError:
        return None
    move = np.zeros_like(force)
    move[free] = scipy.linalg.cho_solve(factor, right, check_finite=False)
    return move if np.isfinite(move).all() else None
