"""What peers train on is what we train on."""

import numpy as np
import pytest

from benchmarks.export import composed, prepared, write
from fedprox.errors import UserError
from fedprox.experiment import build

SMALL = ("dataset=digits", "num_clients=50", "num_rounds=3", "stragglers_fraction=0.0", "engine=local")


def test_the_file_has_our_clients_cohorts_initial_model_and_settings(tmp_path):
    write(SMALL, tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz", allow_pickle=False) as file:
        told = dict(file)
    config = composed(SMALL)
    data, plan = prepared(config)
    assert len(told["offsets"]) == 51
    for client in (0, 7, 49):
        features, labels = data.client_examples(client)
        held = slice(told["offsets"][client], told["offsets"][client + 1])
        assert np.array_equal(told["features"][held], features.reshape(len(labels), -1))
        assert np.array_equal(told["labels"][held], labels)
    assert told["cohorts"].tolist() == [[task.client for task in plan.tasks(t)] for t in (1, 2, 3)]
    weight, bias = build.initial_model(config, data).parameters()
    assert np.array_equal(told["weight"], weight.detach())
    assert np.array_equal(told["bias"], bias.detach())
    assert told["test_features"].shape == (len(told["test_labels"]), told["features"].shape[1])
    expected = {"num_rounds": 3, "num_epochs": 10, "batch_size": 10, "mu": 1.0, "weight_decay": 0.001}
    assert {name: told[name].item() for name in expected} == expected


def test_a_wrong_setting_is_refused():
    with pytest.raises(UserError, match="batch_size"):
        composed([*SMALL, "batch_size=0"])
