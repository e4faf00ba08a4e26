"""The states that observables are of: one equilibrium or several by name, their Hessians and their common potential."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mdsens.common.errors import InputError, MdsensError
from mdsens.common.progress import bar
from mdsens.common.same_function import same_function
from mdsens.derivatives.linear_response import differentiable_hessian
from mdsens.derivatives.references import with_references
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.implicit.linear_system import LinearSolver
from mdsens.mechanics.evaluation import deformation_at
from mdsens.mechanics.hessian import Hessian
from mdsens.mechanics.unknown import as_unknown
from mdsens.potentials.base import Potential

Observable = Callable[[Any, Potential], Any]
States = Equilibrium | Mapping[str, Equilibrium]
Hessians = Hessian | dict[str, Hessian]


def is_several(eq: Any) -> bool:
    """Return whether equilibria are several, of each of which something is asked: a list of them."""
    return isinstance(eq, list | tuple)


def of_each(function: Callable[[Equilibrium], Any], eqs: Any, progress: bool | None, what: str) -> Any:
    """Return what a function gives at each of several equilibria, a list, or a dict for a dict; an error says which one.

    Args:
        what: is done with each, for the bar.
    """
    names = list(eqs) if isinstance(eqs, Mapping) else range(len(eqs))
    if not len(eqs):
        raise InputError("No equilibrium was given: the list is empty.")
    results = []
    for name in bar(names, progress, desc=what, unit="structure"):
        try:
            results.append(function(eqs[name]))
        except MdsensError as error:
            raise type(error)(f"Equilibrium {name!r}: {error}") from error
    return dict(zip(names, results, strict=True)) if isinstance(eqs, Mapping) else results


def check_index(g: Observable, eq: States) -> None:
    """Raise InputError where an observable of several states gets a minimum for a saddle point, or the other way round."""
    for name, index in getattr(g, "state_index", {}).items():
        state = eq.get(name) if isinstance(eq, Mapping) else None
        if isinstance(state, Equilibrium) and state.index != index:
            kind = {0: "a minimum, as relax finds", 1: "a saddle point, as find_saddle finds"}
            raise InputError(f"The state {name!r} must be {kind[index]} it: this one has {state.index} negative curvatures.")


def prepare(
    g: Observable, eq: States, linear_solver: LinearSolver | None, *, order: int = 1
) -> tuple[Observable, Hessians, Potential]:
    """Return an observable with its references among the states, the Hessians of the states, and their potential."""
    check_index(g, eq)
    g, eq = with_references(same_function(g), eq, order=order)
    return g, *hessians_of(eq, linear_solver)


def hessians_of(eq: States, linear_solver: LinearSolver | None) -> tuple[Hessians, Potential]:
    """Return `(Hessians, potential)`: one Hessian, or a dict of them."""
    if isinstance(eq, Equilibrium):
        return differentiable_hessian(eq, linear_solver), eq.potential
    if not isinstance(eq, Mapping) or not eq:
        if callable(eq):
            raise InputError("The observable goes first, and the equilibrium behind it: gradient(g, eq).")
        raise InputError(f'An equilibrium is wanted, or several by name, {{"defect": eq1, "bulk": eq2}}, not {eq!r:.80}.')
    if bad := [name for name in eq if not isinstance(name, str)]:
        raise InputError(f'States have names, {{"defect": eq1, ...}}, not {bad[0]!r}.')
    # In JAX's order of dicts.
    eq = dict(sorted(eq.items()))
    hessians = {name: differentiable_hessian(one, linear_solver) for name, one in eq.items()}
    first = next(iter(eq.values()))
    for name, one in eq.items():
        alike = jax.tree.structure(one.potential) == jax.tree.structure(first.potential)  # type: ignore[operator]
        leaves = (jax.tree.leaves(state.potential) for state in (one, first))
        if not (alike and all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))):
            raise InputError(f"The states have different potentials ({name!r} differs from the first): relax all with one.")
    return hessians, first.potential


def hessian_list(hessians: Hessians) -> list[Hessian]:
    return [hessians] if isinstance(hessians, Hessian) else list(hessians.values())


def map_states(function: Callable[[Hessian], Any], hessians: Hessians) -> Any:
    """Return what a function gives at one state, or at several by name."""
    return function(hessians) if isinstance(hessians, Hessian) else {name: function(one) for name, one in hessians.items()}


def unknowns_of(hessians: Hessians) -> Any:
    return map_states(lambda hessian: hessian.z, hessians)


def named_hessians(hessians: Hessians) -> list[tuple[str | None, Hessian]]:
    return [(None, hessians)] if isinstance(hessians, Hessian) else list(hessians.items())


def displacements(hessian: Hessian, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the changes of positions `(k, N, dim)` and of a free cell `(k, dim, dim)` by changes dz [host]."""
    reference, z = hessian.reference, as_unknown(hessian.z)
    size, freedom = z.positions.size, reference.freedom
    moved = columns[:, :size].reshape(-1, *z.positions.shape)
    if freedom is None:
        return moved, None
    strains = columns[:, size : size + len(freedom.directions)]
    turned = np.tensordot(strains, np.asarray(freedom.directions), 1) / float(freedom.length)
    moved = moved @ deformation_at(hessian.z, freedom) + np.asarray(z.positions) @ turned
    return moved, np.asarray(reference.system.cell) @ turned
