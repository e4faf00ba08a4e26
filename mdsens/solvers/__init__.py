"""Solvers of F(z, θ) = 0: frozen settings, and one driver that owns the loop. Nothing here knows about atoms.

    you have                          call
    F(z, θ) = 0                       root(F)
    z = T(z, θ)                       fixed_point(T)
    min over z of f(z, θ)             minimum(f)
    SciPy                             implicit.custom_root(F)(scipy_root(F))
    any solve(z0, θ) of your own      implicit.custom_root(F)(solve)

The first three give a function solve(z0, θ), differentiable in θ; `solver=` chooses the method: `Newton`, `TruncatedNewton`,
`LBFGS`, `FIRE`, `GradientDescent`, `DampedDynamics`, `Picard`, `Anderson`, `Optax(...)`, `JaxMD(...)`. A saddle point of f is
the root of its gradient that `MinimumMode` finds: root(jax.grad(f), solver=MinimumMode(), symmetric=True).

    solve = solvers.root(lambda z, a: z**2 - a, return_status=True)

    def value(a):
        z, code = solve(1.0, a)
        return z, code                                       # codes have no derivative

    (z, codes), slopes = jax.jit(jax.vmap(jax.value_and_grad(value, has_aux=True)))(jnp.array([2.0, -1.0]))
    [solvers.Status.from_code(code) for code in codes]       # converged, and not: z is NaN there
"""

from mdsens.solvers.differentiable_solutions import fixed_point, minimum, root
from mdsens.solvers.driver import Result, evaluated, solve, solve_traced, take_step
from mdsens.solvers.dynamics import DampedDynamics
from mdsens.solvers.fire import FIRE
from mdsens.solvers.fixed_point_methods import FixedPoint
from mdsens.solvers.gradient_descent import GradientDescent
from mdsens.solvers.jaxmd import JaxMD
from mdsens.solvers.lbfgs import LBFGS
from mdsens.solvers.minimum_mode import MinimumMode
from mdsens.solvers.mixing import Anderson, Picard
from mdsens.solvers.newton import Newton, TruncatedNewton
from mdsens.solvers.optax_solver import Optax
from mdsens.solvers.scipy_solvers import scipy_minimize, scipy_root
from mdsens.solvers.solver import Problem, Solver
from mdsens.solvers.status import Status

__all__ = [
    "FIRE",
    "LBFGS",
    "Anderson",
    "DampedDynamics",
    "FixedPoint",
    "GradientDescent",
    "JaxMD",
    "MinimumMode",
    "Newton",
    "Optax",
    "Picard",
    "Problem",
    "Result",
    "Solver",
    "Status",
    "TruncatedNewton",
    "evaluated",
    "fixed_point",
    "minimum",
    "root",
    "scipy_minimize",
    "scipy_root",
    "solve",
    "solve_traced",
    "take_step",
]


def __dir__() -> list[str]:
    return sorted(__all__)
