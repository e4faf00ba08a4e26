"""Error bars of observables from the uncertainty of parameters: J Σ Jᵀ, and what sampling says."""

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
    Together,
    by_name,
    differentiate,
    evaluate,
    flat,
    options_of,
    relax_again,
    rounding,
    split,
    structures_of,
    together,
    units_of,
)
from mdsens.studies.methods.parameters import Selection, root_of
from mdsens.studies.methods.sensitivity_table import certified
from mdsens.studies.results.record import Record, entries, under
from mdsens.studies.results.result import Result

SHARE = 0.1
"""Departure from a straight line up to which error bars are trusted, as a share of them."""

DRAWS = 8
"""Parameters drawn at random at which it is looked for, half of them opposite to the others."""

FEW = 4.0
"""Sampling errors by which samples may differ from error bars."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Observables of structures relaxed again with parameters drawn at random.

    Attributes:
        count: samples that relaxed; `failed` did not.
        mean, std: by observable.
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
        values: of the observables by name, in the order in which they were asked for.
        std: one standard deviation of each number.
        covariance: of all numbers, in the order of `values`; `labels` are their names.
        shares: by name, `(*shape, parameters)`: share of the variance that comes with each parameter, J_k (Σ Jᵀ)_k / (J Σ Jᵀ).
            They add up to 1. Of parameters that vary together one may have a negative share: it makes the variance smaller. All
            are 0 where the variance is nothing but rounding.
        nonlinearity: by name: how far the observable leaves its straight line, as a share of its error bar: one standard
            deviation out in the direction that moves it most, or at parameters drawn at random (root mean square), which see
            a parabola in a direction without slope too. The larger of both, of the worst number of an array; NaN unless checked.
        trusted: whether all of them are small, samples agree and the certificates of the derivatives are good; None where
            nothing speaks against it, but neither `check` nor `samples` looked.
        reasons: what speaks against it.
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
        """Names of the numbers that `covariance` is of."""
        return tuple(label for name, value in self.values.items() for label in entries(name, value.shape))

    def _numbers(self) -> Record:
        arrays = {
            **under("values", self.values),
            **under("std", self.std),
            **under("shares", self.shares),
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
            for what in ("mean", "std", "std_error"):
                arrays |= under(f"sampling/{what}", getattr(sampled, what))
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
    """Error bars of observables of an equilibrium (or of several together) from those of the parameters.

    Args:
        observables: `g(system, potential)` by name; see `studies.Of` for several states.
        covariance: standard deviations of independent parameters by name; or a matrix for the parameters in `wrt`, in
            their order; or an ensemble, potentials whose sample covariance is taken.
        check: relax two structures for each observable, one standard deviation out on either side, and eight for all with
            parameters drawn at random, and see whether they follow straight lines.
        samples: relax so many structures with parameters drawn from the normal distribution, too.
        seed: of the samples.
        relax: options of `mdsens.relax` for structures that are relaxed again.

    Raises:
        InputError: a covariance that is none.
        as `mdsens.value_and_jacobian`.
    """
    begun = time.perf_counter()
    named = by_name(states)
    potential = next(iter(named.values())).potential
    selection, root = _root(potential, covariance, wrt)
    observed = together(observables, named)
    values, rows = differentiate(observed, named, selection)
    reasons = list(certified(named, [*dict.fromkeys(name.split("[")[0] for name in selection.names)]))
    spread = rows @ root
    total = spread @ spread.T
    width, noise = np.linalg.norm(spread, axis=1), rounding(observed, named)
    variances, significant = rows * (spread @ root.T), (width > noise)[:, None]
    shares = np.divide(variances, width[:, None] ** 2, out=np.zeros_like(variances), where=significant)
    bent = dict.fromkeys(values, np.nan)
    each = options_of(named, relax)

    def departure(draw: np.ndarray) -> np.ndarray:
        there = relax_again(named, selection.at(selection.values() + root @ draw), each)
        return flat(evaluate(observed, there)) - flat(values) - spread @ draw

    if check:
        bars = {name: _Bars(*one) for name, one in _by_name(values, spread, width, noise).items()}
        for name, one in bars.items():
            try:
                one.see([split(departure(draw), values)[name] for draw in one.ends()])
            except MdsensError as error:
                one.lost = True
                reasons.append(f"{name}: a standard deviation away nothing relaxed ({error})")
        try:
            scattered = split(_scattered(spread, departure), values)
            for name, one in bars.items():
                one.see([scattered[name]])
        except MdsensError as error:
            reasons.append(f"with parameters drawn at random nothing relaxed ({error})")
        bent = {name: one.worst for name, one in bars.items()}
        reasons += [reason for name, one in bars.items() if (reason := one.reason(entries(name, values[name].shape)))]
    seconds = time.perf_counter() - begun
    options = {name: {"check_minimum": False, **one} for name, one in each.items()}
    sampled = _sample(named, observed, selection, root, values, samples, seed, options) if samples else None
    if sampled is not None:
        reasons += _disagreements(sampled, values, width, noise)
    return Uncertainty(
        selection.names,
        values,
        split(width, values),
        total,
        split(shares, values),
        bent,
        False if reasons else True if check or samples else None,
        tuple(reasons),
        sampled,
        seconds,
        units=units_of(potential, selection.names, observed, structures_of(named)),
    )


def _root(potential: Potential, covariance: Any, wrt: Any) -> tuple[Selection, np.ndarray]:
    """`(selection, L)` with Σ = L Lᵀ.

    Raises:
        InputError: a covariance that is none.
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


def _by_name(values: Any, *rows: np.ndarray) -> dict[str, list[np.ndarray]]:
    parts = [split(one, values) for one in rows]
    return {name: [part[name] for part in parts] for name in values}


class _Bars:
    """The error bars of one observable, number by number, and how far relaxed structures are from them.

    Attributes:
        worst: the largest departure from a straight line, as a share of its number's error bar.
        lost: whether nothing relaxed.
    """

    def __init__(self, spread: np.ndarray, width: np.ndarray, noise: np.ndarray) -> None:
        self.spread, self.width, self.noise = spread.reshape(-1, spread.shape[-1]), width.ravel(), noise.ravel()
        self.off, self.lost = np.zeros(self.width.size), False

    def ends(self) -> list[np.ndarray]:
        """A standard deviation out on either side, in the direction of root's coordinates that moves most numbers most."""
        moved = self.width > self.noise
        if not moved.any():
            return []
        _, _, directions = np.linalg.svd(self.spread[moved] / self.width[moved, None], full_matrices=False)
        return [directions[0], -directions[0]]

    def see(self, departures: list[np.ndarray]) -> None:
        for departure in departures:
            self.off = np.fmax(self.off, np.abs(departure).ravel())

    @property
    def shares(self) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.off > self.noise, self.off / np.fmax(self.width, self.noise), 0.0)

    @property
    def worst(self) -> float:
        return np.inf if self.lost else float(self.shares.max(initial=0.0))

    def reason(self, labels: Sequence[str]) -> str:
        """What speaks against them, if anything does."""
        shares = self.shares
        k = int(np.argmax(shares)) if shares.size else 0
        if not shares.size or shares[k] <= SHARE:
            return ""
        if self.width[k] <= self.noise[k]:
            return f"{labels[k]}: its error bar is 0 to first order, but the parameters change it by {self.off[k]:.2g}"
        return f"{labels[k]}: departs from a straight line by {shares[k]:.0%} of its error bar"


def _scattered(spread: np.ndarray, departure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Departures of all numbers from their straight lines at parameters drawn at random."""
    half = np.random.default_rng(0).normal(size=(DRAWS // 2, spread.shape[1]))
    departures = [departure(draw) for draw in np.concatenate([half, -half])]
    return np.sqrt(np.mean(np.square(departures), axis=0))


def _disagreements(sampled: Sampling, values: Any, width: np.ndarray, noise: np.ndarray) -> list[str]:
    """Where samples have another standard deviation than the error bars."""
    labels = [label for name, value in values.items() for label in entries(name, value.shape)]
    std, error = flat(sampled.std), flat(sampled.std_error)
    # The kurtosis of few samples says little: at least what a normal distribution's would be off by.
    allowed = np.fmax(SHARE * width, FEW * np.fmax(error, std / np.sqrt(2.0 * (sampled.count - 1)))) + noise
    off = [k for k in range(len(std)) if abs(std[k] - width[k]) > allowed[k]]
    told = [f"{labels[k]}: samples have a standard deviation of {std[k]:.3g}, its error bar is {width[k]:.3g}" for k in off[:3]]
    if sampled.failed:
        told.append(f"{sampled.failed} of {sampled.count + sampled.failed} samples did not relax")
    return told


def _sample(
    states: Any, observed: Together, selection: Selection, root: np.ndarray, values: Any, count: int, seed: int, options: Any
) -> Sampling:
    begun, found, failed = time.perf_counter(), [], 0
    for draw in np.random.default_rng(seed).normal(size=(count, root.shape[1])):
        try:
            there = relax_again(states, selection.at(selection.values() + root @ draw), options)
            found.append(flat(evaluate(observed, there)))
        except MdsensError:
            failed += 1
    if len(found) < 2:
        raise InputError(f"Of {count} samples {failed} did not relax: the standard deviations are too large for this structure.")
    rows = np.stack(found)
    mean, std = rows.mean(axis=0), rows.std(axis=0, ddof=1)
    fourth = np.divide(((rows - mean) ** 4).mean(axis=0), std**4, out=np.full_like(std, 3.0), where=std > 0.0)
    error = std * np.sqrt(np.maximum(fourth - 1.0, 0.0) / (4.0 * len(rows)))
    mean, std, error = (split(part, values) for part in (mean, std, error))
    return Sampling(len(rows), failed, mean, std, error, time.perf_counter() - begun)
