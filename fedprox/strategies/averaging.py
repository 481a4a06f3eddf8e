"""Means of clients' models, weighted by their numbers of examples, in the order in which they are given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedprox.strategies.arrays import only, to_numpy, to_record


def weighted_average(replies: Sequence[RecordDict], weighted_by: str | None = "num-examples") -> ArrayRecord:
    """Return sum n_k w_k / sum n_k, accumulated in float64 in the order given, in the arrays' own types.

    Integers, such as batch norm's number of batches, are rounded to the nearest.

    Args:
        replies: At least one reply, each with one ArrayRecord of the same names and shapes and one MetricRecord.
        weighted_by: The metric that holds n_k, the number of examples; None for equal weights.
    """
    weights = [_num_examples(reply, weighted_by) if weighted_by else 1.0 for reply in replies]
    models = [only(ArrayRecord, reply) for reply in replies]
    average = {}
    for name, first in models[0].items():
        total = np.zeros(first.shape, dtype=np.float64)
        for model, weight in zip(models, weights, strict=True):
            total += weight * to_numpy(model[name]).astype(np.float64)
        average[name] = in_type(total / sum(weights), first.dtype)
    return to_record(average)


def in_type(numbers: Any, dtype: str) -> NDArray[np.generic]:
    """Return numbers in a type of arrays; where that is of integers, the nearest ones."""
    return np.asarray(numbers if np.dtype(dtype).kind == "f" else np.rint(numbers), dtype=dtype)


def _num_examples(reply: RecordDict, key: str) -> float:
    return float(only(MetricRecord, reply)[key])  # type: ignore[arg-type]
