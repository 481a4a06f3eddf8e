"""A line at least every ten seconds while something takes long: a program that says nothing looks as if it hung."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

EVERY_S = 10.0
_log = logging.getLogger("fedprox")


class Reminder:
    """Calls a function, in a thread of its own, whenever nothing has happened for so long."""

    def __init__(self, remind: Callable[[float], object], first_s: float | None = None) -> None:
        """Prepare; nothing is called before `with`.

        Args:
            remind: Gets the seconds since the last `restart`.
            first_s: Seconds from a restart to the first call; None for EVERY_S, at which the next ones follow.
        """
        self._remind, self._first_s = remind, EVERY_S if first_s is None else first_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def restart(self) -> None:
        """Begin to count from 0: something has happened."""
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        """Begin to count."""
        self.restart()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; nothing is called any more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        since, due = self._since, self._since + self._first_s
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            if self._since != since:
                since, due = self._since, self._since + self._first_s
            else:
                self._remind(time.monotonic() - since)
                due += EVERY_S


@contextmanager
def announced(doing: str, after_s: float = 0.0) -> Iterator[None]:
    """Log what is done, and every ten seconds how long it has taken.

    Args:
        doing: Such as "starting Ray".
        after_s: Log nothing if it takes less.
    """
    if not after_s:
        _log.info("%s", doing)

    def remind(time_s: float) -> None:
        _log.info("%s: %.0f s so far", doing, time_s)

    with Reminder(remind, after_s or None):
        yield
