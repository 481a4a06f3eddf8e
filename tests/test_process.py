"""SIGTERM ends what runs as Ctrl-C does."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from fedprox.process import Terminated, sigterm_held_back, terminated_like_interrupted


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


def test_sigterm_stays_a_termination_where_a_library_makes_a_plain_interrupt_of_it():
    def wait_as_ray_does() -> None:
        try:
            hit_by(signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt from interrupt

    with pytest.raises(Terminated), terminated_like_interrupted():
        wait_as_ray_does()


def test_a_sigterm_that_is_held_back_comes_afterwards_and_does_what_it_did_before():
    done = []

    def start_as_ray_does() -> None:
        with sigterm_held_back():
            signal.signal(signal.SIGTERM, lambda *_: done.append("something else"))
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # pytest has other threads, which would get it
            done.append("held back")
        done.append("too late")

    with pytest.raises(Terminated), terminated_like_interrupted():
        start_as_ray_does()
    assert done == ["held back"]


def test_an_exit_that_ray_makes_of_it_as_it_starts_is_a_termination():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), sigterm_held_back():
        sys.exit(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_processes_that_are_started_while_it_is_held_back_hear_it():
    with sigterm_held_back():
        child = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: None)  # Ray's have such a function too
        child.terminate()
        assert child.wait(20) == -signal.SIGTERM


def test_in_another_thread_where_signals_cannot_be_handled_it_does_nothing():
    seen = []

    def work() -> None:
        with terminated_like_interrupted():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
