"""Dropout whose masks are a function of the client's seed, the step, the layer and the position in the batch.

So a client's masks depend neither on the clients computed beside it, nor on the solver, the engine or the device.
torch's own layers draw from generators that all clients of a process share.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Words = NDArray[np.uint32]
Integers = NDArray[np.int64]
_BITS = 24  # of a random number: all integers below 2^24 are exact in float32
_MULTIPLIERS = 0x7FEB352D, 0x846CA68B  # a permutation of 32 bits with little bias (Wellons 2018, "lowbias32")
_SHIFTS = 16, 15, 16
_STEP, _LAYER, _CALL = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35  # odd, so that different numbers give different products


class SeededDropout(nn.Dropout):
    """`nn.Dropout` or `nn.Dropout2d` with a mask made of `key`, which is set before every step.

    Attributes:
        key: int32, shape (); the same key and shape give the same mask.
        by_channel: Whether all positions of a channel share a number, as in `nn.Dropout2d`.
    """

    key: Tensor

    def __init__(self, p: float, *, by_channel: bool) -> None:
        """Drop with probability p, 0 .. 1."""
        super().__init__(p)
        self.by_channel = by_channel
        self.register_buffer("key", torch.zeros((), dtype=torch.int32), persistent=False)
        self._num_calls = 0

    def begin_step(self) -> None:
        """Forget how often the layer was called, because each call of a step has its own mask."""
        self._num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return x with some entries 0, and the others divided by 1 - p; x itself in evaluation mode."""
        if not self.training or self.p == 0:
            return x
        shape = torch.Size((*x.shape[:2], *[1] * (x.dim() - 2))) if self.by_channel else x.shape
        positions = torch.arange(shape.numel(), dtype=torch.int32, device=x.device)
        call = _signed(self._num_calls * _CALL)
        self._num_calls += 1
        numbers = _scrambled(_scrambled(positions) ^ (self.key + call))
        is_kept = (numbers & (2**_BITS - 1)) >= round(self.p * 2**_BITS)
        dropped: Tensor = x * is_kept.view(shape) * (0.0 if self.p == 1 else 1 / (1 - self.p))
        return dropped


def seed_dropout(model: nn.Module) -> list[str]:
    """Replace a model's dropout layers, and return the names of the new ones in the order of the model.

    Subclasses of torch's layers, and functions within a forward pass, stay as they are.

    Args:
        model: Modified; its state dict stays the same.
    """
    made: dict[int, SeededDropout] = {}
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, (nn.Dropout, nn.Dropout2d)) and type(layer) in (nn.Dropout, nn.Dropout2d):
                of_layer = made.setdefault(id(layer), SeededDropout(layer.p, by_channel=type(layer) is nn.Dropout2d))
                setattr(parent, name, of_layer.train(layer.training))
    return [name for name, layer in model.named_modules() if isinstance(layer, SeededDropout)]


def first_key(seed: int | tuple[int, ...]) -> np.uint32:
    """Return the number that all keys of a client's work follow from.

    Args:
        seed: Entropy of the work, each number >= 0.
    """
    return np.uint32(np.random.SeedSequence(seed).generate_state(1)[0])


def dropout_keys(first: Words | np.uint32, steps: Integers, num_layers: int) -> NDArray[np.int32]:
    """Return the key of each layer in some steps, shape (n, num_layers).

    Args:
        first: `first_key` of each step's client, shape (n,), or of all of them.
        steps: Numbers of the steps within the client's work, shape (n,).
        num_layers: Number of dropout layers.
    """
    of_steps = _scrambled_words(first ^ (steps.astype(np.uint32) * np.uint32(_STEP)))
    layers = np.arange(num_layers, dtype=np.uint32) * np.uint32(_LAYER)
    return _scrambled_words(of_steps[:, None] ^ layers).view(np.int32)


def _scrambled(numbers: Tensor) -> Tensor:
    """Return a fixed permutation of the 32-bit numbers, which makes neighbours independent; int32, same shape."""
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        numbers = numbers ^ ((numbers >> shift) & (2 ** (32 - shift) - 1))
        numbers = numbers * _signed(multiplier) if multiplier != 1 else numbers
    return numbers


def _scrambled_words(numbers: Words) -> Words:
    """Return the same permutation of a NumPy array."""
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, 1), strict=True):
        numbers = (numbers ^ (numbers >> np.uint32(shift))) * np.uint32(multiplier)
    return numbers


def _signed(word: int) -> int:
    """Return the int32 with the same bits as the last 32 of a number >= 0."""
    word %= 2**32
    return word - 2**32 if word >= 2**31 else word
