"""Metrics on all clients, against autograd in float64 for one client after another."""

import copy
import math
from dataclasses import astuple, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.data.sources.synthetic import synthetic
from fedprox.evaluation.evaluators import FederationEvaluator, ModuleEvaluator, evaluator_on_test_set
from fedprox.evaluation.gradients import Examples, ModuleGradients
from fedprox.evaluation.logistic import LogisticEvaluator, LogisticGradients
from fedprox.evaluation.metrics import ClassAccuracy, ClientSpread, Evaluation, FederationMetrics
from fedprox.models.cnn import cnn
from fedprox.models.logistic import logistic

ZERO_WEIGHTS_VARIANCE = 89.62063791502302  # printed by the authors' program on the Synthetic(1, 1) of seed 0

RAGGED = [3, 41, 1, 7, 40, 12, 1, 22]
NUM_CLASSES = 4
FLOAT32 = 2e-5  # relative: a unit of 6e-8 per operation, and sums of a hundred of them that partly cancel


class Directions(nn.Module):
    """Linear, with outputs of length 1; 0 / 0 at the input 0."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, NUM_CLASSES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x.flatten(1))
        return x / x.norm(dim=1, keepdim=True)


class LastHidden(nn.Module):
    """Classifies token sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 3)
        self.lstm = nn.LSTM(3, 5, 2, batch_first=True)
        self.head = nn.Linear(5, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(x))[0][:, -1])


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, NUM_CLASSES))


def frozen_layer() -> nn.Module:
    model = two_layers()
    model[1].requires_grad_(False)
    return model


def tied_layers() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, NUM_CLASSES))
    model[3].weight = model[2].weight
    return model


def batch_norm_dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, NUM_CLASSES))


def batch_norm_images() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, NUM_CLASSES)
    )


MODELS = {
    "logistic": lambda: logistic((6, 6), NUM_CLASSES),
    "logistic without bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, NUM_CLASSES, bias=False)),
    "two layers": two_layers,
    "frozen layer": frozen_layer,
    "tied layers": tied_layers,
    "directions": Directions,
    "cnn": lambda: cnn((6, 6), NUM_CLASSES),
    "batch norm, dense": batch_norm_dense,
    "batch norm, images": batch_norm_images,
    "lstm": LastHidden,
}


def initialised(make) -> nn.Module:
    """Return a model with seeded weights, and buffers that are not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2.0)
    return model


def zero(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}


def divided(features, labels, sizes, *, held_out=(), num_classes=NUM_CLASSES, mean=0.0, std=1.0) -> FederatedData:
    """Give the first n_0 examples to client 0, the next n_1 to client 1 ...; held_out sizes come after all those."""
    bounds = np.cumsum([0, *sizes, *held_out])
    parts = [np.arange(start, stop) for start, stop in pairwise(bounds)]
    data = LabelledData(
        features=np.asarray(features),
        labels=np.asarray(labels, dtype=np.int64),
        test_features=np.asarray(features)[:0],
        test_labels=np.empty(0, dtype=np.int64),
        num_classes=num_classes,
        mean=np.array(mean, dtype=np.float32),
        std=np.array(std, dtype=np.float32),
    )
    none = [np.empty(0, dtype=np.int64)] * (len(sizes) - len(held_out))
    return FederatedData(data, parts[: len(sizes)], [*parts[len(sizes) :], *none])


def drawn(sizes=RAGGED, *, tokens: bool = False, seed: int = 0) -> FederatedData:
    """Return clients with different inputs and labels, whose examples are scattered over the shared arrays."""
    rng = np.random.default_rng(seed)
    num_examples = sum(sizes) + 2 * len(sizes) + 5  # 5 that no client holds
    parts = np.split(rng.permutation(num_examples), np.cumsum([*sizes, *[2] * len(sizes)]))
    features = rng.normal(3.0, 2.0, (num_examples, 6, 6)).astype(np.float32)
    labels = rng.integers(NUM_CLASSES, size=num_examples)
    for client, part in enumerate(parts[: len(sizes)]):
        features[part] += client / 2
        labels[part[::2]] = client % NUM_CLASSES
    if tokens:
        features = rng.integers(9, size=(num_examples, 7))
    train, held_out = (ClientIndex.from_lists(some) for some in (parts[: len(sizes)], parts[len(sizes) : -1]))
    mean, std = (0.0, 1.0) if tokens else (3.0, 2.0)
    empty = np.empty(0, dtype=np.int64)
    data = LabelledData(
        features, labels, features[:0], empty, NUM_CLASSES, *(np.array(a, dtype=np.float32) for a in (mean, std))
    )
    return FederatedData(data, train, held_out)


def one_after_another(model: nn.Module, data: FederatedData) -> FederationMetrics:
    """Return the same metrics by their definitions: float64, a loop over clients, gradients kept."""
    model = copy.deepcopy(model).double().eval()
    params = [param for param in model.parameters() if param.requires_grad]

    def loss_and_hits(x, y):
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        logits = model(x.double() if x.is_floating_point() else x)
        return functional.cross_entropy(logits, y), int((logits.argmax(dim=1) == y).sum())

    losses, hits, grads = [], 0, []
    for client in range(data.num_clients):
        loss, client_hits = loss_and_hits(*data.client_examples(client))
        grads.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, params)]))
        losses.append(loss.detach())
        hits += client_hits
    p = torch.from_numpy(data.train.sizes / data.train.sizes.sum())
    mean = sum(p_k * grad for p_k, grad in zip(p, grads, strict=True))
    distances = torch.stack([(grad - mean).square().sum() for grad in grads])
    squares = torch.stack([grad.square().sum() for grad in grads])
    test_loss, test_hits = loss_and_hits(*data.test_examples())
    return FederationMetrics(
        train_loss=float(p @ torch.stack(losses)),
        train_accuracy=hits / int(data.train.sizes.sum()),
        test_loss=float(test_loss.detach()),
        test_accuracy=test_hits / len(data.test_examples()[1]),
        gradient_variance=float(p @ distances),
        gradient_variance_unweighted=float(distances.mean()),
        dissimilarity_b=math.sqrt(p @ squares / mean.square().sum()),
    )


def general(model: nn.Module, data: FederatedData) -> FederationEvaluator:
    """Return an evaluator that takes the general path."""
    evaluator = FederationEvaluator(nn.Sequential(nn.Identity(), *model), data, "cpu")
    assert isinstance(evaluator._gradients, ModuleGradients)
    return evaluator


def measure(evaluator: FederationEvaluator, params: dict[str, torch.Tensor]) -> FederationMetrics:
    """Return the metrics of one model."""
    result = evaluator(params)
    assert (result.loss, result.accuracy) == pytest.approx(
        (result.federation.test_loss, result.federation.test_accuracy), nan_ok=True
    )
    return result.federation


def shifted(params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict of `nn.Sequential(nn.Identity(), *model)`."""
    return {f"{int(name[0]) + 1}{name[1:]}": tensor for name, tensor in params.items()}


# Against the definitions


@pytest.mark.parametrize("memory_bytes", [1, 60_000, 2**28])  # one example at a time, some of each, all at once
@pytest.mark.parametrize("name", MODELS)
def test_all_metrics_are_those_of_a_loop_over_clients(name, memory_bytes):
    model, data = initialised(MODELS[name]), drawn(tokens=name == "lstm")
    result = measure(FederationEvaluator(model, data, "cpu", memory_bytes), model.state_dict())
    assert astuple(result) == pytest.approx(astuple(one_after_another(model, data)), rel=FLOAT32)


def test_two_clients_by_hand():
    # Two classes, one feature, zero weights: softmax is (1/2, 1/2), residuals are (-1/2, 1/2) for class 0 and
    # (1/2, -1/2) for class 1. Client 0 holds x = 2 of class 0: grad W = (-1, 1), grad b = (-1/2, 1/2), square 5/2.
    # Client 1 holds three times x = 0 of class 1: grad W = 0, grad b = (1/2, -1/2), square 1/2.
    # p = (1/4, 3/4), so grad f: W (-1/4, 1/4), b (1/4, -1/4), square 1/4; sum_k p_k ||g_k||^2 = 5/8 + 3/8 = 1.
    # Distances: W (-3/4, 3/4), b (-3/4, 3/4): 9/4; W (1/4, -1/4), b (1/4, -1/4): 1/4.
    # Ties go to class 0: of the training examples 1 in 4 is correct, of the held-out ones (classes 0, 0, 1) 2 in 3.
    data = divided([[2.0], [0.0], [0.0], [0.0], [5.0], [1.0], [1.0]], [0, 1, 1, 1, 0, 0, 1], [1, 3], held_out=[2, 1])
    model = logistic((1,), 2)
    ln2 = math.log(2)
    expected = (ln2, 1 / 4, ln2, 2 / 3, 1 / 4 * 9 / 4 + 3 / 4 * 1 / 4, (9 / 4 + 1 / 4) / 2, math.sqrt(1 / (1 / 4)))
    compiled = FederationEvaluator(model, data, "cpu")
    assert (type(compiled._gradients), type(compiled._test)) == (LogisticGradients, LogisticEvaluator)
    for evaluator, params in ((compiled, zero(model)), (general(model, data), shifted(zero(model)))):
        assert astuple(measure(evaluator, params)) == pytest.approx(expected, rel=1e-6)  # float32


# The authors' numbers


def test_zero_weights_on_synthetic_1_1_give_the_authors_number():
    data = synthetic(30, 0, 1.0, 1.0)
    model = logistic((60,), 10)
    result = measure(FederationEvaluator(model, data, "cpu"), zero(model))
    assert result.train_loss == pytest.approx(math.log(10), rel=1e-6)
    assert result.gradient_variance_unweighted == pytest.approx(ZERO_WEIGHTS_VARIANCE, rel=1e-6)  # theirs is float32
    assert result.gradient_variance != pytest.approx(ZERO_WEIGHTS_VARIANCE, rel=0.1)


# The edges


def test_without_gradients_b_is_1():
    # With a single class the softmax is 1 whatever the weights.
    data = divided([[1.0], [2.0], [3.0]], [0, 0, 0], [1, 2], num_classes=1)
    model = logistic((1,), 1)
    result = measure(FederationEvaluator(model, data, "cpu"), model.state_dict())
    assert astuple(result)[-3:] == (0.0, 0.0, 1.0)


def test_b_is_infinite_if_gradients_cancel():
    # x = 1 of class 0 and x = 1 of class 1 at zero weights: gradients (-1/2, 1/2) and (1/2, -1/2) in W and in b.
    data = divided([[1.0], [1.0]], [0, 1], [1, 1], num_classes=2)
    model = logistic((1,), 2)
    result = measure(FederationEvaluator(model, data, "cpu"), zero(model))
    assert astuple(result)[-3:] == (pytest.approx(1.0), pytest.approx(1.0), math.inf)


@pytest.mark.parametrize("name", ["logistic", "two layers", "cnn"])
def test_a_diverged_model_has_nan_and_not_0(name):
    model = initialised(MODELS[name])
    broken = {key: torch.full_like(tensor, math.nan) for key, tensor in model.state_dict().items()}
    result = measure(FederationEvaluator(model, drawn(), "cpu"), broken)
    assert [math.isnan(value) for value in astuple(result)] == [True, False, True, False, True, True, True]


@pytest.mark.parametrize("name", ["logistic", "two layers"])
def test_a_client_without_training_examples_does_not_count(name):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(12, 6, 6)).astype(np.float32), rng.integers(NUM_CLASSES, size=12)
    model = initialised(MODELS[name])
    some, all_ = (
        measure(FederationEvaluator(model, divided(features, labels, sizes, held_out=[2]), "cpu"), model.state_dict())
        for sizes in ([4, 0, 6, 0], [4, 6])
    )
    assert some == all_


def test_without_test_examples_the_test_metrics_are_nan():
    data = divided(np.ones((4, 5), dtype=np.float32), [0, 1, 2, 0], [3, 1], num_classes=3)
    model = logistic((5,), 3)
    result = measure(FederationEvaluator(model, data, "cpu"), model.state_dict())
    assert math.isnan(result.test_loss)
    assert math.isnan(result.test_accuracy)
    assert math.isfinite(result.train_loss)


def test_the_global_test_set_is_preferred():
    own = drawn()
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(50, 6, 6)).astype(np.float32), rng.integers(NUM_CLASSES, size=50)
    shared = FederatedData(
        LabelledData(
            own.examples.features, own.examples.labels, x, y, NUM_CLASSES, own.examples.mean, own.examples.std
        ),
        own.train,
        own.held_out,
    )
    model = initialised(MODELS["logistic"])
    result = measure(FederationEvaluator(model, shared, "cpu"), model.state_dict())
    expected = ModuleEvaluator(model, torch.from_numpy((x - 3) / 2), torch.from_numpy(y))(model.state_dict())
    assert (result.test_loss, result.test_accuracy) == (pytest.approx(expected.loss, rel=1e-6), expected.accuracy)


# Classes and clients


def with_test_set(own: FederatedData, x, y) -> FederatedData:
    return replace(own, examples=replace(own.examples, test_features=np.asarray(x), test_labels=np.asarray(y)))


def in_detail(model, data: FederatedData, params, **asked: bool) -> Evaluation:
    return evaluator_on_test_set(model, data, "cpu", **asked)(params)


def test_the_zero_model_is_correct_on_class_0_only():
    # All logits are 0, so the first class wins. Held out: class 0, class 1 of one client, classes 0, 0, 1 of the next:
    # accuracies 1/2 and 2/3, their distance 1/6. The global test set holds one example of class 1.
    own = divided(np.ones((8, 1)), [0, 1, 1, 0, 1, 0, 0, 1], [1, 1, 1], held_out=[2, 0, 3], num_classes=3)
    spread = ClientSpread(std=pytest.approx(1 / 12), worst=pytest.approx(1 / 2), best=pytest.approx(2 / 3))
    plain = logistic((1,), 3)
    for model, params in ((plain, zero(plain)), (nn.Sequential(nn.Identity(), *plain), shifted(zero(plain)))):
        found = in_detail(model, own, params, per_class=True, per_client=True)
        assert found.classes == (ClassAccuracy(0, 3, 1.0), ClassAccuracy(1, 2, 0.0), ClassAccuracy(2, 0, None))
        assert (found.accuracy, found.spread) == (3 / 5, spread)
        found = in_detail(model, with_test_set(own, [[1.0]], [1]), params, per_class=True, per_client=True)
        assert found.classes == (ClassAccuracy(0, 0, None), ClassAccuracy(1, 1, 0.0), ClassAccuracy(2, 0, None))
        assert (found.accuracy, found.spread) == (0.0, spread)  # clients are still measured on their own examples


@pytest.mark.parametrize("name", ["logistic", "cnn", "lstm"])
def test_details_are_those_of_each_class_and_client_alone(name):
    model, own = initialised(MODELS[name]), drawn([5] * 30, tokens=name == "lstm")
    x, y = own.examples.features[:70], own.examples.labels[:70]
    found = in_detail(model, with_test_set(own, x, y), model.state_dict(), per_class=True, per_client=True)

    def accuracy(x, y) -> float:
        return in_detail(model, with_test_set(own, x, y), model.state_dict()).accuracy

    assert [each.num_examples for each in found.classes] == np.bincount(y, minlength=NUM_CLASSES).tolist()
    assert [each.accuracy for each in found.classes] == [accuracy(x[y == k], y[y == k]) for k in range(NUM_CLASSES)]
    parts = [own.held_out[client] for client in range(30)]
    alone = sorted(accuracy(own.examples.features[part], own.examples.labels[part]) for part in parts)
    expected = (np.std(alone), np.mean(alone[:3]), np.mean(alone[-3:]))
    assert astuple(found.spread) == pytest.approx(expected, abs=1e-12)
    assert found.spread.std > 0


@pytest.mark.parametrize("name", ["logistic", "two layers"])
def test_details_are_optional_and_do_not_change_loss_and_accuracy(name):
    model, data = initialised(MODELS[name]), drawn([700, 1, 1999, 600, 1000])
    plain = in_detail(model, data, model.state_dict())
    for per_class, per_client in ((False, False), (True, False), (False, True)):
        found = in_detail(model, data, model.state_dict(), per_class=per_class, per_client=per_client)
        assert (found.loss, found.accuracy) == (plain.loss, plain.accuracy)
        assert (found.classes != (), found.spread is not None) == (per_class, per_client)


# State of an evaluator


@pytest.mark.parametrize("name", ["logistic", "two layers", "batch norm, dense"])
def test_a_result_depends_only_on_the_weights_and_changes_neither_them_nor_the_model(name):
    model, data = initialised(MODELS[name]).train(), drawn()
    evaluator = FederationEvaluator(model, data, "cpu")
    params = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    halved = {key: tensor / 2 if tensor.is_floating_point() else tensor for key, tensor in params.items()}
    before = copy.deepcopy(params)
    first, other, again = measure(evaluator, params), measure(evaluator, halved), measure(evaluator, params)
    assert first == again
    assert other.gradient_variance != first.gradient_variance
    assert model.training
    for now in (model.state_dict(), params):
        assert all(torch.equal(now[key], before[key]) for key in before)


# Paths and memory


def examples(sizes) -> Examples:
    n = sum(sizes)
    return Examples(torch.randn(n, 1, 6, 6), torch.zeros(n, dtype=torch.int64), np.array(sizes))


@pytest.mark.parametrize("num_threads", [1, 5])
def test_results_do_not_depend_on_the_number_of_threads(num_threads):
    # 4,300 examples are several shares; sums of the shares are taken in their order.
    data = drawn([700, 1, 1999, 600, 1000])
    model = initialised(MODELS["logistic"])
    expected = measure(FederationEvaluator(model, data, "cpu"), model.state_dict())
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert measure(FederationEvaluator(model, data, "cpu"), model.state_dict()) == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("memory_bytes", [1, 20_000, 50_000, 2**28])
def test_every_client_is_in_one_block_and_blocks_fit_into_the_memory(memory_bytes):
    model = initialised(two_layers).eval()
    sizes = [*RAGGED, 23, 24, 25, 26]
    gradients = ModuleGradients(model, examples(sizes), memory_bytes)
    blocks = [(block.shares.tolist(), sum(grads.nbytes for grads in block.grads)) for block in gradients.blocks()]
    assert sorted(share for shares, _ in blocks for share in shares) == pytest.approx(sorted(np.array(sizes) / 225))
    bytes_per_client = sum(param.nbytes for param in model.parameters())
    for shares, num_bytes in blocks:
        assert num_bytes <= max(memory_bytes + bytes_per_client // 10, bytes_per_client)  # biases come on top
        assert max(shares) <= 2 * min(shares)  # more than half of the work is on real examples
    assert (len(blocks) == len(sizes)) == (memory_bytes == 1)


class Wide(nn.Module):
    """Few parameters and large activations: autograd keeps at least the 3600 outputs of tanh, 14,400 bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.linear = nn.Linear(3600, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_examples = len(x)  # of each client
        return self.linear((self.scale * x.flatten(1).repeat(1, 100)).tanh())


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [5] * 20, [50, 40, 30]])
def test_activations_and_their_gradients_fit_into_half_of_the_memory(sizes):
    model, memory_bytes = Wide(), 2**20
    for block in ModuleGradients(model, examples(sizes), memory_bytes).blocks():
        num_clients = len(block.shares)
        assert 1 <= num_clients * model.num_examples * 2 * 14_400 <= memory_bytes / 2


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    scale=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    seed=st.integers(0, 2**31),
)
def test_for_all_data_and_weights_the_two_paths_agree_variances_are_at_least_0_and_b_at_least_1(sizes, scale, seed):
    data = drawn(sizes, seed=seed)
    model = initialised(lambda: logistic((6, 6), NUM_CLASSES))
    params = {name: scale * tensor for name, tensor in model.state_dict().items()}
    fast = measure(FederationEvaluator(model, data, "cpu"), params)
    slow = measure(general(model, data), shifted(params))
    for result in (fast, slow):
        assert result.gradient_variance >= 0
        assert result.gradient_variance_unweighted >= 0
        assert result.dissimilarity_b >= 1
    # Differences of order 1 leave float32's 1e-6 where they cancel; a tie among logits may go either way.
    assert fast.train_loss == pytest.approx(slow.train_loss, rel=FLOAT32, abs=1e-5)
    assert fast.gradient_variance == pytest.approx(slow.gradient_variance, rel=1e-3, abs=1e-4)
    assert fast.gradient_variance_unweighted == pytest.approx(slow.gradient_variance_unweighted, rel=1e-3, abs=1e-4)
    assert fast.dissimilarity_b == pytest.approx(slow.dissimilarity_b, rel=1e-3)


class Changing(nn.Module):
    """Two layers on twice the input, with optional noise."""

    def __init__(self, *, inplace: bool, noise: float = 0.0) -> None:
        super().__init__()
        self.layers, self.inplace, self.noise = two_layers(), inplace, noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.layers(x.mul_(2) if self.inplace else x * 2)
        return logits + self.noise * torch.randn_like(logits) if self.noise else logits


@pytest.mark.parametrize("memory_bytes", [1, 2**28])  # one client after another, and many at a time
def test_a_model_may_change_its_input(memory_bytes):
    data = drawn()
    expected, *measured = [
        FederationEvaluator(model, data, "cpu", memory_bytes)(model.state_dict())
        for model in (initialised(lambda inplace=inplace: Changing(inplace=inplace)) for inplace in (False, True, True))
    ]
    assert measured == [expected] * 2


@pytest.mark.parametrize("memory_bytes", [1, 2**28])
def test_a_model_that_draws_random_numbers_has_repeatable_results(memory_bytes):
    model = initialised(lambda: Changing(inplace=False, noise=0.1))
    evaluator = FederationEvaluator(model, drawn(), "cpu", memory_bytes)
    assert evaluator(model.state_dict()) == evaluator(model.state_dict())


class Branching(nn.Module):
    """Two layers with a branch on values that is never taken, which vmap does not support."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = two_layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * (0 if float(x.abs().max()) > 1e9 else 1)


def test_a_model_that_branches_on_values_is_measured_client_by_client():
    branching, data = initialised(Branching), drawn()
    plain = two_layers()
    plain.load_state_dict({name.removeprefix("layers."): value for name, value in branching.state_dict().items()})
    measured = measure(FederationEvaluator(branching, data, "cpu"), branching.state_dict())
    assert astuple(measured) == pytest.approx(astuple(one_after_another(plain, data)), rel=FLOAT32)
