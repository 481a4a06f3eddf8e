"""SIGTERM, by which schedulers of clusters end jobs, ends a run as Ctrl-C does: in good order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """What SIGTERM raises."""


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return what a shell expects of a program that such a signal has ended: 128 and the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM raise Terminated while this lasts."""
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield
        return

    def end(*_: Any) -> None:
        raise Terminated

    with sigterm_left_as_it_is():
        signal.signal(signal.SIGTERM, end)
        yield


@contextmanager
def sigterm_left_as_it_is() -> Iterator[None]:
    """Put back afterwards what SIGTERM does: Ray makes it a plain exit."""
    earlier = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, earlier)
