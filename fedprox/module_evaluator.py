"""Any model on a set of examples: pieces of it side by side in threads."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedprox.metrics import Evaluation
from fedprox.solvers.generators import Generators, seeded
from fedprox.solvers.problem import Params
from fedprox.solvers.threads import Pool
from fedprox.solvers.workspace import Workspace, tuned_for_cpu, with_channels_last

_ON_CPU, _ON_GPU = 50, 10_000  # examples of a piece: activations that fit into a cache; enough work for a GPU


class ModuleEvaluator:
    """Measures state dicts of a model; results depend neither on the number of threads nor on earlier measurements."""

    def __init__(self, model: nn.Module, features: Tensor, labels: Tensor, piece: int | None = None) -> None:
        """Copy the architecture.

        Args:
            model: Any; its weights are not used.
            features: Model input, shape (n, *input_shape), n >= 1, on the device where to compute.
            labels: Classes, shape (n,).
            piece: Examples that a thread takes at once; None for what suits the device.
        """
        on_cpu = features.device.type == "cpu"
        fastest = tuned_for_cpu(model, features[:3]) if on_cpu else model
        self._features = features if fastest is model else with_channels_last(features)
        self._labels = labels
        self._workspace = _Loaded(fastest, str(features.device))
        self._pool = Pool(torch.get_num_threads() if on_cpu else 1)
        self._piece = piece or (_ON_CPU if on_cpu else _ON_GPU)
        self._draws = False

    def __call__(self, models: Sequence[Params]) -> list[Evaluation]:
        """Return the mean loss and the accuracy of each state dict."""
        return self.in_detail(models)[0]

    def in_detail(self, models: Sequence[Params]) -> tuple[list[Evaluation], Sequence[NDArray[np.bool_]]]:
        """Return that, and whether each example is classified rightly, shape (n,) for each state dict."""
        evaluations, is_right = zip(*map(self._evaluate, models), strict=True)
        return list(evaluations), is_right

    def _evaluate(self, params: Params) -> tuple[Evaluation, NDArray[np.bool_]]:
        starts = range(0, len(self._labels), self._piece)
        before = Generators(self._labels.device)
        pieces = {} if self._draws else self._pool.map(lambda start: self._measure(params, start), starts)
        if self._draws or before.have_moved():  # the model draws random numbers: one seeded piece after another
            self._draws = True
            before.restore()
            pieces = {start: self._measure_seeded(params, start) for start in starts}
        losses, parts = zip(*(pieces[start] for start in starts), strict=True)
        is_right = np.concatenate(parts)
        return Evaluation(sum(losses) / len(is_right), int(is_right.sum()) / len(is_right)), is_right

    def _measure_seeded(self, params: Params, start: int) -> tuple[float, NDArray[np.bool_]]:
        with seeded(start, self._labels.device):
            return self._measure(params, start)

    @torch.no_grad()
    def _measure(self, params: Params, start: int) -> tuple[float, NDArray[np.bool_]]:
        """Return the sum of the losses of one piece's examples, and whether each is classified rightly."""
        piece = slice(start, start + self._piece)
        features, labels = self._features[piece].clone(), self._labels[piece]  # a copy: the model may change it
        logits = self._workspace.with_params(params)(features).float()
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        return float(loss), (logits.argmax(dim=1) == labels).cpu().numpy()


class _Loaded(Workspace):
    """Copies in evaluation mode that get their weights once for all pieces that a thread measures.

    A model whose forward pass changes its parameters or buffers gets them anew for each piece.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__(model, device)
        self.model.eval()
        self._params: Params | None = None
        self._versions: list[tuple[int, int]] = []

    def with_params(self, params: Params) -> nn.Module:
        if params is not self._params or self._versions != self._present():
            self.load(params)
            self._params, self._versions = params, self._present()
        return self.model

    def _present(self) -> list[tuple[int, int]]:
        """Return which tensors the model has, and how often each has been changed."""
        return [(id(own), own._version) for own in (*self.model.parameters(), *self.model.buffers())]
