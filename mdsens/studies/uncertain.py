"""Error bars of observables from the uncertainty of parameters: J Σ Jᵀ, and what sampling says."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mdsens.errors import InputError, MdsensError
from mdsens.potentials import Potential
from mdsens.spelling import spelled
from mdsens.studies.observing import (
    Observables,
    States,
    Together,
    by_name,
    differentiate,
    evaluate,
    flat,
    options_of,
    relax_again,
    split,
    together,
    units_of,
)
from mdsens.studies.parameters import Selection
from mdsens.studies.results import Result
from mdsens.studies.tables import certified

SHARE = 0.1
"""Departure from a straight line up to which error bars are trusted, as a share of them."""

DRAWS = 8
"""Parameters drawn at random at which it is looked for, half of them opposite to the others."""

ROUNDING = 1e-12

NARROWEST = 1e-6
"""Error bar, as a share of its value (or of 1), that departures are compared with at least."""


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
        values: of the observables by name.
        std: one standard deviation of each number.
        covariance: of all numbers, in the order of `values`.
        shares: by name, `(*shape, parameters)`: share of the variance that each parameter has, as if they were independent.
        nonlinearity: by name: how far the observable leaves its straight line, as a share of its error bar: one standard
            deviation out in the direction that moves it most, or at parameters drawn at random (root mean square), which see
            a parabola in a direction without slope too. The larger of both; NaN unless checked.
        trusted: whether all of them are small and the certificates of the derivatives are good.
        reasons: what speaks against it.
        sampling: None unless asked for.
        seconds: wall time without sampling.
    """

    names: tuple[str, ...]
    values: dict[str, np.ndarray]
    std: dict[str, np.ndarray]
    covariance: Float[np.ndarray, "values values"]
    shares: dict[str, np.ndarray]
    nonlinearity: dict[str, float]
    trusted: bool
    reasons: tuple[str, ...]
    sampling: Sampling | None
    seconds: float


@spelled
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
    selection, root = root_of(potential, covariance, wrt)
    observed = together(observables, named)
    values, rows = differentiate(observed, named, selection)
    reasons = list(certified(named, [*dict.fromkeys(name.split("[")[0] for name in selection.names)]))
    spread = rows @ root
    total = spread @ spread.T
    variances = (rows * np.linalg.norm(root, axis=1)) ** 2
    sums = variances.sum(axis=1, keepdims=True)
    shares = np.divide(variances, sums, out=np.zeros_like(variances), where=sums > 0.0)
    bent = dict.fromkeys(values, np.nan)
    options = {name: {"check_minimum": False, **one} for name, one in options_of(named, relax).items()}

    def departure(draw: np.ndarray) -> np.ndarray:
        there = relax_again(named, selection.at(selection.values() + root @ draw), options)
        return flat(evaluate(observed, there)) - flat(values) - spread @ draw

    if check:
        for name in values:
            try:
                bent[name] = _bent(name, spread, values, departure)
            except MdsensError as error:
                bent[name] = np.inf
                reasons.append(f"{name}: a standard deviation away nothing relaxed ({error})")
        try:
            scattered = _scattered(spread, values, departure)
            bent = {name: max(share, scattered[name]) for name, share in bent.items()}
        except MdsensError as error:
            reasons.append(f"with parameters drawn at random nothing relaxed ({error})")
        for name, share in bent.items():
            if SHARE < share < np.inf:
                reasons.append(f"{name}: departs from a straight line by {share:.0%} of its error bar")
    seconds = time.perf_counter() - begun
    sampled = _sample(named, observed, selection, root, values, samples, seed, options) if samples else None
    std = split(np.sqrt(np.diag(total)), values)
    return Uncertainty(
        selection.names,
        values,
        std,
        total,
        split(shares, values),
        bent,
        not reasons,
        tuple(reasons),
        sampled,
        seconds,
        units=units_of(potential, selection.names, observed, next(iter(named.values())).system.dim),
    )


def root_of(potential: Potential, covariance: Any, wrt: Any) -> tuple[Selection, np.ndarray]:
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
    matrix = np.asarray(covariance, dtype=float)
    count = len(selection.names)
    if matrix.shape != (count, count):
        raise InputError(
            f"The covariance must be of shape {(count, count)}, for {', '.join(selection.names)}: not {matrix.shape}."
        )
    widths, directions = np.linalg.eigh(0.5 * (matrix + matrix.T))
    scale = np.abs(widths).max(initial=0.0)
    if not np.isfinite(matrix).all() or np.abs(matrix - matrix.T).max() > 1e-8 * scale or widths.min() < -1e-8 * scale:
        raise InputError("The covariance must be a finite, symmetric matrix without negative eigenvalues.")
    return selection, directions * np.sqrt(np.maximum(widths, 0.0))


def _bent(name: str, spread: np.ndarray, values: Any, departure: Callable[[np.ndarray], np.ndarray]) -> float:
    """Departure of an observable from its straight line, in the direction of root's coordinates that moves it most."""
    own = split(spread, values)[name].reshape(-1, spread.shape[1])
    _, sizes, directions = np.linalg.svd(own, full_matrices=False)
    if sizes[0] <= ROUNDING * max(float(np.linalg.norm(values[name])), 1.0):
        return 0.0
    ends = [split(departure(sign * directions[0]), values)[name] for sign in (1.0, -1.0)]
    return float(max(np.linalg.norm(end) for end in ends) / np.linalg.norm(own @ directions[0]))


def _scattered(spread: np.ndarray, values: Any, departure: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Departures of the observables from their straight lines at parameters drawn at random."""
    half = np.random.default_rng(0).normal(size=(DRAWS // 2, spread.shape[1]))
    departures = [departure(draw) for draw in np.concatenate([half, -half])]
    sizes = split(np.sqrt(np.mean(np.square(departures), axis=0)), values)
    shares = {}
    for name, width in split(np.linalg.norm(spread, axis=1), values).items():
        # An error bar may be nothing but rounding, and then departures are too.
        least = NARROWEST * max(float(np.linalg.norm(values[name])), 1.0)
        shares[name] = float(np.linalg.norm(sizes[name])) / max(float(np.linalg.norm(width)), least)
    return shares


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
