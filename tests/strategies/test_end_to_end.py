"""Whole runs with Flower's strategies and a user's own."""

import csv
import gc
import json
from collections.abc import Callable
from pathlib import Path

import pytest

DIGITS = ("dataset=digits", "engine=local", "num_clients=20", "clients_per_round=4", "num_epochs=3", "num_rounds=3")
FLOWERS = "strategy._target_=flwr.serverapp.strategy."
OWN = """
import gc
from flwr.app import MetricRecord
from flwr.serverapp.strategy import Bulyan, FedAvg

def worst(contents, key):
    return MetricRecord({"worst": max(content["metrics"]["train-loss"] for content in contents)})

class Breaks(FedAvg):
    def aggregate_train(self, server_round, replies):
        if server_round == 2:
            raise KeyError("lost")
        return super().aggregate_train(server_round, replies)

class Counts(Bulyan):
    # What a collection would look through, as a metric
    def aggregate_train(self, server_round, replies):
        arrays, _ = super().aggregate_train(server_round, replies)
        return arrays, MetricRecord({"tracked": len(gc.get_objects())})
"""


@pytest.fixture
def run(fedprox, tmp_path, monkeypatch) -> Callable:
    """Return a function that runs a command and returns how it ended, and its directory."""
    (tmp_path / "own_strategies.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def call(*arguments: str, into: str = "run", status: int = 0) -> tuple[str, Path]:
        ended = fedprox(*DIGITS, *arguments, f"hydra.run.dir={into}")
        assert ended.status == status, ended.err
        return ended.err, tmp_path / into

    return call


def rows(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as opened:
        return [{key: value for key, value in row.items() if key != "time_s"} for row in csv.DictReader(opened)]


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_flowers_fedprox_trains_with_the_mu_of_its_name(run):
    _, ours = run("mu=1", into="ours")
    _, theirs = run(f"{FLOWERS}FedProx", "mu=1", into="theirs")
    _, same = run(f"{FLOWERS}FedAvg", "mu=1", into="same")
    _, without = run(f"{FLOWERS}FedProx", into="without")
    assert [record(folder)["algorithm"] for folder in (ours, theirs)] == ["FedProx (mu = 1)"] * 2
    assert (record(without)["algorithm"], record(without)["settings"]["mu"]) == ("FedProx (mu = 0)", 0.0)
    # The clients' work follows from mu and the model alone: in round 1 it is the same to the last digit.
    first = [[row for row in rows(folder, "clients.csv") if row["round"] == "1"] for folder in (ours, theirs, without)]
    assert first[0] == first[1] != first[2]
    # Later on Flower's float32 average differs from ours in float64 by roundings, and is that of its FedAvg.
    assert rows(theirs) == rows(same)
    for one, other in zip(rows(ours), rows(theirs), strict=True):
        assert float(one["test_loss"]) == pytest.approx(float(other["test_loss"]), rel=1e-6)


@pytest.mark.parametrize("target", [f"{FLOWERS}FedMedian", "strategy=fedprox"])
def test_a_users_metrics_function_adds_a_column_and_changes_no_other(run, target):
    named = "+strategy.train_metrics_aggr_fn"
    function = (f"{named}._target_=hydra.utils.get_method", f"{named}.path=own_strategies.worst")
    _, folder = run(target, *function)
    _, plain = run(target, into="plain")
    measured = rows(folder)
    losses = {t: [float(row["train_loss"]) for row in rows(folder, "clients.csv") if row["round"] == t] for t in "123"}
    assert [row.pop("worst") for row in measured] == ["", *(repr(max(losses[t])) for t in "123")]
    assert measured == rows(plain)
    assert record(folder)["result"]["final"]["worst"] == max(losses["3"])


def test_a_strategy_that_raises_ends_the_run_with_one_line_and_keeps_its_results(run):
    error, folder = run("strategy._target_=own_strategies.Breaks", status=1)
    line = "round 2: Breaks.aggregate_train: KeyError: 'lost' (own_strategies.py:12)"
    assert error == f"error: {line}\n"
    assert (record(folder)["status"], record(folder)["error"]) == ("failed", line)
    assert [row["round"] for row in rows(folder)] == ["0", "1"]


def test_garbage_collections_by_a_strategy_scan_only_the_rounds_objects(run):
    # Flower's Bulyan collects once per reply; a run has more than 100,000 objects in memory.
    frozen = gc.get_freeze_count()
    _, folder = run("strategy._target_=own_strategies.Counts")
    assert all(int(row["tracked"]) < 20_000 for row in rows(folder)[1:])
    assert len(gc.get_objects()) > 50_000
    assert gc.get_freeze_count() <= frozen


def test_a_strategy_that_draws_repeats(run):
    # FedXgbCyclic takes one client of each cohort, by Python's global generator.
    trained = [
        [
            row["client"]
            for row in rows(run(f"{FLOWERS}FedXgbCyclic", into=name)[1], "clients.csv")
            if row["counted"] == "True"
        ]
        for name in ("one", "other")
    ]
    assert len(trained[0]) == 3
    assert trained[0] == trained[1]
