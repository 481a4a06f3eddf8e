"""Numbers of a run from run directories and from a line of JSON."""

import pytest

from benchmarks.readings import from_json, from_runs
from fedprox.errors import UserError

CLIENTS = [(1, 999, 9), (2, 30, 2), (2, 10, 2), (3, 20, 2)]


def test_times_are_summed_over_runs_and_speeds_ignore_the_first_round(tmp_path, run_directory):
    rounds = [(0.1, 0.0), (5.0, 0.25), (5.5, 0.5), (6.0, 0.75)]  # (time_s, accuracy) of rounds 0 to 3
    run_directory("multirun/0", rounds, CLIENTS, setup_s=1.0, rounds_s=6.0, total_s=7.5)
    slower = [(0.1, 0.0), (5.0, 0.25), (6.0, 0.5), (7.0, 0.85)]
    run_directory("multirun/1", slower, CLIENTS, setup_s=0.5, rounds_s=7.0, total_s=8.0)
    numbers = from_runs(tmp_path)
    assert (numbers["setup_s"], numbers["rounds_s"], numbers["total_s"], numbers["num_runs"]) == (1.5, 13.0, 15.5, 2)
    assert numbers["accuracy"] == pytest.approx((0.75 + 0.85) / 2)
    assert numbers["accuracy_last10"] == pytest.approx((0.5 + (0.25 + 0.5 + 0.85) / 3) / 2)
    assert numbers["round_ms"] == pytest.approx((500 + 1000) / 2)  # two rounds in 1 s, and in 2 s
    assert numbers["images_per_s"] == pytest.approx((120 / 1 + 120 / 2) / 2)  # 60 + 20 + 40 in rounds 2 and 3


def test_a_run_of_one_round_has_no_speed(tmp_path, run_directory):
    run_directory("run", [(0.1, 0.0), (5.0, 0.25)], CLIENTS[:1], setup_s=1.0, rounds_s=6.0, total_s=7.5)
    numbers = from_runs(tmp_path)
    assert numbers["accuracy"] == 0.25
    assert not {"round_ms", "images_per_s"} & set(numbers)


def test_an_unfinished_run_is_refused(tmp_path, run_directory):
    timings = {"setup_s": 1.0, "rounds_s": 6.0, "total_s": 7.5}
    run_directory("a", [(0.1, 0.0), (5.0, 0.25)], [], **timings)
    run_directory("b", [(0.1, 0.0), (5.0, 0.25)], [], status="failed", **timings)
    with pytest.raises(UserError, match="1 of 2 runs are not finished"):
        from_runs(tmp_path)


def test_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        from_runs(tmp_path)


def test_the_last_line_of_json_with_numbers_counts():
    out = 'starting\n{"rounds_s": 1}\n{"rounds_s": 2, "accuracy": 0.5}\n{"said": "done"}\n[1]\nbye\n'
    assert from_json(out) == {"rounds_s": 2.0, "accuracy": 0.5}


@pytest.mark.parametrize("out", ["", "nothing\n", '{"said": "done"}', "[1, 2]"])
def test_output_without_numbers_is_refused(out):
    with pytest.raises(UserError, match="no line of JSON"):
        from_json(out)
