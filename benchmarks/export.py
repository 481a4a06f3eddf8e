"""Data, cohorts and initial weights of a workload in one file, so that other programs can train on the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedprox.config.compose import compose
from fedprox.config.schema import Config
from fedprox.data.facts import Facts
from fedprox.data.federated import FederatedData
from fedprox.experiment import build
from fedprox.experiment.data import divided_data
from fedprox.experiment.model import initial_model
from fedprox.plan.plan import CohortPlan

SETTINGS = ("num_rounds", "num_epochs", "batch_size", "learning_rate", "mu", "weight_decay")


def composed(overrides: Sequence[str]) -> Config:
    """Return the checked configuration of `python -m fedprox.main OVERRIDES`, without `--multirun`.

    Raises:
        UserError: If a setting is invalid.
    """
    config = compose(overrides)
    build.check_settings(config)
    return config


def prepared(config: Config) -> tuple[FederatedData, CohortPlan]:
    """Return a configuration's data divided among clients, and its plan."""
    data = divided_data(config)
    return data, build.plan(config, Facts.of(data), build.check_settings(config))


def write(overrides: Sequence[str], file: Path) -> None:
    """Write an uncompressed .npz, which numpy reads without pickle.

    It has features (n, d) float32, normalised for the model, and labels (n,), client after client: client k holds
    [offsets[k], offsets[k + 1]); test_features, test_labels; cohorts (num_rounds, K), numbers of clients; weight
    (classes, d) and bias (classes,) of the initial model; and SETTINGS, a number each.
    """
    config = composed(overrides)
    data, plan = prepared(config)
    model = [parameter.detach().numpy() for parameter in initial_model(config, Facts.of(data)).parameters()]
    positions = data.train.indices
    test_features, test_labels = data.test_examples()
    with file.open("wb") as out:
        np.savez(
            out,
            features=data.examples.model_input(data.examples.features[positions]).reshape(len(positions), -1),
            labels=data.examples.labels[positions],
            offsets=data.train.offsets,
            test_features=test_features.reshape(len(test_labels), -1),
            test_labels=test_labels,
            cohorts=[[task.client for task in plan.tasks(t)] for t in range(1, config.num_rounds + 1)],
            weight=model[0],
            bias=model[1],
            **{name: getattr(config, name) for name in SETTINGS},
        )
