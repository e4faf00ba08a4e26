"""Linear systems A u = b with a known null space, differentiable to any order.

The null space is a border, never a shift: with an orthonormal basis Q of it,

    [ A   Q ] [ u ]   [ b ]
    [ Qᵀ  0 ] [ λ ] = [ 0 ]

has one answer, the u without a component along Q, and λ takes up what part of b no u can balance. A shift of the
diagonal would change u (by half its size for a soft solid). `lax.custom_linear_solve` differentiates the bordered
system, so that derivatives do not go through the iterations.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mdsens.errors import InputError

REFINEMENTS = 2
"""How often a solver is asked: rounding lets the true residual drift from the one that an iteration carries along."""

DIRECT_LIMIT = 1000
"""Unknowns up to which an operator without symmetry is assembled and factorised."""

Matvec = Callable[[Float[Array, " n"]], Float[Array, " n"]]


class Gauge(eqx.Module):
    """What is known of an operator's null space.

    Attributes:
        active: `(n,)`, False for components that are held at zero; None if there are none.
        basis: `(n, m)`, orthonormal columns that span the rest of the null space, zero where not active; or None.
    """

    active: Bool[Array, " n"] | None = None
    basis: Float[Array, "n m"] | None = None

    def project(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """The part of a vector outside the null space."""
        if self.active is not None:
            vector = jnp.where(self.active, vector, 0.0)
        if self.basis is not None:
            # Twice is enough (Kahan, Parlett): once leaves rounding of the size of what was taken away.
            for _ in range(2):
                vector = vector - self.basis @ (self.basis.T @ vector)
        return vector


@dataclasses.dataclass(frozen=True)
class CG:
    """Conjugate gradients for a symmetric operator, positive outside its known null space; preconditioned.

    Attributes:
        rtol: residual aimed at, relative to the right-hand side.
        atol: residual that is good enough whatever the right-hand side.
        fail_rtol: relative residual above which the answer is NaN.
        max_steps: iterations, at most; None for 10 n + 100.

    M. R. Hestenes, E. Stiefel, J. Res. Natl. Bur. Stand. 49, 409 (1952). Departures: every vector stays outside the known
    null space, and at a direction of no positive curvature the iteration stops.
    """

    rtol: float = 1e-12
    atol: float = 0.0
    fail_rtol: float = 1e-6
    max_steps: int | None = None
    symmetric = True

    def solve(self, matvec: Matvec, b, goal, project, precondition=None) -> tuple[Array, Array]:
        """`(u, indefinite)`: u with ‖b - A u‖ <= goal, and whether a direction of no positive curvature was met."""
        limit = 10 * b.size + 100 if self.max_steps is None else self.max_steps
        smoothed = project if precondition is None else (lambda r: project(precondition(r)))

        def go_on(carry):
            _, r, _, _, step, indefinite = carry
            return (jnp.linalg.norm(r) > goal) & (step < limit) & ~indefinite

        def iterate(carry):
            u, r, p, rho, step, _ = carry
            q = project(matvec(p))
            curvature = jnp.vdot(p, q)
            indefinite = ~(curvature > 0)
            alpha = jnp.where(indefinite, 0.0, rho / jnp.where(indefinite, 1.0, curvature))
            u, r = u + alpha * p, r - alpha * q
            z = smoothed(r)
            new_rho = jnp.vdot(r, z)
            p = z + new_rho / jnp.where(rho == 0.0, 1.0, rho) * p
            return u, r, p, new_rho, step + 1, indefinite

        z = smoothed(b)
        start = (jnp.zeros_like(b), b, z, jnp.vdot(b, z), 0, jnp.asarray(False))
        u, *_, indefinite = jax.lax.while_loop(go_on, iterate, start)
        return u, indefinite


@dataclasses.dataclass(frozen=True)
class GMRES:
    """Restarted GMRES for any invertible operator (`jax.scipy.sparse.linalg.gmres`)."""

    rtol: float = 1e-12
    atol: float = 0.0
    fail_rtol: float = 1e-6
    max_steps: int | None = None
    restart: int = 50
    symmetric = False

    def solve(self, matvec: Matvec, b, goal, project, precondition=None) -> tuple[Array, Array]:
        u, _ = jax.scipy.sparse.linalg.gmres(
            lambda v: project(matvec(v)),
            b,
            tol=0.0,
            atol=goal,
            restart=min(self.restart, b.size),
            maxiter=self.max_steps,
            M=None if precondition is None else (lambda r: project(precondition(r))),
        )
        return u, jnp.asarray(False)


@dataclasses.dataclass(frozen=True)
class Direct:
    """LU factorisation of the assembled operator: small systems, with or without symmetry."""

    rtol: float = 1e-12
    atol: float = 0.0
    fail_rtol: float = 1e-6
    symmetric = False

    def solve(self, matvec: Matvec, b, goal, project, precondition=None) -> tuple[Array, Array]:
        identity = jnp.eye(b.size, dtype=b.dtype)
        projected = jax.vmap(project)(identity)
        matrix = jax.vmap(lambda column: project(matvec(column)), out_axes=1)(projected)
        # On the null space itself any multiple of the identity serves: b has no component there.
        matrix = matrix + (identity - projected)
        return project(jnp.linalg.solve(matrix, b)), jnp.asarray(False)


LinearSolver = CG | GMRES | Direct


def automatic(n: int, symmetric: bool) -> LinearSolver:
    """CG where the operator is symmetric (never its normal equations, which square the condition number); otherwise
    LU up to `DIRECT_LIMIT` unknowns and GMRES beyond."""
    if symmetric:
        return CG()
    return Direct() if n <= DIRECT_LIMIT else GMRES()


def linear_solve(
    matvec: Matvec,
    b: Float[Array, " n"],
    *,
    solver: LinearSolver | None = None,
    symmetric: bool = False,
    gauge: Gauge | None = None,
    precondition: Matvec | None = None,
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """Solve A u = b outside the known null space of A.

    Args:
        matvec: u ↦ A u, linear, on vectors `(n,)`.
        solver: None for `automatic`.
        symmetric: whether A is.
        gauge: the null space; u has no component along it, and b's component along it is dropped.
        precondition: r ↦ M r with M near A⁻¹, symmetric positive for CG.

    Returns:
        `(u, residual)`: u is NaN where the solver failed; the residual ‖A u - b‖/‖b‖ is recomputed from u (for b = 0 it
        is 0, for b below the solver's `atol` it is relative to that).

    Raises:
        InputError: CG for an operator that is not declared symmetric.
    """
    gauge = Gauge() if gauge is None else gauge
    solver = automatic(b.size, symmetric) if solver is None else solver
    if solver.symmetric and not symmetric:
        raise InputError("CG is for symmetric operators: declare symmetric=True, or choose GMRES or Direct.")

    active = None if gauge.active is None else gauge.active.astype(b.dtype)
    basis = jnp.zeros((b.size, 0), b.dtype) if gauge.basis is None else gauge.basis

    n = b.size

    def bordered(unknown):
        u, multiplier = unknown[:n], unknown[n:]
        image = matvec(u) if active is None else active * matvec(active * u) + (1.0 - active) * u
        return jnp.concatenate([image + basis @ multiplier, basis.T @ u])

    def solve(operator, right_hand_side):
        def image(u):
            return operator(jnp.concatenate([u, jnp.zeros_like(basis[0])]))[:n]

        b_u, b_border = right_hand_side[:n], right_hand_side[n:]
        scale = jnp.maximum(jnp.linalg.norm(gauge.project(b_u)), solver.atol)
        goal = jnp.maximum(solver.rtol * jnp.linalg.norm(gauge.project(b_u)), solver.atol)

        def ask(round_, carry):
            u, _, _, indefinite = carry
            left = b_u - image(u)
            projected = gauge.project(left)
            # The last round only recomputes the residual.
            aim = jnp.where(round_ < REFINEMENTS, goal, jnp.inf)
            correction, met = solver.solve(image, projected, aim, gauge.project, precondition)
            return u + correction, left, jnp.linalg.norm(projected), indefinite | met

        # b_border is zero for the question asked; a derivative of the answer may ask with another one.
        start = (basis @ b_border, b_u, scale, jnp.asarray(False))
        u, left, error, indefinite = jax.lax.fori_loop(0, REFINEMENTS + 1, ask, start)
        residual = error / jnp.where(scale > 0.0, scale, 1.0)
        failed = indefinite | ~(residual <= solver.fail_rtol)
        return jnp.concatenate([jnp.where(failed, jnp.nan, u), basis.T @ left]), residual

    if active is not None:
        b = active * b
    # One vector, not a pair: JAX transposes the solve only if all of the right-hand side depends on what is transposed.
    bordered_b = jnp.concatenate([b, jnp.zeros_like(basis[0])])
    solution, residual = jax.lax.custom_linear_solve(
        bordered, bordered_b, solve, transpose_solve=solve, symmetric=symmetric, has_aux=True
    )
    return solution[:n], jax.lax.stop_gradient(residual)
