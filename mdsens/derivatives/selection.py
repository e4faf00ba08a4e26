"""`Selection`: the parameters of a derivative, and directions in their space."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from mdsens.common.errors import InputError
from mdsens.potentials.base import Potential
from mdsens.potentials.parameter_names import named_leaves

Direction = Potential | Mapping[str, Any]


class Selection(NamedTuple):
    """A potential split into the parameters of a derivative and the rest, each None where the other has them."""

    parameters: Potential
    rest: Potential

    @property
    def potential(self) -> Potential:
        """The whole potential."""
        return eqx.combine(self.parameters, self.rest)

    @property
    def places(self) -> Int[np.ndarray, " selected"]:
        """The places of the parameters among all of the potential, raveled."""
        chosen = jax.tree.map(lambda leaf, own: np.full(leaf.size, own is not None), self.potential, self.parameters)
        return np.flatnonzero(np.concatenate(jax.tree.leaves(chosen)))

    def among_all(self, directions: Float[np.ndarray, "k selected"]) -> Float[np.ndarray, "k parameters"]:
        """Return directions in the space of all parameters of the potential."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.potential))
        whole = np.zeros((len(directions), count), directions.dtype)
        whole[:, self.places] = directions
        return whole


def select(potential: Potential, wrt: Sequence[str] | str | None) -> Selection:
    """Select parameters by name or path; all of them for None.

    Raises:
        InputError: a name that no parameter has, or none at all.
    """
    leaves, structure = jax.tree.flatten(potential)
    names: Any = list(wrt) if isinstance(wrt, list | tuple | set | dict) else [wrt]
    chosen = [True] * len(leaves) if wrt is None else named_leaves(potential, names)
    if not any(chosen):
        raise InputError("No parameter was asked for: leave wrt= out for all of them.")
    return Selection(*eqx.partition(potential, jax.tree.unflatten(structure, chosen)))


def restrict(tree: Potential, parameters: Potential) -> Potential:
    """Return a potential-shaped tree with None where the selected parameters have None."""
    is_none = lambda leaf: leaf is None  # noqa: E731
    return jax.tree.map(lambda leaf, value: None if leaf is None else value, parameters, tree, is_leaf=is_none)


def check_direction(potential: Potential, direction: Direction) -> Potential:
    """Return a direction in parameter space, potential-shaped, with zeros for what does not move.

    Args:
        direction: potential-shaped, None where nothing moves; or steps by name or path, `{"sigma": 1.0, "epsilon.A-B": 0.1}`.

    Raises:
        InputError: it is not of the potential's shape, or names what is no parameter.
    """
    try:
        if isinstance(direction, Mapping):
            direction = _steps_by_name(potential, direction)
        steps = jax.tree.structure(potential).flatten_up_to(direction)  # type: ignore[attr-defined]  # of jax's stubs
        shaped = jax.tree.unflatten(
            jax.tree.structure(potential),
            [
                np.zeros(theta.shape, theta.dtype) if step is None else np.asarray(step, theta.dtype).reshape(theta.shape)
                for theta, step in zip(jax.tree.leaves(potential), steps, strict=True)
            ],
        )
    except InputError:
        raise
    except (ValueError, TypeError):
        raise InputError(
            "The direction must have the potential's shape, or name its parameters' steps: {'sigma': 1.0}."
        ) from None
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(shaped)):
        raise InputError("The direction is not finite.")
    return shaped


def _steps_by_name(potential: Potential, steps: Mapping[str, Any]) -> Potential:
    leaves, structure = jax.tree.flatten(potential)
    moved: list[np.ndarray | None] = [None] * len(leaves)
    for name, step in steps.items():
        for k, chosen in enumerate(named_leaves(potential, [name])):
            if chosen and step is not None:
                moved[k] = np.broadcast_to(np.asarray(step, leaves[k].dtype), leaves[k].shape)
    return jax.tree.unflatten(structure, moved)
