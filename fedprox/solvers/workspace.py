"""Copies of a model to compute with, and what a trial of one shows."""

import copy
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedprox.solvers.generators import Generators, seeded
from fedprox.solvers.kernels.pooling import RectifiedMaxPool2d
from fedprox.solvers.problem import Params

_REGISTER = 16  # numbers; a parameter begins where 64 bytes are aligned


class Workspace(threading.local):
    """A copy of a model for each thread that asks for it: a forward pass may change the module that it is of.

    Attributes:
        model: The copy; a thread gets it when it first asks.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        """Copy a model, which stays as it is, to a device; called anew in every thread."""
        self.model = copy.deepcopy(model).to(device)
        saved = self.model.state_dict()
        self._unsaved = {name: own.clone() for name, own in self.model.named_buffers() if name not in saved}

    def load(self, params: Params) -> None:
        """Load a state dict; buffers that are not part of it, which the last forward may have changed, begin anew."""
        self.model.load_state_dict(params)
        for name, value in self._unsaved.items():
            module, _, own = name.rpartition(".")
            setattr(self.model.get_submodule(module), own, value.clone())


class TrainingWorkspace(Workspace):
    """A copy of a model whose trained parameters and gradients lie in few long vectors: a step is a few operations.

    On a GPU, where one operation takes all parameters, they stay as they are.

    Attributes:
        vectors: What is trained: on the CPU a vector for each type of numbers, on a GPU the parameters themselves.
        gradients: Their gradients, same shapes, to which `backward` adds.
        parts: The part of `gradients` that belongs to each trained parameter, by name.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        """Copy a model, which stays as it is, to a device; called anew in every thread."""
        super().__init__(model, device)
        trained = {name: param for name, param in self.model.named_parameters() if param.requires_grad}
        values = [param.detach() for param in trained.values()]
        gradients = list(map(torch.zeros_like, values))
        self.vectors, self.gradients = values, gradients
        if torch.device(device).type == "cpu":
            (self.vectors, values), (self.gradients, gradients) = _packed(values), _packed(gradients)
        for param, value, gradient in zip(trained.values(), values, gradients, strict=True):
            param.data, param.grad = value, gradient
        self.parts = dict(zip(trained, gradients, strict=True))

    def laid_out(self, tensors: Params) -> list[Tensor]:
        """Return copies of tensors, one for each trained parameter by its name, laid out like `vectors`."""
        for name, part in self.parts.items():
            part.copy_(tensors[name])
        return [gradient.clone() for gradient in self.gradients]


def _packed(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return vectors, one for each type of numbers, and copies of the tensors that are parts of them."""
    vectors, parts = [], list(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        ends = np.cumsum([-(-tensors[place].numel() // _REGISTER) * _REGISTER for place in places])
        vectors.append(torch.zeros(int(ends[-1]), dtype=dtype))
        for place, start in zip(places, [0, *ends], strict=False):
            dense = torch.empty_like(tensors[place])  # in the same order, such as channels last
            parts[place] = vectors[-1].as_strided(dense.shape, dense.stride(), int(start)).copy_(tensors[place])
    return vectors, parts


def draws_random_numbers(model: nn.Module, features: Tensor) -> bool:
    """Return whether a forward pass in training mode draws from the shared generators, as dropout does.

    They are one for all threads, so such models must be trained one after another. Where the pass fails,
    nothing is known: True.

    Args:
        model: On the CPU; neither it nor the generators are changed.
        features: A few inputs, shape (n, *input_shape), n >= 2; not changed.
    """
    before = Generators()
    with torch.no_grad():
        try:
            copy.deepcopy(model).train()(features.clone())
            return before.have_moved()
        except Exception:
            return True
        finally:
            before.restore()


def tuned_for_cpu(model: nn.Module, features: Tensor) -> nn.Module:
    """Return a copy of a CNN that computes the same in less time on a CPU; any other model as it is.

    Weights of 2-d convolutions are laid out with channels last, as its inputs then may be too, and in an
    `nn.Sequential` a ReLU and the max-pooling behind it become one layer. Values are the same, only that their rounding
    may differ with the layout. A model that depends on the layout, as by `view`, or on what is between its layers,
    fails the trial and is returned as it is.

    Args:
        model: On the CPU; not changed.
        features: A few inputs, shape (n, *input_shape), n >= 2.
    """
    changed = copy.deepcopy(model)
    convolutions = [module for module in changed.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    for layers in changed.modules():
        if type(layers) is nn.Sequential:
            _join_pooling(layers)
    return changed if convolutions and _agree(changed, model, features) else model


def _join_pooling(layers: nn.Sequential) -> None:
    """Let one layer do what a ReLU and the max-pooling behind it do; all others keep their places and names."""
    for place in range(len(layers) - 1):
        if RectifiedMaxPool2d.can_replace(layers[place], layers[place + 1]):
            layers[place], layers[place + 1] = RectifiedMaxPool2d(), nn.Identity()


def with_channels_last(features: Tensor) -> Tensor:
    """Return images, shape (n, channels, height, width), laid out with channels last; anything else as it is."""
    return features.contiguous(memory_format=torch.channels_last) if features.dim() == 4 else features


def _agree(changed: nn.Module, model: nn.Module, features: Tensor) -> bool:
    """Return whether a changed model takes inputs with channels last and gives the same; neither is left changed."""

    def given() -> Tensor:
        return with_channels_last(features).clone()

    with torch.no_grad():
        try:
            with seeded(0):
                copy.deepcopy(changed).train()(given())
            with seeded(0):
                result = copy.deepcopy(changed).eval()(given())
            with seeded(0):
                expected = copy.deepcopy(model).eval()(features.contiguous().clone())
            return torch.allclose(result, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
        except Exception:
            return False
