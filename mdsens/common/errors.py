"""Errors. Every message is a sentence for the user: what was wrong, and what to do."""

import contextlib
import difflib
import inspect
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


class MdsensError(Exception):
    """Base class of every error that mdsens raises on purpose."""


class InputError(MdsensError, ValueError):
    """An argument, file or structure cannot be used as it is."""


class CoincidingAtoms(InputError):
    """Two atoms are at the same place; `positions` are those of all atoms."""

    def __init__(self, positions: "ArrayLike", message: str) -> None:
        super().__init__(message)
        self.positions = positions


class ConvergenceError(MdsensError, RuntimeError):
    """An equilibrium was not reached, or the state reached is not of the kind that was asked for."""


class BatchError(ConvergenceError):
    """Some of many structures were not relaxed; `results` are those of all, with their status."""

    def __init__(self, message: str, results: "Sequence[Any]") -> None:
        super().__init__(message)
        self.results = results


class LinearSolveError(MdsensError, RuntimeError):
    """A linear system could not be solved to its tolerance."""


class StoreError(MdsensError, OSError):
    """A file could not be read or written."""


def reason(error: Exception) -> str:
    """Return the kind and the first line of an exception."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


@contextlib.contextmanager
def explain_untraceable(what: str, form: str) -> Iterator[None]:
    """Turn errors of a user's function that is being traced into an InputError that says how to write it."""
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
    """Return `" Did you mean 'sigma'?"`, or the list of known names where none is near."""
    known = list(known)
    return nearest_name(name, known) or f" There are: {', '.join(known)}."


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'sigma'?"`, or an empty text where no known name is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def level_of_user() -> int:
    """Return the `stacklevel` with which a warning of the caller points to the user's line."""
    frames = [frame.frame.f_globals.get("__name__", "") for frame in inspect.stack(context=0)[1:]]
    ours = itertools.takewhile(lambda name: name.partition(".")[0] in ("mdsens", "equinox", "jax"), frames)
    return len(list(ours)) + 1
