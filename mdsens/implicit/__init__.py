"""Implicit differentiation of solutions of equations. Pure functions of pytrees; nothing here knows about atoms.

M. Blondel et al., "Efficient and Modular Implicit Differentiation", NeurIPS 2022, arXiv:2105.15183.
"""

from mdsens.implicit.direct import Cholesky, Direct, SparseDirect
from mdsens.implicit.krylov import CG, GMRES, MINRES, BiCGSTAB, Lineax, NormalCG
from mdsens.implicit.linear import automatic, linear_solve
from mdsens.implicit.root import custom_fixed_point, custom_root, differentiable_solution, root_jvp, root_vjp
from mdsens.implicit.system import Gauge

__all__ = [
    "CG",
    "GMRES",
    "MINRES",
    "BiCGSTAB",
    "Cholesky",
    "Direct",
    "Gauge",
    "Lineax",
    "NormalCG",
    "SparseDirect",
    "automatic",
    "custom_fixed_point",
    "custom_root",
    "differentiable_solution",
    "linear_solve",
    "root_jvp",
    "root_vjp",
]
