"""Progress of a run: rounds, accuracy, rate and time left, also of a resumed run."""

import io
import logging
import re
import sys
import time
from collections.abc import Iterator

import pytest
from flwr.app import ArrayRecord

from fedprox import process
from fedprox.evaluation.metrics import Evaluation
from fedprox.federation.rounds import Round
from fedprox.runs import progress
from fedprox.runs.progress import pace, with_progress, with_quiet_progress


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def rounds(numbers: range, clock: Clock | None = None, each_s: float = 0.0) -> Iterator[Round]:
    """Yield rounds with accuracy round / 100, one every `each_s` seconds."""
    for round_num in numbers:
        if clock:
            clock.now += each_s
        test = Evaluation(1.5, round_num / 100)
        yield Round(round_num, ArrayRecord(), test, (), 0.0)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def lines(monkeypatch, caplog):
    """Return a function that returns the log lines of a run without a terminal, one per round."""

    def logged(*arguments, **more) -> list[str]:
        monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
        caplog.set_level(logging.INFO, logger="fedprox")
        caplog.clear()
        list(with_progress(*arguments, **more))
        return [record.getMessage() for record in caplog.records]

    return logged


@pytest.mark.parametrize(
    ("num_done", "num_left", "time_s", "text"),
    [
        (10, 40, 5.0, ", 2.0 rounds/s, 00:20 left"),  # 10 / 5 s; 40 / (2 / s)
        (3, 30, 12.0, ", 4.0 s/round, 02:00 left"),  # 12 s / 3; 30 * 4 s
        (2, 3600, 4.0, ", 2.0 s/round, 2:00:00 left"),
        (10, 0, 5.0, ", 2.0 rounds/s"),  # done
        (0, 10, 5.0, ""),  # no round to measure the rate
    ],
)
def test_rate_and_time_left_follow_from_what_was_done(num_done, num_left, time_s, text):
    assert pace(num_done, num_left, time_s) == text


def test_lines_say_round_accuracy_rate_and_time_left(lines, clock):
    # Round 0 comes after 0.5 s, round 1 after 1 s, round 2 after 1.5 s: 1 / 1 s, 2 / 1.5 s, and 1 round is left of 2.
    assert lines(rounds(range(3), clock, each_s=0.5), 2, "FedAvg") == [
        "FedAvg, round 0/2: accuracy 0.0000, loss 1.5000, 0.0 s",
        "FedAvg, round 1/2: accuracy 0.0100, loss 1.5000, 0.0 s, 1.0 s/round, 00:01 left",
        "FedAvg, round 2/2: accuracy 0.0200, loss 1.5000, 0.0 s, 1.3 rounds/s",
    ]


def test_a_resumed_run_logs_its_start_and_its_rate_ignores_earlier_rounds(lines, clock):
    # Rounds 101 to 103 take 0.05 s each: 20 rounds/s, not 103 / 0.15 s = 687; 897 are left, 44.85 s.
    logged = lines(rounds(range(101, 104), clock, each_s=0.05), 1000, "FedAvg", first_round=101)
    assert logged[0] == "FedAvg resumes after round 100 of 1000"
    assert logged[-1].endswith("round 103/1000: accuracy 1.0300, loss 1.5000, 0.0 s, 20.0 rounds/s, 00:44 left")


def test_a_long_round_is_reported_while_it_is_computed_the_first_of_a_run_too(caplog, monkeypatch):
    # Each round ends only after a line has been logged.
    monkeypatch.setattr(process, "EVERY_S", 0.01)
    caplog.set_level(logging.INFO, logger="fedprox")

    def slow() -> Iterator[Round]:
        for outcome in rounds(range(2)):
            before = len(caplog.records)
            while len(caplog.records) == before:
                time.sleep(0.001)
            yield outcome

    list(with_progress(slow(), 1, "FedAvg"))
    logged = [record.getMessage() for record in caplog.records]
    reminders = [line for line in logged if re.fullmatch(r"FedAvg, computing round 1/1, \d+ s since .*", line)]
    assert len(reminders) >= 2
    assert next(line for line in logged if "accuracy" in line).startswith("FedAvg, round 0/1: accuracy")


@pytest.mark.parametrize("first_round", [0, 101])
def test_the_bar_counts_all_rounds_and_its_rate_those_of_this_process(monkeypatch, capsys, first_round):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    last = first_round + 3
    numbers = range(first_round, last + 1)
    slow = (time.sleep(0.06) or each for each in rounds(numbers))
    list(with_progress(slow, last + 17, "FedAvg", first_round))
    shown = capsys.readouterr().err.split("\r")[-1]
    assert f" {last}/{last + 17} [" in shown
    assert f"accuracy {last / 100:.4f}, loss 1.5000" in shown
    rate = float(re.search(r"([\d.]+)round/s", shown)[1])
    assert 0 < rate <= 4 / (4 * 0.06) * 1.01  # in 0.24 s it saw 3 rounds after round 0, or 4
    assert re.search(r"<00:\d\d,", shown)  # the time left


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("is_terminal", "after_s", "is_shown"), [(True, 0.0, True), (True, 60.0, False), (False, 0.0, False)]
)
def test_a_run_from_python_shows_a_bar_if_it_takes_long_and_is_watched_and_always_logs(
    monkeypatch, caplog, is_terminal, after_s, is_shown
):
    monkeypatch.setattr(progress, "BAR_AFTER_S", after_s)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal() if is_terminal else io.StringIO())
    caplog.set_level(logging.INFO, logger="fedprox")
    assert [outcome.round_num for outcome in with_quiet_progress(rounds(range(3)), 2, "FedAvg")] == [0, 1, 2]
    shown = terminal.getvalue()
    assert ("FedAvg" in shown) == is_shown
    assert shown.rpartition("\r")[2].strip() == ""  # it vanishes at the end
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "FedAvg, round 0/2",
        "FedAvg, round 2/2",
    ]
