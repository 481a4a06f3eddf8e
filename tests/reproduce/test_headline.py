"""The rule of the headline number, on curves made by hand."""

import pandas as pd
import pytest

from fedprox.reproduce.headline import Reading, compare, read_at, read_runs, readable


def test_a_curve_that_neither_converges_nor_diverges_is_read_at_its_end():
    assert read_at([2.0, 1.5, 1.2, 1.0]) == Reading(3, "last")
    assert read_at([2.0]) == Reading(0, "last")


@pytest.mark.parametrize("step", [0.00009, -0.00009, 0.0])
def test_a_curve_has_converged_at_the_first_step_below_a_ten_thousandth_up_or_down(step):
    assert read_at([2.0, 1.5, 1.5 + step, 1.0, 1.0]) == Reading(2, "converged")


@pytest.mark.parametrize("step", [0.00011, -0.00011])
def test_a_step_above_a_ten_thousandth_is_not_convergence(step):
    assert read_at([2.0, 1.5, 1.5 + step]) == Reading(2, "last")


def test_a_curve_has_diverged_after_a_rise_by_more_than_one_within_ten_rounds():
    rising = [1.0 + 0.11 * t for t in range(20)]  # f_10 - f_0 = 1.1
    assert read_at(rising) == Reading(10, "diverged")
    slower = [1.0 + 0.099 * t for t in range(20)]  # f_t - f_{t-10} = 0.99
    assert read_at(slower) == Reading(19, "last")


def test_no_rise_before_round_ten_is_divergence():
    assert read_at([1.0, 5.0, 9.0]) == Reading(2, "last")


def test_a_nan_or_infinite_loss_has_diverged():
    assert read_at([1.0, 2.0, float("nan"), 1.0]) == Reading(2, "diverged")
    assert read_at([1.0, float("inf")]) == Reading(1, "diverged")


def curve(dataset, line, repetition, losses, accuracies):
    return pd.DataFrame(
        {
            "dataset": dataset,
            "line": line,
            "repetition": repetition,
            "round": range(len(losses)),
            "train_loss": losses,
            "test_accuracy": accuracies,
        }
    )


@pytest.fixture
def curves():
    """Return curves that read 0.5 and 0.7 (FedAvg), 0.8 and 0.9 (FedProx) on one data set, 0.5 and 0.6 on another."""
    falling, level = [3.0, 2.0, 1.0], [3.0, 2.0, 2.0]
    return pd.concat(
        [
            curve("synthetic_1_1", "FedAvg", 0, falling, [0.1, 0.2, 0.5]),
            curve("synthetic_1_1", "FedAvg", 1, [3.0, 3.0, 1.0], [0.1, 0.7, 0.9]),
            curve("synthetic_1_1", "FedProx (best mu)", 0, falling, [0.1, 0.2, 0.8]),
            curve("synthetic_1_1", "FedProx (best mu)", 1, level, [0.1, 0.2, 0.9]),
            curve("mnist", "FedAvg", 0, falling, [0.1, 0.2, 0.5]),
            curve("mnist", "FedProx (best mu)", 0, falling, [0.1, 0.2, 0.6]),
        ]
    )


def test_the_accuracy_of_each_run_is_read_where_its_loss_says(curves):
    readings = read_runs(curves).set_index(["dataset", "line", "repetition"])
    assert tuple(readings.loc[("synthetic_1_1", "FedAvg", 1)]) == (1, "converged", 0.7)
    assert tuple(readings.loc[("synthetic_1_1", "FedProx (best mu)", 1)]) == (2, "converged", 0.9)
    assert tuple(readings.loc[("mnist", "FedAvg", 0)]) == (2, "last", 0.5)


def test_points_are_the_difference_of_means_and_the_last_row_is_their_mean_over_data_sets(curves):
    table = compare(read_runs(curves)).set_index("dataset")
    assert table.loc["synthetic_1_1", "fedavg_mean"] == pytest.approx(0.6)
    assert table.loc["synthetic_1_1", "fedavg_std"] == pytest.approx(0.2 / 2**0.5)
    assert table.loc["synthetic_1_1", "points"] == pytest.approx(25)  # 0.85 - 0.6
    assert table.loc["mnist", "points"] == pytest.approx(10)
    assert table.loc["mean", "points"] == pytest.approx(17.5)
    assert table.loc["synthetic_1_1", "fedavg_read"] == "2 last, 1 converged"


def test_the_formatted_table_has_the_readings_and_the_number_of_data_sets(curves):
    rows = readable(compare(read_runs(curves))).to_numpy().tolist()
    assert rows[0][:3] == ["Synthetic(1,1) (mu = 1)", "2", "0.600 ± 0.141"]
    assert rows[1] == ["MNIST (mu = 1)", "1", "0.500", "2 last", "0.600", "2 last", "+10.0"]
    assert rows[2][0] == "mean of 2 data sets (paper: +22, of five)"
    assert rows[2][-1] == "+17.5"
