"""Derivatives of a solution z of F(z, θ) = 0, whatever found it: dz/dθ = -A⁻¹B with A = ∂F/∂z, B = ∂F/∂θ.

Blondel et al. 2021, section 2: eq. (4) for the Jacobian, "root_jvp" and "root_vjp" for its products.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from mdsens.errors import InputError
from mdsens.implicit.linear import Gauge, LinearSolver, linear_solve

PyTree = Any


def _linearised(optimality, z, args):
    """`(A, unravel)`: u ↦ A u on flat vectors, and the way back to z's structure."""
    flat, unravel = ravel_pytree(z)
    condition = jax.eval_shape(lambda unknown: optimality(unknown, *args), z)
    if jax.tree.structure(condition) != jax.tree.structure(z) or [leaf.shape for leaf in jax.tree.leaves(condition)] != [
        leaf.shape for leaf in jax.tree.leaves(z)
    ]:
        raise InputError(
            "The optimality condition must return what the unknown looks like: "
            f"the unknown is {jax.tree.map(jnp.shape, z)}, the condition {jax.tree.map(lambda leaf: leaf.shape, condition)}."
        )
    _, product = jax.linearize(lambda v: ravel_pytree(optimality(unravel(v), *args))[0], flat)
    return product, unravel


def root_jvp(
    optimality: Callable,
    z: PyTree,
    args: tuple,
    tangents: tuple,
    *,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    gauge: Gauge | None = None,
    precondition: Callable | None = None,
) -> tuple[PyTree, jax.Array]:
    """`(dz, residual)`: how the root z of `optimality(z, *args) == 0` moves when `args` moves along `tangents`.

    Args:
        optimality: F(z, *args), of the structure of z.
        tangents: like `args`, None for leaves that do not move.
        symmetric: whether ∂F/∂z is (z minimises an energy).
        linear_solver, gauge, precondition: as for `linear_solve`, on z raveled.

    Returns:
        the tangent of z, and the relative residual of the linear system.
    """
    moving = jax.tree.map(lambda t, a: None if t is None else a, tangents, args, is_leaf=lambda leaf: leaf is None)
    resting = jax.tree.map(lambda t, a: a if t is None else None, tangents, args, is_leaf=lambda leaf: leaf is None)
    product, unravel = _linearised(optimality, z, args)
    _, change = jax.jvp(lambda m: optimality(z, *eqx.combine(m, resting)), (moving,), (tangents,))
    flat, residual = linear_solve(
        product,
        -ravel_pytree(change)[0],
        solver=linear_solver,
        symmetric=symmetric,
        gauge=gauge,
        precondition=precondition,
    )
    return unravel(flat), residual


def root_vjp(
    optimality: Callable,
    z: PyTree,
    args: tuple,
    cotangent: PyTree,
    *,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    gauge: Gauge | None = None,
    precondition: Callable | None = None,
) -> tuple[tuple, jax.Array]:
    """`(dargs, residual)`: the gradient in `args` of a function of the root z whose gradient in z is `cotangent`.

    One solve with Aᵀ serves all arguments. Leaves of `args` that are no floating-point arrays give None. Arguments as for
    `root_jvp`.
    """
    product, unravel = _linearised(optimality, z, args)
    flat = ravel_pytree(cotangent)[0]
    if symmetric:
        transposed = product
    else:
        transpose = jax.linear_transpose(product, flat)
        transposed = lambda v: transpose(v)[0]  # noqa: E731
    w, residual = linear_solve(
        transposed, flat, solver=linear_solver, symmetric=symmetric, gauge=gauge, precondition=precondition
    )
    moving, resting = eqx.partition(args, eqx.is_inexact_array)
    _, pullback = jax.vjp(lambda m: optimality(z, *eqx.combine(m, resting)), moving)
    return pullback(unravel(-w))[0], residual


def differentiable_solution(
    solve: Callable,
    optimality: Callable,
    *,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    gauge: Callable | None = None,
    precondition: Callable | None = None,
) -> Callable:
    """Make a solver's answer differentiable by its optimality condition; `custom_root` is the common form of it.

    Args:
        solve: `solve(z0, *args) -> (z, witness)`. The witness is what the condition needs beside the arguments and what
            has no derivative (a neighbour list, an active set).
        optimality: F(z, witness, *args).
        gauge: `gauge(z, witness, *args) -> Gauge`, the null space of ∂F/∂z at the answer.
        precondition: `precondition(z, witness, *args) -> (r ↦ M r)` on z raveled, M near (∂F/∂z)⁻¹.

    Returns:
        a function of `(z0, *args)` that gives `(z, witness)`, for `jvp`, `vjp`, `jacfwd`, `jacrev`, `hessian`, `jit`, `vmap`.
        The start z0 has no influence on the answer and gets a zero derivative.
    """

    def solution(z0, *args):
        arrays, static = eqx.partition((z0, args), eqx.is_array)

        @jax.custom_jvp
        def answer(arrays):
            start, values = eqx.combine(arrays, static)
            return solve(start, *values)

        @answer.defjvp
        def rule(primals, tangents):
            # The answer itself is asked for again rather than solved: nested derivatives peel off one level at a time,
            # and at the innermost the solver sees concrete values.
            primal = jax.tree.map(jnp.asarray, primals[0])
            z, witness = answer(primal)
            witness = jax.lax.stop_gradient(witness)
            _, values = eqx.combine(primal, static)
            moving = jax.tree.map(lambda a, t: t if eqx.is_inexact_array(a) else None, primal[1], tangents[0][1])
            options = {"symmetric": symmetric, "linear_solver": linear_solver}
            z_dot = _tangent(optimality, gauge, precondition, z, (witness, *values), (None, *moving), options)
            return (z, witness), (z_dot, jax.tree.map(_no_tangent, witness))

        return answer(arrays)

    return solution


@eqx.filter_jit
def _tangent(optimality, gauge, precondition, z, args, tangents, options):
    # What only helps the solve is held fixed: second derivatives are those of the linear system alone.
    fixed_z, fixed_args = jax.lax.stop_gradient((z, eqx.filter(args, eqx.is_array)))
    fixed_args = eqx.combine(fixed_args, args)
    null = None if gauge is None else gauge(fixed_z, *fixed_args)
    helper = None if precondition is None else precondition(fixed_z, *fixed_args)
    return root_jvp(optimality, z, args, tangents, gauge=null, precondition=helper, **options)[0]


def custom_root(
    optimality: Callable,
    *,
    symmetric: bool = False,
    linear_solver: LinearSolver | None = None,
    null_space: Callable | None = None,
    precondition: Callable | None = None,
) -> Callable:
    """Decorate a solver `solve(z0, *args)` of `optimality(z, *args) == 0`, so that its answer is differentiable in `args`.

    Unknown and arguments may be any pytrees; leaves that are no floating-point arrays have no derivative. Works in
    forward and reverse mode, to any order, whatever the solver does inside.

    Args:
        optimality: F(z, *args), of the structure of z, zero at the answer.
        symmetric: whether ∂F/∂z is, as for the minimum of an energy; CG is used then.
        linear_solver: `CG()`, `GMRES()`, `Direct()`; None chooses by symmetry and size.
        null_space: `null_space(z, *args) -> Gauge`, the known null space of ∂F/∂z; the derivative has no component there.
        precondition: `precondition(z, *args) -> (r ↦ M r)` on z raveled, M near (∂F/∂z)⁻¹, symmetric positive for CG.

    Blondel et al. 2021, section 2.1 (`@custom_root`).
    """

    def decorate(solve):
        solution = differentiable_solution(
            lambda z0, *args: (solve(z0, *args), ()),
            _WithoutWitness(optimality),
            symmetric=symmetric,
            linear_solver=linear_solver,
            gauge=None if null_space is None else _WithoutWitness(null_space),
            precondition=None if precondition is None else _WithoutWitness(precondition),
        )
        return functools.wraps(solve)(lambda z0, *args: solution(z0, *args)[0])

    return decorate


def custom_fixed_point(fixed_point: Callable, **options) -> Callable:
    """Decorate a solver `solve(z0, *args)` of `z == fixed_point(z, *args)`; options as for `custom_root`.

    Blondel et al. 2021, eq. (3): the root condition is F(z, θ) = T(z, θ) - z.
    """

    def optimality(z, *args):
        return jax.tree.map(jnp.subtract, fixed_point(z, *args), z)

    return custom_root(optimality, **options)


class _WithoutWitness:
    """`f(z, *args)` as `f(z, witness, *args)`; equal for the same f, so that compiled code is found again."""

    def __init__(self, function):
        self.function = function

    def __call__(self, z, witness, *args):
        return self.function(z, *args)

    def __eq__(self, other):
        return isinstance(other, _WithoutWitness) and self.function == other.function

    def __hash__(self):
        return hash(self.function)


def _no_tangent(leaf):
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
