"""Signals, garbage collection and reminders of this process.

SIGTERM, with which cluster schedulers end jobs, ends a run as Ctrl-C does: after its files are written.
"""

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


def switch_off_telemetry() -> None:
    """Switch off what these libraries send home by default; to be called before they are imported, which reads it."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM."""


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of a program that a signal has ended: 128 plus the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM raise Terminated within the context."""
    if not _is_main_thread():  # other threads cannot handle signals
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
        if came:  # Ray turns it into a plain KeyboardInterrupt while it waits
            raise Terminated from interrupt
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)


@contextmanager
def sigterm_held_back() -> Iterator[None]:
    """Delay SIGTERM until the context ends, and restore its handler, which Ray replaces as it starts."""
    if not _is_main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGTERM)
    _held.add(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, _held)
    try:
        yield
    except SystemExit as end:  # raised by Ray if another thread, which does not block SIGTERM, received it
        raise Terminated from end
    finally:
        signal.signal(signal.SIGTERM, earlier)
        _held.clear()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # a delayed one arrives here


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the context ends, which must be soon; other threads are never interrupted."""
    if not _is_main_thread():
        yield
        return
    came: list[int] = []
    handlers = {each: signal.getsignal(each) or signal.SIG_DFL for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        for each in handlers:
            signal.signal(each, lambda number, _: came.append(number))
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_held: set[signal.Signals] = set()
# Child processes started meanwhile would inherit the block; they must receive SIGTERM.
os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _held))


@contextmanager
def import_without_gc(module: str) -> Iterator[None]:
    """Disable garbage collection while a module is imported in the context, and for good in what it leaves.

    Its libraries create a million objects that live until the end; collecting among them again and again takes a tenth
    of a short run. Does nothing if the module is imported already.
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
    """Collect garbage only among objects created within the context; afterwards among all objects again.

    Flower's Bulyan and QFedAvg call for a collection once per reply, which goes through everything that a run has
    loaded: 30 rounds of QFedAvg with 10 clients each took 22 s, and take 0.6 s with this.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


EVERY_S = 10.0
_log = logging.getLogger("fedprox")


class Reminder:
    """Calls a function, in its own thread, whenever nothing has happened for some seconds."""

    def __init__(self, remind: Callable[[float], object], first_s: float | None = None) -> None:
        """Prepare; calls begin with the context.

        Args:
            remind: Called with the seconds since the last `restart`.
            first_s: Seconds from a restart to the first call; None for EVERY_S, the interval of all later calls.
        """
        self._remind, self._first_s = remind, EVERY_S if first_s is None else first_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def restart(self) -> None:
        """Count from 0 again: something has happened."""
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        """Start to count."""
        self.restart()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; nothing is called any more."""
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
    """Log what is being done, and every ten seconds how long it has taken.

    Args:
        doing: What is done in the context, such as "starting Ray".
        after_s: Log nothing if it takes less than this.
    """
    if not after_s:
        _log.info("%s", doing)

    def remind(time_s: float) -> None:
        _log.info("%s: %.0f s so far", doing, time_s)

    with Reminder(remind, after_s or None):
        yield
