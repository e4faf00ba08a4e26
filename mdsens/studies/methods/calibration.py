"""Parameters from targets: least squares on relaxed structures with exact derivatives, and what the targets determine.

    minimise ½ Σ ((g(θ) - target) / σ)² + ½ Σ ((θ - prior) / σ_prior)²    within bounds

by Gauss-Newton steps inside a trust region (Moré, Lecture Notes in Mathematics 630, 105 (1978)), in relative changes of the
parameters. A step costs one relaxation of each structure, from where it was, however many parameters there are. Each brings
new first derivatives, and their change what is known of the second ones (Powell's symmetric Broyden update, for each target;
Dennis and Schnabel, Numerical Methods, section 9.1 (1983)), so that steps follow curved valleys. On request the second
derivatives along each step are exact (geodesic acceleration: Transtrum, Machta, Sethna, Phys. Rev. E 83, 036701 (2011),
doi:10.1103/PhysRevE.83.036701). Fits of very many parameters go by the gradient instead (`calibration_by_gradient`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.optimize

from mdsens.common.errors import InputError, MdsensError
from mdsens.common.suggestions import suggest_names
from mdsens.derivatives.second_order import derivatives_along, direction_to
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.potentials import Potential
from mdsens.studies.methods.calibration_by_gradient import Cost, check_optimizer, descend, slope_of
from mdsens.studies.methods.fits import UNDETERMINED, Calibration, Target, Wanted, allowance, verdict
from mdsens.studies.methods.observed import (
    Of,
    Systems,
    Together,
    by_name,
    differentiate,
    evaluate,
    flat,
    nameless,
    relax_again,
    relax_all,
    rounding,
    structures_of,
    together,
    units_of,
)
from mdsens.studies.methods.parameters import Selection
from mdsens.studies.results.record import entries

RADIUS = 0.1
"""First radius of the trust region: a relative change of all parameters together. Twice that with exact second derivatives."""

SMALLEST_RADIUS = 1e-10

LARGE = 1000
"""Parameters beyond which it is not asked what the targets determine."""

MANY_SECOND = 10_000_000
"""Second derivatives of all targets beyond which they are not kept."""


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

    Args:
        systems: a structure, or several by name; where they start. Equilibria are relaxed under their own conditions.
        targets: by name.
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
        second_derivatives: take the targets' own along each step, by a few linear solves, and correct the step by them. That
            saves relaxations, and compiles for longer. Not with an optimizer, and not with fewer targets than parameters.

    Raises:
        InputError: targets, bounds or priors that do not fit.
        ConvergenceError: the first structures do not relax.
    """
    named = by_name(systems)
    problem = _Problem(named, potential, targets, Selection.of(potential, wrt), bounds or {}, priors or {}, relax or {})
    if optimizer is not None:
        check_optimizer(optimizer)
        if second_derivatives:
            raise InputError("An optimizer goes by the gradient alone: leave second_derivatives out.")
        x, states, converged, message, history = descend(problem, optimizer, max_steps, tolerance, step)
        return problem.outcome(problem.observe(x, states, len(x) <= LARGE), converged, message, history)
    here = problem.evaluate(problem.x, None)
    radius, history = RADIUS * (2.0 if second_derivatives else 1.0), [here.cost]
    message = "the number of steps ran out: allow more with max_steps"
    converged = False
    for k in range(max_steps):
        if step is not None:
            step(k + 1, here.cost)
        move, told = problem.step(here, radius)
        if np.abs(move).max() <= tolerance:
            converged, message = True, "converged: the next step is smaller than the tolerance"
            break
        if told <= tolerance**2 * here.cost:
            converged, message = True, "converged: no step makes the cost smaller"
            break
        try:
            if second_derivatives and problem.bends is not None:
                problem.look_along(here, move)
                move, told = problem.step(here, radius)
            there = problem.evaluate(here.x + move, here.states)
            gain = (here.cost - there.cost) / told
            problem.learn(here, there)
        except MdsensError as error:
            there, gain, why = None, -math.inf, str(error)
        size = float(np.linalg.norm(move))
        if gain < 0.25:
            # Where the step led somewhere, the model is a better one now.
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
class _Here:
    x: np.ndarray
    states: dict[str, Equilibrium]
    found: np.ndarray
    residual: np.ndarray
    matrix: np.ndarray
    """Derivatives of the residual; without rows where none were asked for."""

    @property
    def cost(self) -> float:
        return 0.5 * float(self.residual @ self.residual)


class _Problem:
    """The least squares in x, relative changes of the parameters that vary from where they start."""

    def __init__(
        self, systems: Any, potential: Potential, targets: Any, selection: Selection, bounds: Any, priors: Any, options: Any
    ) -> None:
        if not targets or not all(isinstance(target, Target) for target in targets.values()):
            raise InputError('Targets are wanted by name: {"a": studies.Target(ms.observables.volume, 160.2, sigma=0.1)}.')
        self.systems, self.potential, self.targets, self.selection = systems, potential, targets, selection
        self.options, self.relaxations, self.evaluations = options, 0, 0
        self.observed: Together = together({name: target.observable for name, target in targets.items()}, systems)
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
        self.bends: np.ndarray | None = None

    def relaxed(self, x: np.ndarray, states: Mapping[str, Equilibrium] | None) -> dict[str, Equilibrium]:
        """The equilibria at x, from the structures as given or from earlier ones."""
        potential = self.selection.at(self.start + self.scale * x)
        self.evaluations += 1
        self.relaxations += len(self.systems)
        if states is None:
            return relax_all(self.systems, potential, self.options)
        return relax_again(states, potential, self.options)

    def observe(self, x: np.ndarray, states: dict[str, Equilibrium], derivatives: bool = True) -> _Here:
        """Targets and priors there."""
        if derivatives:
            values, slopes = differentiate(self.observed, states, self.selection)
        else:
            values, slopes = evaluate(self.observed, states), None
        if not self.labels:
            self._read(values)
        found = flat(values)[self.counts]
        residual = np.concatenate([(found - self.wanted) / self.sigma, self._pull(x)])
        if slopes is None:
            return _Here(x, states, found, residual, np.zeros((0, len(x))))
        if self.noise is None:
            self.noise = rounding(self.observed, states)[self.counts][:, None]
        slopes = slopes[self.counts] * self.scale
        # A parameter without any effect has none by rounding either.
        slopes = np.where(np.abs(slopes) > self.noise, slopes, 0.0)
        pulls = np.diag(self.scale / self.width)[self.informed]
        return _Here(x, states, found, residual, np.concatenate([slopes / self.sigma[:, None], pulls]))

    def evaluate(self, x: np.ndarray, states: Mapping[str, Equilibrium] | None) -> _Here:
        """Relax and observe."""
        here = self.observe(x, self.relaxed(x, states))
        # With fewer targets than parameters steps are short enough without, and go to what lies nearest.
        determined = len(here.matrix) >= len(x)
        if self.evaluations == 1 and determined and here.matrix.size * len(x) <= MANY_SECOND:
            self.bends = np.zeros((*here.matrix.shape, len(x)))
        return here

    def slope(self, x: np.ndarray, states: dict[str, Equilibrium]) -> tuple[float, np.ndarray]:
        """The cost there, and its gradient."""
        if not self.labels:
            self._read(evaluate(self.observed, states))
        wanted, weights = np.zeros(len(self.counts)), np.zeros(len(self.counts))
        wanted[self.counts], weights[self.counts] = self.wanted, 1.0 / self.sigma
        cost, slope = slope_of(Cost(self.observed, jnp.asarray(wanted), jnp.asarray(weights)), states, self.selection)
        pull, share = self._pull(x), np.zeros(len(x))
        share[self.informed] = pull * (self.scale / self.width)[self.informed]
        return cost + 0.5 * float(pull @ pull), slope * self.scale + share

    def inward(self, x: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """The gradient without what only bounds stop."""
        return np.where(((x <= self.low) & (slope > 0.0)) | ((x >= self.high) & (slope < 0.0)), 0.0, slope)

    def _pull(self, x: np.ndarray) -> np.ndarray:
        return ((self.start + self.scale * x - self.mean) / self.width)[self.informed]

    def _read(self, values: Any) -> None:
        """The targets' numbers, in the order of the observables' values; NaN ones are left out."""
        wanted: list[np.ndarray] = []
        sigma: list[np.ndarray] = []
        labels: list[str] = []
        allowed: list[np.ndarray] = []
        for name, value in values.items():
            target = self.targets[name]
            weight = 1.0 if target.sigma is None else target.sigma
            for numbers, given, what in ((wanted, target.value, "value"), (sigma, weight, "sigma")):
                given = np.asarray(given, dtype=float)
                if given.shape != value.shape and not (what == "sigma" and given.ndim == 0):
                    raise InputError(
                        f"The {what} of the target {name!r} has shape {given.shape}, but the observable has shape {value.shape}: "
                        "give as many numbers, nan where one does not matter."
                    )
                numbers.append(np.broadcast_to(given, value.shape).ravel())
            labels += entries(name, value.shape)
            allowed.append(allowance(target, wanted[-1], sigma[-1], np.ravel(value)))
        self.counts = ~np.isnan(np.concatenate(wanted))
        self.wanted, self.sigma = np.concatenate(wanted)[self.counts], np.concatenate(sigma)[self.counts]
        self.allowed = np.concatenate(allowed)[self.counts]
        self.labels = tuple(label for label, counts in zip(labels, self.counts, strict=True) if counts)
        if not self.labels or not np.isfinite(self.wanted).all() or not (np.isfinite(self.sigma) & (self.sigma > 0.0)).all():
            raise InputError("Targets must be finite numbers, with positive sigma.")

    def learn(self, here: _Here, there: _Here) -> None:
        """Second derivatives from the change of the first: what changes the known ones least (Powell's symmetric Broyden)."""
        move = there.x - here.x
        square = move @ move
        if self.bends is None or square == 0.0:
            return
        miss = (there.matrix - here.matrix - self.bends @ move) / square
        both = miss[:, :, None] * move
        self.bends += both + both.swapaxes(1, 2) - (miss @ move)[:, None, None] * np.outer(move, move) / square

    def look_along(self, here: _Here, move: np.ndarray) -> None:
        """Second derivatives along a step as they are: what changes the known ones least."""
        assert self.bends is not None
        potential = next(iter(here.states.values())).potential
        there = self.selection.at(self.start + self.scale * (here.x + move))
        _, second = derivatives_along(*nameless(self.observed, here.states), direction_to(potential, there))
        bend = np.zeros(len(self.bends))
        bend[: len(self.labels)] = np.asarray(second)[self.counts] / self.sigma
        square = move @ move
        self.bends += (bend - (self.bends @ move) @ move)[:, None, None] * np.outer(move, move) / square**2

    def step(self, here: _Here, radius: float) -> tuple[np.ndarray, float]:
        """The step inside the trust region and the bounds, and by how much it should lower the cost."""
        rows, sizes, columns = np.linalg.svd(here.matrix, full_matrices=False)
        slopes = rows.T @ here.residual
        kept = sizes > UNDETERMINED * sizes[0]

        def damped(mu: float) -> np.ndarray:
            return -columns[kept].T @ (sizes[kept] * slopes[kept] / (sizes[kept] ** 2 + mu))

        highest = sizes[0] * np.linalg.norm(slopes) / radius
        move, mu = damped(0.0), 0.0
        if np.linalg.norm(move) > radius:
            mu = scipy.optimize.brentq(lambda mu: np.linalg.norm(damped(mu)) - radius, 0.0, highest, rtol=1e-3)
            move = damped(mu)
        low, high = np.minimum(self.low - here.x, 0.0), np.maximum(self.high - here.x, 0.0)
        # What nothing determines stays where it is.
        resting = np.abs(here.matrix).max() * columns[~kept]
        if (move < low).any() or (move > high).any():
            move = self._bounded(here, mu, resting, low, high)
        if self.bends is not None and self.bends.any():
            move = self._bent(self.bends, here, move, mu, resting, low, high, radius)
        return move, here.cost - 0.5 * float(np.sum(self._model(here, move) ** 2))

    def _model(self, here: _Here, move: np.ndarray) -> np.ndarray:
        """The residual there, to second order where that is known."""
        bent = 0.0 if self.bends is None else 0.5 * (self.bends @ move) @ move
        return here.residual + here.matrix @ move + bent

    def _bent(
        self,
        bends: np.ndarray,
        here: _Here,
        start: np.ndarray,
        mu: float,
        resting: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        radius: float,
    ) -> np.ndarray:
        """The lowest cost of the model with second derivatives, inside the trust region and the bounds."""
        limits = _apart(low, high)
        while True:
            tied = np.sqrt(mu) * np.eye(len(start))

            def residual(move: np.ndarray, tied: np.ndarray = tied) -> np.ndarray:
                return np.concatenate([self._model(here, move), tied @ move, resting @ move])

            def slopes(move: np.ndarray, tied: np.ndarray = tied) -> np.ndarray:
                return np.concatenate([here.matrix + bends @ move, tied, resting])

            found = scipy.optimize.least_squares(
                residual, np.clip(start, *limits), slopes, bounds=limits, xtol=1e-14, ftol=1e-14, gtol=1e-14
            )
            move = np.clip(found.x, low, high)
            if np.linalg.norm(move) <= 1.1 * radius:
                return move
            mu = max(4.0 * mu, 1e-12 * np.sum(here.matrix**2))

    @staticmethod
    def _bounded(here: _Here, mu: float, resting: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        tied = np.sqrt(mu) * np.eye(len(here.x))
        matrix = np.concatenate([here.matrix, tied, resting])
        rest = np.concatenate([-here.residual, np.zeros(len(tied) + len(resting))])
        return np.clip(scipy.optimize.lsq_linear(matrix, rest, bounds=_apart(low, high), tol=1e-14).x, low, high)

    def outcome(self, here: _Here, converged: bool, message: str, history: list[float]) -> Calibration:
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
            units=units_of(self.potential, self.selection.names, self.observed, structures_of(self.systems)),
        )

    def _verdict(self, here: _Here, missed: np.ndarray, message: str) -> tuple[bool, str]:
        names = zip(self.selection.names, here.x, self.low, self.high, strict=True)
        # As near as adding a step to where it began lets it come.
        held = [name for name, x, low, high in names if min(x - low, high - x) <= 1e-9 * max(1.0, abs(x))]
        against = bool(np.any(np.abs(self._pull(here.x)) > 1.0))
        blind = len(here.matrix) > 0 and not here.matrix[: len(self.labels)][missed].any()
        off = np.where(missed, np.abs(here.found - self.wanted) / self.sigma, 0.0)
        k = int(np.argmax(off))
        told = f"{self.labels[k]} is {here.found[k]:.6g} where {self.wanted[k]:.6g} is wanted"
        return verdict(message, self.labels[k], told, int(missed.sum()), held, against, blind)

    def _identified(self, here: _Here, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(standard deviations, singular values, directions)`."""
        if not len(here.matrix):
            return np.full(len(parameters), np.nan), np.zeros(0), np.zeros((0, len(parameters)))
        # Relative changes of what was found, not of the start.
        told = here.matrix[: len(self.labels)] * np.where(parameters == 0.0, 1.0, np.abs(parameters)) / self.scale
        # As many directions as parameters, however few the targets are.
        _, sizes, directions = np.linalg.svd(told, full_matrices=True)
        sizes = np.concatenate([sizes, np.zeros(len(self.start) - len(sizes))])
        _, all_sizes, all_directions = np.linalg.svd(here.matrix, full_matrices=True)
        all_sizes = np.concatenate([all_sizes, np.zeros(len(self.start) - len(all_sizes))])
        open_ = all_sizes <= UNDETERMINED * all_sizes[0]
        variances = ((all_directions[~open_] / all_sizes[~open_, None]) ** 2).sum(axis=0)
        std = np.where((all_directions[open_] ** 2).sum(axis=0) > UNDETERMINED, np.inf, np.sqrt(variances))
        return self.scale * std, sizes, directions


def _apart(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of a step for SciPy, which wants them apart."""
    stuck = low == high
    return np.where(stuck, -1e-15, low), np.where(stuck, 1e-15, high)


@suggest_names
def inverse_design(
    systems: Systems,
    potential: Potential,
    wanted: Mapping[str, tuple[Callable[..., Any] | Of, Any]],
    **options: Any,
) -> Calibration:
    """Parameters that give observables the values wanted, with the smallest relative change that does.

    Args:
        wanted: `(observable, value)` by name.
        options: as for `calibrate`.
    """
    targets = {}
    for name, (observable, value) in wanted.items():
        size = np.asarray(value, dtype=float)
        # Off by a share of themselves.
        targets[name] = Wanted(observable, value, np.where(np.nan_to_num(size) == 0.0, 1.0, np.abs(size)))
    return dataclasses.replace(calibrate(systems, potential, targets, **options), design=True)
