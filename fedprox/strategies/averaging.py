"""Weighted means of clients' models."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import DTypeLike, NDArray

from fedprox.strategies.arrays import to_record
from fedprox.strategies.updates import arrays_of, metrics_of


def weighted_average(replies: Sequence[Message], weighted_by: str | None = "num-examples") -> ArrayRecord:
    """Return sum n_k w_k / sum n_k with the arrays' own dtypes, summed in float64 in the given order.

    Integers, such as batch norm's number of batches, are rounded to the nearest.

    Args:
        replies: At least one reply, each with one ArrayRecord of the same names and shapes and one MetricRecord.
        weighted_by: The metric that holds n_k, the number of examples; None for equal weights.
    """
    weights = [float(metrics_of(reply)[weighted_by]) if weighted_by else 1.0 for reply in replies]
    models = list(map(arrays_of, replies))
    average = {}
    for name, first in models[0].items():
        total = np.zeros(first.shape, dtype=np.float64)
        for model, weight in zip(models, weights, strict=True):
            total += weight * model[name].astype(np.float64)
        average[name] = in_type(total / sum(weights), first.dtype)
    return to_record(average)


def in_type(numbers: Any, dtype: DTypeLike) -> NDArray[np.generic]:
    """Return numbers with a dtype; if that is an integer type, rounded to the nearest."""
    return np.asarray(numbers if np.dtype(dtype).kind == "f" else np.rint(numbers), dtype=dtype)


def no_metrics(replies: Sequence[RecordDict], weighted_by: str) -> MetricRecord:
    """Return no metrics: a `train_metrics_aggr_fn` that does not read the replies."""
    return MetricRecord()
