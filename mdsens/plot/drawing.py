"""What all pictures share: colours, fresh axes, open frames."""

from typing import Any

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756")


def axes_or_new(ax: Any, **options: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(6.4, 5.6), layout="constrained").add_subplot(**options)


def patch(colour: Any, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, label=label)


def opened(ax: Any) -> Any:
    """Without the upper and the right side of the frame."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax
