"""Observables, energies and stresses that differentiate themselves by NumPy's algebra, from values instead of in a trace.

`value_and_jacobian` first traces an observable. What is quicker from values says so there by `WantsValues`; then the observable
is called again with JAX's tangents, but outside of any compiled function, once for each parameter.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol

import jax
import numpy as np


class WantsValues(BaseException):
    """Something that is traced would be quicker from values; no error, so that nobody handles it as one."""


class Energies(Protocol):
    """What gives energies and their slopes, with derivatives along tangents."""

    def energy(self, potential: Any, system: Any) -> Any: ...
    def forces(self, potential: Any, system: Any) -> Any: ...
    def stress(self, potential: Any, system: Any) -> Any: ...


class Known:
    """What has been computed at states, for all directions in which observables are differentiated there.

    Attributes:
        energies: what gives energies.
    """

    def __init__(self, energies: Energies) -> None:
        self.energies = energies
        self._entries: dict[Hashable, Any] = {}

    def at(self, what: Hashable, arguments: Any, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returned for equal arguments before, else compute it [host]."""
        leaves, structure = jax.tree.flatten(arguments)
        arrays = [np.asarray(leaf) for leaf in leaves]
        key = what, structure, tuple((array.dtype.str, array.shape, array.tobytes()) for array in arrays)
        if key not in self._entries:
            self._entries[key] = compute()
        return self._entries[key]


_asks: ContextVar[bool] = ContextVar("asks", default=False)
_known: ContextVar[Known | None] = ContextVar("known", default=None)


@contextlib.contextmanager
def asking(allowed: bool) -> Iterator[None]:
    """Let what is traced inside say that it wants values, if these can be had."""
    token = _asks.set(allowed)
    try:
        yield
    finally:
        _asks.reset(token)


@contextlib.contextmanager
def giving_values(known: Known | None) -> Iterator[None]:
    """Call observables inside with values, to which tangents may be attached; None for the usual way."""
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)


def known_values() -> Known | None:
    """Return what is known at the states, where observables are called with values; raise WantsValues where somebody asks."""
    if _asks.get():
        raise WantsValues
    return _known.get()
