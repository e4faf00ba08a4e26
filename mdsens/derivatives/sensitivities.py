"""`sensitivity`: dX/dθ of relaxed positions and cells, for all parameters θ, with its certificate."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, Unpack, overload

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from mdsens.common.blas import one_thread
from mdsens.common.errors import InputError
from mdsens.common.suggestions import NameSuggester, suggest_names
from mdsens.common.text import short_list
from mdsens.derivatives import linear_response
from mdsens.derivatives.certificate import Certificate, Measurement, certify, explain_doubt
from mdsens.derivatives.linear_response import Response
from mdsens.derivatives.many_parameters import DenseSystems, is_worthwhile
from mdsens.derivatives.roughness import jumps_at
from mdsens.derivatives.selection import Selection
from mdsens.derivatives.states import displacements, is_several, of_each
from mdsens.derivatives.together import Answer, Chosen, choose, respond_together
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.implicit.linear_system import LinearSolver
from mdsens.mechanics.hessian import Hessian
from mdsens.mechanics.scales import typical_distance
from mdsens.potentials.base import Potential, parameter_paths

MAX_BYTES = 4e9
"""Size of a full sensitivity above which it is refused unless a larger one is asked for."""


class Sensitivity(NameSuggester, eqx.Module):
    """The derivatives dX/dθ and dh/dθ for the parameters θ of a potential.

    Attributes:
        positions: a tree of the potential's shape whose leaves are dX/dθ, `(N, dim, *θ.shape)` [Å per unit of θ]; None
            for parameters that were not asked for. At a free cell atoms move with it, frozen ones and rattlers too.
        cell: the same for the cell, dh/dθ, `(dim, dim, *θ.shape)`, rows as the cell's; None where the cell is fixed.
        certificate: how far to trust it.
        potential: the parameters θ.
    """

    positions: Potential
    cell: Potential | None
    certificate: Certificate = eqx.field(static=True)
    potential: Potential

    def __repr__(self) -> str:
        if not isinstance(self.positions, Potential):
            return super().__repr__()
        return "\n".join(sensitivity_lines(self, parameter_paths(self.positions)))

    def scaled(self) -> "Sensitivity":
        """Return θ dX/dθ [Å], in which parameters compare: the displacement by a change of θ of 100 %, to first order."""

        def times(tree: Potential) -> Potential:
            is_none = lambda leaf: leaf is None  # noqa: E731
            return jax.tree.map(lambda theta, d: None if d is None else theta * d, self.potential, tree, is_leaf=is_none)

        return Sensitivity(times(self.positions), self.cell and times(self.cell), self.certificate, self.potential)


class Options(TypedDict, total=False):
    """The options of `sensitivity`."""

    wrt: Sequence[str] | None
    linear_solver: LinearSolver | None
    max_bytes: float
    throw: bool
    progress: bool | None


Name = TypeVar("Name")


@overload
def sensitivity(eq: Equilibrium, **options: Unpack[Options]) -> Sensitivity: ...
@overload
def sensitivity(eq: Mapping[Name, Equilibrium], **options: Unpack[Options]) -> dict[Name, Sensitivity]: ...
@overload
def sensitivity(eq: Sequence[Equilibrium], **options: Unpack[Options]) -> list[Sensitivity]: ...
@suggest_names
def sensitivity(
    eq: Any,
    *,
    wrt: Sequence[str] | None = None,
    linear_solver: LinearSolver | None = None,
    max_bytes: float = MAX_BYTES,
    throw: bool = True,
    progress: bool | None = None,
) -> Any:
    """Compute dX/dθ of relaxed positions, and dh/dθ of a relaxed cell, for every parameter θ, or for those in `wrt`.

        derivatives = ms.sensitivity(eq)
        derivatives.positions.sigma  # (N, dim) [Å per unit of sigma]

    Args:
        eq: an equilibrium; or several as a list or a dict, which give a list or a dict.
        wrt: names or paths: `["sigma", "epsilon.A-B"]`.
        linear_solver: by default `implicit.CG()`, preconditioned by factors of the Hessian that the equilibrium keeps (up to
            1,500 unknowns, and in the plane) or by a coarse grid (large periodic solids); MINRES at saddle points and under
            constraints, GMRES under a stress that is not hydrostatic. Also `implicit.Direct()`. The certificate says which.
        max_bytes: refuse an answer larger than this.
        throw: raise if a linear system failed; otherwise its columns are NaN and the certificate says so.
        progress: show a bar over the parameters; by default only at a terminal and for long work.

    Raises:
        ConvergenceError: the state did not converge or is not what was asked for.
        InputError: a name in `wrt` that does not exist, or an answer that would not fit.
        LinearSolveError: with the residual, if `throw`.
    """
    if is_several(eq) or isinstance(eq, Mapping):
        known_choices: dict[int, Chosen] = {}

        def chosen(potential: Potential) -> Chosen:
            if id(potential) not in known_choices:
                known_choices[id(potential)] = choose(potential, wrt)
            return known_choices[id(potential)]

        known = respond_together(eq, chosen) if linear_solver is None else {}
        options: dict[str, Any] = {"linear_solver": linear_solver, "max_bytes": max_bytes, "throw": throw, "progress": False}
        each = lambda one: _sensitivity(one, chosen, known=known.get(id(one)), **options)  # noqa: E731
        return of_each(each, eq, progress, "sensitivity")
    choices = functools.partial(choose, wrt=wrt)
    with one_thread(eq.system.positions.size if isinstance(eq, Equilibrium) else 0):
        return _sensitivity(eq, choices, linear_solver, max_bytes, throw, progress)


def _sensitivity(
    eq: Equilibrium,
    choices: Callable[[Potential], Chosen],
    linear_solver: LinearSolver | None,
    max_bytes: float,
    throw: bool,
    progress: bool | None,
    known: Answer | None = None,
) -> Sensitivity:
    hessian = linear_response.differentiable_hessian(eq, linear_solver)
    selection, weights, names = choices(eq.potential)
    parameters, weights = selection.parameters, weights.astype(hessian.dtype)
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    size = count * eq.system.positions.nbytes
    if size > max_bytes:
        raise InputError(
            f"The sensitivity of {len(eq.system)} atoms to {count} parameter values would take {size / 1e9:.3g} GB: "
            "choose parameters with wrt=, or ask for gradient(g, eq) or jvp(eq, direction), which cost one solve; "
            f"or allow it with max_bytes={1.1 * size:.1e}."
        )
    dense = None
    if known is not None:
        response = known.response
    elif linear_solver is None and is_worthwhile(hessian, count):
        try:
            dense = DenseSystems(hessian, selection)
            response = dense.response(weights)
        except np.linalg.LinAlgError:  # not positive to working precision
            dense = None
    if dense is None and known is None:
        response = _solve_in_batches(hessian, selection, weights, progress)
    worst = float(np.max(response.residuals))
    if throw:
        linear_response.check_residual(worst, hessian)
    defects = dense.defects if dense is not None else None
    bounds = known.bounds if known is not None else linear_response.error_bounds(hessian, selection, response, weights, defects)
    bounds = weights * bounds
    difference, length = linear_response.dot_test(hessian, selection, response.columns, weights)
    sizes = weights * np.linalg.norm(response.columns, axis=1)
    measurement = Measurement(
        worst,
        float(np.max(bounds)),
        difference,
        length,
        response.force,
        hessian.method if dense is None else dense.method,
        explain_doubt(names, sizes, bounds, typical_distance(eq.system, eq.potential)),
        jumps_at(hessian, selection),
    )

    def shaped(change: Array | np.ndarray) -> Potential:
        return linear_response.split_last_axis(np.moveaxis(np.asarray(change), 0, -1), parameters)

    positions: Array | np.ndarray
    if dense is None:
        positions, cell = displacements(hessian, response.columns)
    else:
        positions, cell = response.columns.reshape(-1, *eq.system.positions.shape), None
    return Sensitivity(shaped(positions), None if cell is None else shaped(cell), certify(eq, hessian, measurement), eq.potential)


def _solve_in_batches(hessian: Hessian, selection: Selection, weights: np.ndarray, progress: bool | None) -> Response:
    """Return the response to all parameters, some at a time [host]; see `solutions`."""
    size, dtype = len(weights), weights.dtype
    parts: list[Response] = []
    slopes: list[np.ndarray] = []
    for directions in linear_response.batches(size, dtype, progress):
        b, rest = linear_response.changes(hessian, hessian.z, selection, directions, None)
        start = len(parts) * len(b)
        count = min(len(b), size - start)
        weight = np.pad(weights[start : start + count], (0, len(b) - count), constant_values=1.0)
        part = linear_response.solutions(hessian, b, rest, weight)
        slopes.append(b[:count])
        parts.append(part._replace(columns=part.columns[:count], residuals=part.residuals[:count]))
    linear_response.keep_slopes(hessian, selection, np.concatenate(slopes))
    columns, residuals = (np.concatenate([getattr(part, name) for part in parts]) for name in ("columns", "residuals"))
    return Response(columns, parts[-1].step, residuals, parts[-1].force)


def sensitivity_lines(sensitivity: Sensitivity, names: list[str]) -> Iterator[str]:
    """Yield lines on what was differentiated in what, and whether it can be trusted; `names` are the parameters'."""
    what = "positions and cell" if sensitivity.cell is not None else "positions"
    yield f"Sensitivity  of {what} to {short_list(names)} of {type(sensitivity.potential).__name__}"
    first, *_ = str(sensitivity.certificate).splitlines()
    yield f"Certificate  {first}"
    yield from (f"             but: {reason}" for reason in sensitivity.certificate.reasons)
