"""How far a derivative reaches: the range of parameters in which a predicted state is right to a given share.

Along θ(t) = θ + t v the state is predicted as z(t) = z + t z' (+ ½ t² z''). What is wrong with it is the Newton step from there,
δ(t) = -A⁻¹F(z(t), θ(t)) with A at z(t): forces are taken at the new parameters, so that curvature of the path, contacts
that open or close and modes that soften are all in it. Lengths are those of displacements of atoms and cell. The prediction
counts as right while ‖δ(t)‖ <= share ‖z(t) - z‖.
"""

import dataclasses
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.certificate import distance_to_kinks, kink_gaps
from mdsens.descent import relisted
from mdsens.equilibrium import Equilibrium
from mdsens.errors import InputError, MdsensError
from mdsens.frame import Frame
from mdsens.implicit import linear_solve
from mdsens.linear_response import State
from mdsens.neighbors import SKIN
from mdsens.potentials.base import Potential
from mdsens.second_order import Taylor, direction_to, taylor
from mdsens.spelling import spelled
from mdsens.stiffness import hessian_operator
from mdsens.system import System
from mdsens.verify import displaced

SHARE = 0.1
"""Error of the predicted displacement, as a share of it, that is allowed by default."""

SAFETY = 0.9
"""Share of the range found that is stated."""

GROWTH = 1.5
"""Factor between the points at which a prediction is held against its forces."""

BISECTIONS = 5
INVERSE_ITERATIONS = 8

RESTING = 1e-12
"""Displacement [Å] below which nothing moves."""


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
    checks: int = 0,
    linear_solver: Any = None,
) -> Validity:
    """How far the potential may move along `direction` before the predicted state is wrong by `share`.

    Args:
        direction: v, potential-shaped, or steps by name: `{"sigma": 1.0}`. The range is in units of it, on its positive side.
        share: allowed error of the displacement, relative to the displacement.
        order: 1 for the linear prediction, 2 for the quadratic one.
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
    soft, curvature, slope = _softening(series.state, series.potential, series.direction, series.first)
    reached, limit = _range(series, share, order, min(bent, farthest), farthest, soft)
    found = Validity(
        SAFETY * reached,
        share,
        order,
        limit,
        bent,
        _vanishing(float(curvature), float(slope)),
        _first_contact(series),
        (),
        series,
    )
    return dataclasses.replace(found, checks=tuple(check(eq, found, t) for t in _places(found, checks, farthest)))


def _farthest(series: Any) -> float:
    """Where a parameter would have changed by its own size (by 1, if it is zero): no prediction is asked for beyond."""
    pairs = zip(jax.tree.leaves(series.potential), jax.tree.leaves(series.direction), strict=True)
    return 1.0 / max(np.max(np.abs(step)) / (np.max(np.abs(theta)) or 1.0) for theta, step in pairs if np.size(theta))


def _range(series: Any, share: float, order: int, guess: Any, farthest: float, soft: Any) -> tuple[float, str]:
    """`(t, what ends it)` by steps up from a place where the prediction is right, then bisection."""
    _, noise, _, curvature = _newton_step(series.state, series.state.frame, series.potential, series.state.z, soft)
    wrong = lambda t: _wrong(series, t, order, float(noise), soft, float(curvature))  # noqa: E731
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


def _wrong(series: Any, t: float, order: int, noise: float, soft: Any, curvature: float) -> tuple[float, str]:
    """`(‖δ(t)‖ / ‖z(t) - z‖, what is wrong)` of the prediction at t; inf where there is no Newton step.

    Args:
        noise: the step at t = 0, how far the equilibrium itself is off.
        soft, curvature: the softest mode there, whose curvature must keep its sign: forces may be blind to it by symmetry.
    """
    potential, z = series.parameters(t), series.unknown(t, order)
    try:
        frame = relisted(series.state.frame, z, potential, SKIN * _reach(potential))
    except MdsensError as error:
        return math.inf, f"the predicted structure makes no sense: {error}"
    size, step, residual, there = _newton_step(series.state, frame, potential, z, soft)
    if not (np.isfinite(step) and residual <= series.state.fail_rtol and there * curvature > 0.0):
        return math.inf, "the predicted structure is unstable: a mode has no stiffness left"
    resting = max(RESTING, 10.0 * noise)
    if float(size) < resting:
        return (0.0 if float(step) < resting else math.inf), "what is predicted not to move moves"
    return float(step / size), "the prediction is off by the share"


def _reach(potential: Potential) -> float:
    return float(np.asarray(potential.range))


@eqx.filter_jit
def _newton_step(state: State, frame: Frame, potential: Potential, z: Any, soft: Any) -> tuple[Array, ...]:
    """`(‖z - the state's z‖, ‖step‖, residual, curvature along soft)`, lengths of displacements of atoms and cell."""
    start = state.frame.place(state.z)
    state = eqx.tree_at(lambda s: s.frame, state, frame)
    rest = ravel_pytree(state.condition(z, potential))[0]
    product = state.operator(z, potential)
    step, residual = linear_solve(product, -rest, solver=state.solver, throw=False, **state.options)
    placed = lambda z: (state.frame.place(z).positions, state.frame.place(z).cell)  # noqa: E731
    there, moved = jax.jvp(placed, (z,), (ravel_pytree(z)[1](step),))
    displacement = jax.tree.map(jnp.subtract, there, (start.positions, start.cell))
    lengths = (jnp.linalg.norm(ravel_pytree(change)[0]) for change in (displacement, moved))
    return *lengths, residual, soft @ product(soft)


def _vanishing(curvature: float, slope: float) -> float:
    """Where a curvature would vanish, to first order."""
    reached = -curvature / slope if slope else math.inf
    return reached if reached > 0.0 else math.inf


@eqx.filter_jit
def _softening(state: State, potential: Potential, direction: Any, first: Any) -> tuple[Array, ...]:
    """`(v, λ, λ')` of the softest mode: λ' = v · (dA/dt) v along the way, v by inverse iteration."""
    flat, unravel = ravel_pytree(state.z)
    product = state.own_operator(state.z, potential)

    def inverse(_: Any, v: Array) -> Array:
        w, _ = linear_solve(product, v, solver=state.solver, throw=False, **state.options)
        return w / jnp.linalg.norm(w)

    start = state.null.project(jax.random.normal(jax.random.key(4), flat.shape, flat.dtype))
    v = jax.lax.fori_loop(0, INVERSE_ITERATIONS, inverse, start / jnp.linalg.norm(start))

    def stiffness(t: Array) -> Array:
        theta = jax.tree.map(lambda value, step: value + t * step, potential, direction)
        return v @ hessian_operator(unravel(flat + t * first), (state.frame, theta))(v)

    zero = jnp.zeros((), flat.dtype)
    return v, *jax.jvp(stiffness, (zero,), (jnp.ones_like(zero),))


def _first_contact(series: Any) -> float:
    """The first t at which a pair, moving as predicted to first order, crosses a jump of its second derivative."""
    potential = series.potential
    if (unknown := distance_to_kinks(potential)) is not None:
        return unknown
    state = series.state
    frame = relisted(state.frame, state.z, potential, SKIN * _reach(potential))
    gaps, rates = _gaps_and_rates(frame, state.z, potential, series.direction, series.first)
    closing = np.asarray(gaps * rates) < 0.0
    return float(np.min(np.abs(np.asarray(gaps)[closing] / np.asarray(rates)[closing]), initial=math.inf))


@eqx.filter_jit
def _gaps_and_rates(frame: Frame, z: Any, potential: Potential, direction: Any, first: Any) -> tuple[Array, Array]:
    _, unravel = ravel_pytree(z)
    gaps = lambda z, theta: kink_gaps(theta, frame.place(z))  # noqa: E731
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
    there = displaced(eq, again.system)
    return Check(t, moved, _distance(there, eq.system), _distance(there, predicted) / max(moved, RESTING))


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
    """

    system: System
    potential: Potential
    order: int
    validity: Validity
    start: Equilibrium = dataclasses.field(repr=False)

    @property
    def trusted(self) -> bool:
        """Whether the new potential lies within the range."""
        return self.validity.range >= 1.0

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
    return Extrapolation(found.taylor.system(1.0, order), potential, order, found, eq)
