"""The value of a run as a trial of a search."""

import math

import pytest

from fedprox.config.compose import compose
from fedprox.errors import UserError
from fedprox.experiment.build import objective
from fedprox.experiment.trial import Objective

COLUMNS = (
    "round",
    "test_loss",
    "test_accuracy",
    "train_loss_cohort",
    "time_s",
    "client_accuracy_std",
    "test_f1",
    "test_mae",
)
OWN = {"f1": "sklearn.metrics.f1_score", "mae": "sklearn.metrics.mean_absolute_error"}


@pytest.mark.parametrize(
    ("name", "column", "is_best", "direction"),
    [
        ("test_loss", "test_loss", False, "minimize"),
        ("loss", "test_loss", False, "minimize"),
        ("accuracy", "test_accuracy", False, "maximize"),
        ("best_accuracy", "test_accuracy", True, "maximize"),
        ("best_test_loss", "test_loss", True, "minimize"),
        ("best_train_loss_cohort", "train_loss_cohort", True, "minimize"),
        ("client_accuracy_std", "client_accuracy_std", False, "minimize"),
        ("f1", "test_f1", False, "maximize"),
        ("best_mae", "test_mae", True, "minimize"),
    ],
)
def test_a_name_says_the_column_whether_the_best_round_counts_and_the_direction(name, column, is_best, direction):
    objective = Objective.of(name, COLUMNS, OWN)
    assert (objective.column, objective.is_best, objective.direction) == (column, is_best, direction)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("best_acuracy", "did you mean best_accuracy?"),
        ("test_los", "did you mean test_loss?"),
        (
            "time_s",
            "loss, accuracy, train_loss_cohort, client_accuracy_std, f1, mae, or the best, such as best_loss",
        ),
    ],
)
def test_an_unknown_name_or_a_column_that_does_not_measure_the_model_is_refused(name, hint):
    with pytest.raises(UserError) as error:
        Objective.of(name, COLUMNS, OWN)
    assert str(error.value).endswith(hint)
    assert f"got {name};" in str(error.value)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("accuracy", [0.1, 0.9, 0.5], 0.5),
        ("best_accuracy", [0.1, 0.9, 0.5], 0.9),
        ("loss", [3.0, 1.0, 2.0], 2.0),
        ("best_loss", [3.0, 1.0, 2.0], 1.0),
        ("best_loss", [3.0, math.nan, 2.0], 2.0),
        ("best_loss", [3.0, 1.0, math.nan], None),  # it diverged
        ("loss", [3.0, math.inf], None),
        ("loss", [3.0, None], None),
        ("loss", [], None),
    ],
)
def test_the_value_is_that_of_the_last_or_the_best_round_and_a_run_that_diverged_has_none(name, values, expected):
    objective = Objective.of(name, COLUMNS, OWN)
    assert objective.value([{objective.column: value} for value in values]) == expected


def test_a_run_without_a_table_has_no_value(tmp_path):
    objective = Objective.of("accuracy", COLUMNS, OWN)
    assert objective.value_of(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("round,test_accuracy\n0,0.25\n1,0.5\n")
    assert objective.value_of(tmp_path) == 0.5


def test_by_default_it_is_the_final_accuracy_or_the_loss_if_there_is_no_accuracy():
    default = objective(compose(["experiment=digits"]))
    assert (default.column, default.is_best) == ("test_accuracy", False)
    of_regression = ["experiment=digits", "loss=mse"]
    assert objective(compose(of_regression)).column == "test_loss"
    with pytest.raises(UserError, match="got accuracy; choose from loss, "):
        objective(compose([*of_regression, "objective=accuracy"]))
