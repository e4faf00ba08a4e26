"""Implicit differentiation of solutions of equations. Pure functions of pytrees; nothing here knows about atoms.

M. Blondel et al., "Efficient and Modular Implicit Differentiation", NeurIPS 2022, arXiv:2105.15183.
"""

from mdsens.implicit.linear import CG, GMRES, Direct, Gauge, linear_solve
from mdsens.implicit.root import custom_fixed_point, custom_root, differentiable_solution, root_jvp, root_vjp

__all__ = [
    "CG",
    "GMRES",
    "Direct",
    "Gauge",
    "custom_fixed_point",
    "custom_root",
    "differentiable_solution",
    "linear_solve",
    "root_jvp",
    "root_vjp",
]
