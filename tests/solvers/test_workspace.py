"""Copies of a model for threads, and trials of a model."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedprox.models.cnn import cnn
from fedprox.models.logistic import logistic
from fedprox.models.lstm import lstm_shakespeare
from fedprox.solvers.generators import Generators
from fedprox.solvers.kernels.pooling import RectifiedMaxPool2d
from fedprox.solvers.workspace import TrainingWorkspace, Workspace, draws_random_numbers, tuned_for_cpu

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[0, 1, 2], [3, 1, 1], [2, 2, 0]])


class OwnDropout(nn.Sequential):
    def forward(self, x):
        return functional.dropout(super().forward(x), 0.5, self.training)


class Failing(nn.Module):
    def forward(self, x):
        raise ArithmeticError("no logits")


class Viewing(nn.Module):
    """A CNN that needs its activations in the default layout."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 2, 3), nn.Linear(72, 4)

    def forward(self, x):
        x = self.conv(x)
        return self.linear(x.view(x.size(0), -1))


def lstm(dropout: float) -> nn.Module:
    model = lstm_shakespeare((3,), 4, hidden_size=5)
    model.lstm.dropout = dropout
    return model


def test_every_thread_has_its_own_copy_and_keeps_it():
    model = logistic((8, 8), 4)
    workspace = Workspace(model, "cpu")
    here = workspace.model
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        there = [pool.submit(lambda: workspace.model).result() for pool in (one, one, other, other)]
    assert there[0] is there[1]
    assert there[2] is there[3]
    assert len({id(copied) for copied in (model, here, *there)}) == 4
    assert workspace.model is here
    assert all(torch.equal(copied[1].weight, model[1].weight) for copied in (here, *there))


@pytest.mark.parametrize(
    ("model", "features", "expected"),
    [
        (cnn((1, 8, 8), 4), IMAGES, False),
        (lstm(0.0), TOKENS, False),
        (lstm(0.5), TOKENS, True),
        (nn.Sequential(nn.Dropout(0.5), cnn((1, 8, 8), 4)), IMAGES, True),
        (nn.Sequential(nn.Dropout(0.0), cnn((1, 8, 8), 4)), IMAGES, False),
        (OwnDropout(nn.Flatten(), nn.Linear(64, 4)), IMAGES, True),
        (Failing(), IMAGES, True),
    ],
    ids=["CNN", "LSTM", "LSTM's dropout", "dropout", "dropout of 0", "a function", "an error"],
)
def test_a_trial_shows_random_draws_and_changes_nothing(model, features, expected):
    model.eval()  # training mode counts, whatever mode the model has
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert draws_random_numbers(model, features) is expected
    assert torch.equal(torch.get_rng_state(), generator)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("draw", [np.random.rand, random.random])
def test_a_trial_shows_draws_from_numpy_and_python(draw):
    class Scaled(nn.Flatten):
        def forward(self, x):
            return super().forward(x) * draw()

    before = Generators()
    assert draws_random_numbers(Scaled(), IMAGES)
    assert not before.have_moved()


def test_a_trial_does_not_change_examples():
    model = nn.Sequential(nn.ReLU(inplace=True), cnn((1, 8, 8), 4))
    kept = IMAGES.clone()
    assert not draws_random_numbers(model, IMAGES)
    tuned_for_cpu(model, IMAGES)
    tuned_for_cpu(model, IMAGES.contiguous(memory_format=torch.channels_last))
    assert torch.equal(IMAGES, kept)


def test_buffers_outside_the_state_dict_are_reset_by_every_load():
    model = nn.Flatten()
    model.register_buffer("passes", torch.zeros(2), persistent=False)
    workspace = Workspace(model, "cpu")
    workspace.model.passes += 1
    workspace.load({})
    assert workspace.model.passes.tolist() == [0, 0]
    workspace.model.passes = torch.ones(3)
    workspace.load({})
    assert workspace.model.passes.tolist() == [0, 0]


def test_convolutions_get_channels_last_with_the_same_weights():
    model = cnn((1, 8, 8), 4)
    changed = tuned_for_cpu(model, IMAGES)
    assert changed[4].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[4].weight.is_contiguous()  # the argument stays as it was
    for name, value in model.state_dict().items():
        assert torch.equal(changed.state_dict()[name], value)


def test_a_model_that_depends_on_the_layout_keeps_its_own():
    model, images = Viewing(), IMAGES.repeat(1, 3, 1, 1)
    assert tuned_for_cpu(model, images) is model
    reshaping = nn.Sequential(copy.deepcopy(model.conv), nn.Flatten(), copy.deepcopy(model.linear))
    assert tuned_for_cpu(reshaping, images) is not reshaping


def mixed() -> nn.Module:
    """Return a model with two dtypes, both layouts, a tied and a frozen parameter."""
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3).double())
    model[0].weight.data = model[0].weight.data.contiguous(memory_format=torch.channels_last)
    model[2].weight = model[1].weight
    model[3].bias.requires_grad_(False)
    return model


def test_trained_parameters_and_gradients_lie_in_one_vector_per_dtype():
    model = mixed()
    workspace = TrainingWorkspace(model, "cpu")
    assert [vector.dtype for vector in workspace.vectors] == [torch.float32, torch.float64]
    # Every parameter takes whole registers of 16 numbers: 54 -> 64, 2 -> 16, 9 -> 16, 3 -> 16, 3 -> 16.
    assert [len(vector) for vector in workspace.vectors] == [128, 16]
    for name, value in model.state_dict().items():
        assert torch.equal(workspace.model.state_dict()[name], value)
    assert workspace.model[0].weight.stride() == model[0].weight.stride()
    before = workspace.model[3].bias.clone()
    for vector, gradient in zip(workspace.vectors, workspace.gradients, strict=True):
        vector.fill_(2.0)
        gradient.fill_(3.0)
    for param in workspace.model.parameters():
        if param.requires_grad:
            assert (param == 2).all()
            assert (param.grad == 3).all()
    assert torch.equal(workspace.model[3].bias, before)
    assert all((param != 2).any() for param in model.parameters())


def test_tensors_are_laid_out_like_the_parameters():
    workspace = TrainingWorkspace(mixed(), "cpu")
    given = {name: torch.randn(param.shape, dtype=param.dtype) for name, param in workspace.model.named_parameters()}
    laid_out = workspace.laid_out(given)
    for vector, values in zip(workspace.vectors, laid_out, strict=True):
        vector.copy_(values)
    for name, param in workspace.model.named_parameters():
        assert torch.equal(param, given[name]) is param.requires_grad


class BetweenLayers(nn.Module):
    """A model that uses values between the layers of an nn.Sequential."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 4))

    def forward(self, x):
        between = self.layers[1](self.layers[0](x))
        return self.layers[4](self.layers[3](self.layers[2](between))) + between.mean()


def test_a_relu_and_max_pooling_become_one_layer():
    model, images = cnn((3, 8, 8), 4), torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    tuned = tuned_for_cpu(model, images)
    assert [type(layer) for layer in tuned].count(RectifiedMaxPool2d) == 2
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in tuned)
    assert [name for name, _ in tuned.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_a_model_that_uses_values_between_its_layers_is_not_changed():
    model = BetweenLayers()
    assert tuned_for_cpu(model, IMAGES.repeat(1, 3, 1, 1)) is model


def test_pooling_that_returns_indices_is_not_changed():
    layers = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.MaxPool2d(2, return_indices=True))
    assert tuned_for_cpu(layers, IMAGES.repeat(1, 3, 1, 1)) is layers  # its result is not a tensor: the trial fails


def test_a_model_without_convolutions_is_not_changed():
    model = logistic((1, 8, 8), 4)
    assert tuned_for_cpu(model, IMAGES) is model
