"""Evaluation of the global model on the test examples, and on all clients with their gradients' dissimilarity."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprox.data.federated import FederatedData, Floats, Integers, Labels, Task
from fedprox.errors import USER_CODE_ERRORS, UserError, with_location
from fedprox.evaluation.gradients import Examples, ModuleGradients
from fedprox.evaluation.logistic import LogisticEvaluator, LogisticGradients
from fedprox.evaluation.metrics import Evaluation, FederationMetrics, among_clients, by_class
from fedprox.evaluation.predictions import is_correct, predictions, probabilities
from fedprox.solvers.generators import Generators, seeded
from fedprox.solvers.kernels.logistic import has_kernels
from fedprox.solvers.losses import PAPER_LOSS, Loss
from fedprox.solvers.precision import precision
from fedprox.solvers.problem import Params
from fedprox.solvers.threads import Pool
from fedprox.solvers.workspace import Workspace, tuned_for_cpu, with_channels_last

_ON_CPU, _ON_GPU = 50, 10_000  # examples of a piece: so few that activations fit into a cache; enough work for a GPU


class ModuleEvaluator:
    """Measures state dicts of any model; results depend neither on the number of threads nor on earlier results."""

    def __init__(
        self,
        model: nn.Module,
        features: Tensor,
        labels: Tensor,
        piece: int | None = None,
        loss: Loss = PAPER_LOSS,
        task: Task = "classification",
    ) -> None:
        """Copy the architecture.

        Args:
            model: The architecture; its weights are not used.
            features: Model input, shape (n, *input_shape), n >= 1, on the device that computes.
            labels: Shape (n, ...), by the task.
            piece: Examples that a thread takes at once; None for a number that suits the device.
            loss: To measure.
            task: Of the data.
        """
        on_cpu = features.device.type == "cpu"
        fastest = tuned_for_cpu(model, features[:3]) if on_cpu else model
        self._features = features if fastest is model else with_channels_last(features)
        self._labels, self._loss, self._task = labels, loss, task
        self._workspace = _Loaded(fastest, str(features.device))
        self._pool = Pool(torch.get_num_threads() if on_cpu else 1)
        self._piece = piece or (_ON_CPU if on_cpu else _ON_GPU)
        self._draws = False

    def __call__(self, params: Params) -> Evaluation:
        """Return the mean loss and the accuracy of a state dict."""
        return self.in_detail(params)[0]

    def in_detail(self, params: Params) -> tuple[Evaluation, NDArray[np.bool_]]:
        """Return the evaluation, and whether each example is classified correctly, shape (n,)."""
        with precision(self._labels.device):
            return self._in_detail(params)

    def _in_detail(self, params: Params) -> tuple[Evaluation, NDArray[np.bool_]]:
        starts = range(0, len(self._labels), self._piece)
        before = Generators(self._labels.device)
        pieces = {} if self._draws else self._pool.map(lambda start: self._measure(params, start), starts)
        if self._draws or before.have_moved():  # the model draws random numbers: one seeded piece after another
            self._draws = True
            before.restore()
            for start in starts:
                with seeded(start, self._labels.device):
                    pieces[start] = self._measure(params, start)
        losses, parts = zip(*(pieces[start] for start in starts), strict=True)
        correct = np.concatenate(parts)
        accuracy = None if self._task == "regression" else int(correct.sum()) / len(correct)
        return Evaluation(sum(losses) / len(correct), accuracy), correct

    @torch.no_grad()
    def _measure(self, params: Params, start: int) -> tuple[float, NDArray[np.bool_]]:
        """Return the sum of the losses of one piece's examples, and whether each is classified correctly."""
        piece = slice(start, start + self._piece)
        features, labels = self._features[piece].clone(), self._labels[piece]  # a copy: the model may change it
        logits = self._workspace.with_params(params)(features).float()
        return float(self._loss(logits, labels, "sum")), is_correct(logits, labels, self._task).cpu().numpy()


class _Loaded(Workspace):
    """Copies in evaluation mode that load weights once for all pieces that a thread measures.

    If a forward pass changes parameters or buffers, they are loaded again for the next piece.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__(model, device)
        self.model.eval()
        self._params: Params | None = None
        self._versions: list[tuple[int, int]] = []

    def with_params(self, params: Params) -> nn.Module:
        if params is not self._params or self._versions != self._versions_now():
            self.load(params)
            self._params, self._versions = params, self._versions_now()
        return self.model

    def _versions_now(self) -> list[tuple[int, int]]:
        """Return the identity of each of the model's tensors and how often it was modified."""
        return [(id(own), own._version) for own in (*self.model.parameters(), *self.model.buffers())]


_PIECE = 10_000  # examples converted to model input at once
TestEvaluator = Callable[[Params], Evaluation]


class FederationEvaluator:
    """Measures global models on all clients, whose model input it keeps on the device."""

    def __init__(
        self,
        model: nn.Module,
        data: FederatedData,
        device: str,
        memory_bytes: int = 2**28,
        test: TestEvaluator | None = None,
        loss: Loss = PAPER_LOSS,
    ) -> None:
        """Prepare all clients' examples.

        Args:
            model: The architecture, which is copied and put into evaluation mode. Gradients are those of the
                parameters that require one.
            data: All clients' examples. A client without training examples has no F_k and does not count.
            device: Device on which to compute, such as "cpu" or "cuda".
            memory_bytes: Approximate limit for activations and gradients, besides the inputs.
            test: Measures a model on the test examples; None for `evaluator_on_test_set` without details.
            loss: Of which F_k is the mean.
        """
        examples = _training_examples(data, device)
        self._num_examples = len(examples.labels)
        self._test = test or evaluator_on_test_set(model, data, device, loss=loss)
        self._has_accuracy = data.examples.task != "regression"
        self._gradients: LogisticGradients | ModuleGradients
        if has_kernels(model, device) and loss == PAPER_LOSS:
            self._gradients = LogisticGradients(examples)
        else:
            own = copy.deepcopy(model).to(device).eval()
            self._gradients = ModuleGradients(own, examples, memory_bytes, loss, data.examples.task)

    def __call__(self, params: Params) -> Evaluation:
        """Return the evaluation of w, a state dict of the model, on the test examples and on all clients."""
        test, sums = self._test(params), self._gradients.sums(params)
        variance, variance_unweighted, dissimilarity_b = sums.moments()
        federation = FederationMetrics(
            train_loss=sums.loss,
            train_accuracy=sums.num_correct / self._num_examples if self._has_accuracy else None,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            gradient_variance=variance,
            gradient_variance_unweighted=variance_unweighted,
            dissimilarity_b=dissimilarity_b,
        )
        return replace(test, federation=federation)


def evaluator_on_test_set(
    model: nn.Module,
    data: FederatedData,
    device: str,
    *,
    per_class: bool = False,
    per_client: bool = False,
    loss: Loss = PAPER_LOSS,
) -> TestEvaluator:
    """Return a function that measures state dicts of a model on the test examples, which it keeps on the device.

    Without test examples, loss and accuracy are nan, and nothing else is measured.

    Args:
        model: The architecture; its weights are not used.
        data: Contains the test examples.
        device: Device on which to compute.
        per_class: Also measure the accuracy per class.
        per_client: Also measure the spread over clients on all held-out examples; at least one is needed.
        loss: To measure.
    """
    features, labels = data.test_examples()
    if len(labels) == 0:
        return lambda params: Evaluation(math.nan, math.nan)
    task, num_classes = data.examples.task, data.examples.num_classes
    test = evaluator(model, features, labels, device, loss, task)
    has_own_test_set = len(data.examples.test_labels) > 0
    held_out = test
    if per_client and has_own_test_set:
        held_out = evaluator(model, *data.held_out_examples(), device, loss, task)

    def in_detail(params: Params) -> Evaluation:
        evaluation, correct = test.in_detail(params)
        of_clients = correct if held_out is test else held_out.in_detail(params)[1]
        return replace(
            evaluation,
            classes=by_class(correct, cast(Integers, labels), num_classes) if per_class else (),
            spread=among_clients(of_clients, data.held_out.sizes) if per_client else None,
        )

    return in_detail if per_class or per_client else test


def with_attack_success(
    measure: TestEvaluator, model: nn.Module, trial: tuple[Floats | Integers, Integers], device: str
) -> TestEvaluator:
    """Return a function that also measures how well a backdoor works.

    Args:
        measure: Measures all else.
        model: The architecture.
        trial: Model input with the trigger, and the target class for each.
        device: Device on which to compute.
    """
    success = evaluator(model, *trial, device)
    return lambda params: replace(measure(params), attack_success=success(params).accuracy)


Metric = Callable[[NDArray[Any], NDArray[Any]], float]  # of labels, and of predictions or probabilities


def with_metrics(
    measure: TestEvaluator, model: nn.Module, data: FederatedData, device: str, metrics: Mapping[str, Metric]
) -> TestEvaluator:
    """Return a function that also measures a model on the test examples by some functions.

    Args:
        measure: Measures all else.
        model: The architecture.
        data: Contains the test examples.
        device: Device on which to compute.
        metrics: By name, as scikit-learn's: called with labels and predictions, or with labels and probabilities if
            their second argument is named y_score, y_prob or y_proba.

    Raises:
        UserError: From the returned function, if a metric raises or does not return a number.
    """
    features, labels = data.test_examples()
    task, inputs = data.examples.task, torch.from_numpy(features)
    workspace = _Loaded(model, device)

    @torch.no_grad()
    def measured(params: Params) -> Evaluation:
        evaluation = measure(params)
        own = workspace.with_params(params)
        with precision(torch.device(device)), seeded(0, torch.device(device)):
            pieces = [own(piece.to(device).clone()).float().cpu() for piece in torch.split(inputs, _ON_GPU)]
        outputs = torch.cat(pieces)
        further = tuple((name, _metric(name, each, labels, outputs, task)) for name, each in metrics.items())
        return replace(evaluation, further=further)

    return measured


def _metric(name: str, metric: Metric, labels: Labels, outputs: Tensor, task: Task) -> float:
    """Return what a user's metric measures."""
    try:
        names = list(inspect.signature(metric).parameters)
        takes_scores = len(names) > 1 and names[1] in ("y_score", "y_prob", "y_proba")
        given = probabilities(outputs, task) if takes_scores else predictions(outputs, task).numpy()
        found = metric(labels.copy(), given)
        return float(found)
    except USER_CODE_ERRORS as error:
        raise UserError(
            f"metrics.{name} failed with {with_location(error)}; it must return a number for labels of shape "
            f"{labels.shape} and predictions; fix it, or leave it out"
        ) from error


def evaluator(
    model: nn.Module,
    features: Floats | Integers,
    labels: Labels,
    device: str,
    loss: Loss = PAPER_LOSS,
    task: Task = "classification",
) -> LogisticEvaluator | ModuleEvaluator:
    """Return the fastest evaluator of a model on some examples."""
    examples = torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device)
    if has_kernels(model, device) and loss == PAPER_LOSS:
        return LogisticEvaluator(*examples)
    return ModuleEvaluator(model, *examples, loss=loss, task=task)


def _training_examples(data: FederatedData, device: str) -> Examples:
    """Return all clients' training examples as model input, made in pieces because it makes several copies."""
    positions, sizes = data.train.indices, data.train.sizes
    like = data.examples.model_input(data.examples.features[:0])
    features = np.empty((len(positions), *like.shape[1:]), dtype=like.dtype)
    for start in range(0, len(positions), _PIECE):
        piece = slice(start, start + _PIECE)
        features[piece] = data.examples.model_input(data.examples.features[positions[piece]])
    labels = torch.from_numpy(data.examples.labels[positions])
    return Examples(torch.from_numpy(features).to(device), labels.to(device), sizes[sizes > 0])
