"""Numbers: influence of parameters, error bars, tables as heat maps, predictions, convergence, paths."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.plot.drawing import COLOURS, axes_or_new, opened, patch

if TYPE_CHECKING:
    from mdsens.derivatives.extrapolation import Validity
    from mdsens.equilibrium.elastic_band import Chain

SHORT = 6
"""Letters of a column's name that stand upright."""

ALIKE = 1e-6
"""Share of the largest derivative up to which elastic constants are equal, or zero."""

NOTHING = 1e-7
"""Share of the largest influence up to which one is nothing."""

LINEAR = 0.02
"""Share of the largest influence that is still seen on a linear scale."""

FEW_BARS = 3
"""For so many there is room, that one alone does not fill the picture."""

NUMBERS = 150
"""Of a heat map: up to so many are written into it."""


@suggest_names
def influence(values: dict[str, float], *, label: str, ax: Any = None) -> Any:
    """A bar for each parameter's influence: from zero, or on a logarithmic scale where they differ by orders of magnitude.

    What is nothing beside the largest, by rounding or by symmetry, has no bar and is called 0.

    Args:
        values: by parameter, signed or not; the largest sets the scale.
        label: what they are, with unit: `"max |θ dX/dθ| [Å]"`.
    """
    ax = axes_or_new(ax)
    names = sorted(values, key=lambda name: abs(values[name]))
    sizes = np.array([abs(float(values[name])) for name in names])
    top = sizes.max(initial=0.0) or 1.0
    visible = sizes > NOTHING * top
    smallest = sizes[visible].min(initial=top)
    logarithmic = smallest < LINEAR * top
    start = 0.3 * smallest if logarithmic else 0.0
    signs = np.array([np.sign(float(values[name])) for name in names])
    colours = [COLOURS[0] if sign >= 0 else COLOURS[1] for sign in signs]
    ax.barh(names, np.where(visible, sizes, start), color=colours)
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    ax.set_xlim(start, (top / start) ** 0.2 * top if logarithmic else 1.25 * top)
    ax.set_ylim(-0.6, max(len(names), FEW_BARS) - 0.4)
    for row, (value, seen) in enumerate(zip(sizes, visible, strict=True)):
        text = f"{signs[row] * value:.3g}" if seen else "0"
        ax.annotate(text, (value if seen else start, row), (4, 0), textcoords="offset points", va="center")
    ax.set_xlabel(label)
    if (signs[visible] < 0).any():
        ax.legend(handles=[patch(COLOURS[0], "positive"), patch(COLOURS[1], "negative")], loc="lower right", frameon=False)
    return opened(ax)


@suggest_names
def bars(values: dict[str, float], errors: dict[str, float] | None = None, *, label: str, ax: Any = None) -> Any:
    """A bar for each parameter on a linear scale, the largest on top, with error bars where they are finite.

    Args:
        values: by parameter, signed.
        errors: one standard deviation of each.
        label: what they are, with unit.
    """
    ax = axes_or_new(ax)
    names = sorted(values, key=lambda name: abs(values[name]))
    heights = np.array([float(values[name]) for name in names])
    widths = np.array([float((errors or {}).get(name, np.nan)) for name in names])
    ax.barh(names, heights, color=[COLOURS[0] if height >= 0.0 else COLOURS[1] for height in heights])
    ax.set_ylim(-0.6, max(len(names), FEW_BARS) - 0.4)
    known = np.isfinite(widths)
    ax.errorbar(heights[known], np.flatnonzero(known), xerr=widths[known], fmt="none", ecolor="0.2", capsize=4)
    ax.axvline(0.0, color="0.4", linewidth=0.8)
    ax.set_xlabel(label if errors is None else f"{label}, ± one standard deviation")
    return opened(ax)


@suggest_names
def heat_map(
    values: Float[ArrayLike, "rows columns"], rows: Sequence[str], columns: Sequence[str], *, label: str, ax: Any = None
) -> Any:
    """A table as colours, blue where negative and red where positive, white at zero, with its numbers where there is room.

    Args:
        label: what they are, with unit.

    Raises:
        InputError: names that do not fit the table.
    """
    values = np.asarray(values, dtype=float)
    if values.shape != (len(rows), len(columns)):
        raise InputError(f"A table of {len(rows)} rows and {len(columns)} columns is wanted, not of shape {values.shape}.")
    ax = axes_or_new(ax)
    largest = np.nanmax(np.abs(values), initial=0.0) or 1.0
    image = ax.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=45 if max(map(len, columns)) > SHORT else 0, ha="center")
    ax.set_yticks(range(len(rows)), rows)
    if values.size <= NUMBERS:
        for (i, j), value in np.ndenumerate(values):
            shown = 0.0 if abs(value) < 1e-9 * largest else value
            ax.text(j, i, f"{shown:.3g}", ha="center", va="center", color="w" if abs(value) > 0.6 * largest else "0.15", size=8)
    ax.tick_params(length=0)
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


@suggest_names
def elastic_sensitivity(
    derivatives: dict[str, Float[ArrayLike, "voigt voigt"]], *, label: str = "θ dC/dθ [GPa]", ax: Any = None
) -> Any:
    """How elastic constants depend on parameters: a row a parameter, a column for each constant.

    Constants that depend on nothing are left out, and of those that symmetry makes equal all but the first.

    Args:
        derivatives: dC/dθ or θ dC/dθ by parameter, Voigt's matrices of three or six rows.
    """
    stacked = np.stack([np.asarray(matrix) for matrix in derivatives.values()])
    size = np.abs(stacked).max(axis=0)
    columns: dict[str, np.ndarray] = {}
    for i, j in np.ndindex(size.shape):
        column, zero = stacked[:, i, j], ALIKE * size.max()
        if i <= j and size[i, j] > zero and not any(np.abs(column - other).max() <= zero for other in columns.values()):
            columns[f"C{i + 1}{j + 1}"] = column
    columns = columns or {"C11": stacked[:, 0, 0]}
    return heat_map(np.stack([*columns.values()], axis=1), list(derivatives), list(columns), label=label, ax=ax)


@suggest_names
def prediction(
    predicted: Float[ArrayLike, "..."], relaxed: Float[ArrayLike, "..."], *, label: str = "displacement [Å]", ax: Any = None
) -> Any:
    """What was predicted against what was found when structures were relaxed again, one point a number; on the line they agree.

    Args:
        predicted: displacements or observables, of any shape.
        relaxed: the same, of structures relaxed again.
        label: what they are, with unit.

    Raises:
        InputError: arrays of different shapes.
    """
    predicted, relaxed = np.asarray(predicted, dtype=float), np.asarray(relaxed, dtype=float)
    if predicted.shape != relaxed.shape or predicted.size == 0:
        raise InputError(f"As many predictions as findings are wanted, not of shapes {predicted.shape} and {relaxed.shape}.")
    ax = axes_or_new(ax)
    both = np.concatenate([predicted.ravel(), relaxed.ravel()])
    margin = 0.05 * (np.ptp(both) or 1.0)
    ends = both.min() - margin, both.max() + margin
    ax.plot(ends, ends, color="0.7", linewidth=0.8, zorder=0)
    ax.plot(relaxed.ravel(), predicted.ravel(), color=COLOURS[0], marker="o", markersize=4, linestyle="none", alpha=0.7)
    error = np.linalg.norm(predicted - relaxed) / (np.linalg.norm(relaxed) or 1.0)
    ax.set_title(f"off by {error:.2%} of it, at most by {np.abs(predicted - relaxed).max():.2g}", fontsize="medium")
    ax.set(xlim=ends, ylim=ends, aspect="equal", xlabel=f"relaxed again: {label}", ylabel=f"predicted: {label}")
    return opened(ax)


@suggest_names
def validity(found: "Validity", *, ax: Any = None) -> Any:
    """Predicted displacements against those of structures relaxed again, with the range in which they should agree.

    Args:
        found: what `mdsens.validity(..., checks=n)` returned.

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
    ax.set_xlabel("t, in units of the direction")
    ax.set_ylabel("displacement of all atoms [Å]")
    ax.set_xlim(left=0.0)
    ax.set_ylim(bottom=0.0)
    ax.ticklabel_format(scilimits=(-2, 3))
    ax.legend(frameon=False)
    return opened(ax)


@suggest_names
def convergence(values: Float[ArrayLike, " steps"], *, label: str, ax: Any = None) -> Any:
    """What goes to zero step by step, on a logarithmic scale; zeros are left out.

    Args:
        label: what it is, with unit.
    """
    ax = axes_or_new(ax)
    values = np.asarray(values, dtype=float)
    steps = np.flatnonzero(values > 0.0)
    ax.semilogy(steps, values[steps], color=COLOURS[0], marker="o")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("steps")
    ax.set_ylabel(label)
    return opened(ax)


@suggest_names
def cost(measured: dict[str, tuple[Sequence[float], Sequence[float]]], *, label: str = "seconds", ax: Any = None) -> Any:
    """Cost against the number of atoms, both on logarithmic scales, with the exponent of each line between its ends.

    Args:
        measured: `(numbers of atoms, costs)` by what was measured.
        label: of the cost, with unit.
    """
    ax = axes_or_new(ax)
    for k, (name, (atoms, costs)) in enumerate(measured.items()):
        n, c = np.asarray(atoms, dtype=float), np.asarray(costs, dtype=float)
        exponent = f", ~N^{np.log(c[-1] / c[0]) / np.log(n[-1] / n[0]):.2f}" if len(n) > 1 and n[-1] != n[0] else ""
        ax.loglog(n, c, marker="o", color=COLOURS[k % len(COLOURS)], label=f"{name}{exponent}")
    ax.set_xlabel("atoms")
    ax.set_ylabel(label)
    ax.legend(frameon=False)
    return opened(ax)


@suggest_names
def chain(path: "Chain", *, ax: Any = None) -> Any:
    """The energy along a chain of images against the length of the path, with the highest image marked.

    Args:
        path: what `nudged_chain` returned.
    """
    ax = axes_or_new(ax)
    heights = path.energies - path.energies[0]
    ax.plot(path.lengths, heights, color=COLOURS[0], marker="o")
    ax.plot(
        path.lengths[path.highest],
        heights[path.highest],
        color=COLOURS[1],
        marker="o",
        markersize=10,
        linestyle="none",
        label=f"highest image, {heights[path.highest]:.4g} eV",
    )
    ax.set_xlabel("length of the path [Å]")
    ax.set_ylabel("energy above the first image [eV]")
    ax.legend(frameon=False)
    return opened(ax)
