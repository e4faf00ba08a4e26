"""`Certificate`: how far a derivative can be trusted, in numbers and in words."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mdsens.potentials.base import handles, neighbor_vectors
from mdsens.potentials.pair import PairPotential

MAX_RESIDUAL = 1e-9
"""Relative residual of the linear systems above which a derivative is not trusted."""

MAX_DISPLACEMENT = 1e-5
"""Distance [Å] to the true equilibrium, √N fmax / lowest curvature, above which a derivative is not trusted."""

KINK = 1e-6
"""Share of the range within which a pair counts as being at a point where the second derivative jumps."""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was measured about a sensitivity.

    Attributes:
        residual: largest relative residual ‖A u - b‖/‖b‖ of its linear systems, recomputed from the answers.
        error_bound: bound on the error of θ dX/dθ, in the 2-norm over all atoms, the largest over θ [Å]: what the linear
            solves, the distance of the state from the true equilibrium and rounding can amount to
            (`mdsens.implicit.bound`); inf where the state is too far from the equilibrium for a bound.
        linear_solver: what solved the linear systems.
        lowest_curvature: lowest eigenvalue of the Hessian outside the zero modes [eV/Å²].
        curvature_exact: whether it comes from the whole spectrum; otherwise it is an upper bound by Lanczos, and
            error_bound an estimate.
        zero_modes: the motions that were projected out, by name.
        rattlers: atoms without a contact; their sensitivity is zero by convention.
        displacement: √N fmax / lowest curvature, how far the state may be from the true equilibrium [Å].
        kink_distance: distance of the nearest pair to a point where its second derivative jumps [Å]; inf for smooth
            potentials, nan where the potential doesn't say.
        precision: of the numbers, `"float64"`.
        trusted: True only if nothing speaks against it.
        reasons: what speaks against it, one sentence each.
    """

    residual: float
    error_bound: float
    linear_solver: str
    lowest_curvature: float
    curvature_exact: bool
    zero_modes: tuple[str, ...]
    rattlers: tuple[int, ...]
    displacement: float
    kink_distance: float
    precision: str
    trusted: bool
    reasons: tuple[str, ...]


def certify(eq, curvature, solver, residual: float, error: float) -> Certificate:
    """The certificate of derivatives at `eq`.

    Args:
        solver: of their linear systems.
        residual: largest relative residual of these.
        error: bound on the error of θ dX/dθ, the largest over θ [Å].
    """
    lowest = curvature.lowest
    displacement = float(np.sqrt(len(eq.system)) * eq.fmax / lowest) if lowest > 0.0 else np.inf
    kink = kink_distance(eq)
    precision = str(eq.system.positions.dtype)
    motions = eq.frame.motions.names
    reasons = []
    if not residual <= MAX_RESIDUAL:
        reasons.append(f"a linear system was solved to a relative residual of {residual:.1e} only")
    if not lowest > 0.0:
        reasons.append(f"the lowest curvature is {lowest:.1e} eV/Å², so the state is no isolated minimum")
    if curvature.floppy:
        reasons.append(
            f"{curvature.floppy} mode(s) beyond the known zero modes cost no energy: groups of atoms are loose, "
            "and the derivative along these modes is undetermined"
        )
    if lowest > 0.0 and displacement > MAX_DISPLACEMENT:
        reasons.append(
            f"with fmax {eq.fmax:.1e} eV/Å the positions may be {displacement:.1e} Å from the equilibrium: relax further"
        )
    if not np.isfinite(error):
        reasons.append("the state is too far from the equilibrium, or too soft, for a bound on the error: relax further")
    if kink < KINK * float(eq.potential.range):
        reasons.append(
            f"a pair is {kink:.1e} Å from a point where the potential's second derivative jumps: "
            "the derivative holds on one side only"
        )
    if precision != "float64":
        reasons.append(f"the numbers are {precision}, so derivatives are good to about 1e-3")
    return Certificate(
        residual=residual,
        error_bound=error,
        linear_solver=repr(solver),
        lowest_curvature=lowest,
        curvature_exact=curvature.exact,
        zero_modes=(*motions, *(f"rattler {atom}" for atom in curvature.rattlers)),
        rattlers=curvature.rattlers,
        displacement=displacement,
        kink_distance=kink,
        precision=precision,
        trusted=not reasons,
        reasons=tuple(reasons),
    )


def kink_distance(eq) -> float:
    """Distance of the listed pair nearest to a point where its second derivative jumps [Å]."""
    potential = eq.potential
    if potential.smoothness >= 2:
        return np.inf
    if not isinstance(potential, PairPotential):
        return np.nan
    return float(_nearest_kink(potential, eq.system))


@eqx.filter_jit
def _nearest_kink(potential, system):
    d, _ = neighbor_vectors(system, system.neighbors.radius)
    r = jnp.sqrt(jnp.sum(d * d, axis=-1))
    i, j = handles(system)

    def gap(r, i, j):
        return jnp.min(jnp.stack([jnp.abs(r - kink) for kink in potential.kinks(i, j)]))

    gaps = jax.vmap(jax.vmap(gap, in_axes=(0, None, 0)))(r, i, j)
    return jnp.min(jnp.where(system.neighbors.mask, gaps, jnp.inf))
