"""Fits of many parameters: any optimiser of optax on the gradient of the cost, one adjoint a step however many parameters.

The variables are those of `mdsens.studies.methods.calibration`: relative changes of the parameters, kept within their bounds.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError, MdsensError
from mdsens.derivatives.first_order import value_and_gradient
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.potentials import Potential
from mdsens.studies.methods.observed import Together, nameless
from mdsens.studies.methods.parameters import Selection

HALVINGS = 10
"""Of a step that leads where nothing relaxes."""


class Cost(eqx.Module):
    """½ Σ ((g - target) / σ)² as an observable; components that do not matter have the weight 0."""

    observed: Together
    wanted: Float[Array, " values"]
    weights: Float[Array, " values"]

    def __call__(self, systems: Any, potential: Potential) -> Array:
        off = jnp.where(self.weights > 0.0, self.observed(systems, potential) - self.wanted, 0.0)
        return 0.5 * jnp.sum((self.weights * off) ** 2)


def check_optimizer(optimizer: Any) -> None:
    """Raises InputError for what is no gradient transformation."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise InputError("optimizer= wants a gradient transformation of optax, such as optax.adam(1e-2).")


def descend(
    problem: Any, optimizer: Any, max_steps: int, tolerance: float, step: Callable[[int, float], None] | None
) -> tuple[np.ndarray, dict[str, Equilibrium], bool, str, list[float]]:
    """`(x, the equilibria there, whether it arrived, how it ended, cost of each step)`, x being the lowest that was found.

    Args:
        problem: a `_Problem` of `mdsens.studies.methods.calibration`.
        tolerance: of the square of the gradient's first largest component, or of 1 where that is less.

    Raises:
        InputError: an optimiser that wants more than gradients.
        ConvergenceError: the first structures do not relax.
    """
    x, states = problem.x, problem.relaxed(problem.x, None)
    cost, slope = problem.slope(x, states)
    history, lowest = [cost], (cost, x, states)
    wanted, inner = np.sqrt(tolerance) * max(np.abs(problem.inward(x, slope)).max(), 1.0), optimizer.init(jnp.asarray(x))
    for k in range(max_steps + 1):
        largest = float(np.abs(problem.inward(x, slope)).max())
        if largest <= wanted:
            return x, states, True, "converged: the gradient has vanished", history
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
                there = np.clip(x + move, problem.low, problem.high)
                states = problem.relaxed(there, states)
                cost, slope = problem.slope(there, states)
                break
            except MdsensError as error:
                move, why = 0.5 * move, str(error)
        else:
            return *lowest[1:], False, f"nothing relaxes nearby: {why}", history
        x = there
        history.append(cost)
        if cost < lowest[0]:
            lowest = cost, x, states
    message = (
        f"not converged: the steps ran out where the gradient was still {largest:.1e}, {largest / wanted:.0e} times what counts "
        "as none: allow more with max_steps, or another learning rate"
    )
    return *lowest[1:], False, message, history


def slope_of(cost: Cost, states: dict[str, Equilibrium], selection: Selection) -> tuple[float, np.ndarray]:
    """A cost and its derivative in the chosen parameters, by one adjoint solve for each structure."""
    observed, numbered = nameless(cost.observed, states)
    value, slope = value_and_gradient(Cost(observed, cost.wanted, cost.weights), numbered)
    leaves = jax.tree.leaves(slope)
    return float(value), np.concatenate([np.ravel(leaves[k]) for k in selection.leaves])
