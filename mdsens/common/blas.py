"""Threads of BLAS, which small matrices are better without: they take longer to meet than to work, and keep others waiting."""

import contextlib
import functools
from typing import Any

SMALL_SIZE = 500
"""Rows of a matrix up to which one thread is the quickest."""


@functools.cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_thread(size: int = 0) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which BLAS has one thread, where matrices have no more than `SMALL_SIZE` rows."""
    return _controller().limit(limits=1, user_api="blas") if size <= SMALL_SIZE else contextlib.nullcontext()  # type: ignore[no-any-return]
