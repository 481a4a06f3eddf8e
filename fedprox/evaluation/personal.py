"""Accuracy of personal models, each on the held-out examples of its own client."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedprox.data.federated import FederatedData
from fedprox.evaluation.predictions import is_correct
from fedprox.solvers.generators import seeded
from fedprox.solvers.precision import precision
from fedprox.solvers.problem import Params
from fedprox.solvers.threads import one_thread
from fedprox.solvers.workspace import Workspace

_PIECE = 1_000  # examples of a client that are classified at once


class HeldOut:
    """Every client's held-out examples, and a copy of the model to classify them with.

    Attributes:
        sizes: Number of held-out examples of each client; 0 for clients that do not count, such as attackers.
    """

    def __init__(self, model: nn.Module, data: FederatedData, device: str, counts: NDArray[np.bool_]) -> None:
        """Copy the architecture.

        Args:
            model: The architecture; its weights are not used.
            data: Contains the held-out examples.
            device: Device on which to compute.
            counts: Which clients count, shape (num_clients,).
        """
        self.sizes = np.where(counts, data.held_out.sizes, 0)
        self._data, self._device = data, torch.device(device)
        self._workspace = Workspace(model, device)

    @torch.no_grad()
    def num_correct(self, params: Params, client: int) -> int:
        """Return how many of a client's held-out examples a state dict classifies correctly."""
        features, labels = map(torch.from_numpy, self._data.client_held_out(client))
        model = self._workspace.model.eval()
        self._workspace.load(params)
        with one_thread(), precision(self._device), seeded(0, self._device):
            pieces = [model(piece.to(self._device)).cpu() for piece in torch.split(features, _PIECE)]
        return int(is_correct(torch.cat(pieces), labels, self._data.examples.task).sum())
