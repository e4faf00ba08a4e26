"""Progress bars: at a terminal, for work that takes longer than a moment."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

DELAY = 1.0
"""Seconds before a bar appears."""


class _Residual:
    """A residual that has to fall to `goal`, shown on a logarithmic scale."""

    def __init__(self, bar: Any, goal: Any) -> None:
        self._bar, self._goal, self._first = bar, goal, None

    def after(self, steps_before: int) -> Callable[..., Any]:
        """`show(steps, residual)` for a solver that starts when others have taken `steps_before` steps."""
        return lambda steps, residual: self._show(steps_before + steps, residual)

    def _show(self, steps: Any, residual: Any) -> None:
        if self._bar is None or not (residual > 0.0 and math.isfinite(residual)):
            return
        self._first = max(residual, self._first or self._goal)
        decades = math.log(self._first / self._goal)
        if decades > 0.0:
            self._bar.n = max(self._bar.n, min(math.log(self._first / max(residual, self._goal)) / decades, 1.0))
        self._bar.set_postfix_str(f"{steps} steps, fmax {residual:.1e}")


@contextlib.contextmanager
def residual_bar(goal: float, wanted: bool | None) -> Iterator[Any]:
    """A bar for a residual; by default only at a terminal."""
    if wanted is False:
        yield _Residual(None, goal)
        return
    from tqdm import tqdm

    disable = None if wanted is None else False
    form = "{desc} |{bar:30}| {postfix}"
    with tqdm(total=1.0, desc="relax", delay=DELAY, disable=disable, bar_format=form, leave=False) as bar:
        yield _Residual(bar, goal)
