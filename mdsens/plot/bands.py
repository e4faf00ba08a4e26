"""Phonon bands."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.plot.drawing import COLOURS, axes_or_new, open_frame

if TYPE_CHECKING:
    from mdsens.observables.phonons import PhononPath

MAX_WIDTH = 9.0
"""Width of a band in points where its sensitivity is largest."""


@suggest_names
def phonons(
    path: "PhononPath",
    frequencies: Float[ArrayLike, "points bands"],
    sensitivity: Float[ArrayLike, "points bands"] | None = None,
    *,
    parameter: str = "θ",
    ax: Any = None,
) -> Any:
    """Draw phonon bands along a path, with a line at each special point; imaginary frequencies are below the zero line.

    Args:
        path: from `observables.phonon_path`.
        frequencies: along it [THz]: `observables.phonon_frequencies(path.q)(system, potential)`.
        sensitivity: dν/dθ of one parameter, or θ dν/dθ, drawn as the bands' width, in one colour where it is positive and in
            another one where it is negative.
        parameter: its name, for the legend.

    Raises:
        InputError: frequencies, or sensitivities, of another path.

    Example:
        ms.plot.phonons(path, ms.observables.phonon_frequencies(path.q)(eq.system, eq.potential))
    """
    frequencies = np.asarray(frequencies)
    if frequencies.ndim != 2 or len(frequencies) != len(path.distances):
        raise InputError(f"plot.phonons wants frequencies of shape ({len(path.distances)}, bands), not {frequencies.shape}.")
    ax = axes_or_new(ax)
    if sensitivity is not None:
        _widths(ax, np.asarray(path.distances), frequencies, np.asarray(sensitivity), parameter)
    ax.plot(path.distances, frequencies, color=COLOURS[0] if sensitivity is None else "0.25", linewidth=1.2)
    for tick in path.ticks:
        ax.axvline(tick, color="0.7", linewidth=0.6, zorder=0)
    ax.axhline(0.0, color="0.4", linewidth=0.6, zorder=0)
    ax.set_xticks(path.ticks, path.labels)
    ax.set(xlim=(path.distances[0], path.distances[-1]), ylabel="frequency [THz]")
    return open_frame(ax)


def _widths(ax: Any, distances: np.ndarray, frequencies: np.ndarray, sensitivity: np.ndarray, parameter: str) -> None:
    """Draw a sensitivity as the bands' width, with a legend."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb
    from matplotlib.lines import Line2D

    if sensitivity.shape != frequencies.shape:
        raise InputError(f"The sensitivity must have the frequencies' shape {frequencies.shape}, not {sensitivity.shape}.")
    largest = np.nanmax(np.abs(sensitivity)) or 1.0
    # Where a band is degenerate its derivative may not exist: its width is zero there.
    values = np.nan_to_num(sensitivity)
    ends = np.stack([np.broadcast_to(distances[:, None], frequencies.shape), frequencies], axis=-1)
    segments = np.stack([ends[:-1], ends[1:]], axis=2).reshape(-1, 2, 2)
    middle = 0.5 * (values[:-1] + values[1:]).ravel()
    # Pale rather than transparent: segments overlap.
    pale = [(0.5 + 0.5 * red, 0.5 + 0.5 * green, 0.5 + 0.5 * blue) for red, green, blue in map(to_rgb, COLOURS[:2])]
    colours = [pale[int(value < 0.0)] for value in middle]
    widths = MAX_WIDTH * np.abs(middle) / largest
    ax.add_collection(LineCollection(list(segments), linewidths=widths, colors=colours, capstyle="round", zorder=1))
    handles = [
        Line2D([], [], color=colour, linewidth=MAX_WIDTH, label=f"{parameter} {sign}, {largest:.3g} THz where widest")
        for colour, sign, present in zip(pale, ("positive", "negative"), (middle > 0.0, middle < 0.0), strict=True)
        if present.any()
    ]
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")
