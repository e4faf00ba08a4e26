"""Progress bars: at a terminal, for work that takes longer than a moment."""

import contextlib
import math

DELAY = 1.0
"""Seconds before a bar appears."""


@contextlib.contextmanager
def residual_bar(goal: float, wanted: bool | None):
    """A bar for a residual that has to fall to `goal`, on a logarithmic scale; yields `show(steps, residual)`."""
    if wanted is False:
        yield lambda steps, residual: None
        return
    from tqdm import tqdm

    with tqdm(
        total=1.0,
        desc="relax",
        delay=DELAY,
        disable=None if wanted is None else False,
        bar_format="{desc} |{bar:30}| {postfix}",
        leave=False,
    ) as bar:
        first = None

        def show(steps, residual):
            nonlocal first
            if not residual > 0.0 or not math.isfinite(residual):
                return
            first = max(residual, goal) if first is None else max(first, residual)
            done = math.log(first / max(residual, goal)) / max(math.log(first / goal), 1e-12)
            bar.n = max(bar.n, min(done, 1.0))
            bar.set_postfix_str(f"{steps} steps, fmax {residual:.1e}")

        yield show
