"""Observables that differentiate themselves by NumPy's algebra, for which they want values instead of a traced function.

`value_and_jacobian` first traces an observable. One that is quicker from values says so there by `WantsValues`; then it is
called again with JAX's tangents, but outside of any compiled function, once for each parameter.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax


class WantsValues(BaseException):
    """An observable that is traced would be quicker from values; no error, so that nobody handles it as one."""


class Known:
    """What observables have computed at states, for all directions in which they are differentiated."""

    def __init__(self) -> None:
        self._entries: dict[Any, tuple[Any, Any]] = {}

    def at(self, arguments: Any, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returned for the same arrays before, else compute it [host]."""
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, tuple(map(id, leaves))
        if key not in self._entries:
            # With the arrays, so that no other ones get their addresses.
            self._entries[key] = leaves, compute()
        return self._entries[key][1]


_asks: ContextVar[bool] = ContextVar("asks", default=False)
_known: ContextVar[Known | None] = ContextVar("known", default=None)


@contextlib.contextmanager
def asking(allowed: bool) -> Iterator[None]:
    """Let observables that are traced inside say that they want values, if these can be had."""
    token = _asks.set(allowed)
    try:
        yield
    finally:
        _asks.reset(token)


@contextlib.contextmanager
def giving_values() -> Iterator[None]:
    """Call observables inside with values, to which tangents may be attached."""
    token = _known.set(Known())
    try:
        yield
    finally:
        _known.reset(token)


def want_values() -> None:
    """Raise WantsValues where somebody asks."""
    if _asks.get():
        raise WantsValues


def known() -> Known | None:
    """Return what is known at the states, where observables are called with values."""
    return _known.get()
