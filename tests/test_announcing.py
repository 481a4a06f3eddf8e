"""A line every ten seconds while something takes long."""

import logging
import re
import threading

import pytest

from fedprox import process
from fedprox.process import announced


@pytest.fixture
def told(caplog, monkeypatch):
    """Return the lines of a program whose ten seconds are a hundredth of one."""
    monkeypatch.setattr(process, "EVERY_S", 0.01)
    caplog.set_level(logging.INFO, logger="fedprox")
    return caplog.messages


def wait_for(condition, within_s: float = 60.0) -> None:
    waiter = threading.Event()
    for _ in range(int(within_s / 0.005)):
        if condition():
            return
        waiter.wait(0.005)
    pytest.fail("it never came")


def test_what_takes_long_is_told_at_once_and_again_with_the_time_it_has_taken(caplog, told):
    with announced("starting Ray"):
        assert caplog.messages == ["starting Ray"]
        wait_for(lambda: len(caplog.messages) >= 3)
    assert all(re.fullmatch(r"starting Ray: \d+ s so far", line) for line in caplog.messages[1:])


def test_what_may_be_short_is_told_only_once_it_is_not(caplog, told):
    with announced("reading", after_s=1000.0):
        pass
    assert caplog.messages == []
    with announced("reading", after_s=0.01):
        wait_for(lambda: caplog.messages)
    assert re.fullmatch(r"reading: \d+ s so far", caplog.messages[0])


def test_nothing_is_told_after_the_end_also_by_an_error(caplog, told):
    def fails() -> None:
        with announced("starting Ray"):
            raise OSError

    before = threading.active_count()
    with pytest.raises(OSError):  # noqa: PT011
        fails()
    assert threading.active_count() == before
    assert caplog.messages == ["starting Ray"]
