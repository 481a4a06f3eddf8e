"""The measures of one run, each by hand."""

import math

import pytest

from fedprox.report.measures import per_run, recorded
from fedprox.report.table import read_runs


def measured(run, last: int = 2, level: float | None = None) -> dict:
    (row,) = per_run(read_runs([run]), last, level).to_dict("records")
    return row


def test_volatility_is_the_sample_deviation_of_the_changes(tmp_path, write_run):
    # Changes +0.4, -0.1, +0.3: mean 0.2, distances 0.2, -0.3, 0.1, squares 0.14 in all, over 3 - 1.
    assert measured(write_run(tmp_path / "0", [0.1, 0.5, 0.4, 0.7]))["volatility"] == pytest.approx(math.sqrt(0.07))


def test_a_steady_climb_has_no_volatility_and_two_evaluations_have_none_to_tell(tmp_path, write_run):
    steady, short = write_run(tmp_path / "0", [0.0, 0.25, 0.5, 0.75]), write_run(tmp_path / "1", [0.1, 0.9])
    assert measured(steady)["volatility"] == 0.0
    assert math.isnan(measured(short)["volatility"])


def test_changes_are_from_one_evaluated_round_to_the_next(tmp_path, write_run):
    # As if round 2 had not been evaluated: changes +0.4 and -0.2, mean 0.1, squares 2 * 0.09 over 1.
    run = write_run(tmp_path / "0", [0.1, 0.5, None, 0.3], losses=[1.0] * 4)
    assert measured(run)["volatility"] == pytest.approx(math.sqrt(0.18))


def test_rounds_to_a_level_are_those_of_the_first_time(tmp_path, write_run):
    run = write_run(tmp_path / "0", [0.1, 0.5, 0.7, 0.6, 0.8])
    for level, expected in ((0.1, 0), (0.5, 1), (0.6, 2), (0.7, 2), (0.75, 4), (0.8, 4)):
        assert measured(run, level=level)["rounds_to_level"] == expected, level
    assert math.isnan(measured(run, level=0.81)["rounds_to_level"])
    assert "rounds_to_level" not in measured(run)


def test_what_is_recorded_is_averaged_over_the_last_rounds(tmp_path, write_run):
    more = {"drift": [None, 4.0, 2.0, 1.0], "client_accuracy_std": [0.5, 0.4, 0.3, 0.2]}
    run = write_run(tmp_path / "0", [0.1, 0.5, 0.6, 0.7], more=more)
    assert recorded(read_runs([run])) == ["drift", "client_accuracy_std"]
    assert (measured(run)["drift"], measured(run)["client_accuracy_std"]) == (1.5, pytest.approx(0.25))
    assert measured(run, last=4)["drift"] == pytest.approx(7 / 3)  # nobody had drifted before round 1


def test_runs_of_earlier_versions_lack_what_was_not_recorded(tmp_path, write_run):
    write_run(tmp_path / "new", [0.1, 0.5, 0.6], more={"drift": [None, 4.0, 2.0]}, repetition=1)
    write_run(tmp_path / "old", [0.1, 0.5, 0.6])
    table = per_run(read_runs([tmp_path]), last=1)
    assert table["drift"][str(tmp_path / "new")] == 2.0
    assert math.isnan(table["drift"][str(tmp_path / "old")])
    assert recorded(read_runs([tmp_path / "old"])) == []
