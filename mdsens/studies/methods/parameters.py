"""Parameters of a potential by name, and those that a study varies as one vector."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mdsens.common.errors import InputError, did_you_mean
from mdsens.common.suggestions import suggest_names
from mdsens.potentials import Potential
from mdsens.potentials.base import parameter_paths
from mdsens.potentials.parameter_names import named_leaves


@suggest_names
def with_values(potential: Potential, values: Mapping[str, Any]) -> Potential:
    """Return the potential with other values of some parameters, `{"sigma": 2.1, "epsilon.A-B": 1.0}`.

    Raises:
        InputError: a name that is no parameter, a value of another shape, or one that the potential refuses.
    """
    leaves, structure = jax.tree.flatten(potential)
    for name, value in values.items():
        for k in leaf_indices(potential, name):
            try:
                leaves[k] = jnp.broadcast_to(jnp.asarray(value, leaves[k].dtype), leaves[k].shape)
            except (TypeError, ValueError):
                raise InputError(
                    f"{type(potential).__name__}.{name} wants numbers of shape {leaves[k].shape}, not {value!r:.80}."
                ) from None
            if not np.isfinite(leaves[k]).all():
                raise InputError(f"{type(potential).__name__}.{name} is not finite: {value!r:.80}.")
    return _check(jax.tree.unflatten(structure, leaves))


def leaf_indices(potential: Potential, name: str) -> list[int]:
    """Return the indices of the leaves that a name or a path means.

    Raises:
        InputError: there is no such parameter.
    """
    return [k for k, chosen in enumerate(named_leaves(potential, [name])) if chosen]


def _check(potential: Potential) -> Potential:
    """Run the checks of its class, which a tree put together from leaves has not passed."""
    classes: tuple[Any, ...] = type(potential).__mro__
    for cls in classes:
        if "__check_init__" in cls.__dict__:
            cls.__check_init__(potential)
    return potential


@dataclasses.dataclass(frozen=True)
class Selection:
    """Some parameters of a potential as a vector.

    Attributes:
        potential: whose parameters they are.
        leaves: indices of their leaves.
        names: one for each number: `"sigma"`, `"epsilon.A-B"`, `"table[3]"`.
    """

    potential: Potential
    leaves: tuple[int, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, potential: Potential, wrt: Sequence[str] | str | None = None) -> "Selection":
        """Select all parameters, or those that `wrt` names."""
        wrt = [wrt] if isinstance(wrt, str) else wrt
        paths, values = parameter_paths(potential), jax.tree.leaves(potential)
        chosen = range(len(values)) if wrt is None else dict.fromkeys(k for name in wrt for k in leaf_indices(potential, name))
        if not chosen:
            raise InputError("No parameter was asked for: leave wrt= out for all of them.")
        names = tuple(name for k in chosen for name in _number_names(paths[k], values[k].shape))
        return cls(potential, tuple(chosen), names)

    def values(self, potential: Potential | None = None) -> Float[np.ndarray, " chosen"]:
        """Return the numbers, of this potential or another one of the same kind."""
        leaves = jax.tree.leaves(self.potential if potential is None else potential)
        return np.concatenate([np.ravel(leaves[k]) for k in self.leaves])

    def at(self, values: Float[np.ndarray, " chosen"]) -> Potential:
        """Return the potential with these numbers.

        Raises:
            InputError: the potential refuses them.
        """
        leaves, structure = jax.tree.flatten(self.potential)
        begun = 0
        for k in self.leaves:
            leaf = leaves[k]
            leaves[k] = jnp.asarray(np.reshape(values[begun : begun + leaf.size], leaf.shape), leaf.dtype)
            begun += leaf.size
        return _check(jax.tree.unflatten(structure, leaves))

    def columns(self, jacobian: Potential, count: int) -> Float[np.ndarray, "count chosen"]:
        """Return the columns of a potential-shaped Jacobian of `count` values."""
        leaves = jax.tree.leaves(jacobian)
        return np.concatenate([np.reshape(leaves[k], (count, -1)) for k in self.leaves], axis=1)

    def vector(self, values: Mapping[str, float], missing: float, what: str) -> Float[np.ndarray, " chosen"]:
        """Return numbers by name as a vector, in the order of `names`.

        Raises:
            InputError: a name that is not among them.
        """
        result = np.full(len(self.names), missing)
        for name, value in values.items():
            indices = [k for k, own in enumerate(self.names) if own == name or own.startswith((f"{name}.", f"{name}["))]
            if not indices:
                raise InputError(f"{what} names {name!r}, which does not vary.{did_you_mean(name, self.names)}")
            result[indices] = value
        return result


def _number_names(path: str, shape: tuple[int, ...]) -> Iterable[str]:
    if not shape:
        return [path]
    return (f"{path}[{', '.join(map(str, index))}]" for index in np.ndindex(shape))


NEGATIVE_EIGENVALUE = 1e-8
"""Size of a negative eigenvalue up to which a correlation matrix counts as non-negative."""


def root_of(covariance: Any, names: Sequence[str]) -> Float[np.ndarray, "chosen chosen"]:
    """Return L with L Lᵀ a covariance matrix of parameters of these names, judged in units of their standard deviations.

    Raises:
        InputError: it is no covariance matrix.
    """
    try:
        matrix = np.asarray(covariance, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"A covariance is a square matrix of numbers, for {', '.join(names):.80}.") from None
    count = len(names)
    if matrix.shape != (count, count):
        raise InputError(f"The covariance must be of shape {(count, count)}, for {', '.join(names):.200}: not {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise InputError("The covariance must be finite.")
    variances = np.diag(matrix)
    if (variances < 0.0).any():
        k = int(np.argmin(variances))
        raise InputError(f"The variance of {names[k]} in the covariance is negative, {variances[k]:.3g}.")
    widths = np.sqrt(variances)
    scale = np.where(widths > 0.0, widths, 1.0)
    correlation = matrix / np.outer(scale, scale)
    off = np.abs(correlation - correlation.T)
    if off.max() > NEGATIVE_EIGENVALUE:
        i, j = divmod(int(np.argmax(off)), count)
        raise InputError(f"The covariance is not symmetric: it differs in {names[i]}, {names[j]} and {names[j]}, {names[i]}.")
    impossible = (np.abs(correlation) > 1.0 + NEGATIVE_EIGENVALUE) | ((widths == 0.0)[:, None] & (correlation != 0.0))
    if impossible.any():
        i, j = divmod(int(np.argmax(impossible)), count)
        raise InputError(
            f"The covariance of {names[i]} and {names[j]}, {matrix[i, j]:.3g}, is larger than their standard deviations "
            f"{widths[i]:.3g} and {widths[j]:.3g} allow."
        )
    sizes, directions = np.linalg.eigh(0.5 * (correlation + correlation.T))
    if sizes.min(initial=0.0) < -NEGATIVE_EIGENVALUE:
        raise InputError(
            "The covariance has a negative eigenvalue: some combination of parameters would have a negative variance."
        )
    return widths[:, None] * directions * np.sqrt(np.maximum(sizes, 0.0))
