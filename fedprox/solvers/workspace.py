"""Copies of a model to compute with, and what a trial of one shows."""

import copy
import threading

import torch
from torch import Tensor, nn


class Workspace(threading.local):
    """A copy of a model for each thread that asks for it: a forward pass may change the module that it is of.

    Attributes:
        model: The copy; a thread gets it when it first asks.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        """Copy a model, which stays as it is, to a device; called anew in every thread."""
        self.model = copy.deepcopy(model).to(device)


def draws_random_numbers(model: nn.Module, features: Tensor) -> bool:
    """Return whether a forward pass in training mode draws from torch's generator, as dropout does.

    The generator is one for all threads, so such models must be trained one after another. Where the pass fails,
    nothing is known: True.

    Args:
        model: On the CPU; neither it nor the generator is changed.
        features: A few inputs, shape (n, *input_shape), n >= 2.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        try:
            copy.deepcopy(model).train()(features)
        except Exception:
            return True
        return not torch.equal(torch.get_rng_state(), before)


def in_fastest_layout(model: nn.Module, features: Tensor) -> nn.Module:
    """Return the model with the weights of its 2-d convolutions in the layout in which the CPU is fastest.

    With channels last a step of a CNN takes about a tenth less time; values are the same, their rounding may differ.
    A model whose forward pass depends on the layout, as by `view`, is returned as it is.

    Args:
        model: On the CPU; not changed.
        features: A few inputs, shape (n, *input_shape), n >= 2.
    """
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return changed if _runs(changed, features) else model


def _runs(model: nn.Module, features: Tensor) -> bool:
    """Return whether a forward pass in training mode succeeds; it leaves no trace."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            copy.deepcopy(model).train()(features)
        except Exception:
            return False
        return True
