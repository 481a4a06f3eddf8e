"""SIGTERM, which ends a run as Ctrl-C does, and announcements of long steps."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from fedprox import process
from fedprox.process import Terminated, announced, sigterm_held_back, terminated_like_interrupted, uninterrupted


def hit_by(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.sigtimedwait([], 1)  # it has arrived by now


def test_sigterm_is_an_interrupt_within_the_context_and_restored_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as raised, terminated_like_interrupted():
        hit_by(signal.SIGTERM)
    assert raised.type is Terminated
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigint_is_not_a_termination():
    with pytest.raises(KeyboardInterrupt) as raised, terminated_like_interrupted():
        hit_by(signal.SIGINT)
    assert raised.type is KeyboardInterrupt


def test_sigterm_stays_a_termination_if_a_library_raises_a_plain_interrupt():
    def wait_as_ray_does() -> None:
        try:
            hit_by(signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt from interrupt

    with pytest.raises(Terminated), terminated_like_interrupted():
        wait_as_ray_does()


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_in_what_is_not_to_be_interrupted_arrives_afterwards(number, raised):
    done = []

    def work() -> None:
        with uninterrupted():
            with uninterrupted():
                hit_by(number)
                done.append("inner")
            done.append("outer")
        done.append("too late")

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(raised), terminated_like_interrupted():
        work()
    assert done == ["inner", "outer"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_delayed_sigterm_arrives_afterwards_at_its_former_handler():
    done = []

    def start_as_ray_does() -> None:
        with sigterm_held_back():
            signal.signal(signal.SIGTERM, lambda *_: done.append("something else"))
            signal.pthread_kill(
                threading.get_ident(), signal.SIGTERM
            )  # pytest has other threads, which would receive it
            done.append("held back")
        done.append("too late")

    with pytest.raises(Terminated), terminated_like_interrupted():
        start_as_ray_does()
    assert done == ["held back"]


def test_rays_exit_after_a_sigterm_is_a_termination():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), sigterm_held_back():
        sys.exit(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_child_processes_receive_sigterm_meanwhile():
    with sigterm_held_back():
        child = subprocess.Popen(["sleep", "60"], preexec_fn=lambda: None)  # as Ray's have
        child.terminate()
        assert child.wait(20) == -signal.SIGTERM


def test_it_does_nothing_in_another_thread():
    seen = []

    def work() -> None:
        with terminated_like_interrupted():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


# Announcements.


@pytest.fixture
def log(caplog, monkeypatch):
    """Return the log of a program whose ten seconds are a hundredth of one."""
    monkeypatch.setattr(process, "EVERY_S", 0.01)
    caplog.set_level(logging.INFO, logger="fedprox")
    return caplog


def wait_for(condition, within_s: float = 60.0) -> None:
    waiter = threading.Event()
    for _ in range(int(within_s / 0.005)):
        if condition():
            return
        waiter.wait(0.005)
    pytest.fail("it never happened")


def test_a_long_step_is_announced_at_once_and_then_with_its_time(log):
    with announced("starting Ray"):
        assert log.messages[0] == "starting Ray"  # a slow machine may have logged more already
        wait_for(lambda: len(log.messages) >= 3)
    assert all(re.fullmatch(r"starting Ray: \d+ s so far", line) for line in log.messages[1:])


def test_a_step_that_may_be_short_is_announced_only_if_it_is_long(log):
    with announced("reading", after_s=1000.0):
        pass
    assert log.messages == []
    with announced("reading", after_s=0.01):
        wait_for(lambda: log.messages)
    assert re.fullmatch(r"reading: \d+ s so far", log.messages[0])


def test_nothing_is_announced_after_the_end_of_a_step_or_its_error(log):
    def fails() -> None:
        with announced("starting Ray"):
            raise OSError

    before = threading.active_count()
    with pytest.raises(OSError):  # noqa: PT011
        fails()
    assert threading.active_count() == before  # nothing is left that could log
    assert log.messages[0] == "starting Ray"
