"""Iterative linear solvers, which need products with A only.

GMRES and BiCGSTAB are JAX's own, which report nothing: `linear_solve` recomputes every residual.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.implicit.linear_system import LinearSolver, LinearSystem, Matvec


@dataclasses.dataclass(frozen=True)
class _Iterative(LinearSolver):
    """A solver by products with A.

    Attributes:
        max_steps: iterations, at most; None for 10 n + 100.
    """

    max_steps: int | None = None

    iterative: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps is not None and self.max_steps < 1:
            raise InputError(f"{type(self).__name__}'s max_steps must be at least 1, not {self.max_steps}.")

    def _limit(self, system: LinearSystem) -> int:
        return 10 * system.size + 100 if self.max_steps is None else self.max_steps

    def _smoother(self, system: LinearSystem) -> Matvec:
        return system.precondition or (lambda vector: vector)


@dataclasses.dataclass(frozen=True)
class CG(_Iterative):
    """Conjugate gradients for a symmetric operator, positive outside its known null space; preconditioned.

    At a direction of no positive curvature the iteration stops, and the solve has failed: for indefinite operators take
    `MINRES`.

    M. R. Hestenes, E. Stiefel, J. Res. Natl. Bur. Stand. 49, 409 (1952).
    """

    symmetric: ClassVar[bool] = True

    def prepare(self, system: LinearSystem) -> Callable[..., Any]:
        limit, smoothed = self._limit(system), self._smoother(system)

        def go_on(carry: Any) -> Array:
            _, r, _, _, step, goal, indefinite = carry
            return (jnp.linalg.norm(r) > goal) & (step < limit) & ~indefinite

        def iterate(carry: Any) -> tuple[Any, ...]:
            u, r, p, before, step, goal, _ = carry
            z = smoothed(r)
            rho = jnp.vdot(r, z)
            p = z + rho / jnp.where(before == 0.0, 1.0, before) * p
            q = system.matvec(p)
            curvature = jnp.vdot(p, q)
            indefinite = ~(curvature > 0)
            alpha = jnp.where(indefinite, 0.0, rho / jnp.where(indefinite, 1.0, curvature))
            return u + alpha * p, r - alpha * q, p, rho, step + 1, goal, indefinite

        def solve(b: Array, goal: Array) -> tuple[Array, Array]:
            zeros = jnp.zeros_like(b)
            start = (zeros, b, zeros, jnp.zeros((), b.dtype), 0, goal, jnp.asarray(False))
            u, *_, indefinite = jax.lax.while_loop(go_on, iterate, start)
            return u, indefinite

        return solve


@dataclasses.dataclass(frozen=True)
class MINRES(_Iterative):
    """Minimal residuals for a symmetric operator, positive or not: saddle points, Lagrange multipliers.

    A preconditioner must be symmetric positive all the same. Of a singular compatible system it finds the answer of least
    norm.

    C. C. Paige, M. A. Saunders, SIAM J. Numer. Anal. 12, 617 (1975); names of the scalars as in their code.
    """

    symmetric: ClassVar[bool] = True

    def prepare(self, system: LinearSystem) -> Callable[..., Any]:
        limit, smoothed = self._limit(system), self._smoother(system)

        def go_on(carry: Any) -> Array:
            return (carry["phibar"] > carry["goal"]) & (carry["step"] < limit) & ~carry["done"]

        def iterate(c: Any) -> dict[str, Any]:
            v = c["y"] / c["beta"]
            y = system.matvec(v)
            y = y - c["beta"] / c["oldb"] * c["r1"]
            alfa = jnp.vdot(v, y)
            y = y - alfa / c["beta"] * c["r2"]
            r1, r2 = c["r2"], y
            y = smoothed(r2)
            beta = jnp.sqrt(jnp.maximum(jnp.vdot(r2, y), 0.0))

            delta = c["cs"] * c["dbar"] + c["sn"] * alfa
            gbar = c["sn"] * c["dbar"] - c["cs"] * alfa
            size = jnp.sqrt(c["size"] ** 2 + alfa**2 + beta**2 + c["beta"] ** 2 * (c["step"] > 0))
            gamma = jnp.maximum(jnp.hypot(gbar, beta), jnp.finfo(y.dtype).tiny)
            cs, sn = gbar / gamma, beta / gamma
            phi, phibar = cs * c["phibar"], sn * c["phibar"]
            w = (v - c["epsln"] * c["w1"] - delta * c["w2"]) / gamma

            # No gradient of the residual is left (a singular system), or the space is exhausted.
            rounding = 10.0 * jnp.finfo(y.dtype).eps * size
            exhausted = jnp.hypot(gbar, c["cs"] * beta) <= rounding
            takes = gamma > rounding
            c = c | {"dbar": -c["cs"] * beta, "epsln": c["sn"] * beta, "w1": c["w2"], "w2": w, "oldb": c["beta"]}
            c |= {"r1": r1, "r2": r2, "y": y, "cs": cs, "sn": sn, "phibar": phibar, "size": size, "step": c["step"] + 1}
            c["u"] = jnp.where(takes, c["u"] + phi * w, c["u"])
            return c | {"beta": jnp.where(beta > 0.0, beta, 1.0), "done": exhausted | (beta <= rounding)}

        def solve(b: Array, goal: Array) -> tuple[Array, Array]:
            zeros, one = jnp.zeros_like(b), jnp.ones((), b.dtype)
            y = smoothed(b)
            beta = jnp.sqrt(jnp.maximum(jnp.vdot(b, y), 0.0))
            size = jnp.linalg.norm(b)
            # Preconditioned, the iteration knows its residual in the preconditioner's norm.
            goal = jnp.asarray(goal * jnp.where(size > 0.0, beta / jnp.where(size > 0.0, size, 1.0), 1.0), b.dtype)
            start: dict[str, Any] = dict.fromkeys(("u", "r1", "w1", "w2"), zeros) | {"r2": b, "y": y, "phibar": beta, "oldb": one}
            start |= dict.fromkeys(("dbar", "epsln", "sn", "size"), 0.0 * one) | {"cs": -one, "goal": goal, "step": 0}
            start |= {"beta": jnp.where(beta > 0.0, beta, 1.0), "done": jnp.asarray(False)}
            return jax.lax.while_loop(go_on, iterate, start)["u"], jnp.asarray(False)

        return solve


@dataclasses.dataclass(frozen=True)
class NormalCG(_Iterative):
    """Conjugate gradients on AᵀA u = Aᵀb, in the form that keeps b - A u (CGLS), for any operator.

    It squares the condition number: the last resort, which also finds the answer of least norm of a singular compatible system.

    A. Björck, "Numerical Methods for Least Squares Problems", SIAM 1996, algorithm 7.4.1.
    """

    def prepare(self, system: LinearSystem) -> Callable[..., Any]:
        limit, smoothed = self._limit(system), self._smoother(system)

        def go_on(carry: Any) -> Array:
            _, r, _, gamma, first, step, goal = carry
            # Aᵀr at rounding: the rest of r is what no u can balance.
            return (jnp.linalg.norm(r) > goal) & (step < limit) & (gamma > (0.01 * jnp.finfo(r.dtype).eps) ** 2 * first)

        def solve(b: Array, goal: Array) -> tuple[Array, Array]:
            # The preconditioner stands on the right: A M y = b, u = M y.
            across = jax.linear_transpose(smoothed, b)

            def gradient(r: Array) -> Array:
                return across(system.transpose(r))[0]

            def iterate(carry: Any) -> tuple[Any, ...]:
                y, r, p, gamma, first, step, goal = carry
                q = system.matvec(smoothed(p))
                alpha = gamma / jnp.maximum(jnp.vdot(q, q), jnp.finfo(r.dtype).tiny)
                y, r = y + alpha * p, r - alpha * q
                s = gradient(r)
                new = jnp.vdot(s, s)
                return y, r, s + new / gamma * p, new, first, step + 1, goal

            s = gradient(b)
            gamma = jnp.vdot(s, s)
            start = (jnp.zeros_like(b), b, s, gamma, gamma, 0, jnp.asarray(goal, b.dtype))
            return smoothed(jax.lax.while_loop(go_on, iterate, start)[0]), jnp.asarray(False)

        return solve


@dataclasses.dataclass(frozen=True)
class GMRES(_Iterative):
    """Restarted GMRES for any invertible operator (`jax.scipy.sparse.linalg.gmres`).

    Attributes:
        restart: size of the Krylov space, so many vectors of memory.
        max_steps: restarts, at most; None for 10 n.
    """

    restart: int = 50

    def prepare(self, system: LinearSystem) -> Callable[..., Any]:
        restart = min(self.restart, system.size)
        return _by_jax(jax.scipy.sparse.linalg.gmres, system, restart=restart, maxiter=self.max_steps)


@dataclasses.dataclass(frozen=True)
class BiCGSTAB(_Iterative):
    """Stabilised bi-conjugate gradients for any invertible operator (`jax.scipy.sparse.linalg.bicgstab`)."""

    def prepare(self, system: LinearSystem) -> Callable[..., Any]:
        return _by_jax(jax.scipy.sparse.linalg.bicgstab, system, maxiter=self._limit(system))


def _by_jax(routine: Callable[..., Any], system: LinearSystem, **settings: Any) -> Callable[..., Any]:
    def solve(b: Array, goal: Array) -> tuple[Array, Array]:
        u, _ = routine(system.complete, b, tol=0.0, atol=goal, M=system.precondition, **settings)
        return u, jnp.asarray(False)

    return solve


@dataclasses.dataclass(frozen=True, init=False)
class Lineax(LinearSolver):
    """A solver of lineax with the interface of the others: `implicit.Lineax(lineax.GMRES(rtol=1e-12, atol=0.0))`.

    lineax is not what `linear_solve` stands on, since in it (0.1) a known null space has no place and singular operators
    give wrong gradients or NaN (issues 18, 122), MINRES is missing, and a transposed solve loses its preconditioner
    (issues 160, 162).

    Attributes:
        method: the solver, with its own tolerances.
    """

    method: Any = None

    iterative: ClassVar[bool] = True

    def __init__(self, method: Any, **tolerances: Any) -> None:
        if not hasattr(method, "compute"):
            raise InputError(f"implicit.Lineax wants a solver of lineax, such as lineax.GMRES(...), not {method!r}.")
        for field in dataclasses.fields(LinearSolver):
            object.__setattr__(self, field.name, tolerances.pop(field.name, field.default))
        if tolerances:
            raise InputError(f"implicit.Lineax has no setting {next(iter(tolerances))!r}: set it in lineax's own solver.")
        object.__setattr__(self, "method", method)
        self.__post_init__()

    def prepare(self, system: LinearSystem) -> Callable[..., Any]:
        import lineax

        # lineax wants the declaration that `linear_solve` has.
        tags = lineax.positive_semidefinite_tag if isinstance(self.method, lineax.CG) else ()

        def solve(b: Array, goal: Array) -> tuple[Array, Array]:
            def operator(function: Matvec) -> Any:
                return lineax.FunctionLinearOperator(function, jax.ShapeDtypeStruct(b.shape, b.dtype), tags)

            # The round that only recomputes the residual asks for nothing.
            wanted = jnp.where(jnp.isinf(goal), jnp.zeros_like(b), b)
            options = {} if system.precondition is None else {"preconditioner": operator(system.precondition)}
            answer = lineax.linear_solve(operator(system.complete), wanted, self.method, options=options, throw=False)
            return answer.value, jnp.asarray(False)

        return solve
