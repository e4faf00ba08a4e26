"""What a person sees of work that takes long."""

import io
import sys
import time

import jax
import jax.numpy as jnp

from mdsens.common import progress
from mdsens.common.suggestions import suggest_names


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_of(monkeypatch):
    """In the test itself: pytest has its own place for what is written between."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "DELAY", 0.2)
    monkeypatch.setattr(progress, "PERIOD", 0.05)
    return screen


@suggest_names
def busy(seconds, *, progress=None):
    time.sleep(seconds)


@suggest_names
def compiled():
    def slow(x):
        # What is traced takes its time, as a potential does.
        for _ in range(300):
            x = jnp.sin(x) @ x
        return x

    jax.jit(slow)(jnp.ones((3, 3))).block_until_ready()
    time.sleep(0.3)


def test_a_call_that_takes_long_says_so_and_a_short_one_nothing(monkeypatch):
    terminal = terminal_of(monkeypatch)
    busy(0.01)
    assert terminal.getvalue() == ""
    busy(0.5)
    assert "busy: working, 0 s" in terminal.getvalue()
    # Nothing is left on the line.
    assert terminal.getvalue().rsplit("\r", 2)[-2].strip() == ""


def test_nothing_is_shown_where_it_is_not_wanted_or_nobody_looks(monkeypatch):
    terminal = terminal_of(monkeypatch)
    busy(0.4, progress=False)
    assert terminal.getvalue() == ""
    monkeypatch.setattr(Terminal, "isatty", lambda _: False)
    busy(0.4)
    assert terminal.getvalue() == ""


def test_compilation_is_told(monkeypatch):
    terminal = terminal_of(monkeypatch)
    compiled()
    assert "compiled: compiling, once" in terminal.getvalue()


def test_a_bar_takes_the_place_of_the_line(monkeypatch):
    terminal = terminal_of(monkeypatch)

    @suggest_names
    def counted():
        for _ in progress.bar(range(10), None, desc="things", delay=0.1):
            time.sleep(0.08)

    counted()
    assert "things" in terminal.getvalue() and "working" not in terminal.getvalue()


def test_a_bar_of_forces_does_not_flash_when_compiling_took_the_time(monkeypatch):
    terminal = terminal_of(monkeypatch)
    with progress.residual_bar(1e-8, None) as show:
        time.sleep(0.4)  # compilation
        for k in range(3):
            show.after(0)(k, 10.0**-k)
    assert terminal.getvalue() == ""
    with progress.residual_bar(1e-8, None) as show:
        for k in range(4):
            show.after(0)(k, 10.0**-k)
            time.sleep(0.15)
    assert "3 steps, fmax 1.0e-03" in terminal.getvalue()
