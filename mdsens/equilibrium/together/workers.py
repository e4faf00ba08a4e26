"""Threads that take many courses on together: each answers, in one call of a program, what its courses ask next.

A course that has ended makes room for a waiting one. None sees another: an error ends the course that it happens to.
"""

import functools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mdsens.common.blas import one_thread
from mdsens.equilibrium.together.questions import answer
from mdsens.mechanics.batches import PLACES

MAX_THREADS = 8
"""Threads, at most: what is left of each course in Python goes one at a time."""

LEAST_SHARE = 8
"""Courses for each thread, at least."""

Start = Callable[[], Any]
"""A function that returns the generator of a course: it yields questions, and returns what it is for."""


def run_courses(starts: Sequence[Start]) -> Iterator[tuple[int, Any]]:
    """Yield `(number, what the course returned or the exception that ended it)` as courses end."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(1, min(cores, MAX_THREADS, len(starts) // LEAST_SHARE))
    waiting, ended, stop = deque(enumerate(starts)), queue.SimpleQueue[tuple[int, Any]](), threading.Event()
    threads = [threading.Thread(target=_work, args=(waiting, ended, stop), daemon=True) for _ in range(count)]
    with one_thread():
        for thread in threads:
            thread.start()
        try:
            for _ in starts:
                yield ended.get()
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def _work(waiting: deque[tuple[int, Start]], ended: queue.SimpleQueue[tuple[int, Any]], stop: threading.Event) -> None:
    live: dict[int, tuple[Any, Any]] = {}

    def go(number: int, course: Any, advance: Callable[[], Any]) -> None:
        try:
            live[number] = course, advance()
        except StopIteration as end:
            live.pop(number, None)
            ended.put((number, end.value))
        except Exception as error:
            live.pop(number, None)
            ended.put((number, error))

    while not stop.is_set():
        while len(live) < PLACES and waiting:
            try:
                number, start = waiting.popleft()
            except IndexError:  # another thread was faster
                break
            try:
                course = start()
            except Exception as error:
                ended.put((number, error))
                continue
            go(number, course, functools.partial(next, course))
        if not live:
            return
        groups: dict[Any, list[int]] = {}
        for number, (_, question) in live.items():
            groups.setdefault(question.key, []).append(number)
        # A call costs the same for few: what few ask waits until they are many, or nobody else asks.
        numbers = max(groups.values(), key=len)
        try:
            replies: Sequence[Any] = answer([live[number][1] for number in numbers])
        except Exception as error:
            replies = [error] * len(numbers)
        for number, reply in zip(numbers, replies, strict=True):
            course = live[number][0]
            go(number, course, functools.partial(course.throw if isinstance(reply, Exception) else course.send, reply))
