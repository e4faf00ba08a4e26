"""What mdsens raises. Every message is a sentence for the user: what was wrong, and what to do."""

import contextlib
import difflib
import inspect
import itertools
from collections.abc import Iterable, Iterator
from typing import Any


class MdsensError(Exception):
    """Base class of every error that mdsens raises on purpose."""


class InputError(MdsensError, ValueError):
    """What was given cannot be used as it is."""


class CoincidingAtoms(InputError):
    """Two atoms are at the same place; `positions` are those in which they are."""

    def __init__(self, positions: Any, message: str) -> None:
        super().__init__(message)
        self.positions = positions


class ConvergenceError(MdsensError, RuntimeError):
    """An equilibrium was not reached, or the state reached is not what was asked for."""


class LinearSolveError(MdsensError, RuntimeError):
    """A linear system could not be solved to its tolerance."""


class StoreError(MdsensError, OSError):
    """A file could not be read or written."""


def reason(error: Exception) -> str:
    """What another's exception says, in one line."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


@contextlib.contextmanager
def explain_untraceable(what: str, form: str) -> Iterator[None]:
    """Around a function of the user's, which fails in its own ways: raises InputError that says how to write it."""
    try:
        yield
    except (MdsensError, NotImplementedError):
        raise
    except Exception as error:
        if isinstance(error, TypeError) and "positional argument" in str(error):
            raise InputError(f"{what} is called as {form}: write it so ({reason(error)}).") from error
        raise InputError(
            f"{what} cannot be traced: write it with jax.numpy, as {form}, without float(), math, NumPy functions or `if` on "
            f"values ({reason(error)})."
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'sigma'?"`, or the list of what exists when nothing is near."""
    known = list(known)
    return nearest_name(name, known) or f" There are: {', '.join(known)}."


def nearest_name(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'sigma'?"`, or nothing when nothing is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def level_of_user() -> int:
    """The `stacklevel`, in who warns, of the line of the user's that led here."""
    frames = [frame.frame.f_globals.get("__name__", "") for frame in inspect.stack(context=0)[1:]]
    ours = itertools.takewhile(lambda name: name.partition(".")[0] in ("mdsens", "equinox", "jax"), frames)
    return len(list(ours)) + 1
