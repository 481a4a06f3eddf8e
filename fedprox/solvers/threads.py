"""Threads: the number that torch's operations use, and thread pools."""

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
    """Let torch's operations use one thread: several are slower on small matrices, much slower on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


class Pool:
    """A pool of threads in which torch's operations use one thread each; the threads end with this object."""

    def __init__(self, num_threads: int) -> None:
        """Prepare `num_threads` >= 1 threads, which start when they are needed."""
        self.num_threads = num_threads
        self._executor = ThreadPoolExecutor(num_threads, initializer=_begin)

    def map(self, function: Callable[[int], Result], order: Sequence[int]) -> dict[int, Result]:
        """Return the function's result for each number; numbers are processed in the given order.

        After an error or an interrupt no thread continues in the background.
        """
        if self.num_threads == 1:
            return {number: function(number) for number in order}
        waiting = iter(order)
        results: dict[int, Result] = {}

        def take() -> None:
            for number in waiting:
                results[number] = function(number)

        with one_thread():  # a library of torch's has one number for the whole process: see `_begin`
            threads = [self._executor.submit(take) for _ in range(min(self.num_threads, len(order)))]
            try:
                for thread in threads:
                    thread.result()
            finally:
                list(waiting)  # after an error: nothing is left to take
                wait(threads)
        return results


def _begin() -> None:
    torch.set_num_threads(1)  # of OpenMP, whose number is this thread's own; MKL's is that of all threads
    _ids.add(threading.get_native_id())


@atexit.register
def _wait_for_threads() -> None:
    """Wait until the operating system has ended all threads, which Python has already joined.

    A thread in which autograd ran holds an object of torch, whose release needs the interpreter; if the interpreter
    ends first, the process aborts with exit status 134. On systems without /proc, this waits for a tenth of a second.
    """
    tasks, until = Path("/proc/self/task"), time.monotonic() + (1 if Path("/proc/self/task").exists() else 0.1)
    while _ids and time.monotonic() < until:
        if tasks.exists() and not any((tasks / str(thread)).exists() for thread in _ids):
            return
        time.sleep(0.001)
