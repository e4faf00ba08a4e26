"""Implicit differentiation of solutions of equations. Pure functions of pytrees; nothing here knows about atoms.

M. Blondel et al., "Efficient and Modular Implicit Differentiation", NeurIPS 2022, arXiv:2105.15183.
"""

from mdsens.implicit import optimality, projections, proximal
from mdsens.implicit.bound import JacobianBound, jacobian_bound
from mdsens.implicit.contraction import check_contraction, spectral_radius
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
    "JacobianBound",
    "Lineax",
    "NormalCG",
    "SparseDirect",
    "automatic",
    "check_contraction",
    "custom_fixed_point",
    "custom_root",
    "differentiable_solution",
    "jacobian_bound",
    "linear_solve",
    "optimality",
    "projections",
    "proximal",
    "root_jvp",
    "root_vjp",
    "spectral_radius",
]
