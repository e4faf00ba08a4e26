"""Parameters from targets: least squares on relaxed structures with exact derivatives, and what the targets determine.

    minimise ½ Σ ((g(θ) - target) / σ)² + ½ Σ ((θ - prior) / σ_prior)²    within bounds

by Gauss-Newton steps inside a trust region (Moré, Lecture Notes in Mathematics 630, 105 (1978)), in relative changes of the
parameters. A step costs one relaxation of each structure, from where it was, however many parameters there are.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
from jaxtyping import Float

from mdsens.equilibrium import Equilibrium
from mdsens.errors import InputError, MdsensError
from mdsens.potentials import Potential
from mdsens.studies.observing import (
    Of,
    Systems,
    Together,
    by_name,
    differentiate,
    entries,
    flat,
    relax_again,
    relax_all,
    together,
)
from mdsens.studies.parameters import Selection

RADIUS = 0.1
"""First radius of the trust region: a relative change of all parameters together."""

SMALLEST_RADIUS = 1e-10

UNDETERMINED = 1e-7
"""Singular value, relative to the largest, below which the targets do not determine a direction."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What an observable should be.

    Args:
        observable: `g(system, potential)`; see `studies.Of` for several structures.
        value: of the observable's shape; NaN for components that do not matter.
        sigma: the standard deviation that the fit may be off by, one or of the same shape.
    """

    observable: Callable[..., Any]
    value: Any
    sigma: Any = 1.0


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The outcome of a fit.

    Attributes:
        potential: the fitted one.
        names: of the parameters that varied.
        start, parameters: their values before and after.
        std: their standard deviations by the targets' σ and the priors; inf where nothing determines them.
        found, wanted, sigma: of the targets' components, with `labels`.
        cost: what was minimised.
        converged: whether it arrived; `message` says how it ended.
        relaxations: structures that were relaxed.
        evaluations: of all targets together.
        singular_values: of the targets in relative changes of the parameters, the largest first.
        directions: rows, right singular vectors.
        states: the equilibria by name.
        history: the cost of each step that was accepted.
    """

    potential: Potential
    names: tuple[str, ...]
    start: Float[np.ndarray, " chosen"]
    parameters: Float[np.ndarray, " chosen"]
    std: Float[np.ndarray, " chosen"]
    labels: tuple[str, ...]
    found: Float[np.ndarray, " components"]
    wanted: Float[np.ndarray, " components"]
    sigma: Float[np.ndarray, " components"]
    cost: float
    converged: bool
    message: str
    relaxations: int
    evaluations: int
    singular_values: Float[np.ndarray, " chosen"]
    directions: Float[np.ndarray, "chosen chosen"]
    states: dict[str, Equilibrium] = dataclasses.field(repr=False)
    history: tuple[float, ...]

    @property
    def undetermined(self) -> tuple[dict[str, float], ...]:
        """Directions that the targets do not determine: relative changes of parameters that leave all of them as they are."""
        smallest = UNDETERMINED * self.singular_values[0]
        chosen = self.directions[self.singular_values <= smallest]
        return tuple({name: float(part) for name, part in zip(self.names, row, strict=True)} for row in chosen)


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
) -> Calibration:
    """Fit parameters to targets of relaxed structures.

    Where the targets do not determine a direction, parameters do not move along it (unless a prior says how).

    Args:
        systems: a structure, or several by name; where they start.
        targets: by name.
        wrt: parameters that vary; by default all.
        bounds: `(lowest, highest)` by parameter.
        priors: `(mean, standard deviation)` by parameter.
        relax: options of `mdsens.relax`, for all structures or by their name.
        max_steps: evaluations of the targets beyond the first.
        tolerance: relative change of the parameters at which the fit has arrived.
        step: called as each evaluation begins, with its number and the cost so far.

    Raises:
        InputError: targets, bounds or priors that do not fit.
        ConvergenceError: the first structures do not relax.
    """
    named = by_name(systems)
    problem = _Problem(named, potential, targets, Selection.of(potential, wrt), bounds or {}, priors or {}, relax or {})
    here = problem.evaluate(problem.x, None)
    radius, history, message = RADIUS, [here.cost], "the number of steps ran out: allow more with max_steps"
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
            there = problem.evaluate(here.x + move, here.states)
            gain = (here.cost - there.cost) / told
        except MdsensError as error:
            there, gain, why = None, -math.inf, str(error)
        size = float(np.linalg.norm(move))
        if gain < 0.25:
            radius = 0.25 * size
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
    slopes: np.ndarray
    residual: np.ndarray
    matrix: np.ndarray

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
        self.x = np.zeros(len(self.start))
        self.labels: tuple[str, ...] = ()
        self.wanted = self.sigma = np.zeros(0)

    def evaluate(self, x: np.ndarray, states: Any) -> _Here:
        """Relax and observe at x, from the structures as given or from earlier equilibria."""
        potential = self.selection.at(self.start + self.scale * x)
        self.evaluations += 1
        self.relaxations += len(self.systems)
        if states is None:
            states = relax_all(self.systems, potential, self.options)
        else:
            states = relax_again(states, potential, self.options)
        values, slopes = differentiate(self.observed, states, self.selection)
        if not self.labels:
            self._read(values)
        found, slopes = flat(values)[self.counts], slopes[self.counts] * self.scale
        informed = np.isfinite(self.width)
        pull = ((self.start + self.scale * x - self.mean) / self.width)[informed]
        residual = np.concatenate([(found - self.wanted) / self.sigma, pull])
        matrix = np.concatenate([slopes / self.sigma[:, None], np.diag(self.scale / self.width)[informed]])
        return _Here(x, states, found, slopes, residual, matrix)

    def _read(self, values: Any) -> None:
        """The targets' numbers, in the order of the observables' values; NaN ones are left out."""
        wanted: list[np.ndarray] = []
        sigma: list[np.ndarray] = []
        labels: list[str] = []
        for name, value in values.items():
            for numbers, given, what in ((wanted, self.targets[name].value, "value"), (sigma, self.targets[name].sigma, "sigma")):
                given = np.asarray(given, dtype=float)
                if given.shape != value.shape and not (what == "sigma" and given.ndim == 0):
                    raise InputError(
                        f"The {what} of the target {name!r} has shape {given.shape}, but the observable has shape {value.shape}: "
                        "give as many numbers, nan where one does not matter."
                    )
                numbers.append(np.broadcast_to(given, value.shape).ravel())
            labels += entries(name, value.shape)
        self.counts = ~np.isnan(np.concatenate(wanted))
        self.wanted, self.sigma = np.concatenate(wanted)[self.counts], np.concatenate(sigma)[self.counts]
        self.labels = tuple(label for label, counts in zip(labels, self.counts, strict=True) if counts)
        if not self.labels or not np.isfinite(self.wanted).all() or not (np.isfinite(self.sigma) & (self.sigma > 0.0)).all():
            raise InputError("Targets must be finite numbers, with positive sigma.")

    def step(self, here: _Here, radius: float) -> tuple[np.ndarray, float]:
        """The step inside the trust region and the bounds, and by how much it should lower the cost."""
        rows, sizes, columns = np.linalg.svd(here.matrix, full_matrices=False)
        slopes = rows.T @ here.residual
        kept = sizes > UNDETERMINED * sizes[0]

        def damped(mu: float) -> np.ndarray:
            return -columns[kept].T @ (sizes[kept] * slopes[kept] / (sizes[kept] ** 2 + mu))

        move, mu = damped(0.0), 0.0
        if np.linalg.norm(move) > radius:
            highest = sizes[0] * np.linalg.norm(slopes) / radius
            mu = scipy.optimize.brentq(lambda mu: np.linalg.norm(damped(mu)) - radius, 0.0, highest, rtol=1e-3)
            move = damped(mu)
        low, high = self.low - here.x, self.high - here.x
        if (move < low).any() or (move > high).any():
            move = self._bounded(here, mu, kept, columns, low, high)
        told = 0.5 * here.residual @ here.residual - 0.5 * np.sum((here.residual + here.matrix @ move) ** 2)
        return move, float(told)

    @staticmethod
    def _bounded(here: _Here, mu: float, kept: np.ndarray, columns: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        # What nothing determines stays where it is.
        resting = here.matrix.max() * columns[~kept]
        tied = np.sqrt(mu) * np.eye(len(here.x))
        matrix = np.concatenate([here.matrix, tied, resting])
        rest = np.concatenate([-here.residual, np.zeros(len(tied) + len(resting))])
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        stuck = low == high
        low, high = np.where(stuck, -1e-15, low), np.where(stuck, 1e-15, high)
        return np.clip(scipy.optimize.lsq_linear(matrix, rest, bounds=(low, high), tol=1e-14).x, low, high)

    def outcome(self, here: _Here, converged: bool, message: str, history: list[float]) -> Calibration:
        parameters = self.start + self.scale * here.x
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
        return Calibration(
            self.selection.at(parameters),
            self.selection.names,
            self.start,
            parameters,
            self.scale * std,
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
        )


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
        targets[name] = Target(observable, value, np.where(np.nan_to_num(size) == 0.0, 1.0, np.abs(size)))
    return calibrate(systems, potential, targets, **options)
