"""The range of validity of a derivative: the parameters for which a predicted state is right to a given share.

Along θ(t) = θ + t v the state is predicted as z(t) = z + t z' (+ ½ t² z''). Its error is the Newton step from there,
δ(t) = -A⁻¹F(z(t), θ(t)) with A at z(t): forces are taken at the new parameters, so that it contains the curvature of the path,
contacts that open or close, and modes that soften. Lengths are those of displacements of atoms and cell. The prediction counts as
right while ‖δ(t)‖ <= share ‖z(t) - z‖.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import InputError, MdsensError
from mdsens.common.suggestions import suggest_names
from mdsens.derivatives.certificate import distance_to_kinks, kink_gaps
from mdsens.derivatives.second_order import Taylor, derivatives_along, direction_to, taylor
from mdsens.derivatives.states import Observable
from mdsens.derivatives.verification import relax_from, relaxed_structure
from mdsens.equilibrium.descent import relist
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.implicit.linear_system import LinearSolver
from mdsens.mechanics.hessian import Hessian
from mdsens.mechanics.rounding import rounding_of
from mdsens.mechanics.spectrum import examine_hessian
from mdsens.mechanics.unknown import Reference, Unknown, with_coarse_grid
from mdsens.potentials.base import Potential
from mdsens.structures.neighbors.neighbor_list import SKIN
from mdsens.structures.system import System

SHARE = 0.1
"""Error that is allowed by default, as a share of the predicted displacement."""

SAFETY = 0.9
"""Share of the computed range that is stated."""

GROWTH = 1.5
"""Factor between the points at which the forces of a prediction are computed."""

BISECTIONS = 5
INVERSE_ITERATIONS = 8

INNER_POINTS = 4
"""Points up to the range at which the signs of all curvatures are checked."""

UNSTABLE = "the predicted structure is unstable: a mode has no stiffness left"

LEAST_CHANGE = 0.01
"""Change that the error of an observable's number is compared with, at least, as a share of the largest number's change."""

REST = 1e-12
"""Displacement [Å] below which an atom counts as resting."""

ErrorAt = Callable[[float], tuple[float, str]]
"""`(error, reason)` of a prediction at t; the reason is a sentence."""


@dataclasses.dataclass(frozen=True)
class Check:
    """The comparison of a prediction with a structure relaxed again.

    Attributes:
        t: the length of the step.
        predicted, relaxed: lengths of the displacement of all atoms (and a free cell) [Å]; nan where nothing relaxed.
        error: of the prediction, as a share of the predicted displacement; inf where nothing relaxed.
        note: why nothing relaxed.
    """

    t: float
    predicted: float
    relaxed: float
    error: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Validity:
    """The range of a prediction along a direction.

    Attributes:
        range: t up to which it is right to `share`; inf without a limit.
        share: of the displacement.
        order: of the prediction, 1 or 2.
        limit: the reason that ends the range, in words.
        second_order: t at which the second-order term alone makes up `share` of the first.
        soft_mode: t at which the softest mode's curvature would be zero, to first order; inf where it stiffens.
        first_contact: t at which the first pair crosses a point where its second derivative jumps; inf for smooth potentials.
        checks: structures relaxed again, if asked for.
        taylor: the prediction.
    """

    range: float
    share: float
    order: int
    limit: str
    second_order: float
    soft_mode: float
    first_contact: float
    checks: tuple[Check, ...]
    taylor: Taylor = dataclasses.field(repr=False)

    @property
    def holds(self) -> bool:
        """Whether no check inside the range found an error beyond the share."""
        return all(check.error <= self.share for check in self.checks if check.t <= self.range)


@suggest_names
def validity(
    eq: Equilibrium,
    direction: Potential | Mapping[str, Any],
    *,
    share: float = SHARE,
    order: int = 1,
    observable: Observable | None = None,
    checks: int = 0,
    linear_solver: LinearSolver | None = None,
) -> Validity:
    """Compute how far the potential may move along `direction` before the predicted state is wrong by `share`.

        reach = ms.validity(eq, {"sigma": 1.0}).range  # change of sigma

    Args:
        direction: v, potential-shaped, or steps by name: `{"sigma": 1.0}`. The range is in units of it, on its positive side.
        share: allowed error of the displacement, relative to the displacement.
        order: 1 for the linear prediction, 2 for the quadratic one.
        observable: `g(system, potential)`, for the range in which g + t g' (+ ½ t² g'') misses g of structures relaxed again by
            no more than `share` of the predicted change, in each of its numbers (where one changes by less than a hundredth of
            the largest change, by no more than `share` of that hundredth).
        checks: number of structures that are relaxed again, evenly up to the range and once beyond it.

    Raises:
        InputError: a share that is not between 0 and 1, an order that is not 1 or 2, a direction along which nothing changes.
        ConvergenceError, LinearSolveError: as for `sensitivity`.
    """
    if not (isinstance(share, Real) and 0.0 < share < 1.0):
        raise InputError(f"share must lie between 0 and 1, not {share!r}.")
    if order not in (1, 2):
        raise InputError(f"order must be 1 or 2, not {order!r}.")
    if not (isinstance(checks, int) and checks >= 0):
        raise InputError(f"checks must be a number of structures, not {checks!r}.")
    series = taylor(eq, direction, linear_solver=linear_solver)
    if not any(np.any(np.asarray(leaf) != 0.0) for leaf in jax.tree.leaves(series.direction)):
        raise InputError("The direction is zero: set the leaves of the parameters that should move.")
    first, second = (_length(series.positions[k], None if series.cell is None else series.cell[k]) for k in range(2))
    farthest = _farthest(series)
    bent = 2.0 * share * first / second if second > 0.0 else math.inf
    soft, lowest, slope = _softening(series.hessian, series.direction, series.first)
    vanishing, contact = -float(lowest) / float(slope) if slope else math.inf, _first_contact(series)
    vanishing = vanishing if vanishing > 0.0 else math.inf
    if observable is None:
        error_at, guess, inside = _step_error(series, order, soft), bent, _index_error(eq, series, order)
    else:
        error_at, guess = _observable_error(eq, series, observable, order, share=share, linear_solver=linear_solver)
        inside = error_at
    reached, limit = _range(error_at, share, min(guess, farthest), farthest)
    reached, limit = _check_inside(inside, share, reached, limit)
    result = Validity(SAFETY * reached, share, order, limit, bent, vanishing, contact, (), series)
    return dataclasses.replace(result, checks=tuple(check(eq, result, t) for t in _check_points(result, checks, farthest)))


def _farthest(series: Taylor) -> float:
    """Return t at which a parameter would have changed by its own size (by 1, if it is zero): no range is longer."""
    pairs = zip(jax.tree.leaves(series.potential), jax.tree.leaves(series.direction), strict=True)
    return 1.0 / max(np.max(np.abs(step)) / (np.max(np.abs(theta)) or 1.0) for theta, step in pairs if np.size(theta))


def _range(error_at: ErrorAt, share: float, guess: float, farthest: float) -> tuple[float, str]:
    """Return `(t, what ends it)` by steps up from a place where the prediction is right, then bisection."""
    low, high, reason = 0.0, None, ""
    t = 0.5 * guess
    while high is None or (low == 0.0 and high > 1e-8 * farthest):
        error, why = error_at(t)
        if error <= share:
            low = t
            if t >= farthest:
                return farthest, "the parameter would change by its own size"
            t = min(GROWTH * t, farthest)
            if high is not None:
                break
        else:
            high, reason = t, why
            if low > 0.0:
                break
            t = 0.25 * t
    return _bisect(error_at, share, low, high, reason)


def _bisect(error_at: ErrorAt, share: float, low: float, high: float, reason: str) -> tuple[float, str]:
    """Return `(t, what ends it)` between a t at which the prediction is right and one at which it is not."""
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        error, why = error_at(middle)
        low, high, reason = (middle, high, reason) if error <= share else (low, middle, why)
    return low, reason


def _check_inside(error_at: ErrorAt, share: float, reached: float, limit: str) -> tuple[float, str]:
    """Return the range as far as the prediction is right at points inside it too, and what ends it."""
    low = 0.0
    for k in range(1, INNER_POINTS + 1):
        t = reached * k / INNER_POINTS
        error, why = error_at(t)
        if error > share:
            return _bisect(error_at, share, low, t, why)
        low = t
    return reached, limit


def _index_error(eq: Equilibrium, series: Taylor, order: int) -> ErrorAt:
    """Return an error that is infinite where the predicted structure has another number of negative curvatures, else zero."""

    def error_at(t: float) -> tuple[float, str]:
        potential, z = series.parameters(t), series.unknown(t, order)
        try:
            reference = relist(series.hessian.reference, z, potential, SKIN * potential._host_range())
            index = examine_hessian(z, with_coarse_grid(reference), potential).spectrum.index
        except MdsensError as error:
            return math.inf, f"the predicted structure makes no sense: {error}"
        return (0.0, "") if index == eq.index else (math.inf, UNSTABLE)

    return error_at


def _observable_error(
    eq: Equilibrium, series: Taylor, g: Observable, order: int, *, share: float, linear_solver: LinearSolver | None
) -> tuple[ErrorAt, float]:
    """Return the error of an observable's prediction, and the t at which the second-order term makes up the share."""
    first, second = (np.asarray(d, dtype=float) for d in derivatives_along(g, eq, series.direction, linear_solver=linear_solver))
    here = np.asarray(g(eq.system, eq.potential), dtype=float)
    least = rounding_of(lambda systems: np.ravel(g(systems["alone"], eq.potential)), {"alone": eq.system}).reshape(here.shape)

    def largest_share(missed: np.ndarray, change: np.ndarray) -> float:
        size = np.fmax(np.abs(change), LEAST_CHANGE * np.abs(change).max(initial=0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(np.abs(missed) <= least, 0.0, np.abs(missed) / size).max(initial=0.0))

    def error_at(t: float) -> tuple[float, str]:
        change = t * first + (0.5 * t**2 * second if order == 2 else 0.0)
        try:
            there = relax_from(eq, series.system(t, order), series.parameters(t), progress=False)
            value = np.asarray(g(there.system, there.potential), dtype=float)
        except MdsensError as error:
            return math.inf, f"the state is unstable: {error}"
        if not np.isfinite(value).all():
            return math.inf, "the observable is not finite"
        return largest_share(value - here - change, change), "the observable's prediction is off by the share"

    bend = largest_share(0.5 * second, first)
    return error_at, share / bend if bend > 0.0 else math.inf


def _step_error(series: Taylor, order: int, soft: Array) -> ErrorAt:
    """Return the error ‖δ(t)‖ / ‖z(t) - z‖ of the prediction; inf where there is no Newton step.

    Args:
        soft: the softest mode at t = 0, whose curvature must keep its sign: forces may be blind to it by symmetry.
    """
    start = _newton_step(series.hessian, series.hessian.reference, series.potential, series.hessian.z, soft)
    resting = max(REST, 10.0 * float(start.length))

    def error_at(t: float) -> tuple[float, str]:
        potential, z = series.parameters(t), series.unknown(t, order)
        try:
            reference = relist(series.hessian.reference, z, potential, SKIN * potential._host_range())
        except MdsensError as error:
            return math.inf, f"the predicted structure makes no sense: {error}"
        step = _newton_step(series.hessian, reference, potential, z, soft)
        solved = np.isfinite(step.length) and step.residual <= series.hessian.fail_rtol
        if not (solved and step.curvature * start.curvature > 0.0):
            return math.inf, UNSTABLE
        if float(step.moved) < resting:
            return (0.0 if float(step.length) < resting else math.inf), "what is predicted not to move moves"
        return float(step.length / step.moved), "the prediction is off by the share"

    return error_at


class NewtonStep(NamedTuple):
    """A Newton step from z: ‖z - the state's z‖, its length [Å], its residual, and the curvature along the softest mode."""

    moved: Array
    length: Array
    residual: Array
    curvature: Array


@eqx.filter_jit
def _newton_step(hessian: Hessian, reference: Reference, potential: Potential, z: Unknown | Array, soft: Array) -> NewtonStep:
    start = hessian.reference.place(hessian.z)
    hessian = eqx.tree_at(lambda s: s.reference, hessian, reference)
    rest = ravel_pytree(hessian.condition(z, potential))[0]
    product = hessian.product_at(z, potential)
    step, residual = hessian.solve(-rest, product=product)
    placed = lambda z: (hessian.reference.place(z).positions, hessian.reference.place(z).cell)  # noqa: E731
    there, moved = jax.jvp(placed, (z,), (ravel_pytree(z)[1](step),))
    displacement = jax.tree.map(jnp.subtract, there, (start.positions, start.cell))
    distance, length = (jnp.linalg.norm(ravel_pytree(change)[0]) for change in (displacement, moved))
    return NewtonStep(distance, length, residual, soft @ product(soft))


@eqx.filter_jit
def _softening(hessian: Hessian, direction: Potential, first: Array) -> tuple[Array, Array, Array]:
    """Return `(v, λ, λ')` of the mode with λ nearest zero: λ' = v · (dA/dt) v along the direction, v by inverse iteration."""
    flat, unravel = ravel_pytree(hessian.z)
    product = hessian.product()

    def inverse(_: Any, v: Array) -> Array:
        w, _ = hessian.solve(v, product=product)
        return w / jnp.linalg.norm(w)

    start = hessian.null_space.project(jax.random.normal(jax.random.key(4), flat.shape, flat.dtype))
    v = jax.lax.fori_loop(0, INVERSE_ITERATIONS, inverse, start / jnp.linalg.norm(start))

    def stiffness(t: Array) -> Array:
        theta = jax.tree.map(lambda value, step: value + t * step, hessian.potential, direction)
        return v @ hessian.product_at(unravel(flat + t * first), theta)(v)

    zero = jnp.zeros((), flat.dtype)
    return v, *jax.jvp(stiffness, (zero,), (jnp.ones_like(zero),))


def _first_contact(series: Taylor) -> float:
    """Return the first t at which a pair, moving as predicted to first order, crosses a jump of its second derivative."""
    potential = series.potential
    if (unknown := distance_to_kinks(potential)) is not None:
        return unknown
    hessian = series.hessian
    reference = relist(hessian.reference, hessian.z, potential, SKIN * potential._host_range())
    gaps, rates = _gaps_and_rates(reference, hessian.z, potential, series.direction, series.first)
    closing = np.asarray(gaps * rates) < 0.0
    return float(np.min(np.abs(np.asarray(gaps)[closing] / np.asarray(rates)[closing]), initial=math.inf))


@eqx.filter_jit
def _gaps_and_rates(
    reference: Reference, z: Unknown | Array, potential: Potential, direction: Potential, first: Array
) -> tuple[Array, Array]:
    """Return the gaps of all pairs to jumps of their second derivatives, and their rates along a direction."""
    _, unravel = ravel_pytree(z)
    gaps = lambda z, theta: kink_gaps(theta, reference.place(z))  # noqa: E731
    return jax.jvp(gaps, (z, potential), (unravel(first), direction))


def _check_points(reach: Validity, count: int, farthest: float) -> list[float]:
    """Return some t evenly up to the range, and one beyond it."""
    if not count:
        return []
    end = min(reach.range, farthest) if reach.range > 0.0 else 1e-6 * farthest
    inside = [end * k / max(count - 1, 1) for k in range(1, count)]
    return [*inside, min(2.0 * end, farthest)] if count > 1 else [end]


def check(eq: Equilibrium, reach: Validity, t: float) -> Check:
    """Compare the prediction at t with the structure relaxed again from there."""
    predicted = reach.taylor.system(t, reach.order)
    moved = _distance(predicted, eq.system)
    try:
        relaxed = relaxed_structure(eq, predicted, reach.taylor.parameters(t))
    except MdsensError as error:
        return Check(t, moved, math.nan, math.inf, str(error))
    return Check(t, moved, _distance(relaxed, eq.system), _distance(relaxed, predicted) / max(moved, REST))


def _distance(a: System, b: System) -> float:
    return _length(a.positions - b.positions, None if a.cell is None or b.cell is None else a.cell - b.cell)


def _length(positions: Array, cell: Array | None) -> float:
    return math.sqrt(sum(float(jnp.sum(part**2)) for part in (positions, cell) if part is not None))


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """An equilibrium predicted for another potential.

    Attributes:
        system: the predicted structure.
        potential: what it is predicted for.
        order: of the Taylor series.
        validity: along the direction to it; t = 1 is the new potential.
        start: the equilibrium that it comes from.
        stable: whether the predicted structure has as many negative curvatures as the start.
    """

    system: System
    potential: Potential
    order: int
    validity: Validity
    start: Equilibrium = dataclasses.field(repr=False)
    stable: bool = True

    @property
    def trusted(self) -> bool:
        """Whether the new potential lies within the range, and all modes have their stiffness there."""
        return self.validity.range >= 1.0 and self.stable

    def relax(self, **options: Any) -> Equilibrium:
        """Relax from the predicted structure under the same conditions; options as for `mdsens.relax`."""
        return relax_from(self.start, self.system, self.potential, **options)


@suggest_names
def extrapolate(
    eq: Equilibrium, potential: Potential, *, order: int = 2, share: float = SHARE, linear_solver: LinearSolver | None = None
) -> Extrapolation:
    """Predict the equilibrium of a new potential by Taylor's series, without relaxing, with the range in which that holds.

        guess = ms.extrapolate(eq, new_potential)
        relaxed = guess if guess.trusted else guess.relax()

    Raises:
        InputError: a potential of another kind than the equilibrium's; as `validity`.
        ConvergenceError, LinearSolveError: as for `sensitivity`.
    """
    direction = direction_to(eq.potential, potential)
    if not any(np.any(np.asarray(leaf) != 0.0) for leaf in jax.tree.leaves(direction)):
        series = taylor(eq, direction, linear_solver=linear_solver)
        still = Validity(math.inf, share, order, "nothing moves", math.inf, math.inf, math.inf, (), series)
        return Extrapolation(eq.system, potential, order, still, eq)
    reach = validity(eq, direction, share=share, order=order, linear_solver=linear_solver)
    stable = _index_error(eq, reach.taylor, order)(1.0)[0] == 0.0
    return Extrapolation(reach.taylor.system(1.0, order), potential, order, reach, eq, stable)
