"""Phonon bands."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.plot.drawing import COLOURS, axes_or_new, opened

if TYPE_CHECKING:
    from mdsens.observables.phonons import PhononPath

WIDEST = 9.0
"""Of a band, in points: where the sensitivity is largest."""


@suggest_names
def phonons(
    path: "PhononPath",
    frequencies: Float[ArrayLike, "points bands"],
    sensitivity: Float[ArrayLike, "points bands"] | None = None,
    *,
    parameter: str = "θ",
    ax: Any = None,
) -> Any:
    """Phonon bands along a path, with a line at each special point; below the zero line are imaginary frequencies.

    Args:
        path: from `observables.phonon_path`.
        frequencies: along it [THz]: `observables.phonon_frequencies(path.q)(system, potential)`.
        sensitivity: dν/dθ of one parameter, or θ dν/dθ, drawn as the bands' width, in one colour where it is positive and in
            another one where it is negative.
        parameter: its name, for the legend.

    Raises:
        InputError: frequencies, or sensitivities, of another path.
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
    ax.set_xlim(path.distances[0], path.distances[-1])
    ax.set_ylabel("frequency [THz]")
    return opened(ax)


def _widths(ax: Any, distances: np.ndarray, frequencies: np.ndarray, sensitivity: np.ndarray, parameter: str) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb
    from matplotlib.lines import Line2D

    if sensitivity.shape != frequencies.shape:
        raise InputError(f"The sensitivity must have the frequencies' shape {frequencies.shape}, not {sensitivity.shape}.")
    largest = np.nanmax(np.abs(sensitivity)) or 1.0
    # Where a band is degenerate its derivative may not exist: nothing is drawn there.
    values = np.nan_to_num(sensitivity)
    ends = np.stack([np.broadcast_to(distances[:, None], frequencies.shape), frequencies], axis=-1)
    segments = np.stack([ends[:-1], ends[1:]], axis=2).reshape(-1, 2, 2)
    middle = 0.5 * (values[:-1] + values[1:]).ravel()
    # Pale rather than transparent: segments overlap.
    pale = [(0.5 + 0.5 * red, 0.5 + 0.5 * green, 0.5 + 0.5 * blue) for red, green, blue in map(to_rgb, COLOURS[:2])]
    colours = [pale[0] if value >= 0.0 else pale[1] for value in middle]
    widths = WIDEST * np.abs(middle) / largest
    ax.add_collection(LineCollection(list(segments), linewidths=widths, colors=colours, capstyle="round", zorder=1))
    shown = [(pale[0], "positive"), (pale[1], "negative")]
    handles = [
        Line2D([], [], color=colour, linewidth=WIDEST, label=f"{parameter} {sign}, {largest:.3g} THz where widest")
        for (colour, sign), any_ in zip(shown, (middle > 0.0, middle < 0.0), strict=True)
        if any_.any()
    ]
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")
