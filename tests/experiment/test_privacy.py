"""Private runs: their epsilon, their budget, what they refuse."""

import csv
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedprox.strategies.accounting import Ledger
from tests.faults.compared import differences

SMALL = ("dataset=digits", "engine=local", "num_clients=20", "clients_per_round=5", "num_epochs=2")
PRIVATE = (*SMALL, "privacy=client", "privacy.delta=0.01", "privacy.noise_multiplier=1")


def rows(run_dir, name="metrics.csv"):
    with (run_dir / name).open() as file:
        return list(csv.DictReader(file))


def record(run_dir):
    return json.loads((run_dir / "run.json").read_text())


def test_epsilon_is_written_at_evaluated_rounds_and_says_what_it_covers(fedprox, tmp_path):
    assert fedprox(*PRIVATE, "num_rounds=5", "evaluation.every=2").status == 0
    run = tmp_path / "run"
    assert [row["round"] for row in rows(run)] == ["0", "2", "4", "5"]
    for row in rows(run):
        assert float(row["epsilon"]) == Ledger([(1.0, 0.25, int(row["round"]))] * (row["round"] != "0")).epsilon(0.01)
        assert row["clip"] == "1.0"
    assert {row["is_clipped"] for row in rows(run, "clients.csv")} == {"True", "False"}
    facts = record(run)
    assert (facts["status"], facts["algorithm"]) == ("finished", "FedProx (mu = 1, noise 1)")
    assert (facts["privacy"]["noise_multiplier"], facts["privacy"]["sampling_probability"]) == (1.0, 0.25)
    assert "add or remove" in facts["privacy"]["covered"]
    assert any("clients.csv" in line for line in facts["privacy"]["not_covered"])


def test_without_noise_and_clip_everybody_taking_part_is_fedprox_with_equal_weights(fedprox, tmp_path):
    # Equal clients, so that FedProx's weights are equal, too.
    same = ("dataset=digits", "engine=local", "num_clients=14", "clients_per_round=null", "partition=iid", "hold_out=0")
    rounds = ("num_rounds=4", "stragglers_fraction=0", "protocol=paper")
    unlimited = ("privacy=client", "privacy.delta=0.01", "privacy.noise_multiplier=0", "privacy.clip=1e9")
    assert fedprox(*same, *rounds, "hydra.run.dir=plain").status == 0
    assert fedprox(*same, *rounds, *unlimited).status == 0
    assert len({row["num_examples"] for row in rows(tmp_path / "plain", "clients.csv")}) == 1  # 1442 = 14 * 103
    plain, private = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "run"))
    for name, array in plain.items():
        assert private[name] == pytest.approx(array, abs=1e-6)
    assert rows(tmp_path / "run")[-1]["epsilon"] == "inf"


def test_a_budget_ends_the_run_before_it_is_exceeded(fedprox, tmp_path):
    ended = fedprox(*PRIVATE, "num_rounds=30", "privacy.max_epsilon=3", "evaluation.every=7")
    assert ended.status == 0
    last = rows(tmp_path / "run")[-1]
    done = int(last["round"])
    assert 1 < done < 30
    assert float(last["epsilon"]) <= 3 < Ledger([(1.0, 0.25, done + 1)]).epsilon(0.01)
    assert record(tmp_path / "run")["status"] == "budget"
    assert (tmp_path / "run" / "model.safetensors").exists()
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    for more in ((), ("num_rounds=40",)):
        refused = fedprox("resume=run", *more)
        assert refused.status == 2
        assert "has spent its privacy budget: epsilon" in refused.err
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_an_epsilon_gives_the_noise_that_spends_it(fedprox, tmp_path):
    assert fedprox(*SMALL, "privacy=client", "privacy.delta=0.01", "privacy.epsilon=0.4", "num_rounds=6").status == 0
    last, facts = rows(tmp_path / "run")[-1], record(tmp_path / "run")
    assert (facts["status"], facts["algorithm"], last["round"]) == ("finished", "FedProx (mu = 1, epsilon = 0.4)", "6")
    assert 0.398 < float(last["epsilon"]) <= 0.4
    assert fedprox("resume=run", "num_rounds=7").status == 2


def test_a_resumed_private_run_is_the_uninterrupted_one(fedprox, tmp_path):
    settings = (
        *PRIVATE,
        "privacy.clip_quantile=0.5",
        "privacy.clip=0.2",
        "privacy.count_noise=2",
        "checkpoint.every=2",
    )
    compressed = ("update=[top_k,quantise]", "update.fraction=0.5", "update.error_feedback=true", "attack=sign_flip")
    assert fedprox(*settings, *compressed, "num_rounds=8", "hydra.run.dir=whole").status == 0
    assert fedprox(*settings, *compressed, "num_rounds=4").status == 0
    assert fedprox("resume=run", "num_rounds=8").status == 0
    assert differences(tmp_path / "whole", tmp_path / "run") == []
    assert len({row["clip"] for row in rows(tmp_path / "run")}) == 9


def test_rounds_without_any_client_change_the_model(fedprox, tmp_path):
    assert fedprox(*PRIVATE, "clients_per_round=1", "num_rounds=6", "seed=1").status == 0
    counts = [int(row["num_clients_counted"]) for row in rows(tmp_path / "run")]
    losses = [row["test_loss"] for row in rows(tmp_path / "run")]
    assert 0 in counts[1:]
    assert len(set(losses)) == len(losses)


def test_cohorts_are_the_same_with_and_without_privacy(fedprox, tmp_path):
    assert fedprox(*PRIVATE, "num_rounds=3").status == 0
    assert fedprox(*SMALL, "sampling=poisson", "num_rounds=3", "hydra.run.dir=open").status == 0
    cohorts = [
        [(row["round"], row["client"]) for row in rows(tmp_path / name, "clients.csv")] for name in ("run", "open")
    ]
    assert cohorts[0] == cohorts[1]


def test_a_branch_keeps_what_was_spent_and_needs_a_private_trunk(fedprox, tmp_path):
    assert fedprox(*PRIVATE, "num_rounds=4", "checkpoint.every=2").status == 0
    branch = (*PRIVATE, "branch_from=run", "branch_round=2", "num_rounds=4", "mu=0", "hydra.run.dir=branch")
    assert fedprox(*branch, "privacy.noise_multiplier=2").status == 0
    expected = Ledger([(1.0, 0.25, 2), (2.0, 0.25, 2)]).epsilon(0.01)
    assert float(rows(tmp_path / "branch")[-1]["epsilon"]) == pytest.approx(expected, rel=1e-9)
    assert fedprox(*SMALL, "num_rounds=4", "sampling=poisson", "checkpoint.every=2", "hydra.run.dir=open").status == 0
    refused = fedprox(*PRIVATE, "branch_from=open", "branch_round=2", "num_rounds=4", "hydra.run.dir=other")
    assert refused.status == 2
    assert "trained without privacy" in refused.err
    assert fedprox(*SMALL, "branch_from=run", "branch_round=2", "num_rounds=4", "hydra.run.dir=open2").status == 0


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ("sampling=uniform",),
            "does not go with sampling=uniform: epsilon needs clients that are drawn independently",
        ),
        (("strategy=krum",), "replaces the mean of strategy=fedprox or strategy=fedavg, got Krum"),
        (("strategy=feddane",), "got FedDane"),
        (("adaptive_mu.enabled=true", "evaluation=clients"), "mu would follow the clients' training loss"),
        (("on_divergence=continue",), "nan cannot be clipped"),
        (
            ("protocol=paper",),
            "stragglers_fraction=0.9 and protocol=PaperProtocol: one client more may make a straggler of",
        ),
        (("attack=ipm",), "attackers whose updates follow from the others' make one client count more than once"),
        (("batch_statistics=local",), "does not go with batch_statistics=local"),
        (("early_stopping.metric=drift",), "it is measured on clients' examples"),
        (
            ("dataset=synthetic_iid", "early_stopping.metric=test_loss"),
            "no test set but the clients' held-out examples",
        ),
        (("protocol=authors", "stragglers_fraction=0"), "protocol=authors does not support sampling=poisson"),
        (
            ("privacy.epsilon=1",),
            "needs privacy.noise_multiplier or privacy.epsilon, and only one of them, got 1.0 and 1.0",
        ),
        (("privacy.delta=null",), "privacy.delta must be given"),
        (("privacy.noise_multiplier=0", "privacy.max_epsilon=3"), "is exceeded by one round without noise"),
        (("privacy.clip_quantile=0.5", "privacy.count_noise=0.5"), "must be more than half the noise multiplier 1"),
    ],
)
def test_what_would_void_the_guarantee_is_one_line(fedprox, overrides, line):
    refused = fedprox(*PRIVATE, "num_rounds=2", *overrides)
    assert refused.status == 2
    assert line in refused.err
    assert "Traceback" not in refused.err


def test_settings_of_privacy_without_it_are_refused(fedprox):
    refused = fedprox(*SMALL, "privacy.clip=1")
    assert "privacy.clip=1.0 has no effect; use privacy=client or leave it out" in refused.err


def test_a_delta_that_gives_one_client_away_is_warned_of(fedprox):
    assert (
        "privacy.delta=0.2 is above 1 / num_clients = 0.05"
        in fedprox(*PRIVATE, "privacy.delta=0.2", "num_rounds=1").out
    )


def test_a_missing_library_is_one_line(fedprox, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    refused = fedprox(*PRIVATE)
    assert refused.status == 2
    assert "pip install 'fedprox[privacy]'" in refused.err


def test_a_model_with_buffers_is_refused(fedprox, tmp_path, monkeypatch):
    lines = "from torch import nn\n\ndef net(input_shape, num_classes):\n    return nn.Sequential(nn.Flatten(), "
    (tmp_path / "normed.py").write_text(lines + "nn.BatchNorm1d(64), nn.Linear(64, num_classes))\n")
    monkeypatch.syspath_prepend(tmp_path)
    refused = fedprox(*PRIVATE, "model._target_=normed.net", "batch_size=4", "last_batch=merge")
    assert refused.status == 2
    assert "would reach the server's model without noise" in refused.err


def test_noise_of_a_larger_cohort_is_smaller_at_the_same_epsilon(fedprox, tmp_path):
    settings = (*PRIVATE, "num_rounds=1", "learning_rate=1e-9", "model.init=zeros")
    assert fedprox(*settings, "hydra.run.dir=own").status == 0
    assert fedprox(*settings, "privacy.noise_cohort=500").status == 0
    own, larger = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "run"))
    for name in own:
        np.testing.assert_allclose(own[name], 100 * larger[name], rtol=1e-3, atol=1e-6)
    assert rows(tmp_path / "own")[-1]["epsilon"] == rows(tmp_path / "run")[-1]["epsilon"]
