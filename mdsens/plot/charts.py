"""Numbers: influence of parameters, error bars, tables as heat maps, predictions, convergence, paths."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.plot.drawing import COLOURS, axes_or_new, open_frame, patch

if TYPE_CHECKING:
    from mdsens.derivatives.extrapolation import Validity
    from mdsens.equilibrium.elastic_band import Chain

UPRIGHT_LETTERS = 6
"""Length up to which columns' names are not tilted."""

EQUALITY = 1e-6
"""Share of the largest derivative up to which derivatives of elastic constants count as equal, or as zero."""

NOISE = 1e-7
"""Share of the largest influence up to which an influence counts as zero."""

LINEAR_RANGE = 0.02
"""Share of the largest influence that is still visible on a linear scale."""

MIN_BARS = 3
"""Number of bars for which there is room at least, so that one alone does not fill the picture."""

MAX_NUMBERS = 150
"""Number of entries up to which a heat map has its numbers written into it."""


@suggest_names
def influence(values: dict[str, float], *, label: str, ax: Any = None) -> Any:
    """Draw a bar for each parameter's influence, on a logarithmic scale where they differ by orders of magnitude.

    An influence that is zero beside the largest, by rounding or by symmetry, has no bar and the number 0.

    Args:
        values: influences by parameter, signed or not.
        label: their name, with unit: `"max |θ dX/dθ| [Å]"`.
    """
    ax = axes_or_new(ax)
    names, values_in_order = _ascending(values)
    sizes, negative = np.abs(values_in_order), values_in_order < 0.0
    top = sizes.max(initial=0.0) or 1.0
    visible = sizes > NOISE * top
    smallest = sizes[visible].min(initial=top)
    logarithmic = smallest < LINEAR_RANGE * top
    start = 0.3 * smallest if logarithmic else 0.0
    ax.barh(names, np.where(visible, sizes, start), color=[COLOURS[int(below)] for below in negative])
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    ax.set(xlim=(start, (top / start) ** 0.2 * top if logarithmic else 1.25 * top), xlabel=label)
    ax.set_ylim(-0.6, max(len(names), MIN_BARS) - 0.4)
    for row, (value, has_bar) in enumerate(zip(values_in_order, visible, strict=True)):
        place = (abs(value) if has_bar else start, row)
        ax.annotate(f"{value:.3g}" if has_bar else "0", place, (4, 0), textcoords="offset points", va="center")
    if negative[visible].any():
        ax.legend(handles=[patch(COLOURS[0], "positive"), patch(COLOURS[1], "negative")], loc="lower right", frameon=False)
    return open_frame(ax)


@suggest_names
def bars(values: dict[str, float], errors: dict[str, float] | None = None, *, label: str, ax: Any = None) -> Any:
    """Draw a bar for each parameter on a linear scale, the largest on top, with error bars where they are finite.

    Args:
        values: signed numbers by parameter.
        errors: one standard deviation of each.
        label: name of the values, with unit.
    """
    ax = axes_or_new(ax)
    names, lengths = _ascending(values)
    deviations = np.array([float((errors or {}).get(name, np.nan)) for name in names])
    ax.barh(names, lengths, color=[COLOURS[int(length < 0.0)] for length in lengths])
    ax.set_ylim(-0.6, max(len(names), MIN_BARS) - 0.4)
    known = np.isfinite(deviations)
    ax.errorbar(lengths[known], np.flatnonzero(known), xerr=deviations[known], fmt="none", ecolor="0.2", capsize=4)
    ax.axvline(0.0, color="0.4", linewidth=0.8)
    ax.set_xlabel(label if errors is None else f"{label}, ± one standard deviation")
    return open_frame(ax)


def _ascending(values: dict[str, float]) -> tuple[list[str], np.ndarray]:
    """Return names and values, ordered by magnitude."""
    names = sorted(values, key=lambda name: abs(values[name]))
    return names, np.array([float(values[name]) for name in names])


@suggest_names
def heat_map(
    values: Float[ArrayLike, "rows columns"], rows: Sequence[str], columns: Sequence[str], *, label: str, ax: Any = None
) -> Any:
    """Draw a table as colours, blue where negative and red where positive, white at zero, with numbers where there is room.

    Args:
        label: name of the values, with unit.

    Raises:
        InputError: names that do not fit the table.
    """
    values = np.asarray(values, dtype=float)
    if values.shape != (len(rows), len(columns)):
        raise InputError(f"A table of {len(rows)} rows and {len(columns)} columns is wanted, not of shape {values.shape}.")
    ax = axes_or_new(ax)
    largest = np.nanmax(np.abs(values), initial=0.0) or 1.0
    image = ax.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=45 if max(map(len, columns)) > UPRIGHT_LETTERS else 0, ha="center")
    ax.set_yticks(range(len(rows)), rows)
    if values.size <= MAX_NUMBERS:
        for (i, j), value in np.ndenumerate(values):
            number = 0.0 if abs(value) < 1e-9 * largest else value
            ax.text(j, i, f"{number:.3g}", ha="center", va="center", color="w" if abs(value) > 0.6 * largest else "0.15", size=8)
    ax.tick_params(length=0)
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


@suggest_names
def elastic_sensitivity(
    derivatives: dict[str, Float[ArrayLike, "voigt voigt"]], *, label: str = "θ dC/dθ [GPa]", ax: Any = None
) -> Any:
    """Draw the derivatives of elastic constants as a heat map, with a row for each parameter and a column for each constant.

    Constants without derivatives are left out, and so are all but the first of those that symmetry makes equal.

    Args:
        derivatives: dC/dθ or θ dC/dθ by parameter, Voigt's matrices of three or six rows.
    """
    stacked = np.stack([np.asarray(matrix) for matrix in derivatives.values()])
    size = np.abs(stacked).max(axis=0)
    columns: dict[str, np.ndarray] = {}
    for i, j in np.ndindex(size.shape):
        column, zero = stacked[:, i, j], EQUALITY * size.max()
        if i <= j and size[i, j] > zero and not any(np.abs(column - other).max() <= zero for other in columns.values()):
            columns[f"C{i + 1}{j + 1}"] = column
    columns = columns or {"C11": stacked[:, 0, 0]}
    return heat_map(np.stack([*columns.values()], axis=1), list(derivatives), list(columns), label=label, ax=ax)


@suggest_names
def prediction(
    predicted: Float[ArrayLike, "..."], relaxed: Float[ArrayLike, "..."], *, label: str = "displacement [Å]", ax: Any = None
) -> Any:
    """Draw predictions against values of structures that were relaxed again, a point for each; on the line they agree.

    Args:
        predicted: displacements or observables, of any shape.
        relaxed: those of structures relaxed again.
        label: their name, with unit.

    Raises:
        InputError: arrays of different shapes.
    """
    predicted, relaxed = np.asarray(predicted, dtype=float), np.asarray(relaxed, dtype=float)
    if predicted.shape != relaxed.shape or predicted.size == 0:
        raise InputError(f"As many predictions as findings are wanted, not of shapes {predicted.shape} and {relaxed.shape}.")
    ax = axes_or_new(ax)
    numbers = np.concatenate([predicted.ravel(), relaxed.ravel()])
    margin = 0.05 * (np.ptp(numbers) or 1.0)
    ends = numbers.min() - margin, numbers.max() + margin
    ax.plot(ends, ends, color="0.7", linewidth=0.8, zorder=0)
    ax.plot(relaxed.ravel(), predicted.ravel(), color=COLOURS[0], marker="o", markersize=4, linestyle="none", alpha=0.7)
    error = np.linalg.norm(predicted - relaxed) / (np.linalg.norm(relaxed) or 1.0)
    ax.set_title(f"off by {error:.2%} of it, at most by {np.abs(predicted - relaxed).max():.2g}", fontsize="medium")
    ax.set(xlim=ends, ylim=ends, aspect="equal", xlabel=f"relaxed again: {label}", ylabel=f"predicted: {label}")
    return open_frame(ax)


@suggest_names
def validity(found: "Validity", *, ax: Any = None) -> Any:
    """Draw predicted displacements and those of structures relaxed again, with the range in which they should agree.

    Args:
        found: the result of `mdsens.validity(..., checks=n)`.

    Raises:
        InputError: a validity without checks.
    """
    if not found.checks:
        raise InputError("plot.validity wants structures relaxed again: ask for validity(eq, direction, checks=5).")
    ax = axes_or_new(ax)
    t = np.array([0.0, *(check.t for check in found.checks)])
    predicted = np.array([0.0, *(check.predicted for check in found.checks)])
    relaxed = np.array([0.0, *(check.relaxed for check in found.checks)])
    ax.axvspan(0.0, min(found.range, t[-1]), color="0.93", zorder=0, label=f"stated range, error up to {found.share:.0%}")
    ax.plot(t, predicted, color=COLOURS[0], label=f"predicted, order {found.order}")
    ax.plot(t, relaxed, color=COLOURS[1], marker="o", linestyle="none", label="relaxed again")
    ax.set(xlabel="t, in units of the direction", ylabel="displacement of all atoms [Å]")
    ax.set_xlim(left=0.0)
    ax.set_ylim(bottom=0.0)
    ax.ticklabel_format(scilimits=(-2, 3))
    ax.legend(frameon=False)
    return open_frame(ax)


@suggest_names
def convergence(values: Float[ArrayLike, " steps"], *, label: str, ax: Any = None) -> Any:
    """Draw numbers that go to zero step by step, on a logarithmic scale; zeros are left out.

    Args:
        label: their name, with unit.
    """
    ax = axes_or_new(ax)
    values = np.asarray(values, dtype=float)
    steps = np.flatnonzero(values > 0.0)
    ax.semilogy(steps, values[steps], color=COLOURS[0], marker="o")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="steps", ylabel=label)
    return open_frame(ax)


@suggest_names
def cost(measured: dict[str, tuple[Sequence[float], Sequence[float]]], *, label: str = "seconds", ax: Any = None) -> Any:
    """Draw costs against the number of atoms, both on logarithmic scales, with the exponent of each line between its ends.

    Args:
        measured: `(numbers of atoms, costs)` by name.
        label: name of the cost, with unit.
    """
    ax = axes_or_new(ax)
    for k, (name, (atoms, costs)) in enumerate(measured.items()):
        n, c = np.asarray(atoms, dtype=float), np.asarray(costs, dtype=float)
        exponent = f", ~N^{np.log(c[-1] / c[0]) / np.log(n[-1] / n[0]):.2f}" if len(n) > 1 and n[-1] != n[0] else ""
        ax.loglog(n, c, marker="o", color=COLOURS[k % len(COLOURS)], label=f"{name}{exponent}")
    ax.set(xlabel="atoms", ylabel=label)
    ax.legend(frameon=False)
    return open_frame(ax)


@suggest_names
def chain(path: "Chain", *, ax: Any = None) -> Any:
    """Draw the energy along a chain of images against the length of the path, with the highest image marked.

    Args:
        path: the result of `nudged_chain`.
    """
    ax = axes_or_new(ax)
    heights, top = path.energies - path.energies[0], path.highest
    ax.plot(path.lengths, heights, color=COLOURS[0], marker="o")
    label = f"highest image, {heights[top]:.4g} eV"
    ax.plot(path.lengths[top], heights[top], color=COLOURS[1], marker="o", markersize=10, linestyle="none", label=label)
    ax.set(xlabel="length of the path [Å]", ylabel="energy above the first image [eV]")
    ax.legend(frameon=False)
    return open_frame(ax)
