"""Loss as a true mean over examples, and accuracy, of any model."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprox.evaluation.evaluators import ModuleEvaluator
from fedprox.evaluation.metrics import Evaluation
from fedprox.models.cnn import cnn


def evaluate(model: nn.Module, features: torch.Tensor, labels: torch.Tensor, piece: int | None = None) -> Evaluation:
    return ModuleEvaluator(model, features, labels, piece)(model.state_dict())


class Scaled(nn.Module):
    """Fake model: its input in evaluation mode, its negative in training mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x if self.training else x


# Logits of five examples with two classes; the cross-entropy of logits (0, d) is log(1 + e^d) for class 0.
DIFFERENCES = [0.0, 2.0, -1.0, 3.0, -1.0]
LABELS = [0, 0, 0, 1, 1]
LOGITS = torch.tensor([[0.0, d] for d in DIFFERENCES])
LOSSES = [math.log1p(math.exp(d if y == 0 else -d)) for d, y in zip(DIFFERENCES, LABELS, strict=True)]


@pytest.mark.parametrize("piece", [1, 2, 3, 10_000])
def test_loss_and_accuracy_are_means_over_examples_whatever_the_pieces(piece):
    # Pieces of 2, 2, 1 and of 3, 2: a mean of their means would give the last ones too much weight.
    result = evaluate(Scaled(), LOGITS, torch.tensor(LABELS), piece)
    assert result.loss == pytest.approx(sum(LOSSES) / 5, rel=1e-6)  # float32
    # Largest logits: a tie (argmax takes the first class), 1, 0, 1, 0; labels 0 0 0 1 1: 3 of 5.
    assert result.accuracy == 3 / 5


class Doubled(nn.Module):
    """Its input times 2."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2) if self.inplace else x * 2


def test_a_model_that_changes_its_input_does_not_change_later_results():
    images = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
    kept, labels = images.clone(), torch.arange(70) % 4
    evaluator = ModuleEvaluator(Doubled(inplace=True), images, labels)
    expected = evaluate(Doubled(), kept, labels)
    assert [evaluator({}) for _ in range(3)] == [expected] * 3
    assert torch.equal(images, kept)


class Noisy(nn.Module):
    """Its input plus random numbers, even in evaluation mode, except for small pieces."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.draw() if len(x) > 3 else x


NOISE = {
    "torch": lambda: torch.randn(4),
    "numpy": lambda: torch.from_numpy(np.random.randn(4)).float(),
    "python": lambda: torch.tensor([random.random() for _ in range(4)]),
}


def with_threads(num_threads: int, *args) -> ModuleEvaluator:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return ModuleEvaluator(*args)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", NOISE)
def test_a_model_that_draws_random_numbers_has_the_same_result_with_any_threads(kind):
    images, labels = torch.zeros(230, 4), torch.arange(230) % 4
    results = {
        with_threads(num_threads, Noisy(NOISE[kind]), images, labels)({}) for num_threads in (1, 3) for _ in range(2)
    }
    assert len(results) == 1
    assert results.pop().loss != pytest.approx(math.log(4), rel=1e-4)  # what it has without noise


class Counting(nn.Module):
    """Its input times the number of its passes, in a buffer that may be part of the state dict."""

    def __init__(self, *, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()), persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return x * self.passes


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_models_buffers_are_reset_for_every_piece(persistent, num_threads):
    # Every piece starts with the given state dict, so every pass is the first: the input times 1.
    images, labels = torch.randn(230, 4, generator=torch.Generator().manual_seed(0)), torch.arange(230) % 4
    model = Counting(persistent=persistent)
    evaluator, state = with_threads(num_threads, model, images, labels), model.state_dict()
    expected = pytest.approx(float(functional.cross_entropy(images, labels)), rel=1e-6)
    assert [evaluator(state).loss for _ in range(2)] == [expected] * 2


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_and_layouts_change_no_result_beyond_rounding(num_threads):
    generator = torch.Generator().manual_seed(0)
    model, other = (cnn((3, 8, 8), 4) for _ in range(2))
    images, labels = torch.randn(230, 3, 8, 8, generator=generator), torch.arange(230) % 4
    evaluator = with_threads(num_threads, model, images, labels)
    states = [model.state_dict(), other.state_dict(), model.state_dict()]
    for each, state in zip((model, other, model), states, strict=True):
        measured = evaluator(state)
        with torch.no_grad():
            logits = each(images)
        assert measured.loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)
        assert measured.accuracy == float((logits.argmax(dim=1) == labels).float().mean(dtype=torch.float64))
