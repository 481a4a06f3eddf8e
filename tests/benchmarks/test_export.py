"""Peers train on the same data as we do."""

import numpy as np
import pytest

from benchmarks.export import composed, prepared, write
from fedprox.data.facts import Facts
from fedprox.errors import UserError
from fedprox.experiment.model import initial_model

SMALL = ("dataset=digits", "num_clients=50", "num_rounds=3", "stragglers_fraction=0.0", "engine=local")


def test_the_file_has_our_clients_cohorts_initial_model_and_settings(tmp_path):
    write(SMALL, tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz", allow_pickle=False) as file:
        found = dict(file)
    config = composed(SMALL)
    data, plan = prepared(config)
    assert len(found["offsets"]) == 51
    for client in (0, 7, 49):
        features, labels = data.client_examples(client)
        held = slice(found["offsets"][client], found["offsets"][client + 1])
        assert np.array_equal(found["features"][held], features.reshape(len(labels), -1))
        assert np.array_equal(found["labels"][held], labels)
    assert found["cohorts"].tolist() == [[task.client for task in plan.tasks(t)] for t in (1, 2, 3)]
    weight, bias = initial_model(config, Facts.of(data)).parameters()
    assert np.array_equal(found["weight"], weight.detach())
    assert np.array_equal(found["bias"], bias.detach())
    assert found["test_features"].shape == (len(found["test_labels"]), found["features"].shape[1])
    expected = {"num_rounds": 3, "num_epochs": 10, "batch_size": 10, "mu": 1.0, "weight_decay": 0.001}
    assert {name: found[name].item() for name in expected} == expected


def test_an_invalid_setting_is_refused():
    with pytest.raises(UserError, match="batch_size"):
        composed([*SMALL, "batch_size=0"])
