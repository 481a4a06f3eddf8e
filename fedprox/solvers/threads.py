"""Threads: how many torch's operations use, and pools of our own."""

import atexit
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
_ids: set[int] = set()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch's operations use one thread: on small matrices more are slower, on a busy machine far slower."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


class Pool:
    """Threads in each of which torch uses one; they end with this object."""

    def __init__(self, num_threads: int) -> None:
        """Prepare `num_threads` >= 1 threads; they start when they are needed."""
        self.num_threads = num_threads
        self._executor = ThreadPoolExecutor(num_threads, initializer=_begin)

    def map(self, function: Callable[[int], Result], order: Sequence[int]) -> dict[int, Result]:
        """Return the function's result for each number; numbers are taken up in their order.

        After an error or an interrupt nothing goes on behind the caller's back.
        """
        if self.num_threads == 1:
            return {number: function(number) for number in order}
        waiting = iter(order)
        results: dict[int, Result] = {}

        def take() -> None:
            for number in waiting:
                results[number] = function(number)

        threads = [self._executor.submit(take) for _ in range(min(self.num_threads, len(order)))]
        try:
            for thread in threads:
                thread.result()
        finally:
            list(waiting)
            wait(threads)
        return results


def _begin() -> None:
    torch.set_num_threads(1)
    _ids.add(threading.get_native_id())


@atexit.register
def _wait_for_threads() -> None:
    """Let the operating system end all threads before the interpreter ends; Python has joined them already.

    A thread in which autograd ran holds an object of torch's, the release of which needs the interpreter: too late, it
    aborts the process with exit status 134. Where there is no /proc to look into, a tenth of a second must do.
    """
    tasks, until = Path("/proc/self/task"), time.monotonic() + (1 if Path("/proc/self/task").exists() else 0.1)
    while _ids and time.monotonic() < until:
        if tasks.exists() and not any((tasks / str(thread)).exists() for thread in _ids):
            return
        time.sleep(0.001)
