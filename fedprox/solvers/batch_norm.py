"""Batch norm of clients side by side, each over the examples of its own batch that are not padding."""

import torch
from torch import Tensor, nn

_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d)


class MaskedBatchNorm(nn.Module):
    """torch's batch norm in training mode, with weights for the examples of a batch (Ioffe and Szegedy 2015, alg. 1).

    Attributes:
        shares: 1 / n for each of the n examples that count, and 0 for padding, shape (batch,); set before every step.
    """

    shares: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    num_batches_tracked: Tensor

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        """Take over a layer's parameters and buffers, which keep their names."""
        super().__init__()
        self.eps, self.momentum = layer.eps, layer.momentum or 0.0
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(layer, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(layer, name))
        self.register_buffer("shares", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch, shape (batch, channels, ...), and update the running statistics in place."""
        channels = [1, -1, *[1] * (x.dim() - 2)]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # under autocast it may be bfloat16
        shares, values = self.shares.to(wide.dtype), wide.reshape(*x.shape[:2], -1)  # (batch, channels, positions)
        mean = shares @ values.mean(dim=2)
        variance = shares @ (values - mean[None, :, None]).square().mean(dim=2)
        num_values = values.shape[2] * (shares > 0).sum()
        with torch.no_grad():
            unbiased = variance * (num_values / (num_values - 1))
            self._move("running_mean", mean)
            self._move("running_var", unbiased)
            self.num_batches_tracked.add_(1)
        normalised = (wide - mean.view(channels)) * torch.rsqrt(variance + self.eps).view(channels)
        if self.weight is not None and self.bias is not None:
            normalised = normalised * self.weight.view(channels) + self.bias.view(channels)
        return normalised.to(x.dtype)

    def _move(self, name: str, now: Tensor) -> None:
        running: Tensor = getattr(self, name)
        running.mul_(1 - self.momentum).add_(now.detach() * self.momentum)


def mask_batch_norm(model: nn.Module) -> list[str]:
    """Replace a model's batch norm by `MaskedBatchNorm`, and return the names of the new layers.

    Subclasses of torch's layers, layers without running statistics, and those with a cumulative average stay as they
    are.

    Args:
        model: Modified; its state dict stays the same.
    """
    made: dict[int, MaskedBatchNorm] = {}
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if not isinstance(layer, _TYPES) or type(layer) not in _TYPES:
                continue
            if layer.running_mean is not None and layer.momentum is not None:
                setattr(parent, name, made.setdefault(id(layer), MaskedBatchNorm(layer)))
    return [name for name, layer in model.named_modules() if isinstance(layer, MaskedBatchNorm)]
