"""The running of a study's tasks, one after the other, by processes, or on a cluster. Finished tasks are not done again."""

import collections
import contextlib
import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from mdsens.common.compilation import drop_programs, plan_compilation
from mdsens.common.errors import InputError, MdsensError, StoreError, reason
from mdsens.common.progress import bar
from mdsens.studies.input.tasks import Study, Task
from mdsens.studies.results.record import Record
from mdsens.studies.running.dask_cluster import THREAD_VARIABLES, spread
from mdsens.studies.running.tasks_by_kind import do_task
from mdsens.studies.storage.collected_file import write_plan
from mdsens.studies.storage.task_files import TASKS, task_failures, task_image, write_tasks

LOCK_NAME = ".lock"
SHARD_PATIENCE = 2.0
"""Seconds that a shard waits while others begin."""

QUEUE_PER_WORKER = 2
"""Shares of tasks handed out in advance to each worker."""

SHARE_SECONDS = 1.0
"""Seconds that a share should take: handing out smaller ones would take the workers' time."""

WRITING_PERIOD = 0.1
"""Seconds between two times of writing files: several together take less."""

MAX_UNWRITTEN = 1000
"""Tasks that may wait to be written."""

CACHE_PERIOD = 20
"""Tasks after which compiled programs are dropped, if there are many."""

OFTEN = 10
"""Tasks of a study beyond which all that they need is compiled at once."""

Attempt = tuple[Task, str, bytes]
"""A task, the reason of its failure or "", and its file."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The outcome of a run.

    Attributes:
        total: number of tasks of the study (or of its shard).
        done: number of tasks done now.
        failed: label and reason of each task that failed, now or before.
    """

    total: int
    done: int
    failed: tuple[tuple[str, str], ...]


def run(
    study: Study,
    folder: Path,
    *,
    shard: tuple[int, int] = (1, 1),
    workers: int = 1,
    scheduler: str | None = None,
    retry: bool = False,
    progress: bool | None = None,
) -> Run:
    """Do the tasks of a study that are missing.

    Args:
        folder: the folder of its tasks; made if it is not there.
        shard: `(i, n)`: only every n-th task, beginning with the i-th, for arrays of jobs.
        workers: processes.
        scheduler: address of a Dask scheduler, `"tcp://host:8786"`, whose workers do the work instead.
        retry: do tasks that failed again, too.
        progress: show a bar; by default only at a terminal.

    Raises:
        StoreError: another process works in the folder, another study is in it, or it cannot be written.
    """
    i, n = shard
    if not 1 <= i <= n:
        raise InputError(f"A shard is I/N with I from 1 to N, not {i}/{n}.")
    if workers < 1:
        raise InputError(f"At least one worker is wanted, not {workers}.")
    if scheduler is not None and workers > 1:
        raise InputError("A Dask scheduler has workers of its own: leave workers out, or the scheduler.")
    make_folder(folder)
    with lock_folder(folder, shard):
        write_plan(folder, study)
        if shard == (1, 1):
            for part in (folder / TASKS).glob(".*.part"):  # of a process that was killed
                part.unlink(missing_ok=True)
        tasks = list({task.name: task for task in study.tasks[i - 1 :: n]}.values())
        reasons = {name: why for name, why in task_failures(folder).items() if not (retry and why)}
        missing = [task for task in tasks if task.name not in reasons]
        done, often = 0, len(study.tasks) > OFTEN
        if scheduler is not None and missing:
            results = _write_results(_do_on_cluster(missing, scheduler, often), folder)
        elif workers == 1 or len(missing) < 2:
            results = _write_results(_do_serially(missing, often), folder)
        else:
            results = _do_in_parallel(missing, folder, workers, often)
        options: dict[str, Any] = {"delay": 0.0, "leave": True, "desc": "tasks", "unit": "task", "smoothing": 0.05}
        shown = bar(None, progress if missing else False, total=len(tasks), initial=len(tasks) - len(missing), **options)
        with contextlib.closing(results), shown:
            for name, why in results:
                done += 1
                reasons[name] = why
                shown.update()
    return Run(len(tasks), done, tuple((task.label, text) for task in tasks if (text := reasons.get(task.name))))


def make_folder(folder: Path) -> None:
    """Make a study's folder.

    Raises:
        StoreError: it cannot be made or written to.
    """
    try:
        (folder / TASKS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder {str(folder)!r} cannot be made ({error.strerror}).") from None
    if not os.access(folder / TASKS, os.W_OK):
        raise StoreError(f"The folder {str(folder / TASKS)!r} cannot be written to.")


@contextlib.contextmanager
def lock_folder(folder: Path, shard: tuple[int, int] = (1, 1)) -> Iterator[None]:
    """Keep other processes out of a folder; different shards of a study may work in it together. The lock ends with the process.

    Raises:
        StoreError: another process works in it.
    """
    from filelock import FileLock, Timeout

    with contextlib.ExitStack() as locks:

        def take(name: str, patience: float = 0.0) -> FileLock:
            lock = FileLock(folder / name)
            try:
                lock.acquire(timeout=patience)
            except Timeout:
                raise StoreError(
                    f"Another process is at work in {str(folder)!r}: wait for it, stop it, or choose another folder (-o)."
                ) from None
            except (OSError, NotImplementedError) as error:
                raise StoreError(
                    f"The folder {str(folder)!r} cannot be locked ({reason(error)}): choose another one (-o)."
                ) from None
            locks.callback(lock.release)
            return lock

        if shard == (1, 1):
            take(LOCK_NAME)
            for other in sorted(folder.glob(f"{LOCK_NAME}-*")):
                take(other.name)
        else:
            # Shards pass through the lock of the whole one after the other, and keep their own.
            whole = take(LOCK_NAME, SHARD_PATIENCE)
            take(f"{LOCK_NAME}-{shard[0]}-of-{shard[1]}")
            whole.release()
        yield


def attempt(task: Task, *, often: bool) -> tuple[str, bytes]:
    """Do a task; return why it failed, or "", and its file.

    Args:
        often: whether the study has many tasks. Results depend on that, and not on what the process did before.
    """
    begun, record, failure = time.perf_counter(), Record({}, {}), ""
    try:
        with plan_compilation(often):
            record = do_task(task.input)
    except MdsensError as error:
        failure = str(error) or type(error).__name__
    except Exception as error:  # a study goes on whatever goes wrong in one of its tasks
        failure = f"an unexpected {reason(error)}"
    return failure, task_image(task, record, failure, time.perf_counter() - begun)


def _write_results(results: Generator[Attempt], folder: Path) -> Generator[tuple[str, str]]:
    """Write tasks' files while the next ones are at work; yield their names, and why they failed."""
    waiting: collections.deque[Attempt] = collections.deque()
    writing: collections.deque[Future[list[tuple[str, str]]]] = collections.deque()
    hurry, written = threading.Event(), -math.inf

    def write() -> list[tuple[str, str]]:
        """Write all that wait by now; later calls find less or nothing to do."""
        nonlocal written
        if not waiting:
            return []
        hurry.wait(written + WRITING_PERIOD - time.monotonic())
        attempts = [waiting.popleft() for _ in range(len(waiting))]
        write_tasks(folder, {task.name: image for task, _, image in attempts})
        written = time.monotonic()
        return [(task.name, failure) for task, failure, _ in attempts]

    with contextlib.closing(results), ThreadPoolExecutor(1) as pool:
        try:
            for result in results:
                waiting.append(result)
                writing.append(pool.submit(write))
                while writing and (writing[0].done() or len(waiting) > MAX_UNWRITTEN):
                    yield from writing.popleft().result()
        finally:
            hurry.set()
        while writing:
            yield from writing.popleft().result()


def _do_serially(tasks: Sequence[Task], often: bool) -> Generator[Attempt]:
    for k, task in enumerate(tasks):
        if k % CACHE_PERIOD == 0:
            drop_programs()
        yield task, *attempt(task, often=often)


def _do_on_cluster(tasks: Sequence[Task], address: str, often: bool) -> Generator[Attempt]:
    for task, result, lost in spread(functools.partial(attempt, often=often), tasks, address):
        yield task, *((lost, task_image(task, Record({}, {}), lost, 0.0)) if result is None else result)


def do_share(tasks: Sequence[Task], folder: Path, often: bool) -> tuple[list[tuple[str, str]], float]:
    """Do tasks and write their files for `SHARE_SECONDS`; return names and reasons of failure, and the seconds it took."""
    begun = time.perf_counter()
    drop_programs()

    def in_time() -> Generator[Attempt]:
        for k, task in enumerate(tasks):
            if k and time.perf_counter() - begun > SHARE_SECONDS:
                break
            yield task, *attempt(task, often=often)

    return list(_write_results(in_time(), folder)), time.perf_counter() - begun


def _do_in_parallel(tasks: Sequence[Task], folder: Path, workers: int, often: bool) -> Generator[tuple[str, str]]:
    """Do shares of tasks by processes, which write files themselves; yield names, and why they failed."""
    workers = min(workers, len(tasks))
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    left, running, count = collections.deque(tasks), {}, 1

    def submit() -> None:
        # The fewer are left, the smaller the shares, so that all workers end together.
        tasks = [left.popleft() for _ in range(min(len(left), max(1, min(count, len(left) // (2 * workers)))))]
        if tasks:
            running[pool.submit(do_share, tasks, folder, often)] = tasks

    try:
        with _thread_limit(threads), _block_interrupts():
            for _ in range(QUEUE_PER_WORKER * workers):
                submit()
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                done, seconds = future.result()
                left.extendleft(reversed(running.pop(future)[len(done) :]))
                count = max(1, int(SHARE_SECONDS * len(done) / seconds))
                submit()
                yield from done
    except BrokenProcessPool:
        raise StoreError(
            "A worker died, perhaps for want of memory: what was finished is kept; run again, with fewer --workers."
        ) from None
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        if running:
            for process in processes:
                process.terminate()
        # The pool's own thread closes pipes: it must end before the interpreter does.
        pool.shutdown(wait=True)
        for process in processes:
            process.join()
            for part in (folder / TASKS).glob(f".*.{process.pid}.part"):
                part.unlink(missing_ok=True)


@contextlib.contextmanager
def _thread_limit(count: int) -> Iterator[None]:
    """Bound the threads of processes that are started meanwhile."""
    before = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    try:
        yield
    finally:
        for name in THREAD_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def _block_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait meanwhile; processes that are started do not receive it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Ignore Ctrl-C, which is for the parent process, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
