"""Runs that measure contributions: what they add up to, the table at the end, resuming, and what is refused."""

import csv
import math

import pytest

SETTINGS = (
    *("dataset=digits", "engine=local", "num_clients=6", "clients_per_round=4", "num_rounds=4", "num_epochs=1"),
    *("partition=iid", "checkpoint.every=1", "contribution=shapley"),
)


def rows(folder, name="clients.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_contributions_add_up_to_the_fall_of_the_test_loss_also_in_a_resumed_run(fedprox, tmp_path):
    assert fedprox(*SETTINGS, "hydra.run.dir=whole").status == 0
    assert fedprox(*SETTINGS, "num_rounds=2", "hydra.run.dir=cut").status == 0
    assert fedprox("resume=cut", "num_rounds=4").status == 0
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for name in ("clients.csv", "contribution.csv"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    losses = [float(row["test_loss"]) for row in rows(whole, "metrics.csv")]
    values = [float(row["contribution"]) for row in rows(whole)]
    assert math.fsum(values) == pytest.approx(losses[0] - losses[-1], abs=1e-9)
    totals = rows(whole, "contribution.csv")
    assert sum(int(row["num_rounds"]) for row in totals) == 16
    assert [float(row["contribution"]) for row in totals] == sorted(
        (
            math.fsum(float(row["contribution"]) for row in rows(whole) if row["client"] == client["client"])
            for client in totals
        ),
        reverse=True,
    )


def test_a_silo_with_flipped_labels_comes_last(fedprox, tmp_path):
    silos = ("num_clients=5", "clients_per_round=5", "num_rounds=10")
    assert fedprox(*SETTINGS, *silos, "attack=label_flip", "attack.fraction=0.2").status == 0
    (flipped,) = {row["client"] for row in rows(tmp_path / "run") if row["is_malicious"] == "True"}
    totals = rows(tmp_path / "run", "contribution.csv")
    assert totals[-1]["client"] == flipped
    assert float(totals[-1]["contribution"]) < 0 < float(totals[-2]["contribution"])


def test_measuring_changes_no_other_number_and_a_run_without_it_has_no_column(fedprox, tmp_path):
    assert fedprox(*SETTINGS, "hydra.run.dir=measured").status == 0
    assert fedprox(*SETTINGS[:-1], "hydra.run.dir=plain").status == 0
    measured, plain = tmp_path / "measured", tmp_path / "plain"
    assert (measured / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert [{**row, "contribution": ""} for row in rows(plain)] == [
        {**row, "contribution": ""} for row in rows(measured)
    ]
    assert "contribution" not in rows(plain)[0]
    assert not (plain / "contribution.csv").exists()
    assert fedprox(*SETTINGS[:-1], "hydra.run.dir=measured").status == 0  # a new run in the directory
    assert not (measured / "contribution.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("strategy=krum",),
            "whose model is the weighted mean of the updates, got strategy._target_=fedprox.strategies",
        ),
        (("strategy._target_=flwr.serverapp.strategy.FedAvg",), "use strategy=fedprox, fedavg or feddane"),
        (("secure_aggregation=masked",), "needs every single update, which secure_aggregation=masked hides"),
        (("engine=deployment",), "on the server's test set, which a federation's server"),
        (("num_clients=101", "clients_per_round=101"), "takes at most 100 clients a round"),
        (("contribution.permutations=0",), "contribution.permutations must be between 1 and 100000"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(fedprox, tmp_path, arguments, line):
    ended = fedprox(*SETTINGS, *arguments)
    assert ended.status == 2
    assert line in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
