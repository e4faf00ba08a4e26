"""Threads of BLAS, which small matrices are better without: they take longer to meet than to work, and keep others waiting."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

SMALL_SIZE = 500
"""Rows of a matrix up to which one thread is the quickest."""


class _Limit:
    """The limit of the process, and how many contexts want it."""

    def __init__(self) -> None:
        self.lock, self.wanted, self.limit = threading.Lock(), 0, contextlib.ExitStack()

    def begin(self) -> None:
        with self.lock:
            self.wanted += 1
            if self.wanted == 1:
                self.limit.enter_context(_controller().limit(limits=1, user_api="blas"))

    def end(self) -> None:
        with self.lock:
            self.wanted -= 1
            if self.wanted == 0:
                self.limit.close()


_limit = _Limit()


@functools.cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextlib.contextmanager
def one_thread(size: int = 0) -> Iterator[None]:
    """Let BLAS have one thread meanwhile, where matrices have no more than `SMALL_SIZE` rows.

    The number is the process's: it comes back when the last of several contexts ends, in whichever thread and order they do.
    """
    if size > SMALL_SIZE:
        yield
        return
    _limit.begin()
    try:
        yield
    finally:
        _limit.end()
