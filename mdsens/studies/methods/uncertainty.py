"""Error bars of observables from the uncertainty of parameters: J Σ Jᵀ, checked against samples."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from mdsens.common.errors import InputError, MdsensError
from mdsens.common.suggestions import suggest_names
from mdsens.potentials import Potential
from mdsens.studies.methods.observed import (
    Observables,
    States,
    by_name,
    differentiate,
    evaluate,
    flatten,
    join_observables,
    options_of,
    relax_again,
    rounding,
    split,
    units_of,
)
from mdsens.studies.methods.parameters import Selection, root_of
from mdsens.studies.methods.sensitivity_table import objections
from mdsens.studies.results.record import Record, add_prefix, entries
from mdsens.studies.results.result import Result

NONLINEARITY = 0.1
"""Departure from a straight line up to which error bars are trusted, as a share of them."""

DRAWS = 8
"""Sets of parameters drawn at random that are checked against the straight line, half of them opposite to the others."""

SAMPLING_ERRORS = 4.0
"""Number of sampling errors by which samples may differ from error bars."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Observables of structures relaxed again with parameters drawn at random.

    Attributes:
        count: samples that relaxed; `failed` did not.
        mean, std: mean and standard deviation, by observable.
        std_error: sampling error of `std`, std √((κ - 1) / 4n) with the samples' own kurtosis κ.
        seconds: wall time.
    """

    count: int
    failed: int
    mean: dict[str, np.ndarray]
    std: dict[str, np.ndarray]
    std_error: dict[str, np.ndarray]
    seconds: float


@dataclasses.dataclass(frozen=True, repr=False)
class Uncertainty(Result):
    """Error bars of observables.

    Attributes:
        names: of the uncertain parameters.
        values: the observables by name, in the order of the call.
        std: one standard deviation of each number.
        covariance: covariance matrix of all numbers, in the order of `values`; `labels` are their names.
        shares: by name, `(*shape, parameters)`: share of the variance that comes with each parameter, J_k (Σ Jᵀ)_k / (J Σ Jᵀ).
            They add up to 1. Of parameters that vary together one may have a negative share: it makes the variance smaller. All
            are 0 where the variance is nothing but rounding.
        nonlinearity: by name: how far the observable leaves its straight line, as a share of its error bar: one standard
            deviation out in the direction that moves it most, or at parameters drawn at random (root mean square), which see
            a parabola in a direction without slope too. The larger of both, of the worst number of an array; NaN unless checked.
        trusted: whether all of `nonlinearity` is small, samples agree and the certificates of the derivatives are good; None
            where nothing speaks against the error bars, but neither `check` nor `samples` was asked for.
        reasons: what speaks against the error bars.
        sampling: None unless asked for.
        seconds: wall time without sampling.
    """

    _study_kind: ClassVar[str] = "uncertainty"

    names: tuple[str, ...]
    values: dict[str, np.ndarray]
    std: dict[str, np.ndarray]
    covariance: Float[np.ndarray, "values values"]
    shares: dict[str, np.ndarray]
    nonlinearity: dict[str, float]
    trusted: bool | None
    reasons: tuple[str, ...]
    sampling: Sampling | None
    seconds: float

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the rows and columns of `covariance`."""
        return tuple(label for name, value in self.values.items() for label in entries(name, value.shape))

    def _numbers(self) -> Record:
        arrays = {
            **add_prefix("values", self.values),
            **add_prefix("std", self.std),
            **add_prefix("shares", self.shares),
            "covariance": self.covariance,
        }
        facts = {
            "names": list(self.names),
            "numbers": list(self.labels),
            "nonlinearity": self.nonlinearity,
            "trusted": self.trusted,
            "reasons": list(self.reasons),
        }
        if (sampled := self.sampling) is not None:
            for name in ("mean", "std", "std_error"):
                arrays |= add_prefix(f"sampling/{name}", getattr(sampled, name))
            facts["sampling"] = {"count": sampled.count, "failed": sampled.failed}
        return Record(arrays, facts)


@suggest_names
def uncertainty(
    states: States,
    observables: Observables,
    covariance: Mapping[str, float] | Float[np.ndarray, "chosen chosen"] | Sequence[Potential],
    *,
    wrt: Sequence[str] | str | None = None,
    check: bool = True,
    samples: int = 0,
    seed: int = 0,
    relax: Mapping[str, Any] | None = None,
) -> Uncertainty:
    """Return error bars of observables of an equilibrium (or of several together) from those of the parameters.

        studies.uncertainty(eq, {"volume": ms.observables.volume}, {"sigma": 0.01}).std["volume"]

    Args:
        observables: `g(system, potential)` by name; see `studies.Of` for several states.
        covariance: standard deviations of independent parameters by name; or a matrix for the parameters in `wrt`, in
            their order; or an ensemble, potentials whose sample covariance is taken.
        check: relax two structures for each observable, one standard deviation out on either side, and eight for all with
            parameters drawn at random, and see whether they follow straight lines.
        samples: number of structures to relax with parameters drawn from the normal distribution.
        seed: seed of the samples.
        relax: options of `mdsens.relax` for structures that are relaxed again.

    Raises:
        InputError: what is given is no covariance.
        as `mdsens.value_and_jacobian`.
    """
    begun = time.perf_counter()
    named = by_name(states)
    potential = next(iter(named.values())).potential
    selection, root = _root(potential, covariance, wrt)
    observed = join_observables(observables, named)
    values, rows = differentiate(observed, named, selection)
    reasons = list(objections(named, [*dict.fromkeys(name.split("[")[0] for name in selection.names)]))
    spread = rows @ root
    total = spread @ spread.T
    width, noise = np.linalg.norm(spread, axis=1), rounding(observed, named)
    variances, significant = rows * (spread @ root.T), (width > noise)[:, None]
    shares = np.divide(variances, width[:, None] ** 2, out=np.zeros_like(variances), where=significant)
    nonlinearity = dict.fromkeys(values, np.nan)
    each = options_of(named, relax)

    def moved(draw: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
        return flatten(evaluate(observed, relax_again(named, selection.at(selection.values() + root @ draw), options)))

    def departure(draw: np.ndarray) -> np.ndarray:
        return moved(draw, each) - flatten(values) - spread @ draw

    if check:
        parts = [split(rows, values) for rows in (spread, width, noise)]
        bars = {name: _Bars(*(part[name] for part in parts)) for name in values}
        for name, bar in bars.items():
            try:
                for off in [split(departure(draw), values)[name] for draw in bar.ends()]:
                    bar.add(off)
            except MdsensError as error:
                bar.failed = True
                reasons.append(f"{name}: a standard deviation away nothing relaxed ({error})")
        try:
            scattered = split(_random_departures(spread, departure), values)
            for name, bar in bars.items():
                bar.add(scattered[name])
        except MdsensError as error:
            reasons.append(f"with parameters drawn at random nothing relaxed ({error})")
        nonlinearity = {name: bar.worst for name, bar in bars.items()}
        reasons += [reason for name, bar in bars.items() if (reason := bar.reason(entries(name, values[name].shape)))]
    seconds = time.perf_counter() - begun
    options = {name: {"check_minimum": False, **own} for name, own in each.items()}
    sampled = None
    if samples:
        draws = np.random.default_rng(seed).normal(size=(samples, root.shape[1]))
        sampled = _sample(lambda draw: moved(draw, options), draws, values)
        reasons += _disagreements(sampled, values, width, noise)
    return Uncertainty(
        selection.names,
        values,
        split(width, values),
        total,
        split(shares, values),
        nonlinearity,
        False if reasons else True if check or samples else None,
        tuple(reasons),
        sampled,
        seconds,
        units=units_of(potential, selection.names, observed, named),
    )


def _root(potential: Potential, covariance: Any, wrt: Sequence[str] | str | None) -> tuple[Selection, np.ndarray]:
    """Return the uncertain parameters, and L with Σ = L Lᵀ.

    Raises:
        InputError: what is given is no covariance.
    """
    if isinstance(covariance, Mapping):
        selection = Selection.of(potential, list(covariance) if wrt is None else wrt)
        widths = selection.vector(covariance, 0.0, "The covariance")
        if not (np.isfinite(widths).all() and (widths >= 0.0).all()):
            raise InputError(f"Standard deviations must be finite and not negative, unlike {dict(covariance)!r:.120}.")
        return selection, np.diag(widths)
    selection = Selection.of(potential, wrt)
    if isinstance(covariance, Sequence) and covariance and all(isinstance(one, Potential) for one in covariance):
        if len(covariance) < 2:
            raise InputError("An ensemble has two potentials or more.")
        members = np.stack([selection.values(one) for one in covariance])
        return selection, (members - members.mean(axis=0)).T / np.sqrt(len(members) - 1)
    return selection, root_of(covariance, selection.names)


class _Bars:
    """The error bars of one observable, number by number, and how far relaxed structures are from them.

    Attributes:
        worst: the largest departure from a straight line, as a share of its number's error bar.
        failed: whether nothing relaxed.
    """

    def __init__(self, spread: np.ndarray, width: np.ndarray, noise: np.ndarray) -> None:
        self.spread, self.width, self.noise = spread.reshape(-1, spread.shape[-1]), width.ravel(), noise.ravel()
        self.off, self.failed = np.zeros(self.width.size), False

    def ends(self) -> list[np.ndarray]:
        """Return draws one standard deviation out, to either side of the direction that moves most numbers most."""
        moved = self.width > self.noise
        if not moved.any():
            return []
        _, _, directions = np.linalg.svd(self.spread[moved] / self.width[moved, None], full_matrices=False)
        return [directions[0], -directions[0]]

    def add(self, departure: np.ndarray) -> None:
        """Keep the largest departure from the straight line."""
        self.off = np.fmax(self.off, np.abs(departure).ravel())

    @property
    def shares(self) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.off > self.noise, self.off / np.fmax(self.width, self.noise), 0.0)

    @property
    def worst(self) -> float:
        return np.inf if self.failed else float(self.shares.max(initial=0.0))

    def reason(self, labels: Sequence[str]) -> str:
        """Return what speaks against the error bars, or nothing."""
        shares = self.shares
        k = int(np.argmax(shares)) if shares.size else 0
        if not shares.size or shares[k] <= NONLINEARITY:
            return ""
        if self.width[k] <= self.noise[k]:
            return f"{labels[k]}: its error bar is 0 to first order, but the parameters change it by {self.off[k]:.2g}"
        return f"{labels[k]}: departs from a straight line by {shares[k]:.0%} of its error bar"


def _random_departures(spread: np.ndarray, departure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the root mean square departure of each number from its straight line at parameters drawn at random."""
    half = np.random.default_rng(0).normal(size=(DRAWS // 2, spread.shape[1]))
    departures = [departure(draw) for draw in np.concatenate([half, -half])]
    return np.sqrt(np.mean(np.square(departures), axis=0))


def _disagreements(sampled: Sampling, values: Mapping[str, np.ndarray], width: np.ndarray, noise: np.ndarray) -> list[str]:
    """Say where samples have another standard deviation than the error bars."""
    labels = [label for name, value in values.items() for label in entries(name, value.shape)]
    std, error = flatten(sampled.std), flatten(sampled.std_error)
    # The kurtosis of few samples says little: at least what a normal distribution's would be off by.
    allowed = np.fmax(NONLINEARITY * width, SAMPLING_ERRORS * np.fmax(error, std / np.sqrt(2.0 * (sampled.count - 1)))) + noise
    off = [k for k in range(len(std)) if abs(std[k] - width[k]) > allowed[k]]
    text = "{}: samples have a standard deviation of {:.3g}, its error bar is {:.3g}"
    reasons = [text.format(labels[k], std[k], width[k]) for k in off[:3]]
    if sampled.failed:
        reasons.append(f"{sampled.failed} of {sampled.count + sampled.failed} samples did not relax")
    return reasons


def _sample(observe: Callable[[np.ndarray], np.ndarray], draws: np.ndarray, values: Mapping[str, np.ndarray]) -> Sampling:
    """Return statistics of observables, `flatten`ed, at parameters drawn at random."""
    begun, samples = time.perf_counter(), []
    for draw in draws:
        with contextlib.suppress(MdsensError):
            samples.append(observe(draw))
    failed = len(draws) - len(samples)
    if len(samples) < 2:
        lost = f"Of {len(draws)} samples {failed} did not relax"
        raise InputError(f"{lost}: the standard deviations are too large for this structure.")
    rows = np.stack(samples)
    mean, std = rows.mean(axis=0), rows.std(axis=0, ddof=1)
    fourth = np.divide(((rows - mean) ** 4).mean(axis=0), std**4, out=np.full_like(std, 3.0), where=std > 0.0)
    error = std * np.sqrt(np.maximum(fourth - 1.0, 0.0) / (4.0 * len(rows)))
    mean, std, error = (split(part, values) for part in (mean, std, error))
    return Sampling(len(rows), failed, mean, std, error, time.perf_counter() - begun)
