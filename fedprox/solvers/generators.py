"""Random generators that all code of a process shares: torch's on the CPU, NumPy's and Python's.

fedprox does not draw from them, but a user's model may. They are seeded while it computes, and restored afterwards.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

CPU = torch.device("cpu")


class Generators:
    """States of the shared generators at one moment, including the GPU's if the device is a GPU."""

    def __init__(self, device: torch.device = CPU) -> None:
        """Take the current states."""
        self._device = device
        self._torch, self._numpy, self._python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self._gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0)

    def have_moved(self) -> bool:
        """Return whether anything was drawn from a generator, or a generator was seeded, since then."""
        now = Generators(self._device)
        are_same = torch.equal(now._torch, self._torch) and torch.equal(now._gpu, self._gpu)
        return not (are_same and now._python == self._python and all(map(np.array_equal, now._numpy, self._numpy)))

    def restore(self) -> None:
        """Restore these states."""
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._gpu, self._device)


@contextmanager
def seeded(seed: int | tuple[int, ...], device: torch.device = CPU) -> Iterator[Generators]:
    """Seed the shared generators, and the GPU's if the device is a GPU, in this context; restore them afterwards.

    Args:
        seed: Entropy, each number >= 0.
        device: Device on which the model computes.

    Yields:
        The states after seeding.
    """
    if isinstance(seed, tuple):
        seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    before = Generators(device)
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield Generators(device)
    finally:
        before.restore()
