"""SciPy's solvers as black boxes: `solve(z0, *args)` on the host, for the decorators of `mdsens.implicit`.

    solve = implicit.custom_root(F)(solvers.scipy_root(F))

Whatever has such a form serves as well: `lambda z0, *args: jaxopt_solver.run(z0, *args).params`, a call of another program.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import ConvergenceError, InputError
from mdsens.implicit.trees import PyTree, is_traced


def scipy_root(condition: Callable[..., Any], *, method: str = "hybr", **options: Any) -> Callable[..., Any]:
    """Return `solve(z0, *args)` by `scipy.optimize.root`, with the exact Jacobian.

    Args:
        condition: F(z, *args), on pytrees.
        options: passed on (`tol`, `options`).

    Raises, when called:
        InputError: traced values.
        ConvergenceError: with SciPy's reason.
    """
    from scipy.optimize import root

    return _solver(root, condition, (_values, _jacobian), {"method": method, **options})


def scipy_minimize(objective: Callable[..., Any], *, method: str = "BFGS", **options: Any) -> Callable[..., Any]:
    """Return `solve(z0, *args)` by `scipy.optimize.minimize`, with the exact gradient.

    Args:
        objective: f(z, *args), a scalar, z being any pytree.
        options: passed on (`tol`, `options`).

    Raises, when called:
        as `scipy_root`.
    """
    from scipy.optimize import minimize

    return _solver(minimize, objective, (_objective, _gradient), {"method": method, **options})


def _solver(
    routine: Callable[..., Any],
    function: Callable[..., Any],
    compiled: tuple[Callable[..., Array], Callable[..., Array]],
    options: dict[str, Any],
) -> Callable[..., Any]:
    """Return `solve(z0, *args)` by a routine of SciPy's, of a function whose value and derivative are compiled."""

    def solve(z0: PyTree, *args: Any) -> PyTree:
        if is_traced(z0, args):
            raise InputError(
                "SciPy's solvers run on the host and cannot be traced: call this one outside jit and vmap, or take one of "
                "mdsens.solvers, such as solvers.root(F)."
            )
        flat, unravel = ravel_pytree(z0)
        value, slope = (lambda x, f=f: np.asarray(f(function, x, z0, args)) for f in compiled)
        answer = routine(value, np.asarray(flat), jac=slope, **options)
        if not answer.success:
            name = f"scipy.optimize.{routine.__name__} with {options['method']}"
            raise ConvergenceError(f"{name} did not arrive: {answer.message}")
        return unravel(answer.x)

    return solve


@eqx.filter_jit
def _values(condition: Callable[..., Any], x: Array, like: PyTree, args: tuple[Any, ...]) -> Array:
    return ravel_pytree(condition(ravel_pytree(like)[1](x), *args))[0]


@eqx.filter_jit
def _jacobian(condition: Callable[..., Any], x: Array, like: PyTree, args: tuple[Any, ...]) -> Array:
    return jax.jacfwd(lambda y: _values(condition, y, like, args))(x)


@eqx.filter_jit
def _objective(objective: Callable[..., Any], x: Array, like: PyTree, args: tuple[Any, ...]) -> Array:
    return objective(ravel_pytree(like)[1](x), *args)


@eqx.filter_jit
def _gradient(objective: Callable[..., Any], x: Array, like: PyTree, args: tuple[Any, ...]) -> Array:
    return jax.grad(lambda y: _objective(objective, y, like, args))(x)
