"""Progress bars, and a line for calls that take long: at a terminal and in Jupyter.

A thread watches the outermost public call: after `DELAY` seconds without a bar it shows the call's name and time, and whether
JAX is compiling for it.
"""

import contextlib
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

DELAY = 1.0
"""Seconds before a bar appears."""

PERIOD = 0.25
"""Seconds between two updates of a call's line."""

COMPILATION = "/jax/core/compile/"
LAST_STAGE = "backend_compile"
"""Beginning of the names of JAX's events of a compilation, and a part of the name of the last one."""


def is_shown(wanted: bool | None) -> bool:
    """Return whether bars are shown: as wanted, by default at a terminal and in Jupyter."""
    return bool(sys.stderr.isatty() or _in_jupyter()) if wanted is None else wanted


def _in_jupyter() -> bool:
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and kernel.IPKernelApp.initialized()


def bar(things: Iterable[Any] | None, wanted: bool | None, *, delay: float = DELAY, leave: bool = False, **options: Any) -> Any:
    """Return tqdm's bar over some things, which appears after `delay` seconds."""
    from tqdm import tqdm

    shown = tqdm(things, disable=not is_shown(wanted), delay=delay, leave=leave, file=sys.stderr, **options)
    if not shown.disable:
        _watch.bars.add(shown)
    return shown


class _Residual:
    """A residual that has to fall to `goal`, shown on a logarithmic scale."""

    def __init__(self, shown: Any, goal: float) -> None:
        self._bar, self._goal, self._first, self._begun = shown, goal, 0.0, math.inf

    def after(self, steps_before: int) -> Callable[..., Any]:
        """Return `show(steps, residual)` for a solver that starts when others have taken `steps_before` steps."""
        return lambda steps, residual: self._show(steps_before + steps, residual)

    def _show(self, steps: int, residual: float) -> None:
        if self._bar is None or not (residual > 0.0 and math.isfinite(residual)):
            return
        self._first = max(residual, self._first or self._goal)
        # Compilation before the first step does not count: a bar that goes at once would only flash.
        self._begun = min(self._begun, time.monotonic())
        decades = math.log(self._first / self._goal)
        if decades > 0.0:
            self._bar.n = max(self._bar.n, min(math.log(self._first / max(residual, self._goal)) / decades, 1.0))
        if time.monotonic() - self._begun > DELAY:
            self._bar.delay = 0.0
            _watch.bars.add(self._bar)
            self._bar.set_postfix_str(f"{steps} steps, fmax {residual:.1e}")


@contextlib.contextmanager
def residual_bar(goal: float, wanted: bool | None) -> Iterator[Any]:
    """Show a bar for a residual; by default only at a terminal and in Jupyter."""
    if not is_shown(wanted):
        yield _Residual(None, goal)
        return
    from tqdm import tqdm

    form = "{desc} |{bar:30}| {postfix}"
    with tqdm(total=1.0, desc="relax", delay=math.inf, bar_format=form, leave=False, file=sys.stderr) as shown:
        yield _Residual(shown, goal)


class _Watch:
    """The state of the public call that runs in the main thread, and of JAX's compilation for it."""

    def __init__(self) -> None:
        self.bars: Any = weakref.WeakSet()
        self.depth = 0
        self.listens = False
        self.compiling, self.last = False, -math.inf

    def record(self, event: str, *_: Any, **__: Any) -> None:
        """Record an event of JAX's, which comes at the end of each stage of a compilation."""
        if event.startswith(COMPILATION):
            self.compiling, self.last = LAST_STAGE not in event, time.monotonic()

    @property
    def compiles(self) -> bool:
        """Whether JAX is compiling, or was a moment ago: there is no event before tracing ends."""
        return self.compiling or time.monotonic() - self.last < DELAY


_watch = _Watch()


@contextlib.contextmanager
def watch_call(name: str, arguments: Iterable[Any], wanted: bool | None) -> Iterator[None]:
    """Show a line for a public call that takes long; calls inside another one have none."""
    if _watch.depth or threading.current_thread() is not threading.main_thread() or not is_shown(wanted or None):
        yield
        return
    if not _watch.listens:
        import jax.monitoring

        jax.monitoring.register_event_duration_secs_listener(_watch.record)
        _watch.listens = True
    ended = threading.Event()
    thread = threading.Thread(target=_show_line, args=(ended, name, _atoms(arguments), wanted), daemon=True)
    _watch.depth += 1
    thread.start()
    try:
        yield
    finally:
        _watch.depth -= 1
        ended.set()
        thread.join()


def _atoms(arguments: Iterable[Any]) -> str:
    """Return `" for 64 atoms"`, of the first structure or equilibrium among the arguments."""
    for argument in arguments:
        system: Any = getattr(argument, "__dict__", {}).get("system", argument)
        if type(system).__name__ == "System":  # which stands above this file
            return f" for {len(system)} atoms"
    return ""


def _is_seen(shown: Any) -> bool:
    return not shown.disable and (shown.delay <= 0.0 or shown.last_print_t >= shown.start_t + shown.delay)


def _show_line(ended: threading.Event, name: str, atoms: str, wanted: bool | None) -> None:
    from tqdm import tqdm

    begun, line = time.monotonic(), None
    if ended.wait(DELAY):
        return
    try:
        while True:
            compiling = f"compiling{atoms}, once" if _watch.compiles else ""
            bars = [shown for shown in list(_watch.bars) if _is_seen(shown)]
            if bars:
                if line is not None:
                    line.close()
                    line = None
                if not isinstance(getattr(bars[0], "bar_format", None), str):
                    bars[0].set_postfix_str(compiling)
            elif wanted is not False:
                line = tqdm(bar_format="{desc}", leave=False, file=sys.stderr) if line is None else line
                line.set_description_str(f"{name}: {compiling or f'working{atoms}'}, {time.monotonic() - begun:.0f} s")
            if ended.wait(PERIOD):
                return
    finally:
        if line is not None:
            line.close()
