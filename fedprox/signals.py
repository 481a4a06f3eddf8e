"""SIGTERM, by which schedulers of clusters end jobs, ends a run as Ctrl-C does: in good order."""

import os
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
    if not _is_main_thread():  # where signals cannot be handled
        yield
        return
    came = False

    def end(*_: Any) -> None:
        nonlocal came
        came = True
        raise Terminated

    earlier = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if came:  # Ray makes a plain KeyboardInterrupt of it where it waits
            raise Terminated from interrupt
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextmanager
def sigterm_held_back() -> Iterator[None]:
    """Let a SIGTERM wait until this is over, and put back what it does: Ray gives it other meanings as it starts."""
    if not _is_main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGTERM)
    _held.add(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, _held)
    try:
        yield
    except SystemExit as end:  # what Ray makes of it where another thread, which does not hold it back, got it
        raise Terminated from end
    finally:
        signal.signal(signal.SIGTERM, earlier)
        _held.clear()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # one that has waited comes here


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_held: set[signal.Signals] = set()
# Processes that are started meanwhile are to hear it: they would inherit that it is blocked.
os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _held))
