"""Parts that all pictures share: colours, axes, frames."""

from typing import Any

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756")


def axes_or_new(ax: Any, **options: Any) -> Any:
    """Return the axes, or new ones, made with the options, in place of None."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(6.4, 5.6), layout="constrained").add_subplot(**options)


def patch(colour: str, label: str) -> Any:
    """Return an entry of a legend."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, label=label)


def open_frame(ax: Any) -> Any:
    """Hide the upper and the right side of the frame; return the axes."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax
