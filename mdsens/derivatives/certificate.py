"""`Certificate`: the trust that a derivative deserves, in numbers and in words."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.implicit.bound import TRUST_SHARE
from mdsens.mechanics.hessian_operator import hessian_operator
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.scales import typical_distance
from mdsens.mechanics.unknown import Reference, reference_at
from mdsens.potentials.forms.neighbor_vectors import bond_vectors, handles, map_pairs, pair_list
from mdsens.potentials.sums import with_pair_list
from mdsens.structures.neighbors.neighbor_list import Neighbors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mdsens.equilibrium.relaxation import Equilibrium
    from mdsens.mechanics.bound_constraints import Constraints
    from mdsens.mechanics.hessian import Hessian
    from mdsens.potentials.base import Potential
    from mdsens.potentials.species import Atom
    from mdsens.structures.system import System

MAX_RESIDUAL = 1e-9
"""Relative residual of the linear systems above which a derivative is not trusted."""

MAX_DISPLACEMENT = 1e-5
"""Distance to the true equilibrium, ‖F‖ / lowest curvature, above which a derivative is not trusted, as a share of that of
neighbours."""

SHARE_OF_LARGEST = 1e-5
"""Error of a θ dX/dθ that is allowed whatever its own size, as a share of the largest θ dX/dθ."""

SHARE_OF_LENGTH = 1e-6
"""Error of a θ dX/dθ that is allowed besides, as a share of the distance of neighbours: one that vanishes has no digits."""

KINK_SHARE = 1e-6
"""Distance of a pair to a point where the second derivative jumps, as a share of the range, below which it counts as there."""

SWITCH_SHARE = 1e-6
"""Distance to an inequality, as a share of that of neighbours, below which the active set is not certain; for an active one the
force that presses on it, divided by the stiffness."""

MAX_MISMATCH = 1e-8
"""Relative difference of forward and adjoint derivatives above which neither is trusted."""


@dataclasses.dataclass(frozen=True, repr=False)
class Certificate:
    """The verdict on a sensitivity, and the numbers that it rests on.

    Attributes:
        residual: largest relative residual ‖A u - b‖/‖b‖ of its linear systems, recomputed from the answers.
        error_bound: bound on the error of θ dX/dθ (of dX/dθ where θ is zero or a logarithm), in the 2-norm over all atoms, the
            largest over θ [Å]: what the linear solves, the distance of the state from the true equilibrium and rounding can
            amount to (`mdsens.implicit.bound`); inf where the state is too far from the equilibrium for a bound.
        linear_solver: the solver of the linear systems and its preconditioner; the approximation of second derivatives that are
            not exact.
        lowest_curvature: lowest eigenvalue of the Hessian outside the zero modes [eV/Å²].
        curvature_exact: whether it comes from the whole spectrum; otherwise it is an upper bound by a search, and
            error_bound an estimate.
        zero_modes: names of the motions that were projected out.
        rattlers: atoms without a contact; their sensitivity is zero by convention (in a free cell, relative to it).
        displacement: ‖F‖ / lowest curvature, how far the state may be from the true equilibrium [Å].
        kink_distance: distance of the nearest pair to a point where its second derivative jumps (a contact that opens or
            closes, a cutoff's edge) [Å]; inf for smooth potentials, nan where the potential doesn't say, 0 where forces or
            second derivatives of an energy of one's own were seen to jump at the state.
        precision: of the numbers, `"float64"`.
        trusted: True only if nothing speaks against it.
        reasons: against trust, one sentence each.
        fmax: largest force left in the state [eV/Å].
        stress_error: largest stress left in a free cell [GPa].
        curvatures: the few lowest [eV/Å²].
        index: how many of them are negative; 0 at a minimum, 1 at a saddle point.
        zero_modes_found: number of modes that cost no energy, rigid motions and rattlers included.
        zero_modes_expected: number of those that are known: rigid motions that the periodicity and constraints leave, rattlers.
        mismatch: |⟨w, J v⟩ - ⟨Jᵀw, v⟩| / ‖w‖‖J v‖ of random v and w, J v by the forward and Jᵀw by an adjoint solve; where J v
            is no larger than the bound on its error, as a share of what that allows.
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
    fmax: float = np.nan
    stress_error: float = np.nan
    curvatures: tuple[float, ...] = ()
    index: int = 0
    zero_modes_found: int = 0
    zero_modes_expected: int = 0
    mismatch: float = np.nan

    def __repr__(self) -> str:
        return "Certificate: " + str(self).replace("\n", "\n  ")

    def __str__(self) -> str:
        """Return the certificate in words."""
        bound = "at most" if self.curvature_exact else "about"
        verdict = "trusted" if self.trusted else "NOT TRUSTED"
        # A fixed cell balances any stress.
        stress = f"stress {self.stress_error:.1e} GPa off, " if self.stress_error > 0.0 else ""
        lines = [
            f"{verdict}: θ dX/dθ in {self.precision}, error {bound} {self.error_bound:.1e} Å",
            f"state: fmax {self.fmax:.1e} eV/Å, {stress}within {self.displacement:.1e} Å of the equilibrium",
            f"linear systems: residual {self.residual:.1e} by {self.linear_solver}; forward and adjoint differ by "
            f"{self.mismatch:.1e}",
            f"curvatures: {', '.join(f'{value:.3g}' for value in self.curvatures)} ... eV/Å², {self.index} negative",
            f"zero modes: {self.zero_modes_found} found, {self.zero_modes_expected} expected",
            f"nearest point where a second derivative jumps: {self.kink_distance:.1e} Å",
        ]
        return "\n".join([*lines, *(f"but: {reason}" for reason in self.reasons)])


class Measurement(NamedTuple):
    """The measured quality of derivatives at an equilibrium.

    Attributes:
        residual: largest relative residual of the linear systems.
        error: bound on the error of θ dX/dθ, the largest over θ [Å].
        difference, length: of the dot test (`mdsens.derivatives.linear_response.dot_test`).
        force: ‖F‖ outside the null space: the forces that are left.
        method: how the linear systems were solved, in words.
        doubt: from `explain_doubt`.
        rough: whether forces or second derivatives were seen to jump at the state itself.
    """

    residual: float
    error: float
    difference: float
    length: float
    force: float
    method: str
    doubt: str = ""
    rough: bool = False


def certify(eq: "Equilibrium", hessian: "Hessian", measured: Measurement) -> Certificate:
    """Return the certificate of derivatives at an equilibrium."""
    spectrum, error = hessian.spectrum, measured.error
    softest = spectrum.nearest_zero
    displacement = measured.force / softest if softest > 0.0 else np.inf
    kink = 0.0 if measured.rough else kink_distance(eq)
    precision = str(eq.system.positions.dtype)
    approximation = eq.potential.approximation(eq.system)
    names = (*hessian.reference.motions.names, *(f"rattler {atom}" for atom in spectrum.rattlers))
    reasons = []
    if not measured.residual <= MAX_RESIDUAL:
        reasons.append(f"a linear system was solved to a relative residual of {measured.residual:.1e} only")
    inexact = 0.0 if approximation is None else approximation.hessian / softest
    allowed = max(MAX_MISMATCH if precision == "float64" else 1e-2, inexact)
    # A derivative that vanishes has no digits: the difference may be as large as the bound on its error.
    scale = max(measured.length, error / allowed)
    mismatch = measured.difference / scale if scale > 0.0 else measured.difference
    if not mismatch <= allowed:
        reasons.append(f"forward and adjoint derivatives differ by {mismatch:.1e}: one of the linear solves is not what it says")
    if spectrum.index != eq.index or (eq.index == 0 and not spectrum.lowest > 0.0):
        kind = "saddle point of first order" if eq.index else "minimum"
        reasons.append(f"the lowest curvature is {spectrum.lowest:.1e} eV/Å², so the state is no isolated {kind}")
    if spectrum.floppy:
        reasons.append(
            f"{spectrum.floppy} mode(s) beyond the known zero modes cost no energy: groups of atoms are loose, "
            "and the derivative along these modes is undetermined"
        )
    neighbours = typical_distance(eq.system, eq.potential)
    if softest > 0.0 and displacement > MAX_DISPLACEMENT * neighbours:
        reasons.append(
            f"with fmax {eq.fmax:.1e} eV/Å the positions may be {displacement:.1e} Å from the equilibrium: relax further"
        )
    if not np.isfinite(error):
        reasons.append("the state is too far from the equilibrium, or too soft, for a bound on the error: relax further")
    elif measured.doubt:
        reasons.append(measured.doubt)
    if measured.rough:
        reasons.append(
            "the forces or their derivatives jump at this very state: the derivative holds on one side only, if at all"
        )
    elif kink < KINK_SHARE * float(eq.potential.range):
        reasons.append(
            f"a pair is {kink:.1e} Å from a point where the potential's second derivative jumps: "
            "the derivative holds on one side only"
        )
    listed = eq.system.neighbors
    # An atom alone in a small cell has its own images as neighbours, and moves with them.
    alone = isinstance(listed, Neighbors) and not np.asarray(listed.used).any()
    if alone and len(spectrum.rattlers) == len(eq.system):
        reasons.append(
            f"no atom has a neighbour within the potential's range of {float(eq.potential.range):g} Å, so nothing depends on "
            "anything: are all lengths in Å?"
        )
    if (gap := _nearest_switch(eq, spectrum.highest)) < SWITCH_SHARE * neighbours:
        reasons.append(
            f"an inequality is {gap:.1e} Å from changing between active and not: the derivative holds on one side only"
        )
    if precision != "float64":
        reasons.append(f"the numbers are {precision}, so derivatives are good to about 1e-3")
    return Certificate(
        residual=measured.residual,
        error_bound=error,
        linear_solver=measured.method if approximation is None else f"{measured.method}; {approximation.words}",
        lowest_curvature=spectrum.lowest,
        curvature_exact=spectrum.exact,
        zero_modes=names,
        rattlers=spectrum.rattlers,
        displacement=displacement,
        kink_distance=kink,
        precision=precision,
        trusted=not reasons,
        reasons=tuple(reasons),
        fmax=eq.fmax,
        stress_error=eq.stress_error,
        curvatures=spectrum.few,
        index=spectrum.index,
        zero_modes_found=len(names) + spectrum.floppy,
        zero_modes_expected=len(names),
        mismatch=mismatch,
    )


def explain_doubt(names: "Sequence[str]", sizes: np.ndarray, bounds: np.ndarray, length: float) -> str:
    """Return a sentence on the derivative that may be off by more than is allowed; empty where none is.

    Args:
        names: one for each parameter value.
        sizes: `(k,)`, ‖θ dz/dθ‖.
        bounds: `(k,)`, on their errors.
        length: distance of neighbours [Å].
    """
    allowed = TRUST_SHARE * sizes + SHARE_OF_LARGEST * sizes.max(initial=0.0) + SHARE_OF_LENGTH * length
    worst = int(np.argmax(bounds / allowed)) if sizes.size else 0
    if not sizes.size or bounds[worst] <= allowed[worst]:
        return ""
    return f"θ dX/dθ of {names[worst]}, of size {sizes[worst]:.1e} Å, may be off by {bounds[worst]:.1e} Å: relax further"


def _nearest_switch(eq: "Equilibrium", stiffness: float) -> float:
    """Return the smallest distance to an inequality [Å]; an active one's multiplier, divided by the stiffness, counts as one."""
    if eq.constraints is None:
        return np.inf
    constraints, active = eq.constraints, list(eq.constraints.active)
    slopes = np.asarray(_slopes_of_slacks(constraints, eq.system)).reshape(-1, eq.system.positions.size)
    steep = np.linalg.norm(slopes, axis=1)
    slacks = np.asarray(constraints.slacks(eq.system)) / np.where(steep > 0.0, steep, 1.0)
    gaps = np.delete(slacks, active)
    if active:
        pulls = np.asarray(eq.multipliers)[constraints.count - len(active) :] * steep[active]
        # The spectrum has no curvature along constraints, and all that is stiff may lie there.
        along = _stiffness_along(reference_at(eq.system), eq.potential, jnp.asarray(slopes[active]))
        stiff = np.maximum(stiffness, np.linalg.norm(along, axis=1) / steep[active])
        gaps = np.append(gaps, np.divide(pulls, stiff, out=np.full(len(pulls), np.inf), where=stiff > 0.0))
    return float(np.min(np.abs(gaps), initial=np.inf))


@eqx.filter_jit
def _slopes_of_slacks(constraints: "Constraints", system: "System") -> Array:
    return jax.jacrev(lambda x: constraints.slacks(system.with_positions(x)))(system.positions)


@eqx.filter_jit
def _stiffness_along(reference: Reference, potential: "Potential", directions: Array) -> Array:
    """Return ∂²E/∂x² v of several displacements, `(k, N dim)`."""
    return jax.lax.map(hessian_operator(reference.system.positions, Landscape(reference, potential)), directions)


def kink_distance(eq: "Equilibrium") -> float:
    """Return the distance of the listed pair nearest to a point where its second derivative jumps [Å]."""
    distance = distance_to_kinks(eq.potential)
    return float(_nearest_kink(eq.potential, eq.system)) if distance is None else distance


def distance_to_kinks(potential: "Potential") -> float | None:
    """Return inf where no second derivative jumps, nan where the potential doesn't say, None where `kink_gaps` knows."""
    if potential.smoothness >= 2:
        return np.inf
    return None if all(hasattr(part, "kinks") for part in _rough_parts(potential)) else np.nan


def _rough_parts(potential: "Potential") -> "list[Potential]":
    return [part for part in potential.parts() if part.smoothness < 2]


@eqx.filter_jit
def _nearest_kink(potential: "Potential", system: "System") -> Array:
    return jnp.min(jnp.abs(kink_gaps(potential, system)))


def kink_gaps(potential: "Potential", system: "System") -> Array:
    """Return r - r_kink of each listed pair and each of its kinks, `(N, capacity, kinks)` [Å]; inf in unused places. Pure JAX."""
    system = with_pair_list(system)
    neighbors = pair_list(system)
    d, _ = bond_vectors(system, neighbors.radius)
    r = jnp.linalg.norm(d, axis=0)

    def pair_gaps(r: Array, i: "Atom", j: "Atom") -> Array:
        parts = _rough_parts(potential)
        acts = [part.interact(i, j) if getattr(part, "no_interaction", ()) else True for part in parts]
        gaps = [jnp.where(act, r - kink, jnp.inf) for part, act in zip(parts, acts, strict=True) for kink in part.kinks(i, j)]
        return jnp.stack(gaps)

    gaps = map_pairs(pair_gaps, r, *handles(system))
    return jnp.where(neighbors.mask[..., None], jnp.swapaxes(gaps, 0, 1), jnp.inf)
