"""Work on a cluster by Dask distributed."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mdsens.common.errors import InputError, StoreError, reason

QUEUE_PER_THREAD = 4
"""Items handed out in advance to each thread of the workers."""

CONNECTION_TIMEOUT, WORKER_TIMEOUT = 10.0, 60.0
"""Seconds to wait for the scheduler, and for a first worker."""

THREAD_VARIABLES = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that bound threads; NPROC is XLA's."""


def spread(function: Callable[..., Any], items: Sequence[Any], address: str) -> Iterator[tuple[Any, Any, str]]:
    """Apply a function to items by the workers of a scheduler; yield `(item, result, "")` in the order in which they are done.

    An item whose worker is lost goes to another one; where that happens again and again it is given up, `(item, None, why)`.

    Args:
        function: a function that workers can import.
        address: the scheduler's, `"tcp://host:8786"`.

    Raises:
        InputError: Dask is not installed, or nothing answers at this address.
        StoreError: the scheduler is lost.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise InputError("A scheduler wants Dask distributed: pip install 'mdsens[dask]'.") from None
    try:
        client = Client(address, timeout=CONNECTION_TIMEOUT, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"No Dask scheduler answers at {address!r} ({reason(error)}): start one with 'dask scheduler', and workers with "
            f"'dask worker {address} --nthreads 1 --nworkers N'."
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_TIMEOUT)
        except TimeoutError:
            raise InputError(
                f"The Dask scheduler at {address!r} has no workers: start some with 'dask worker {address} --nthreads 1'."
            ) from None
        client.register_plugin(_thread_limit())
        left, running = iter(items), {}

        def submit(count: int) -> Iterator[Any]:
            for item in itertools.islice(left, count):
                future = client.submit(function, item, pure=False)
                running[future.key] = item
                yield future

        done = as_completed(submit(QUEUE_PER_THREAD * sum(client.nthreads().values())), loop=client.loop)
        for future in done:
            item = running.pop(future.key)
            if future.status == "finished":
                yield item, future.result(), ""
            elif future.status == "error":
                yield item, None, f"its worker was lost, more than once ({reason(future.exception())})"
            else:
                raise StoreError("The Dask scheduler was lost: what was finished is kept; run again.")
            done.update(submit(1))


def _thread_limit() -> Any:
    """Return a plugin that bounds the threads of present and future workers before they import JAX."""
    from distributed import WorkerPlugin

    class BoundedThreads(WorkerPlugin):
        name = "mdsens-bounded-threads"

        def setup(self, worker: Any) -> None:
            os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(worker.state.nthreads)))

    return BoundedThreads()
