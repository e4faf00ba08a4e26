"""Pictures of a collected study, by name; each function returns its axes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mdsens import plot
from mdsens.common.errors import InputError
from mdsens.common.units import with_unit
from mdsens.plot import COLOURS
from mdsens.studies.results.record import Collected, Outcome, entries
from mdsens.studies.results.tables import numbers_of, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NUMBERS = 8
"""Numbers of an observable that a picture has room for."""

VOIGT = (3, 6)
"""Rows of matrices in Voigt's notation."""


def study_pictures(study: Collected) -> Mapping[str, object]:
    """Draw the tasks that did not fail; return axes by name.

    Raises:
        InputError: there is nothing to draw.
    """
    done = [outcome for outcome in study.outcomes if not outcome.failed]
    if not done:
        raise InputError("All tasks of this study failed: there is nothing to draw.")
    return _PICTURES[study.kind](done)


def _sweep(done: Sequence[Outcome]) -> dict[str, "Axes"]:
    names = list(done[0].input["parameters"])
    if not names:
        raise InputError("A sweep without parameters has no picture: 'mdsens show' prints its table.")
    return {name: sweep_curves(done, names, name) for name in numbers_of(done[0], "values")}


def sweep_curves(done: Sequence[Outcome], names: Sequence[str], observable: str, *, ax: "Axes | None" = None) -> "Axes":
    """Draw an observable's first component over the first of a sweep's parameters, a line for each set of the others."""
    ax = _axes(ax)
    lines: dict[str, list[tuple[float, float]]] = {}
    for outcome in done:
        point, value = outcome.input["parameters"], numbers_of(outcome, "values").get(observable)
        if value is None or value.size == 0:
            continue
        structure = outcome.label.split(" ")[0] if "=" not in outcome.label.split(" ")[0] else ""
        others = " ".join([structure, *(f"{name}={point[name]:g}" for name in names[1:])]).strip()
        lines.setdefault(others, []).append((point[names[0]], float(np.ravel(value)[0])))
    for k, (label, points) in enumerate(lines.items()):
        # Markers of several sizes show lines that coincide.
        size = 4.0 + 2.0 * min(len(lines) - 1 - k, 4)
        ax.plot(*np.array(sorted(points)).T, marker="o", markersize=size, color=COLOURS[k % len(COLOURS)], label=label)
    label = entries(observable, np.shape(numbers_of(done[0], "values")[observable]))[0]
    ax.set_xlabel(with_unit(names[0], done[0].record.units_of_parameters().get(names[0])))
    ax.set_ylabel(with_unit(label, unit_of(done[0], label)))
    if 1 < len(lines) <= 2 * MAX_NUMBERS:
        ax.legend(frameon=False)
    return _hide_frame(ax)


def _sensitivity(done: Sequence[Outcome]) -> dict[str, "Axes"]:
    pictures = {}
    for outcome in done:
        names, theta = outcome.record.facts["names"], outcome.record.arrays["parameters"]
        for name, slope in numbers_of(outcome, "derivatives").items():
            scaled, unit = theta * slope, unit_of(outcome, entries(name, slope.shape[:-1])[0])
            pictures[_picture_name(done, outcome, name)] = influences(name, names, scaled, unit=unit)
    return pictures


def influences(
    observable: str, names: Sequence[str], scaled: np.ndarray, *, unit: str | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw θ dg/dθ as bars, as a heat map of several components, or by the constants of a matrix in Voigt's notation."""
    label = with_unit(f"θ d({observable})/dθ", unit)
    if scaled.size == len(names):
        scaled = scaled.reshape(-1)
    if scaled.ndim == 1:
        return plot.influence(dict(zip(names, scaled, strict=True)), label=label, ax=ax)
    if scaled.ndim == 3 and scaled.shape[0] == scaled.shape[1] in VOIGT and np.allclose(scaled, np.swapaxes(scaled, 0, 1)):
        return plot.elastic_sensitivity(dict(zip(names, np.moveaxis(scaled, -1, 0), strict=True)), label=label, ax=ax)
    rows, components = scaled.reshape(-1, len(names)), entries(observable, scaled.shape[:-1])
    if len(rows) <= 3 * MAX_NUMBERS:
        return plot.heat_map(rows.T, list(names), components, label=label, ax=ax)
    sizes = np.linalg.norm(rows, axis=0)
    return plot.influence(
        dict(zip(names, sizes, strict=True)), label=with_unit(f"|θ d({observable})/dθ|, all components", unit), ax=ax
    )


def error_bars(outcome: Outcome, *, ax: "Axes | None" = None) -> "Axes":
    """Draw standard deviations of observables in per cent, by each parameter's share of the variance; samples as points."""
    ax = _axes(ax)
    names = outcome.record.facts["names"]
    values, std, shares = (numbers_of(outcome, group) for group in ("values", "std", "shares"))
    sampled, errors = numbers_of(outcome, "sampling/std"), numbers_of(outcome, "sampling/std_error")
    rows = [
        (label, k, name)
        for name, value in values.items()
        for k, label in list(enumerate(entries(name, value.shape)))[:MAX_NUMBERS]
        if np.ravel(value)[k] != 0.0
    ]
    if not rows:
        raise InputError("All observables are zero: there is no error in per cent to draw.")

    def in_percent(numbers: dict[str, np.ndarray]) -> np.ndarray:
        return np.array([100.0 * np.ravel(numbers[name])[k] / abs(np.ravel(values[name])[k]) for _, k, name in rows])

    percent = in_percent(std)
    parts = np.array([shares[name].reshape(-1, len(names))[k] for _, k, name in rows])
    left = np.zeros(len(rows))
    labels = [label for label, _, _ in rows]
    for j, parameter in enumerate(names):
        if parts[:, j].max() > 0.0:
            ax.barh(labels, percent * parts[:, j], left=left, color=COLOURS[j % len(COLOURS)], label=parameter)
        left += percent * parts[:, j]
    if sampled:
        count = outcome.record.facts["sampling"]["count"]
        ax.errorbar(in_percent(sampled), labels, xerr=in_percent(errors), fmt="ko", capsize=3, label=f"{count} samples")
    ax.set_xlabel("standard deviation [%], by share of the variance")
    ax.legend(frameon=False)
    return _hide_frame(ax)


def _calibration(done: Sequence[Outcome], *, design: bool = False) -> dict[str, "Axes"]:
    missed, fitted = (functools.partial(draw, design=design) for draw in (missed_targets, fitted_parameters))
    return {
        _picture_name(done, outcome, name): draw(outcome)
        for outcome in done
        for name, draw in (("targets", missed), ("parameters", fitted), ("convergence", fit_convergence))
    }


def missed_targets(outcome: Outcome, *, design: bool = False, ax: "Axes | None" = None) -> "Axes":
    """Draw the deviation from each target, in units of its σ; of a design, of itself."""
    ax = _axes(ax)
    arrays = outcome.record.arrays
    off = (arrays["found"] - arrays["wanted"]) / arrays["sigma"]
    ax.bar_label(ax.barh(outcome.record.facts["labels"], off, color=COLOURS[0]), fmt="{:.2g}", padding=4)
    ax.axvline(0.0, color="0.4", linewidth=0.8)
    ax.set_xlim(min(-1.2, 1.2 * off.min()), max(1.2, 1.2 * off.max()))
    ax.set_xlabel("(found - wanted) / |wanted|" if design else "found - wanted [σ]")
    return _hide_frame(ax)


def fitted_parameters(outcome: Outcome, *, design: bool = False, ax: "Axes | None" = None) -> "Axes":
    """Draw the change of each parameter by the fit in per cent, with its standard deviation where the targets determine it."""
    names, arrays = outcome.record.facts["names"], outcome.record.arrays
    scale = 100.0 / np.where(arrays["start"] == 0.0, 1.0, np.abs(arrays["start"]))
    change, std = scale * (arrays["parameters"] - arrays["start"]), scale * arrays["std"]
    values, errors = (dict(zip(names, numbers, strict=True)) for numbers in (change, std))
    return plot.bars(values, None if design else errors, label="found - start [% of the start]", ax=ax)


def fit_convergence(outcome: Outcome, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the cost after each accepted step."""
    ax = plot.convergence(outcome.record.arrays["history"], label="cost", ax=_axes(ax))
    ax.set_xlabel("accepted steps")
    return ax


def softening(outcome: Outcome, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the lowest curvature along a path, and where it would vanish."""
    ax = _axes(ax)
    arrays, facts = outcome.record.arrays, outcome.record.facts
    ax.plot(arrays["t"], arrays["lowest"], marker="o", color=COLOURS[0])
    if facts["kind"] != "none":
        ax.axvline(facts["critical"], color=COLOURS[1], linestyle="--", label=f"{facts['kind']} at t = {facts['critical']:.4g}")
        ax.legend(frameon=False)
    ax.set_ylim(bottom=min(0.0, *arrays["lowest"]))
    ax.set_xlabel("t, share of the path")
    ax.set_ylabel("lowest curvature [eV/Å²]")
    return _hide_frame(ax)


def _picture_name(done: Sequence[Outcome], outcome: Outcome, name: str) -> str:
    return name if len(done) == 1 else f"{outcome.label.replace(' ', '_')}_{name}"


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(6.4, 4.4), layout="constrained").add_subplot()


def _hide_frame(ax: "Axes") -> "Axes":
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


_PICTURES: dict[str, Callable[[Sequence[Outcome]], dict[str, "Axes"]]] = {
    "sweep": _sweep,
    "sensitivity": _sensitivity,
    "uncertainty": lambda done: {_picture_name(done, outcome, "uncertainty"): error_bars(outcome) for outcome in done},
    "calibration": _calibration,
    "inverse": functools.partial(_calibration, design=True),
    "continuation": lambda done: {_picture_name(done, outcome, "curvature"): softening(outcome) for outcome in done},
}
