"""Early stopping: a run ends when a column has not improved for `patience` evaluations."""

import math

import pytest

from fedprox.errors import UserError
from fedprox.experiment.early_stopping import EarlyStopping, improves_upwards


def ends_at(stopping: EarlyStopping, values) -> int | None:
    """Return the position of the value after which the run is over."""
    return next((at for at, value in enumerate(values) if stopping.observe({stopping.metric: value})), None)


@pytest.mark.parametrize(
    ("metric", "values", "end"),
    [
        ("test_loss", [3, 2, 2.5, 2.1], 3),  # two values in a row that are not below 2
        ("test_loss", [3, 2, 2.5, 1.9, 2, 1.8, 1.7], None),
        ("test_loss", [2, 2, 2], 2),  # an equal value is not an improvement
        ("test_accuracy", [0.1, 0.5, 0.4, 0.5], 3),
        ("test_accuracy", [0.5, 0.4, 0.6, 0.7], None),
        ("client_accuracy_std", [0.5, 0.4, 0.3], None),
        ("test_loss", [1, math.nan, math.nan], 2),
        ("test_loss", [math.nan, None, 5, 4], None),  # nothing to compare with yet
        ("train_loss_cohort", [1, None, 0.5, 0.4], None),
    ],
)
def test_a_run_ends_after_two_values_without_improvement(metric, values, end):
    upwards = improves_upwards(metric, {})
    assert ends_at(EarlyStopping(metric, patience=2, upwards=upwards), values) == end


def test_an_improvement_is_more_than_min_delta_over_the_best_not_over_the_last():
    # 0.25 is representable: 1.75 improves on 2 by exactly 0.25, which is not more.
    assert ends_at(EarlyStopping("test_loss", 2, 0.25), [2, 1.75, 1.75]) == 2
    assert ends_at(EarlyStopping("test_loss", 2, 0.25), [2, 1.875, 1.5, 1.5]) is None


def test_without_a_metric_no_run_ends():
    assert not any(EarlyStopping(None, 1).observe({"test_loss": 1.0}) for _ in range(100))


def test_rounds_that_are_not_evaluated_do_not_count():
    stopping = EarlyStopping("test_loss", 1)
    rows = [{"test_loss": 1.0}, None, None, {"test_loss": 1.0}]
    assert [stopping.observe(row) for row in rows] == [False, False, False, True]


@pytest.mark.parametrize(
    ("metric", "values", "end"),
    [
        ("test_accuracy", [0.1, 0.3, 0.6, 0.6], 2),  # 0.6 is below 0.7 in round 2
        ("test_accuracy", [0.1, 0.8, 0.6, 0.6], None),  # the best so far counts
        ("test_accuracy", [0.1, 0.3, 0.7, 0.6], None),  # equal is enough
        ("test_accuracy", [0.1, 0.3, None, 0.6], 2),
        ("test_loss", [0.9, 0.8, 0.75, 0.7], 2),
        ("test_loss", [0.9, 0.8, 0.65, 0.7], None),
        ("test_loss", [math.nan, math.nan, math.nan], 2),
    ],
)
def test_a_run_is_pruned_in_the_round_of_a_bar_that_it_has_not_reached(metric, values, end):
    upwards = improves_upwards(metric, {})
    stopping = EarlyStopping(metric, patience=9, min_delta=10.0, upwards=upwards, bar=[(2, 0.7)])
    rows = [{"round": at, metric: value} for at, value in enumerate(values)]
    assert next((at for at, row in enumerate(rows) if stopping.observe(row)), None) == end
    assert stopping.missed == (None if end is None else 0.7)


@pytest.mark.parametrize(
    ("column", "function", "expected"),
    [
        ("test_kappa", "sklearn.metrics.cohen_kappa_score", True),
        ("test_mine", "my_metrics.top_5_accuracy", True),
        ("test_hamming", "sklearn.metrics.hamming_loss", False),
        ("test_accuracy_gap", "my_metrics.gap_error", False),  # the function decides, not the user's name for it
    ],
)
def test_the_function_of_an_own_metric_says_whether_larger_values_are_better(column, function, expected):
    assert improves_upwards(column, {column.removeprefix("test_"): function}) == expected


def test_an_own_metric_whose_function_does_not_say_what_is_better_is_refused():
    with pytest.raises(UserError, match=r"larger values of test_phi .* not known: the name of a\.corrcoef must"):
        improves_upwards("test_phi", {"phi": "a.corrcoef"})


def test_a_bar_needs_the_column_that_it_is_about():
    with pytest.raises(UserError, match=r"pruning_bar needs early_stopping\.metric"):
        EarlyStopping(None, bar=[(2, 0.7)]).check(["test_loss"])


@pytest.mark.parametrize("metric", ["loss", "round", "time_s"])
def test_a_column_that_is_missing_or_does_not_measure_the_model_is_refused(metric):
    with pytest.raises(UserError, match=rf"early_stopping\.metric.*got {metric}; choose from test_loss, "):
        EarlyStopping(metric).check(["round", "test_loss", "time_s"])
