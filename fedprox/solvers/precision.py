"""Precision of matrix products and convolutions on GPUs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def precision(device: str | torch.device, *, reduced: bool = False) -> Iterator[None]:
    """Compute in float32 with all its 24 bits in this context.

    torch rounds the inputs of convolutions on GPUs to 11 bits (TF32) unless that is switched off, and results then
    differ from a CPU's in the fourth digit.

    Args:
        device: Device that computes; this context changes nothing on a CPU.
        reduced: Allow TF32 instead, for matrix products, too; for runs whose models compute in bfloat16 anyway.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    try:
        convolutions.allow_tf32 = products.allow_tf32 = reduced
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
