"""SIGTERM ends what runs as Ctrl-C does."""

import os
import signal
import threading

import pytest

from fedprox.signals import Terminated, terminated_like_interrupted


def hit_by(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.sigtimedwait([], 1)  # it has come by now


def test_sigterm_is_an_interrupt_while_it_lasts_and_afterwards_what_it_was():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as raised, terminated_like_interrupted():
        hit_by(signal.SIGTERM)
    assert raised.type is Terminated
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigint_is_no_termination():
    with pytest.raises(KeyboardInterrupt) as raised, terminated_like_interrupted():
        hit_by(signal.SIGINT)
    assert raised.type is KeyboardInterrupt


def test_in_another_thread_where_signals_cannot_be_handled_it_does_nothing():
    seen = []

    def work() -> None:
        with terminated_like_interrupted():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
