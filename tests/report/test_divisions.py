"""Settings -> who would hold what."""

import csv

import numpy as np
import pytest

from fedprox.data.federated import LabelledData
from fedprox.data.sources.digits import digits
from fedprox.errors import UserError
from fedprox.experiment import data as data_assembly
from fedprox.report.divisions import MOST_PANELS, divisions

DIGITS = ["dataset=digits", "num_clients=12", "partition=shards"]


def test_the_sizes_are_those_that_a_run_with_these_settings_trains_with(fedprox, tmp_path):
    assert fedprox(*DIGITS, "engine=local", "num_rounds=1", "clients_per_round=12", "num_epochs=2").status == 0
    with (tmp_path / "run" / "clients.csv").open() as file:
        trained = {int(row["client"]): int(row["num_examples"]) for row in csv.DictReader(file)}
    (division,) = divisions(DIGITS)
    assert division.counts.sum(axis=1).tolist() == [trained[client] for client in range(12)]


def test_with_nothing_held_out_every_example_of_every_class_is_counted_once():
    (division,) = divisions([*DIGITS, "hold_out=0"])
    assert division.counts.sum(axis=0).tolist() == np.bincount(digits().labels).tolist()
    assert division.name == "digits, shards"
    assert division.skew.num_clients == 12


def test_data_that_come_divided_are_counted_as_they_come():
    (division,) = divisions(["dataset=synthetic_1_1"])
    assert division.name == "synthetic_1_1, natural"
    assert division.counts.shape == (30, 10)


def test_a_division_for_each_value_compared_with_all_else_equal():
    compared = divisions(DIGITS, "partition.shards_per_client=1,3")
    assert [division.name for division in compared] == [
        "partition.shards_per_client=1",
        "partition.shards_per_client=3",
    ]
    for division, value in zip(compared, (1, 3), strict=True):
        (alone,) = divisions([*DIGITS, f"partition.shards_per_client={value}"])
        assert division.counts.tolist() == alone.counts.tolist()
        assert division.skew == alone.skew


def test_groups_ranges_and_settings_with_a_plus_can_be_compared():
    assert [each.name for each in divisions(DIGITS[:2], "partition=iid,shards")] == [
        "partition=iid",
        "partition=shards",
    ]
    assert [each.name for each in divisions(DIGITS, "num_clients=range(5,7)")] == ["num_clients=5", "num_clients=6"]
    (first, second) = divisions(DIGITS[:2], "+partition.min_examples_per_class=1,5")  # of the power law
    assert first.name == "partition.min_examples_per_class=1"
    assert first.counts.tolist() != second.counts.tolist()


def test_settings_of_training_do_not_matter(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # engine=ray would ask for two
    training = ["clients_per_round=50", "server_device=cuda", "client_resources.num_gpus=1", "hydra.run.dir=x"]
    (division,) = divisions([*DIGITS, *training])
    assert division.counts.tolist() == divisions(DIGITS)[0].counts.tolist()


def test_a_data_set_that_is_divided_in_several_ways_is_loaded_once(monkeypatch):
    made = []

    def counted() -> LabelledData:
        made.append(digits())
        return made[-1]

    monkeypatch.setattr("fedprox.data.sources.digits.digits", counted)
    data_assembly._loaded.cache_clear()
    divisions(DIGITS, "partition.shards_per_client=2,4,5")
    assert len(made) == 1
    data_assembly._loaded.cache_clear()


@pytest.mark.parametrize(
    ("overrides", "compare", "message"),
    [
        (["lerning_rate=1"], None, "lerning_rate is no setting; did you mean learning_rate"),
        (["partition=nope"], None, "Could not find 'partition/nope'"),
        (["partition"], None, "partition is not understood"),
        (["num_clients=0"], None, "num_clients must be an integer >= 1, got 0"),
        (["dataset=custom"], None, "dataset._target_: Missing mandatory value"),
        (["mu=0,1"], None, "mu=0,1 has several values; to see them side by side say --compare mu=0,1"),
        ([], "partition=iid", f"--compare must give 2 to {MOST_PANELS} values, .* got 1 in partition=iid"),
        ([], "seed=range(21)", f"--compare must give 2 to {MOST_PANELS} values, .* got 21 in seed=range"),
        ([], "partition", "partition is not understood"),
        ([], "partition.sigma=0,-1", "sigma must be between 0"),
        (["partition=iid"], "partition.alpha=0.1,1", "Could not override 'partition.alpha'"),
        (["dataset=digits"], "num_clients=10,5000", "num_clients must be at most 140 with this data, got 5000"),
    ],
)
def test_a_mistake_is_told_in_one_line(overrides, compare, message):
    with pytest.raises(UserError, match=message) as caught:
        divisions([*(overrides or ["dataset=digits"])], compare)
    assert "\n" not in str(caught.value)


def test_all_values_are_checked_before_data_are_loaded():
    # The folder is not there: had the first value been loaded before the second was checked, the line would say so.
    with pytest.raises(UserError, match="seed must be an integer"):
        divisions(["dataset=leaf", "dataset.path=nowhere"], "seed=0,-1")
