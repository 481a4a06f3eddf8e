"""How far a run is: rounds, accuracy, rate and time left, also of a run that is resumed."""

import logging
import re
import sys
import time
from collections.abc import Iterator

import pytest
from flwr.app import ArrayRecord

from fedprox import progress
from fedprox.metrics import Evaluation
from fedprox.progress import pace, watched
from fedprox.rounds import Round


def rounds(numbers: range, each_s: float = 0.0) -> Iterator[Round]:
    """Yield rounds with accuracy round / 100, one each so many seconds."""
    for round_num in numbers:
        time.sleep(each_s)
        test = Evaluation(1.5, round_num / 100)
        yield Round(round_num, ArrayRecord(), lambda test=test: test, (), 0.0)


@pytest.fixture
def lines(monkeypatch, caplog):
    """Return a function that gives the lines of a run without a terminal, a line per round."""

    def told(*arguments, **more) -> list[str]:
        monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
        caplog.set_level(logging.INFO, logger="fedprox")
        caplog.clear()
        list(watched(*arguments, **more))
        return [record.getMessage() for record in caplog.records]

    return told


@pytest.mark.parametrize(
    ("num_done", "num_left", "time_s", "text"),
    [
        (10, 40, 5.0, ", 2.0 rounds/s, 00:20 left"),  # 10 / 5 s; 40 / (2 / s)
        (3, 30, 12.0, ", 4.0 s/round, 02:00 left"),  # 12 s / 3; 30 * 4 s
        (2, 3600, 4.0, ", 2.0 s/round, 2:00:00 left"),
        (4, 4, 4.0, ", 1.0 s/round, 00:04 left"),
        (10, 0, 5.0, ", 2.0 rounds/s"),  # done
        (0, 10, 5.0, ""),  # nothing to tell a rate from
    ],
)
def test_rate_and_time_left_follow_from_what_was_done(num_done, num_left, time_s, text):
    assert pace(num_done, num_left, time_s) == text


def test_lines_say_round_accuracy_rate_and_time_left(lines):
    told = lines(rounds(range(3), each_s=0.01), 2, "FedAvg")
    assert told[0] == "FedAvg, round 0/2: accuracy 0.0000, loss 1.5000, 0.0 s"
    assert re.fullmatch(r"FedAvg, round 1/2: accuracy 0.0100, loss 1.5000, 0.0 s, [\d.]+ rounds/s, 00:00 left", told[1])
    assert re.fullmatch(r"FedAvg, round 2/2: accuracy 0.0200, loss 1.5000, 0.0 s, [\d.]+ rounds/s", told[2])


def test_rounds_done_before_a_run_was_resumed_do_not_count_for_the_rate(lines):
    # Rounds 101 to 103 of 1000 take 0.05 s each: at most 20 rounds/s, where 103 / 0.15 s would be 687.
    told = lines(rounds(range(101, 104), each_s=0.05), 1000, "FedAvg", first_round=101)
    rate, left_s = re.search(r"round 103/1000: .* ([\d.]+) rounds/s, 00:(\d\d) left", told[-1]).groups()
    assert 2 < float(rate) <= 20
    assert int(left_s) == pytest.approx((1000 - 103) / float(rate), rel=0.05)


@pytest.mark.parametrize("first_round", [0, 101])
def test_the_bar_counts_all_rounds_and_takes_the_rate_from_those_it_saw(monkeypatch, capsys, first_round):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    last = first_round + 3
    list(watched(rounds(range(first_round, last + 1), each_s=0.06), last + 17, "FedAvg", first_round))
    shown = capsys.readouterr().err.split("\r")[-1]
    assert f" {last}/{last + 17} [" in shown
    assert f"accuracy {last / 100:.4f}, loss 1.5000" in shown
    rate = float(re.search(r"([\d.]+)round/s", shown)[1])
    assert 2 < rate <= 4 / (4 * 0.06) * 1.01  # in 0.24 s it saw 3 rounds after round 0, or 4
    assert re.search(r"<00:\d\d,", shown)  # the time left
