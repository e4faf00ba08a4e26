"""How far a derivative reaches: the range of parameters in which a predicted state is right to a given share.

Along θ(t) = θ + t v the state is predicted as z(t) = z + t z' (+ ½ t² z''). What is wrong with it is the Newton step from there,
δ(t) = -A⁻¹F(z(t), θ(t)) with A at z(t): forces are taken at the new parameters, so that curvature of the path, contacts
that open or close and modes that soften are all in it. Lengths are those of displacements of atoms and cell. The prediction
counts as right while ‖δ(t)‖ <= share ‖z(t) - z‖.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.errors import InputError, MdsensError
from mdsens.common.suggestions import spelled
from mdsens.derivatives.certificate import distance_to_kinks, kink_gaps
from mdsens.derivatives.first_order import Observable
from mdsens.derivatives.second_order import Taylor, derivatives_along, direction_to, taylor
from mdsens.derivatives.verification import remove_rigid_motion
from mdsens.equilibrium.descent import relist
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.mechanics.hessian import Hessian
from mdsens.mechanics.rounding import rounding_of
from mdsens.mechanics.spectrum import spectrum_at
from mdsens.mechanics.unknown import Reference, with_coarse_grid
from mdsens.potentials.base import Potential
from mdsens.structures.neighbors.neighbor_list import SKIN
from mdsens.structures.system import System

SHARE = 0.1
"""Error of the predicted displacement, as a share of it, that is allowed by default."""

SAFETY = 0.9
"""Share of the range found that is stated."""

GROWTH = 1.5
"""Factor between the points at which a prediction is held against its forces."""

BISECTIONS = 5
INVERSE_ITERATIONS = 8

INNER_POINTS = 4
"""Places up to the range at which it is asked whether all modes still have their stiffness."""

UNSTABLE = "the predicted structure is unstable: a mode has no stiffness left"

LEAST_CHANGE = 0.01
"""Change of one of an observable's numbers, as a share of the largest, that its error is held against at least."""

REST = 1e-12
"""Displacement [Å] below which nothing moves."""


ErrorAt = Callable[[float], tuple[float, str]]
"""`(error, what is wrong)` of a prediction at t."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A prediction held against a structure relaxed again.

    Attributes:
        t: where.
        predicted, relaxed: lengths of the displacement of all atoms (and a free cell) [Å]; nan where nothing relaxed.
        error: what the prediction missed, as a share of the predicted displacement; inf where nothing relaxed.
        note: why not.
    """

    t: float
    predicted: float
    relaxed: float
    error: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Validity:
    """How far along a direction a prediction can be trusted.

    Attributes:
        range: t up to which it is right to `share`; inf where nothing limits it.
        share: of the displacement.
        order: of the prediction, 1 or 2.
        limit: what ends the range, in words.
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


@spelled
def validity(
    eq: Equilibrium,
    direction: Potential | Mapping[str, Any],
    *,
    share: float = SHARE,
    order: int = 1,
    observable: Observable | None = None,
    checks: int = 0,
    linear_solver: Any = None,
) -> Validity:
    """How far the potential may move along `direction` before the predicted state is wrong by `share`.

    Args:
        direction: v, potential-shaped, or steps by name: `{"sigma": 1.0}`. The range is in units of it, on its positive side.
        share: allowed error of the displacement, relative to the displacement.
        order: 1 for the linear prediction, 2 for the quadratic one.
        observable: `g(system, potential)`, whose range is asked for instead: that in which g + t g' (+ ½ t² g'') misses g of
            structures relaxed again by no more than `share` of the predicted change, in each of its numbers by itself (those
            that change by less than a hundredth of the largest change are held against that).
        checks: so many structures are relaxed again, evenly up to the range and once beyond it.

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
    vanishing, contact = _vanishing(float(lowest), float(slope)), _first_contact(series)
    found = Validity(math.inf, share, order, "", bent, vanishing, contact, (), series)
    if observable is None:
        _, noise, _, stiffness = _newton_step(series.hessian, series.hessian.reference, series.potential, series.hessian.z, soft)
        wrong = lambda t: _wrong(series, t, order, float(noise), soft, float(stiffness))  # noqa: E731
        guess, held = bent, _index_error(eq, series, order)
    else:
        wrong, guess = predicted_values(eq, series, observable, order, share, linear_solver)
        held = wrong
    reached, limit = _range(wrong, share, min(guess, farthest), farthest)
    reached, limit = _check_inside(held, share, reached, limit)
    found = dataclasses.replace(found, range=SAFETY * reached, limit=limit)
    return dataclasses.replace(found, checks=tuple(check(eq, found, t) for t in _places(found, checks, farthest)))


def _farthest(series: Any) -> float:
    """Where a parameter would have changed by its own size (by 1, if it is zero): no prediction is asked for beyond."""
    pairs = zip(jax.tree.leaves(series.potential), jax.tree.leaves(series.direction), strict=True)
    return 1.0 / max(np.max(np.abs(step)) / (np.max(np.abs(theta)) or 1.0) for theta, step in pairs if np.size(theta))


def _range(wrong: ErrorAt, share: float, guess: Any, farthest: float) -> tuple[float, str]:
    """`(t, what ends it)` by steps up from a place where the prediction is right, then bisection."""
    low, high, reason = 0.0, None, ""
    t = 0.5 * guess
    while high is None or (low == 0.0 and high > 1e-8 * farthest):
        error, why = wrong(t)
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
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        error, why = wrong(middle)
        low, high, reason = (middle, high, reason) if error <= share else (low, middle, why)
    return low, reason


def _check_inside(wrong: ErrorAt, share: float, reached: float, limit: str) -> tuple[float, str]:
    """The range as far as nothing is wrong at places inside it either."""
    low = 0.0
    for k in range(1, INNER_POINTS + 1):
        t = reached * k / INNER_POINTS
        error, why = wrong(t)
        if error > share:
            high, limit = t, why
            break
        low = t
    else:
        return reached, limit
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        error, why = wrong(middle)
        low, high, limit = (middle, high, limit) if error <= share else (low, middle, why)
    return low, limit


def _index_error(eq: Equilibrium, series: Taylor, order: int) -> ErrorAt:
    """Infinite where the predicted structure has another number of negative curvatures, of whatever modes."""

    def wrong(t: float) -> tuple[float, str]:
        potential, z = series.parameters(t), series.unknown(t, order)
        try:
            reference = relist(series.hessian.reference, z, potential, SKIN * _reach(potential))
            index = spectrum_at(z, with_coarse_grid(reference), potential).index
        except MdsensError as error:
            return math.inf, f"the predicted structure makes no sense: {error}"
        return (0.0, "") if index == eq.index else (math.inf, UNSTABLE)

    return wrong


def predicted_values(
    eq: Equilibrium, series: Taylor, g: Observable, order: int, share: float, linear_solver: Any
) -> tuple[ErrorAt, float]:
    """`(error and what is wrong at t, where the second-order term makes up the share)` of an observable's prediction."""
    first, second = (np.asarray(d, dtype=float) for d in derivatives_along(g, eq, series.direction, linear_solver=linear_solver))
    here = np.asarray(g(eq.system, eq.potential), dtype=float)
    least = rounding_of(lambda systems: np.ravel(g(systems["alone"], eq.potential)), {"alone": eq.system}).reshape(here.shape)

    def shares(missed: np.ndarray, change: np.ndarray) -> float:
        size = np.fmax(np.abs(change), LEAST_CHANGE * np.abs(change).max(initial=0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(np.abs(missed) <= least, 0.0, np.abs(missed) / size).max(initial=0.0))

    def wrong(t: float) -> tuple[float, str]:
        change = t * first + (0.5 * t**2 * second if order == 2 else 0.0)
        try:
            there = warm(eq, series.system(t, order)).again(series.parameters(t), progress=False)
            value = np.asarray(g(there.system, there.potential), dtype=float)
        except MdsensError as error:
            return math.inf, f"the state is unstable: {error}"
        if not np.isfinite(value).all():
            return math.inf, "the observable is not finite"
        return shares(value - here - change, change), "the observable's prediction is off by the share"

    bend = shares(0.5 * second, first)
    return wrong, share / bend if bend > 0.0 else math.inf


def _wrong(series: Any, t: float, order: int, noise: float, soft: Any, curvature: float) -> tuple[float, str]:
    """`(‖δ(t)‖ / ‖z(t) - z‖, what is wrong)` of the prediction at t; inf where there is no Newton step.

    Args:
        noise: the step at t = 0, how far the equilibrium itself is off.
        soft, curvature: the softest mode there, whose curvature must keep its sign: forces may be blind to it by symmetry.
    """
    potential, z = series.parameters(t), series.unknown(t, order)
    try:
        reference = relist(series.hessian.reference, z, potential, SKIN * _reach(potential))
    except MdsensError as error:
        return math.inf, f"the predicted structure makes no sense: {error}"
    size, step, residual, there = _newton_step(series.hessian, reference, potential, z, soft)
    if not (np.isfinite(step) and residual <= series.hessian.fail_rtol and there * curvature > 0.0):
        return math.inf, UNSTABLE
    resting = max(REST, 10.0 * noise)
    if float(size) < resting:
        return (0.0 if float(step) < resting else math.inf), "what is predicted not to move moves"
    return float(step / size), "the prediction is off by the share"


def _reach(potential: Potential) -> float:
    return float(np.asarray(potential.range))


@eqx.filter_jit
def _newton_step(hessian: Hessian, reference: Reference, potential: Potential, z: Any, soft: Any) -> tuple[Array, ...]:
    """`(‖z - the state's z‖, ‖step‖, residual, curvature along soft)`, lengths of displacements of atoms and cell."""
    start = hessian.reference.place(hessian.z)
    hessian = eqx.tree_at(lambda s: s.reference, hessian, reference)
    rest = ravel_pytree(hessian.condition(z, potential))[0]
    product = hessian.product_at(z, potential)
    step, residual = hessian.solve(-rest, product=product)
    placed = lambda z: (hessian.reference.place(z).positions, hessian.reference.place(z).cell)  # noqa: E731
    there, moved = jax.jvp(placed, (z,), (ravel_pytree(z)[1](step),))
    displacement = jax.tree.map(jnp.subtract, there, (start.positions, start.cell))
    lengths = (jnp.linalg.norm(ravel_pytree(change)[0]) for change in (displacement, moved))
    return *lengths, residual, soft @ product(soft)


def _vanishing(curvature: float, slope: float) -> float:
    """Where a curvature would vanish, to first order."""
    reached = -curvature / slope if slope else math.inf
    return reached if reached > 0.0 else math.inf


@eqx.filter_jit
def _softening(hessian: Hessian, direction: Any, first: Any) -> tuple[Array, ...]:
    """`(v, λ, λ')` of the softest mode: λ' = v · (dA/dt) v along the way, v by inverse iteration."""
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


def _first_contact(series: Any) -> float:
    """The first t at which a pair, moving as predicted to first order, crosses a jump of its second derivative."""
    potential = series.potential
    if (unknown := distance_to_kinks(potential)) is not None:
        return unknown
    hessian = series.hessian
    reference = relist(hessian.reference, hessian.z, potential, SKIN * _reach(potential))
    gaps, rates = _gaps_and_rates(reference, hessian.z, potential, series.direction, series.first)
    closing = np.asarray(gaps * rates) < 0.0
    return float(np.min(np.abs(np.asarray(gaps)[closing] / np.asarray(rates)[closing]), initial=math.inf))


@eqx.filter_jit
def _gaps_and_rates(reference: Reference, z: Any, potential: Potential, direction: Any, first: Any) -> tuple[Array, Array]:
    _, unravel = ravel_pytree(z)
    gaps = lambda z, theta: kink_gaps(theta, reference.place(z))  # noqa: E731
    return jax.jvp(gaps, (z, potential), (unravel(first), direction))


def _places(found: Any, count: int, farthest: float) -> list[float]:
    if not count:
        return []
    end = min(found.range, farthest) if found.range > 0.0 else 1e-6 * farthest
    inside = [end * k / max(count - 1, 1) for k in range(1, count)]
    return [*inside, min(2.0 * end, farthest)] if count > 1 else [end]


def check(eq: Equilibrium, found: Validity, t: float) -> Check:
    """The prediction at t held against the structure relaxed again from there."""
    predicted = found.taylor.system(t, found.order)
    moved = _distance(predicted, eq.system)
    try:
        again = warm(eq, predicted).again(found.taylor.parameters(t), progress=False)
    except MdsensError as error:
        return Check(t, moved, math.nan, math.inf, str(error))
    there = remove_rigid_motion(eq, again.system)
    return Check(t, moved, _distance(there, eq.system), _distance(there, predicted) / max(moved, REST))


def _distance(a: System, b: System) -> float:
    return _length(a.positions - b.positions, None if a.cell is None or b.cell is None else a.cell - b.cell)


def _length(positions: Array, cell: Any) -> float:
    return math.sqrt(sum(float(jnp.sum(part**2)) for part in (positions, cell) if part is not None))


def warm(eq: Equilibrium, system: System) -> Equilibrium:
    """The same conditions elsewhere: a start for `again`, no equilibrium yet."""
    return eqx.tree_at(lambda e: e.system, eq, system)


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """An equilibrium predicted for another potential.

    Attributes:
        system: the predicted structure.
        potential: what it is predicted for.
        order: of the Taylor series.
        validity: along the way there; t = 1 is the new potential.
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
        """Relaxed from the predicted structure under the same conditions; options as for `mdsens.relax`."""
        return warm(self.start, self.system).again(self.potential, **options)


@spelled
def extrapolate(
    eq: Equilibrium, potential: Potential, *, order: int = 2, share: float = SHARE, linear_solver: Any = None
) -> Extrapolation:
    """The equilibrium of a new potential by Taylor's series, without relaxing; with the range in which that holds.

    Raises:
        InputError: a potential of another kind than the equilibrium's; as `validity`.
        ConvergenceError, LinearSolveError: as for `sensitivity`.
    """
    direction = direction_to(eq.potential, potential)
    if not any(np.any(np.asarray(leaf) != 0.0) for leaf in jax.tree.leaves(direction)):
        series = taylor(eq, direction, linear_solver=linear_solver)
        still = Validity(math.inf, share, order, "nothing moves", math.inf, math.inf, math.inf, (), series)
        return Extrapolation(eq.system, potential, order, still, eq)
    found = validity(eq, direction, share=share, order=order, linear_solver=linear_solver)
    stable = _index_error(eq, found.taylor, order)(1.0)[0] == 0.0
    return Extrapolation(found.taylor.system(1.0, order), potential, order, found, eq, stable)
