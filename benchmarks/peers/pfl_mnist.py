"""FedProx in pfl-research on the data of `python -m benchmarks export`: `python pfl_mnist.py FILE.npz`.

It runs in an environment with pfl (see README.md here) and prints a line of JSON: seconds of the rounds with evaluation
in each; accuracy after the last round and over the last ten. One thread, because more are slower on such a small model.
"""

import json
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.fedprox import FedProx, FedProxParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional


class Logistic(nn.Linear):
    """Multinomial logistic regression with the methods that pfl requires."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return functional.cross_entropy(self(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """Return the metrics that pfl computes on the clients of its first round."""
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class TestAccuracy(TrainingProcessCallback):
    """Tests the global model after each round."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        """Keep the test set."""
        self.x, self.y = x, y
        self.accuracies: list[float] = []

    @torch.no_grad()
    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Record the test accuracy, with nothing to report to pfl."""
        found = model.pytorch_model(self.x).argmax(dim=1)
        self.accuracies.append(float((found == self.y).float().mean()))
        return False, Metrics()


def federation(data: dict[str, np.ndarray]) -> FederatedDataset:
    """Return our clients in the order of our cohorts; pfl does not shuffle a client's examples."""
    features, labels = torch.from_numpy(data["features"]), torch.from_numpy(data["labels"])
    offsets, order = data["offsets"], iter(data["cohorts"].ravel().tolist())

    def client(number: int) -> Dataset:
        held = slice(offsets[number], offsets[number + 1])
        return Dataset((features[held], labels[held]), user_id=str(number))

    return FederatedDataset(client, lambda: next(order))


def train(data: dict[str, np.ndarray]) -> list[float]:
    """Return the test accuracy after each round."""
    model = Logistic(*reversed(data["weight"].shape))
    model.load_state_dict({name: torch.from_numpy(data[name]) for name in ("weight", "bias")})
    sgd: Any = partial(torch.optim.SGD, weight_decay=float(data["weight_decay"]))
    num_rounds, cohort_size = data["cohorts"].shape
    tested = TestAccuracy(torch.from_numpy(data["test_features"]), torch.from_numpy(data["test_labels"]))
    FedProx().run(
        FedProxParams(
            central_num_iterations=num_rounds,
            evaluation_frequency=num_rounds,
            train_cohort_size=cohort_size,
            val_cohort_size=0,
            mu=float(data["mu"]),
        ),
        SimulatedBackend(training_data=federation(data), val_data=None, postprocessors=[WeightByDatapoints()]),
        PyTorchModel(model, sgd, torch.optim.SGD(model.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_batch_size=int(data["batch_size"]),
            local_num_epochs=int(data["num_epochs"]),
            local_learning_rate=float(data["learning_rate"]),
        ),
        NNEvalHyperParams(local_batch_size=None),
        [tested],
    )
    return tested.accuracies


def main() -> None:
    """Train and print the numbers."""
    torch.set_num_threads(1)
    with np.load(sys.argv[1]) as file:
        data = dict(file)
    start = time.perf_counter()
    accuracies = train(data)
    rounds_s = time.perf_counter() - start
    print(
        json.dumps(
            {"rounds_s": rounds_s, "accuracy": accuracies[-1], "accuracy_last10": float(np.mean(accuracies[-10:]))}
        )
    )


if __name__ == "__main__":
    main()
