"""Weighted means of clients' models."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedprox.strategies.arrays import DeviceRecord, to_record
from fedprox.strategies.updates import Arrays, arrays_of, in_type, metrics_of, on_gpu


def weighted_average(replies: Sequence[Message], weighted_by: str | None = "num-examples") -> ArrayRecord:
    """Return sum n_k w_k / sum n_k with the arrays' own dtypes, summed in float64 in the given order.

    Integers, such as batch norm's number of batches, are rounded to the nearest.

    Args:
        replies: At least one reply, each with one ArrayRecord of the same names and shapes and one MetricRecord.
        weighted_by: The metric that holds n_k, the number of examples; None for equal weights.
    """
    weights = weights_of(replies, weighted_by)
    if tensors := on_gpu(replies):
        return DeviceRecord(average_of_tensors(tensors, weights))
    return to_record(average(list(map(arrays_of, replies)), weights))


def weights_of(replies: Sequence[Message], weighted_by: str | None) -> list[float]:
    """Return each reply's weight: a metric that it reports, or 1; 1 if all are 0, as numbers of steps may be."""
    weights = [float(metrics_of(reply)[weighted_by]) if weighted_by else 1.0 for reply in replies]
    return weights if any(weights) else [1.0] * len(weights)


def average(models: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    """Return the same from arrays.

    Args:
        models: At least one, all of the same names and shapes.
        weights: n_k of each.
    """
    made = {}
    for name, first in models[0].items():
        total = np.zeros(first.shape, dtype=np.float64)
        for model, weight in zip(models, weights, strict=True):
            total += weight * model[name].astype(np.float64)
        made[name] = in_type(total / sum(weights), first.dtype)
    return made


def average_of_tensors(
    models: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """Return the same from tensors on one device, where the sums are computed, too.

    Args:
        models: State dicts of the same names and shapes.
        weights: n_k of each.
    """
    device = next(iter(models[0].values())).device
    n_k = torch.tensor(weights, dtype=torch.float64, device=device)
    average = {}
    for name, first in models[0].items():
        stacked = torch.stack([model[name] for model in models]).reshape(len(models), -1).double()
        mean = n_k @ stacked / sum(weights)
        rounded = mean if first.is_floating_point() else mean.round()
        average[name] = rounded.to(first.dtype).view(first.shape)
    return average


def no_metrics(replies: Sequence[RecordDict], weighted_by: str) -> MetricRecord:
    """Return no metrics: a `train_metrics_aggr_fn` that does not read the replies."""
    return MetricRecord()
