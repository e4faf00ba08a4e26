"""Fits of many parameters by the gradient of the cost, with any optimiser of optax.

A step costs one adjoint solve of each structure, however many parameters there are.

The variables are those of `mdsens.studies.methods.calibration`: relative changes of the parameters, kept within their bounds.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError, MdsensError
from mdsens.derivatives.first_order import value_and_gradient
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.potentials import Potential
from mdsens.structures.system import System
from mdsens.studies.methods.observed import ObservableVector, anonymize
from mdsens.studies.methods.parameters import Selection

HALVINGS = 10
"""Number of times that a step is halved which leads where nothing relaxes."""


Gradient = Callable[[np.ndarray, Mapping[str, Equilibrium] | None], tuple[dict[str, Equilibrium], float, np.ndarray]]
"""Relaxes from earlier equilibria at x, and returns the equilibria there, the cost and its gradient."""


class Descent(NamedTuple):
    """The lowest point that a descent reached, whether the gradient vanished there, how it ended, and the cost of each step."""

    x: np.ndarray
    states: dict[str, Equilibrium]
    converged: bool
    message: str
    history: list[float]


class Cost(eqx.Module):
    """½ Σ ((g - target) / σ)² as an observable; components that do not matter have the weight 0."""

    observed: ObservableVector
    wanted: Float[Array, " values"]
    weights: Float[Array, " values"]

    def __call__(self, systems: Mapping[str, System], potential: Potential) -> Array:
        off = jnp.where(self.weights > 0.0, self.observed(systems, potential) - self.wanted, 0.0)
        return 0.5 * jnp.sum((self.weights * off) ** 2)


def check_optimizer(optimizer: Any) -> None:
    """Raise InputError for what is no gradient transformation."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise InputError("optimizer= wants a gradient transformation of optax, such as optax.adam(1e-2).")


def descend(
    gradient: Gradient,
    x: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    *,
    optimizer: Any,
    max_steps: int,
    tolerance: float,
    step: Callable[[int, float], None] | None,
) -> Descent:
    """Go down the gradient of the cost within bounds.

    Args:
        optimizer: a gradient transformation of optax.
        tolerance: of the square of the gradient's first largest component, or of 1 where that is less.

    Raises:
        InputError: an optimiser that wants more than gradients.
        ConvergenceError: the first structures do not relax.
    """
    low, high = bounds

    def largest(x: np.ndarray, slope: np.ndarray) -> float:
        """Return the largest component of the gradient that no bound stops."""
        stopped = ((x <= low) & (slope > 0.0)) | ((x >= high) & (slope < 0.0))
        return float(np.abs(np.where(stopped, 0.0, slope)).max())

    states, cost, slope = gradient(x, None)
    history, lowest = [cost], (cost, x, states)
    wanted, inner = np.sqrt(tolerance) * max(largest(x, slope), 1.0), optimizer.init(jnp.asarray(x))
    for k in range(max_steps + 1):
        size = largest(x, slope)
        if size <= wanted:
            return Descent(x, states, True, "converged: the gradient has vanished", history)
        if k == max_steps:
            break
        if step is not None:
            step(k + 1, cost)
        try:
            move, inner = optimizer.update(jnp.asarray(slope), inner, jnp.asarray(x))
        except TypeError as error:
            raise InputError(f"optimizer= wants a transformation that needs nothing but gradients ({error}).") from None
        move, why = np.asarray(move), ""
        for _ in range(HALVINGS):
            try:
                there = np.clip(x + move, low, high)
                states, cost, slope = gradient(there, states)
                break
            except MdsensError as error:
                move, why = 0.5 * move, str(error)
        else:
            return Descent(*lowest[1:], False, f"nothing relaxes nearby: {why}", history)
        x = there
        history.append(cost)
        if cost < lowest[0]:
            lowest = cost, x, states
    message = (
        f"not converged: the steps ran out where the gradient was still {size:.1e}, {size / wanted:.0e} times what counts "
        "as none: allow more with max_steps, or another learning rate"
    )
    return Descent(*lowest[1:], False, message, history)


def gradient_of(cost: Cost, states: dict[str, Equilibrium], selection: Selection) -> tuple[float, np.ndarray]:
    """Return a cost and its derivative in the chosen parameters, by one adjoint solve for each structure."""
    observed, numbered = anonymize(cost.observed, states)
    value, slope = value_and_gradient(Cost(observed, cost.wanted, cost.weights), numbered)
    leaves = jax.tree.leaves(slope)
    return float(value), np.concatenate([np.ravel(leaves[k]) for k in selection.leaves])
