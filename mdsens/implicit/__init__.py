"""Implicit differentiation of solutions of equations. Pure functions of pytrees; nothing here knows about atoms.

    you have                                             call
    a solver of F(z, θ) = 0, of any kind                 custom_root(F)(solve)
    a solver of z = T(z, θ)                              custom_fixed_point(T)(solve)
    a constrained, penalised or conic problem            custom_root(optimality.kkt(...))(solve), and others there
    a solution and one direction of θ, or a cotangent    root_jvp, root_vjp
    a linear system with a null space                    linear_solve
    a derivative, and doubts about it                    jacobian_bound

A quadratic program, its solution and multipliers by whatever you have:

    condition = optimality.kkt(lambda x, q: 0.5 * x @ P @ x + q @ x, inequality=lambda x, q: G @ x - h)

    @custom_root(condition)
    def solve(start, q): ...                             # returns optimality.KKTPoint(x, None, multipliers)

    jax.jacrev(lambda q: solve(None, q).x)(q)

From jaxopt: `custom_root` and `custom_fixed_point` are used in the same way, with `linear_solver=CG()` for
`solve=solve_cg`; proximal operators are called (y, stepsize, θ), not (y, θ, stepsize).

M. Blondel et al., "Efficient and Modular Implicit Differentiation", NeurIPS 2022, arXiv:2105.15183.
"""

from mdsens.implicit import optimality, projections, proximal
from mdsens.implicit.bound import JacobianBound, jacobian_bound
from mdsens.implicit.contraction import check_contraction, spectral_radius
from mdsens.implicit.direct import Cholesky, Direct, SparseDirect
from mdsens.implicit.krylov import CG, GMRES, MINRES, BiCGSTAB, Lineax, NormalCG
from mdsens.implicit.linear import automatic, linear_solve
from mdsens.implicit.linear_system import NullSpace
from mdsens.implicit.root import custom_fixed_point, custom_root, differentiable_solution, root_jvp, root_vjp

__all__ = [
    "CG",
    "GMRES",
    "MINRES",
    "BiCGSTAB",
    "Cholesky",
    "Direct",
    "JacobianBound",
    "Lineax",
    "NormalCG",
    "NullSpace",
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


def __dir__() -> list[str]:
    return sorted(__all__)
