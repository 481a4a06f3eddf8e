"""SIGTERM, by which schedulers of clusters end jobs, ends a run as Ctrl-C does: in good order."""

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self


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


@contextmanager
def looking_for_no_garbage(module: str) -> Iterator[None]:
    """Import a module meanwhile, without a look for garbage, nor ever again in what its libraries leave.

    They make a million objects that stay until the end; looking through them time and again takes a tenth of a short
    run. Nothing is done if the module is there already.
    """
    if module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Look only through what is made meanwhile; afterwards through everything again, so that nothing is kept for good.

    Flower's Bulyan and QFedAvg ask for a collection once per reply, which looks through all that a run has loaded: 30
    rounds of QFedAvg with 10 clients each took 22 s, and take 0.6 s with this.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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
