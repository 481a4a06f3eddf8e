"""Whether a model can be trained on the data: tried before the first round, so that it is told in one line."""

import copy

import numpy as np
import torch
from torch import nn

from fedprox.data.federated import FederatedData, LabelledData
from fedprox.epoch_batches import KEEP, epoch_batches
from fedprox.errors import UserError, one_line


def check_takes_data(model: nn.Module, target: str, data: LabelledData) -> None:
    """Raise UserError unless a model takes the data's examples and tells their classes apart.

    Args:
        model: Left as it was.
        target: What made it, for the error.
        data: With at least one training example.
    """
    example = _one_example(data)
    said = f"{str(example.dtype).removeprefix('torch.')} of shape {tuple(example.shape[1:])}"
    remedy = f"choose another model than {target}"
    if example.dtype == torch.int64:
        remedy += ", or give numbers that are no tokens as float32 (in JSON 5.0, not 5)"
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(example)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"model does not take the data's inputs, {said}: {one_line(error)}; {remedy}") from error
    finally:
        model.train(was_training)
    is_tensor = isinstance(logits, torch.Tensor)
    if not is_tensor or tuple(logits.shape) != (1, data.num_classes):
        gave = f"shape {tuple(logits.shape)}" if is_tensor else f"a {type(logits).__name__}"
        raise UserError(
            f"model must give {data.num_classes} logits for an input, {said}, so shape {(1, data.num_classes)}, "
            f"but gave {gave}; {remedy}"
        )


def check_smallest_batch(model: nn.Module, batch_size: int, data: FederatedData, last_batch: str = KEEP) -> None:
    """Raise UserError where a client has a batch of one example and the model cannot be trained on one.

    That is batch norm where an example gives one number per channel, which has no variance.

    Args:
        model: It takes the data; left as it was, and so is the global generator.
        batch_size: B.
        data: All clients' examples.
        last_batch: What becomes of an epoch's last, short batch; see `fedprox.epoch_batches`.
    """
    sizes = data.train.sizes.tolist()
    is_alone = np.array([epoch_batches(size, batch_size, last_batch).smallest == 1 for size in sizes])
    if not is_alone.any():
        return
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(model).train()(_one_example(data.data))
    except ValueError as error:
        raise UserError(
            f"batch_size={batch_size} leaves one example to the last batch of {int(is_alone.sum())} clients, the first "
            f"of them client {int(is_alone.argmax())}, and the model cannot be trained on one: {one_line(error)}; "
            "choose another batch_size, or a model without batch norm such as resnet18_gn"
        ) from error


def _one_example(data: LabelledData) -> torch.Tensor:
    return torch.from_numpy(data.model_input(data.features[:1]))
