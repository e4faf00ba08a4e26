"""Calibration: parameters from targets, by least squares on relaxed structures with exact derivatives.

    minimise ½ Σ ((g(θ) - target) / σ)² + ½ Σ ((θ - prior) / σ_prior)²    within bounds

by Gauss-Newton steps inside a trust region (Moré, Lecture Notes in Mathematics 630, 105 (1978)), in relative changes of the
parameters. A step costs one relaxation of each structure, from where it was, however many parameters there are. It brings new
first derivatives; their change updates the second ones (Powell's symmetric Broyden update, for each target; Dennis and
Schnabel, Numerical Methods, section 9.1 (1983)), so that steps follow curved valleys. On request the second
derivatives along each step are exact (geodesic acceleration: Transtrum, Machta, Sethna, Phys. Rev. E 83, 036701 (2011),
doi:10.1103/PhysRevE.83.036701). Fits of very many parameters go by the gradient instead (`calibration_by_gradient`).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.optimize

from mdsens.common.errors import InputError, MdsensError
from mdsens.common.suggestions import suggest_names
from mdsens.derivatives.second_order import derivatives_along, direction_to
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.potentials import Potential
from mdsens.structures.system import System
from mdsens.studies.methods.calibration_by_gradient import Cost, check_optimizer, descend, gradient_of
from mdsens.studies.methods.fits import RANK_TOLERANCE, Calibration, DesignTarget, Target, allowance, verdict
from mdsens.studies.methods.observed import (
    ObservableVector,
    Of,
    Systems,
    anonymize,
    by_name,
    differentiate,
    evaluate,
    flatten,
    join_observables,
    relax_again,
    relax_all,
    rounding,
    units_of,
)
from mdsens.studies.methods.parameters import Selection
from mdsens.studies.results.record import entries

RADIUS = 0.1
"""First radius of the trust region: a relative change of all parameters together. Twice that with exact second derivatives."""

SMALLEST_RADIUS = 1e-10

MAX_IDENTIFIED = 1000
"""Number of parameters up to which the directions that the targets determine are computed."""

MAX_SECOND_DERIVATIVES = 10_000_000
"""Number of second derivatives of all targets up to which they are kept."""


@suggest_names
def calibrate(
    systems: Systems,
    potential: Potential,
    targets: Mapping[str, Target],
    *,
    wrt: Sequence[str] | str | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    priors: Mapping[str, tuple[float, float]] | None = None,
    relax: Mapping[str, Any] | None = None,
    max_steps: int = 50,
    tolerance: float = 1e-8,
    step: Callable[[int, float], None] | None = None,
    optimizer: Any = None,
    second_derivatives: bool = False,
) -> Calibration:
    """Fit parameters to targets of relaxed structures.

    Where the targets do not determine a direction, parameters do not move along it (unless a prior says how).

        targets = {"volume": studies.Target(ms.observables.volume, 160.2, sigma=0.1)}
        studies.calibrate(crystal, potential, targets, wrt=["sigma"], relax={"cell": "isotropic"}).potential

    Args:
        systems: a structure, or several by name; where they start. Equilibria are relaxed under their own conditions.
        targets: the targets, by name.
        wrt: parameters that vary; by default all.
        bounds: `(lowest, highest)` by parameter.
        priors: `(mean, standard deviation)` by parameter.
        relax: options of `mdsens.relax`, for all structures or by their name.
        max_steps: evaluations of the targets beyond the first.
        tolerance: relative change of the parameters at which the fit has arrived; with an optimizer, the share of its first
            square at which the gradient's square has.
        step: called as each evaluation begins, with its number and the cost so far.
        optimizer: one of optax instead of Gauss-Newton steps, for many parameters: `optax.adam(1e-2)`, whose rate is a
            relative change. Its steps are no larger in cost however many parameters there are, but there are many of them.
        second_derivatives: correct each step by the targets' second derivatives along it, from a few linear solves. That saves
            relaxations, and compiles for longer. Not with an optimizer, and not with fewer targets than parameters.

    Raises:
        InputError: targets, bounds or priors that do not fit.
        ConvergenceError: the first structures do not relax.
    """
    named = by_name(systems)
    selection = Selection.of(potential, wrt)
    problem = _Problem(named, potential, targets, selection, bounds=bounds or {}, priors=priors or {}, options=relax or {})
    if optimizer is not None:
        check_optimizer(optimizer)
        if second_derivatives:
            raise InputError("An optimizer goes by the gradient alone: leave second_derivatives out.")
        settings: dict[str, Any] = {"optimizer": optimizer, "max_steps": max_steps, "tolerance": tolerance, "step": step}
        end = descend(problem.gradient, problem.x, (problem.low, problem.high), **settings)
        last = problem.observe(end.x, end.states, len(end.x) <= MAX_IDENTIFIED)
        return problem.outcome(last, end.converged, end.message, end.history)
    here = problem.evaluate(problem.x, None)
    radius, history = RADIUS * (2.0 if second_derivatives else 1.0), [here.cost]
    message = "the number of steps ran out: allow more with max_steps"
    converged = False
    for k in range(max_steps):
        if step is not None:
            step(k + 1, here.cost)
        move, decrease = problem.step(here, radius)
        if np.abs(move).max() <= tolerance:
            converged, message = True, "converged: the next step is smaller than the tolerance"
            break
        if decrease <= tolerance**2 * here.cost:
            converged, message = True, "converged: no step makes the cost smaller"
            break
        try:
            if second_derivatives and problem.second is not None:
                problem.differentiate_along(here, move)
                move, decrease = problem.step(here, radius)
            there = problem.evaluate(here.x + move, here.states)
            gain = (here.cost - there.cost) / decrease
            problem.update(here, there)
        except MdsensError as error:
            there, gain, why = None, -math.inf, str(error)
        size = float(np.linalg.norm(move))
        if gain < 0.25:
            # A step that led somewhere has improved the model.
            radius = (0.25 if there is None else 0.5) * size
        elif gain > 0.75 and size > 0.9 * radius:
            radius = 2.0 * radius
        if there is not None and gain > 0.0:
            here = there
            history.append(here.cost)
        elif radius < SMALLEST_RADIUS:
            message = "no step makes the cost smaller" if there is not None else f"nothing relaxes nearby: {why}"
            break
    return problem.outcome(here, converged, message, history)


@dataclasses.dataclass(frozen=True)
class _Iterate:
    """A point of the fit: parameters, equilibria, and the residual of targets and priors."""

    x: np.ndarray
    states: dict[str, Equilibrium]
    found: np.ndarray
    residual: np.ndarray
    matrix: np.ndarray
    """Derivatives of the residual; no rows where they were not asked for."""

    @property
    def cost(self) -> float:
        return 0.5 * float(self.residual @ self.residual)


class _Box(NamedTuple):
    """Constraints of a step: rows along which it must vanish, and its bounds."""

    undetermined: np.ndarray
    low: np.ndarray
    high: np.ndarray


class _Problem:
    """The least squares in x, relative changes of the parameters that vary from where they start."""

    def __init__(
        self,
        systems: Mapping[str, System | Equilibrium],
        potential: Potential,
        targets: Mapping[str, Target],
        selection: Selection,
        *,
        bounds: Mapping[str, tuple[float, float]],
        priors: Mapping[str, tuple[float, float]],
        options: Mapping[str, Any],
    ) -> None:
        if not targets or not all(isinstance(target, Target) for target in targets.values()):
            raise InputError('Targets are wanted by name: {"a": studies.Target(ms.observables.volume, 160.2, sigma=0.1)}.')
        self.systems, self.potential, self.targets, self.selection = systems, potential, targets, selection
        self.options, self.relaxations, self.evaluations = options, 0, 0
        self.observed: ObservableVector = join_observables({name: target.observable for name, target in targets.items()}, systems)
        self.start = selection.values()
        self.scale = np.where(self.start == 0.0, 1.0, np.abs(self.start))
        low, high = (
            selection.vector({name: pair[end] for name, pair in bounds.items()}, missing, "bounds")
            for end, missing in ((0, -np.inf), (1, np.inf))
        )
        outside = ~((low <= self.start) & (self.start <= high) & (low < high))
        if outside.any():
            name = selection.names[int(np.argmax(outside))]
            raise InputError(f"The bounds of {name} must have its start {self.start[outside][0]:g} between them.")
        self.low, self.high = (low - self.start) / self.scale, (high - self.start) / self.scale
        self.mean = selection.vector({name: pair[0] for name, pair in priors.items()}, np.nan, "priors")
        self.width = selection.vector({name: pair[1] for name, pair in priors.items()}, np.inf, "priors")
        if not (self.width > 0.0).all():
            raise InputError("Standard deviations of priors must be positive.")
        self.informed = np.isfinite(self.width)
        self.x = np.zeros(len(self.start))
        self.labels: tuple[str, ...] = ()
        self.wanted = self.sigma = self.allowed = np.zeros(0)
        self.noise: np.ndarray | None = None
        self.second: np.ndarray | None = None

    def relax(self, x: np.ndarray, states: Mapping[str, Equilibrium] | None) -> dict[str, Equilibrium]:
        """Return the equilibria at x, relaxed from earlier ones or from the first structures."""
        potential = self.selection.at(self.start + self.scale * x)
        self.evaluations += 1
        self.relaxations += len(self.systems)
        if states is None:
            return relax_all(self.systems, potential, self.options)
        return relax_again(states, potential, self.options)

    def observe(self, x: np.ndarray, states: dict[str, Equilibrium], derivatives: bool = True) -> _Iterate:
        """Compare the equilibria at x with targets and priors."""
        if derivatives:
            values, slopes = differentiate(self.observed, states, self.selection)
        else:
            values, slopes = evaluate(self.observed, states), None
        if not self.labels:
            self._read_targets(values)
        found = flatten(values)[self.mask]
        residual = np.concatenate([(found - self.wanted) / self.sigma, self._prior_residual(x)])
        if slopes is None:
            return _Iterate(x, states, found, residual, np.zeros((0, len(x))))
        if self.noise is None:
            self.noise = rounding(self.observed, states)[self.mask][:, None]
        slopes = slopes[self.mask] * self.scale
        # Rounding is no effect of a parameter.
        slopes = np.where(np.abs(slopes) > self.noise, slopes, 0.0)
        prior_slopes = np.diag(self.scale / self.width)[self.informed]
        return _Iterate(x, states, found, residual, np.concatenate([slopes / self.sigma[:, None], prior_slopes]))

    def evaluate(self, x: np.ndarray, states: Mapping[str, Equilibrium] | None) -> _Iterate:
        """Relax and observe."""
        here = self.observe(x, self.relax(x, states))
        # With fewer targets than parameters, steps are short enough without second derivatives, and go to the nearest solution.
        determined = len(here.matrix) >= len(x)
        if self.evaluations == 1 and determined and here.matrix.size * len(x) <= MAX_SECOND_DERIVATIVES:
            self.second = np.zeros((*here.matrix.shape, len(x)))
        return here

    def gradient(
        self, x: np.ndarray, states: Mapping[str, Equilibrium] | None
    ) -> tuple[dict[str, Equilibrium], float, np.ndarray]:
        """Relax at x from earlier equilibria; return the equilibria there, the cost and its gradient."""
        states = self.relax(x, states)
        if not self.labels:
            self._read_targets(evaluate(self.observed, states))
        wanted, weights = np.zeros(len(self.mask)), np.zeros(len(self.mask))
        wanted[self.mask], weights[self.mask] = self.wanted, 1.0 / self.sigma
        cost, slope = gradient_of(Cost(self.observed, jnp.asarray(wanted), jnp.asarray(weights)), states, self.selection)
        residual, prior_slope = self._prior_residual(x), np.zeros(len(x))
        prior_slope[self.informed] = residual * (self.scale / self.width)[self.informed]
        return states, cost + 0.5 * float(residual @ residual), slope * self.scale + prior_slope

    def _prior_residual(self, x: np.ndarray) -> np.ndarray:
        return ((self.start + self.scale * x - self.mean) / self.width)[self.informed]

    def _read_targets(self, values: Mapping[str, np.ndarray]) -> None:
        """Read the targets' numbers, in the order of the observables' values; NaN ones are left out."""
        wanted: list[np.ndarray] = []
        sigma: list[np.ndarray] = []
        labels: list[str] = []
        allowed: list[np.ndarray] = []
        for name, value in values.items():
            target = self.targets[name]
            weight = 1.0 if target.sigma is None else target.sigma
            for numbers, entry, field in ((wanted, target.value, "value"), (sigma, weight, "sigma")):
                array = np.asarray(entry, dtype=float)
                if array.shape != value.shape and not (field == "sigma" and array.ndim == 0):
                    raise InputError(
                        f"The {field} of the target {name!r} has shape {array.shape}, but the observable has shape "
                        f"{value.shape}: give as many numbers, nan where one does not matter."
                    )
                numbers.append(np.broadcast_to(array, value.shape).ravel())
            labels += entries(name, value.shape)
            allowed.append(allowance(target, wanted[-1], sigma[-1], np.ravel(value)))
        self.mask = ~np.isnan(np.concatenate(wanted))
        self.wanted, self.sigma, self.allowed = (np.concatenate(part)[self.mask] for part in (wanted, sigma, allowed))
        self.labels = tuple(itertools.compress(labels, self.mask))
        if not self.labels or not np.isfinite(self.wanted).all() or not (np.isfinite(self.sigma) & (self.sigma > 0.0)).all():
            raise InputError("Targets must be finite numbers, with positive sigma.")

    def update(self, here: _Iterate, there: _Iterate) -> None:
        """Update second derivatives by the change of the first, as little as that allows (Powell's symmetric Broyden)."""
        move = there.x - here.x
        square = move @ move
        if self.second is None or square == 0.0:
            return
        miss = (there.matrix - here.matrix - self.second @ move) / square
        product = miss[:, :, None] * move
        self.second += product + product.swapaxes(1, 2) - (miss @ move)[:, None, None] * np.outer(move, move) / square

    def differentiate_along(self, here: _Iterate, move: np.ndarray) -> None:
        """Set second derivatives along a step to exact ones, and change the others as little as that allows."""
        assert self.second is not None
        potential = next(iter(here.states.values())).potential
        there = self.selection.at(self.start + self.scale * (here.x + move))
        _, second = derivatives_along(*anonymize(self.observed, here.states), direction_to(potential, there))
        exact = np.zeros(len(self.second))
        exact[: len(self.labels)] = np.asarray(second)[self.mask] / self.sigma
        square = move @ move
        self.second += (exact - (self.second @ move) @ move)[:, None, None] * np.outer(move, move) / square**2

    def step(self, here: _Iterate, radius: float) -> tuple[np.ndarray, float]:
        """Return the step inside the trust region and the bounds, and the decrease of the cost that it promises."""
        rows, sizes, columns = np.linalg.svd(here.matrix, full_matrices=False)
        slopes = rows.T @ here.residual
        stiff = sizes > RANK_TOLERANCE * sizes[0]

        def damped(mu: float) -> np.ndarray:
            return -columns[stiff].T @ (sizes[stiff] * slopes[stiff] / (sizes[stiff] ** 2 + mu))

        highest = sizes[0] * np.linalg.norm(slopes) / radius
        move, mu = damped(0.0), 0.0
        if np.linalg.norm(move) > radius:
            mu = scipy.optimize.brentq(lambda mu: np.linalg.norm(damped(mu)) - radius, 0.0, highest, rtol=1e-3)
            move = damped(mu)
        low, high = np.minimum(self.low - here.x, 0.0), np.maximum(self.high - here.x, 0.0)
        # Parameters do not move along directions that nothing determines.
        undetermined = np.abs(here.matrix).max() * columns[~stiff]
        box = _Box(undetermined, low, high)
        if (move < low).any() or (move > high).any():
            move = self._bounded_step(here, mu, box)
        if self.second is not None and self.second.any():
            move = self._curved_step(here, move, mu, box, radius=radius)
        return move, here.cost - 0.5 * float(np.sum(self._model(here, move) ** 2))

    def _model(self, here: _Iterate, move: np.ndarray) -> np.ndarray:
        """Return the residual after a step, to second order where that is known."""
        curved = 0.0 if self.second is None else 0.5 * (self.second @ move) @ move
        return here.residual + here.matrix @ move + curved

    def _curved_step(self, here: _Iterate, start: np.ndarray, mu: float, box: _Box, *, radius: float) -> np.ndarray:
        """Return the lowest cost of the model with second derivatives, inside the trust region and the bounds."""
        assert self.second is not None
        second, limits = self.second, _distinct_bounds(box.low, box.high)
        while True:
            damping = np.sqrt(mu) * np.eye(len(start))

            def residual(move: np.ndarray, damping: np.ndarray = damping) -> np.ndarray:
                return np.concatenate([self._model(here, move), damping @ move, box.undetermined @ move])

            def slopes(move: np.ndarray, damping: np.ndarray = damping) -> np.ndarray:
                return np.concatenate([here.matrix + second @ move, damping, box.undetermined])

            minimum = scipy.optimize.least_squares(
                residual, np.clip(start, *limits), slopes, bounds=limits, xtol=1e-14, ftol=1e-14, gtol=1e-14
            )
            move = np.clip(minimum.x, box.low, box.high)
            if np.linalg.norm(move) <= 1.1 * radius:
                return move
            mu = max(4.0 * mu, 1e-12 * np.sum(here.matrix**2))

    @staticmethod
    def _bounded_step(here: _Iterate, mu: float, box: _Box) -> np.ndarray:
        matrix = np.concatenate([here.matrix, np.sqrt(mu) * np.eye(len(here.x)), box.undetermined])
        rest = np.concatenate([-here.residual, np.zeros(len(matrix) - len(here.residual))])
        limits = _distinct_bounds(box.low, box.high)
        return np.clip(scipy.optimize.lsq_linear(matrix, rest, bounds=limits, tol=1e-14).x, box.low, box.high)

    def outcome(self, here: _Iterate, converged: bool, message: str, history: list[float]) -> Calibration:
        parameters = self.start + self.scale * here.x
        std, sizes, directions = self._identified(here, parameters)
        missed = np.abs(here.found - self.wanted) > self.allowed + (0.0 if self.noise is None else self.noise[:, 0])
        if converged and missed.any():
            converged, message = self._verdict(here, missed, message)
        return Calibration(
            self.selection.at(parameters),
            self.selection.names,
            self.start,
            parameters,
            std,
            self.labels,
            here.found,
            self.wanted,
            self.sigma,
            here.cost,
            converged,
            message,
            self.relaxations,
            self.evaluations,
            sizes,
            directions,
            here.states,
            tuple(history),
            missed=tuple(label for label, off in zip(self.labels, missed, strict=True) if off),
            units=units_of(self.potential, self.selection.names, self.observed, self.systems),
        )

    def _verdict(self, here: _Iterate, missed: np.ndarray, message: str) -> tuple[bool, str]:
        """Return whether the fit counts as converged although it misses targets, and its message."""
        names = zip(self.selection.names, here.x, self.low, self.high, strict=True)
        # A bound is met as closely as rounding of x allows.
        at_bounds = [name for name, x, low, high in names if min(x - low, high - x) <= 1e-9 * max(1.0, abs(x))]
        priors = bool(np.any(np.abs(self._prior_residual(here.x)) > 1.0))
        blind = len(here.matrix) > 0 and not here.matrix[: len(self.labels)][missed].any()
        off = np.where(missed, np.abs(here.found - self.wanted) / self.sigma, 0.0)
        k = int(np.argmax(off))
        told = f"{self.labels[k]} is {here.found[k]:.6g} where {self.wanted[k]:.6g} is wanted"
        count = int(missed.sum())
        return verdict(message, self.labels[k], told, count=count, at_bounds=at_bounds, priors=priors, blind=blind)

    def _identified(self, here: _Iterate, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return standard deviations of parameters, and the targets' singular values and directions."""
        if not len(here.matrix):
            return np.full(len(parameters), np.nan), np.zeros(0), np.zeros((0, len(parameters)))
        # In relative changes of the final parameters, not of the first ones.
        targets = here.matrix[: len(self.labels)] * np.where(parameters == 0.0, 1.0, np.abs(parameters)) / self.scale
        # As many directions as parameters, however few the targets are.
        _, sizes, directions = np.linalg.svd(targets, full_matrices=True)
        sizes = np.concatenate([sizes, np.zeros(len(self.start) - len(sizes))])
        _, all_sizes, all_directions = np.linalg.svd(here.matrix, full_matrices=True)
        all_sizes = np.concatenate([all_sizes, np.zeros(len(self.start) - len(all_sizes))])
        open_ = all_sizes <= RANK_TOLERANCE * all_sizes[0]
        variances = ((all_directions[~open_] / all_sizes[~open_, None]) ** 2).sum(axis=0)
        std = np.where((all_directions[open_] ** 2).sum(axis=0) > RANK_TOLERANCE, np.inf, np.sqrt(variances))
        return self.scale * std, sizes, directions


def _distinct_bounds(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds of a step for SciPy, which wants each pair of them to differ."""
    stuck = low == high
    return np.where(stuck, -1e-15, low), np.where(stuck, 1e-15, high)


@suggest_names
def inverse_design(
    systems: Systems,
    potential: Potential,
    wanted: Mapping[str, tuple[Callable[..., Any] | Of, Any]],
    **options: Any,
) -> Calibration:
    """Find parameters that give observables the wanted values, with the smallest relative change that does.

        studies.inverse_design(crystal, potential, {"volume": (ms.observables.volume, 160.2)})

    Args:
        wanted: `(observable, value)` by name.
        options: as for `calibrate`.
    """
    targets = {}
    for name, (observable, value) in wanted.items():
        size = np.asarray(value, dtype=float)
        # Deviations are shares of the target itself.
        targets[name] = DesignTarget(observable, value, np.where(np.nan_to_num(size) == 0.0, 1.0, np.abs(size)))
    return dataclasses.replace(calibrate(systems, potential, targets, **options), design=True)
