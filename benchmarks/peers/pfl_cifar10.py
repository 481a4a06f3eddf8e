"""pfl-research on the task of W7: `python pfl_cifar10.py [cpu|cuda] [ROUNDS]`.

It runs in an environment with pfl and torch (see README.md here), not with fedprox, and prints a line of JSON: the
median milliseconds of a round after the first. Images are random, in memory or on the GPU from the beginning. The model
and the settings are those of pfl's own benchmark on CIFAR-10: 1,000 users with 50 images each, 50 users a round, one
epoch of batches of 10, learning rate 0.1. The algorithm is pfl's FedProx with mu = 0.01.
"""

import json
import sys
import time

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

USERS, IMAGES, COHORT, BATCH, RATE = 1000, 50, 50, 10, 0.1


class Cnn(nn.Sequential):
    """The CNN of pfl's benchmark, with the methods that pfl requires."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__(
            *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
            *(nn.Flatten(), nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
        )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """Return the metrics that pfl computes on the users of its first round."""
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class Clock(TrainingProcessCallback):
    """Notes the time after each round."""

    def __init__(self, device: str) -> None:
        """Begin without rounds."""
        self.device = device
        self.times: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note the time, with nothing to report to pfl."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return False, Metrics()


def federation(device: str, seed: int = 0) -> FederatedDataset:
    """Return users with random images on the device, in a random order without end."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.normal(size=(USERS * IMAGES, 3, 32, 32)).astype(np.float32)).to(device)
    labels = torch.from_numpy(rng.integers(0, 10, USERS * IMAGES)).to(device)

    def user(number: int) -> Dataset:
        held = slice(number * IMAGES, (number + 1) * IMAGES)
        return Dataset((images[held], labels[held]), user_id=str(number))

    return FederatedDataset(user, lambda: int(rng.integers(USERS)))


def main() -> None:
    """Train and print the median time of a round."""
    device, rounds = [*sys.argv[1:], *("cuda", "6")[len(sys.argv) - 1 :]]
    model, clock = Cnn().to(device), Clock(device)
    FedProx().run(
        FedProxParams(
            central_num_iterations=int(rounds),
            evaluation_frequency=int(rounds),
            train_cohort_size=COHORT,
            val_cohort_size=0,
            mu=0.01,
        ),
        SimulatedBackend(training_data=federation(device), val_data=None, postprocessors=[WeightByDatapoints()]),
        PyTorchModel(model, torch.optim.SGD, torch.optim.SGD(model.parameters(), lr=1.0)),
        NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE),
        NNEvalHyperParams(local_batch_size=None),
        [clock],
    )
    print(json.dumps({"round_ms": 1000 * float(np.median(np.diff(clock.times)))}))


if __name__ == "__main__":
    main()
