"""A step of Newton's method: by a factor of the Hessian's matrix where that is small, else by conjugate gradients.

The potential is in none of the programs that a step compiles, where its second derivatives are stored.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Array

from mdsens.implicit import NullSpace
from mdsens.mechanics.factors import DenseMatrix
from mdsens.mechanics.hessian_operator import Operator, PreconditionedOperator, is_stored, stored_operator
from mdsens.mechanics.landscape import LandscapeLike
from mdsens.mechanics.null_space import known_null_space
from mdsens.mechanics.softest_modes import MatrixColumns, columns_at, is_assembled
from mdsens.mechanics.unknown import Unknown, raveled, unraveled
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
    null, operator = known_null_space(z, reference, ()), None
    if is_assembled(reference, potential):
        columns = columns_at(z, data)
        assert isinstance(columns, MatrixColumns)
        operator = columns.dense()
        move = _factorised_move(operator, -raveled(residual), z, reference)
        if move is not None:
            farthest = np.abs(move).max(initial=0.0)
            return unraveled(raveled(z) + move, z), farthest <= (np.inf if solver.max_step is None else solver.max_step)
    else:
        stored, precondition = stored_operator(z, data)
        operator = stored if precondition is None else PreconditionedOperator(stored, precondition)
    return take_step(ALGEBRA, solver, z, residual, KnownSystem(operator, null), tolerance)


def _factorised_move(operator: DenseMatrix, force: np.ndarray, z: Unknown | Array, reference: Any) -> np.ndarray | None:
    """Return A⁻¹ of a force by Cholesky's factor; None where A has no positive curvature somewhere."""
    free, matrix = operator.free, operator.matrix
    dim, n = reference.system.dim, len(reference.system)
    coupled = np.zeros(n, bool)
    coupled[free[free < n * dim] // dim] = True
    null = known_null_space(z, reference, tuple(np.flatnonzero(~coupled).tolist()))
    basis = null.basis[free]
    right = force[free] - basis @ (basis.T @ force[free])
    try:
        factor = scipy.linalg.cho_factor(
            matrix + np.abs(np.diag(matrix)).max(initial=1.0) * (basis @ basis.T), check_finite=False
        )
    except np.linalg.LinAlgError:
        return None
    move = np.zeros_like(force)
    move[free] = scipy.linalg.cho_solve(factor, right, check_finite=False)
    # A force on atoms without a contact moves them nowhere, as in conjugate gradients it would without end.
    unmoved = np.delete(force, free)
    return None if not np.isfinite(move).all() or np.any(unmoved != 0.0) else move
