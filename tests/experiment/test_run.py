"""The name of a run, and the device that it computes on."""

import numpy as np
import pytest

from fedprox.config.compose import compose
from fedprox.data.federated import ClientIndex, FederatedData
from fedprox.data.sources.digits import digits
from fedprox.experiment import build
from fedprox.experiment.run import algorithm
from fedprox.models.logistic import logistic


@pytest.mark.parametrize(
    ("strategy", "mu", "adaptive", "name"),
    [
        ("fedprox.strategies.fedprox.FedProx", 1.0, False, "FedProx (mu = 1)"),
        ("fedprox.strategies.fedprox.FedProx", 0.0, False, "FedProx (mu = 0)"),
        ("fedprox.strategies.fedprox.FedAvgWithStragglerDrop", 0.0, False, "FedAvg"),
        ("fedprox.strategies.fedprox.FedAvgWithStragglerDrop", 0.5, False, "FedAvg (mu = 0.5)"),
        ("flwr.serverapp.strategy.FedMedian", 0.0, False, "FedMedian"),
        ("flwr.serverapp.strategy.FedMedian", 1e-5, False, "FedMedian (mu = 1e-05)"),
        ("flwr.serverapp.strategy.FedMedian", 0.0, True, "FedMedian (mu = 0)"),
        ("fedprox.strategies.corrected.Scaffold", 0.0, False, "SCAFFOLD"),
        ("fedprox.strategies.corrected.FedDyn", 0.01, False, "FedDyn (mu = 0.01)"),
        ("fedprox.strategies.server_optimisers.FedAdam", 0.0, False, "FedAdam"),
        # It corrects Adam's bias and begins with v = 0, unlike ours.
        ("flwr.serverapp.strategy.FedAdam", 0.0, False, "FedAdam (flwr)"),
        # It keeps stragglers' work, so it must not be averaged with ours, which drops them.
        ("flwr.serverapp.strategy.FedAvg", 0.0, False, "FedAvg (flwr)"),
        ("my_strategy.FedAvg", 0.0, False, "FedAvg (my_strategy)"),
    ],
)
def test_a_runs_name_has_its_strategy_and_mu_if_mu_is_used(strategy, mu, adaptive, name):
    settings = [f"strategy._target_={strategy}", f"mu={mu}", f"adaptive_mu.enabled={adaptive}", "evaluation=clients"]
    assert algorithm(compose(settings)) == name


@pytest.mark.parametrize(("solver", "device"), [("auto", "cpu"), ("reference", "cuda")])
def test_auto_trains_and_measures_logistic_regression_on_the_cpu(solver, device):
    # Devices are only passed on here, so this works without a GPU.
    config = compose([f"solver={solver}", "server_device=cuda", "engine=local", "dataset=digits"])
    data = FederatedData(digits(), *[ClientIndex.from_lists([np.arange(start, start + 8)]) for start in (0, 8)])
    spec = build.client_spec(config, data, logistic((8, 8), 10))
    assert spec.device == device
    assert build.server_device(config, spec) == device


def test_rounds_collect_only_their_own_garbage(monkeypatch):
    calls = []
    monkeypatch.setattr("gc.freeze", lambda: calls.append("freeze"))
    monkeypatch.setattr("gc.unfreeze", lambda: calls.append("unfreeze"))
    settings = ["dataset=digits", "num_clients=3", "clients_per_round=2", "num_rounds=2", "engine=local"]
    rounds = build.Experiment.of(compose(settings)).rounds()
    assert next(rounds).round_num == 0
    assert calls == ["freeze"]
    rounds.close()
    assert calls == ["freeze", "unfreeze"]
