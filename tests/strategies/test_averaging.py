"""The weighted average of models: weights, order, precision and dtypes."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedprox.engines.identity import act_as_server
from fedprox.federation.messages import node_id
from fedprox.strategies.averaging import average_of_tensors, weighted_average


def reply(num_examples: int, trust: float = 1.0, **arrays: np.ndarray) -> Message:
    act_as_server()
    asked = Message(RecordDict(), dst_node_id=node_id(0), message_type="train")
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    metrics = MetricRecord({"num-examples": num_examples, "trust": trust})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=asked)


def average(*replies: Message, weighted_by: str = "num-examples") -> np.ndarray:
    return weighted_average(replies, weighted_by)["w"].numpy()


def test_weights_are_the_numbers_of_examples_or_another_metric():
    # (1 * (1, -2) + 3 * (5, 2)) / 4 = (4, 1); the plain mean would be (3, 0).
    two = reply(1, 3.0, w=[1.0, -2.0]), reply(3, 1.0, w=[5.0, 2.0])
    assert average(*two).tolist() == [4.0, 1.0]
    assert average(*two, weighted_by="trust").tolist() == [2.0, -1.0]


def test_every_array_keeps_its_name_and_shape():
    two = reply(1, weight=np.ones((2, 3)), bias=[-1.0]), reply(1, weight=np.zeros((2, 3)), bias=[3.0])
    found = weighted_average(two)
    assert {name: array.numpy().tolist() for name, array in found.items()} == {"weight": [[0.5] * 3] * 2, "bias": [1.0]}


def test_sums_are_in_float64():
    # In float32 1e8 + 1 is 1e8, so the sum over +1e8, 1, -1e8 would be 0; in float64 the mean is 1/3.
    assert average(*(reply(1, w=np.float32([value])) for value in (1e8, 1.0, -1e8)))[0] == np.float32(1 / 3)


def test_sums_are_in_the_given_order():
    # In float64 1e16 + 1 is 1e16: the last number is kept, the middle one is lost.
    assert average(*(reply(1, w=[value]) for value in (1e16, 1.0, -1e16))) == 0.0
    assert average(*(reply(1, w=[value]) for value in (1e16, -1e16, 1.0))) == 1 / 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
@pytest.mark.parametrize("shape", [(), (2,)])  # batch norm's number of batches has no dimensions
def test_arrays_keep_their_dtypes(dtype, shape):
    found = average(*(reply(n, w=np.full(shape, value, dtype)) for n, value in ((1, 4), (3, 8))))
    assert (found.shape, found.dtype) == (shape, dtype)
    assert (found == 7).all()  # (1 * 4 + 3 * 8) / 4


def test_integers_are_rounded_to_the_nearest_and_equal_ones_stay_the_same():
    # (1 * 4 + 3 * 7) / 4 = 6.25, (3 * 4 + 1 * 7) / 4 = 4.75.
    for sizes, expected in (((1, 3), 6), ((3, 1), 5)):
        assert average(*(reply(n, w=count) for n, count in zip(sizes, (4, 7), strict=True))) == expected
    # The rounding errors of a float64 mean of equal numbers must not be truncated.
    for count in (1, 7, 49, 10**6 + 1):
        assert average(*(reply(n, w=count) for n in (3, 11, 1021))) == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_tensors_on_a_gpu_have_the_average_of_arrays(dtype, shape):
    # Here on the CPU: the same operations.
    generator = torch.Generator().manual_seed(0)
    models = [{"w": (10 * torch.randn(shape, generator=generator)).to(dtype)} for _ in range(4)]
    replies = [reply(size, w=model["w"].numpy()) for size, model in enumerate(models, start=1)]
    found = average_of_tensors(models, [1.0, 2.0, 3.0, 4.0])["w"]
    assert found.dtype == dtype
    # Sums of four float64 numbers may differ in the last bit.
    torch.testing.assert_close(found.numpy(), average(*replies), rtol=1e-15 if dtype == torch.float64 else 0, atol=0)
