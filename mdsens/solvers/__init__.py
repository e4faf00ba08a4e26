"""Solvers: how to reach F(z, data) = 0. Frozen settings; one driver owns the loop. Nothing here knows about atoms."""

from mdsens.solvers.by_method import FixedPoint
from mdsens.solvers.differentiable import fixed_point, minimum, root
from mdsens.solvers.driver import Problem, Result, solve, solve_traced
from mdsens.solvers.dynamics import DampedDynamics
from mdsens.solvers.fire import FIRE
from mdsens.solvers.gradient_descent import GradientDescent
from mdsens.solvers.jaxmd import JaxMD
from mdsens.solvers.lbfgs import LBFGS
from mdsens.solvers.mixing import Anderson, Picard
from mdsens.solvers.newton import Newton, TruncatedNewton
from mdsens.solvers.optax_solver import Optax
from mdsens.solvers.scipy_solvers import scipy_minimize, scipy_root
from mdsens.solvers.status import Status

__all__ = [
    "FIRE",
    "LBFGS",
    "Anderson",
    "DampedDynamics",
    "FixedPoint",
    "GradientDescent",
    "JaxMD",
    "Newton",
    "Optax",
    "Picard",
    "Problem",
    "Result",
    "Status",
    "TruncatedNewton",
    "fixed_point",
    "minimum",
    "root",
    "scipy_minimize",
    "scipy_root",
    "solve",
    "solve_traced",
]
