"""Copies of a model to compute with, and trials that show what a model does."""

import copy
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedprox.solvers.generators import Generators, seeded
from fedprox.solvers.kernels.pooling import RectifiedMaxPool2d
from fedprox.solvers.problem import Params

_REGISTER = 16  # numbers of 4 bytes; every parameter starts at a multiple of 64 bytes


class Workspace(threading.local):
    """A copy of a model for each thread, because a forward pass may change its module.

    Attributes:
        model: This thread's copy, made when the thread first asks for it.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        """Copy a model to a device; called once in every thread."""
        self.model = copy.deepcopy(model).to(device)
        saved = self.model.state_dict()
        self._unsaved = {name: own.clone() for name, own in self.model.named_buffers() if name not in saved}

    def load(self, params: Params) -> None:
        """Load a state dict, and reset the buffers that are not part of it, which a forward pass may have changed."""
        self.model.load_state_dict(params)
        for name, value in self._unsaved.items():
            module, _, own = name.rpartition(".")
            setattr(self.model.get_submodule(module), own, value.clone())


class TrainingWorkspace(Workspace):
    """A copy of a model whose trained parameters and gradients lie in a few long vectors: so a step is few operations.

    On a GPU they stay separate, because one operation takes all parameters there.

    Attributes:
        vectors: The trained parameters: on the CPU one vector for each dtype, on a GPU the parameters themselves.
        gradients: Their gradients, same shapes, to which `backward` adds.
        parts: The part of `gradients` that belongs to each trained parameter, by name.
        trained: These parameters, whose `grad` are the parts.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        """Copy a model to a device; called once in every thread."""
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
        self.trained = list(trained.values())

    def laid_out(self, tensors: Params) -> list[Tensor]:
        """Return copies of tensors, given by the names of the trained parameters, laid out like `vectors`."""
        for name, part in self.parts.items():
            part.copy_(tensors[name])
        return [gradient.clone() for gradient in self.gradients]

    def named(self, vectors: Sequence[Tensor]) -> Params:
        """Return tensors that are laid out like `vectors` by the names of the trained parameters: copies."""
        for gradient, vector in zip(self.gradients, vectors, strict=True):
            gradient.copy_(vector)
        return {name: part.clone(memory_format=torch.contiguous_format) for name, part in self.parts.items()}


def _packed(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return one vector for each dtype, and copies of the tensors that are views of these vectors."""
    vectors, parts = [], list(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        positions = [position for position, tensor in enumerate(tensors) if tensor.dtype == dtype]
        ends = np.cumsum([-(-tensors[position].numel() // _REGISTER) * _REGISTER for position in positions])
        vectors.append(torch.zeros(int(ends[-1]), dtype=dtype))
        for position, start in zip(positions, [0, *ends], strict=False):
            tensor = tensors[position]
            dense = torch.empty_like(tensor)  # keeps the layout, such as channels last
            parts[position] = vectors[-1].as_strided(dense.shape, dense.stride(), int(start)).copy_(tensor)
    return vectors, parts


def draws_random_numbers(model: nn.Module, features: Tensor) -> bool:
    """Return whether a forward pass in training mode draws from the shared generators, as dropout does.

    All threads share these generators, so clients of such a model must be trained one after another. True if the pass
    fails, because nothing is known then.

    Args:
        model: On the CPU; neither the model nor the generators are changed.
        features: A few inputs, shape (n, *input_shape), n >= 2; not modified.
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
    """Return a copy of a CNN that computes the same in less time on a CPU; any other model is returned as it is.

    Weights of 2-d convolutions get the channels-last layout, which inputs may then have, too, and in an `nn.Sequential`
    a ReLU and the max-pooling after it become one layer. Only the rounding of values may differ. A model that depends
    on the layout, for example by `view`, or on values between its layers, fails the trial and is returned as it is.

    Args:
        model: On the CPU; not modified.
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
    """Replace each ReLU and the max-pooling after it by one layer; all layers keep their positions and names."""
    for at in range(len(layers) - 1):
        if RectifiedMaxPool2d.can_replace(layers[at], layers[at + 1]):
            layers[at], layers[at + 1] = RectifiedMaxPool2d(), nn.Identity()


def with_channels_last(features: Tensor) -> Tensor:
    """Return images, shape (n, channels, height, width), with the channels-last layout; anything else as it is."""
    return features.contiguous(memory_format=torch.channels_last) if features.dim() == 4 else features


def _agree(changed: nn.Module, model: nn.Module, features: Tensor) -> bool:
    """Return whether a changed model, given channels-last inputs, computes the same; neither model is modified."""

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
