"""Explanations for observables that have no value or derivative at a state: not finite, not relaxed, held by constraints."""

import warnings
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common.errors import InputError, level_of_user
from mdsens.potentials.base import Potential, parameter_paths
from mdsens.structures.system import System, is_concrete

MAX_FORCE_SHARE = 1e-2
"""Force that is left, as a share of the one that moves an atom by its distance to others, above which a state is not relaxed."""

WARNING_SHARE = 1e-4
"""Share of that force above which a state is used with a warning."""


def check_rest(share: Any, what: str) -> None:
    """Raise InputError, or warn, where forces are left that change a property of a relaxed state [host].

    Args:
        share: of the force that would move an atom by its distance to others; a traced one is not checked.
        what: the property, in the plural.
    """
    if not is_concrete(share) or not share > WARNING_SHARE:
        return
    if share > MAX_FORCE_SHARE:
        raise InputError(
            f"The structure is not relaxed, so that its {what} mean nothing (forces are {float(share):.1g} of those that would "
            "move an atom to another's place): ask for those of relax(system, potential).system."
        )
    warnings.warn(
        f"Forces are left in this structure, {float(share):.1g} of those that would move an atom to another's place, so that its "
        f"{what} may be off by as much: relax it first.",
        UserWarning,
        stacklevel=level_of_user(),
    )


def check_free(system: System, what: str) -> None:
    """Raise InputError for a state that constraints hold."""
    if system.held:
        raise InputError(
            f"This state is held by constraints, which {what} know nothing of: relax it without constraints, or freeze atoms by "
            "frozen=."
        )


def explain_nonfinite(g: Any, system: Any, potential: Potential) -> str:
    """Say where an observable, or its partial derivative in positions, cell or parameters, is no finite real number [host].

    The implicit part of a total derivative, which comes from the equilibrium, is not checked.

    Args:
        g: `g(system, potential)`, or with a dict of systems `g(states, potential)`.
        system: the relaxed system, or a dict of them.

    Returns:
        A sentence, or "" where everything is finite.
    """
    try:
        value = jnp.asarray(g(system, potential))
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return f"The observable is {value.dtype}: it must be real floating-point numbers to be differentiated."
        if not np.isfinite(value).all():
            return f"{_component(value)} is {_kind(value)}."
        value, rates, slopes = _slopes(g, system, potential)
    except InputError as error:
        return str(error)
    except (TypeError, ValueError, NotImplementedError) as error:
        return f"The observable cannot be computed and differentiated as it is: {str(error).splitlines()[0][:160]}"
    if not np.isfinite(value).all():
        return f"{_component(value)} is {_kind(value)} on the neighbour list of the relaxed system, though not on a new one."
    where = _places(slopes, system, potential)
    if not where and np.isfinite(rates).all():
        return ""
    variable = f" with respect to {where[0]}" if where else ""
    more = f" (and with respect to {len(where) - 1} more)" if len(where) > 1 else ""
    kind = _kind(rates) if not np.isfinite(rates).all() else _kind(*jax.tree.leaves(slopes))
    return f"The derivative{variable} of {_component(rates, lower=True)} is {kind}{more}: it must be differentiable there."


def _slopes(g: Any, system: Any, potential: Potential) -> tuple[Any, Any, Any]:
    """Return `(value, its rates along a direction in which everything changes, the slopes of its sum)`.

    A derivative that is not finite shows in the rates of its component, whatever the direction, and in the slopes of its
    variable.
    """
    several = isinstance(system, Mapping)
    states = dict(system) if several else {"": system}
    states = {key: s if s.neighbors is not None else s.with_neighbors(potential) for key, s in states.items()}

    def observed(points: Any, potential: Potential) -> Array:
        moved = {
            key: eqx.tree_at(lambda s: (s.positions, s.cell), s, points[key], is_leaf=lambda leaf: leaf is None)
            for key, s in states.items()
        }
        return jnp.asarray(g(moved if several else moved[""], potential))

    at = ({key: (s.positions, s.cell) for key, s in states.items()}, potential)
    value, rates = jax.jvp(observed, at, jax.tree.map(jnp.ones_like, at))
    return value, rates, jax.vjp(observed, *at)[1](jnp.ones_like(value))


def _places(slopes: Any, system: Any, potential: Potential) -> list[str]:
    """Return the variables in which a derivative is not finite, in words."""
    points, parameters = slopes
    places = []
    for key, (positions, cell) in points.items():
        of = f" of the state {key!r}" if isinstance(system, Mapping) else ""
        places += [f"the position of atom {k}{of}" for k in np.flatnonzero(~np.isfinite(positions).all(axis=1))]
        if cell is not None and not np.isfinite(cell).all():
            places.append(f"the cell{of}")
    leaves = zip(parameter_paths(potential), jax.tree.leaves(parameters), strict=True)
    return places + [f"the parameter {name}" for name, leaf in leaves if not np.isfinite(leaf).all()]


def _component(values: Any, lower: bool = False) -> str:
    """Return the first component that is not finite, in words; the observable, where it is a scalar or all are finite."""
    bad = np.argwhere(~np.isfinite(values))
    if np.ndim(values) == 0 or len(bad) == 0:
        return "the observable" if lower else "The observable"
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    index = tuple(int(k) for k in bad[0])
    return f"{'component' if lower else 'Component'} {index} of the observable{more}"


def _kind(*arrays: Any) -> str:
    numbers = np.concatenate([np.ravel(a) for a in arrays])
    return str(numbers[~np.isfinite(numbers)][0])
