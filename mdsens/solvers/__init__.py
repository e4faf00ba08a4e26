"""Solvers: how to reach F(z, data) = 0. Frozen settings; one driver owns the loop. Nothing here knows about atoms."""

from mdsens.solvers.driver import Problem, Result, solve, solve_traced
from mdsens.solvers.fire import FIRE
from mdsens.solvers.jaxmd import JaxMD
from mdsens.solvers.newton import Newton
from mdsens.solvers.status import Status

__all__ = ["FIRE", "JaxMD", "Newton", "Problem", "Result", "Status", "solve", "solve_traced"]
