"""Plain values survive encoding as JSON text and arrays."""

import math

import numpy as np
import pytest
from flwr.app import ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fedprox.runs.serialize import decoded, encoded
from fedprox.strategies.arrays import to_record

TYPES = [np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_]
ARRAYS = st.sampled_from(TYPES).flatmap(
    lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
RECORDS = st.dictionaries(st.text(max_size=4), ARRAYS, max_size=3).map(to_record)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"))
NUMPYS = st.sampled_from([np.float64(0.1), np.float32("nan"), np.int64(-3), np.bool_(True), np.float64(-0.0)])
KEYS = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS | NUMPYS | ARRAYS | RECORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


def bits(value) -> object:
    """Return a value in a form that is equal only if types and bits are: nan equals nan, and 0.0 not -0.0."""
    if isinstance(value, ArrayRecord):
        return ("record", [(name, bits(array.numpy())) for name, array in value.items()])
    if isinstance(value, dict):
        return ("dict", [(bits(key), bits(each)) for key, each in value.items()])
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [bits(each) for each in value])
    if isinstance(value, (np.ndarray, np.generic)):
        return (type(value).__name__, str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else value.hex())
    return (type(value).__name__, value)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_every_plain_value_keeps_its_types_and_bits(value):
    assert bits(decoded(*encoded(value))) == bits(value)


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 2**200, "\N{SNOWMAN}\n\x00", ""),
        *([], (), {}, [[]], ((),), {"": {}}, {1: "a", "1": "b"}, {True: 1, None: 2, 0: 3}),
        *(np.empty((0, 3), np.float32), np.array(2.5), np.array(-0.0, np.float32), np.float64("nan")),
        *({"dict": 1}, {"list": [1]}, {"array": "/0"}, ["array", {"record": {}}]),  # words that the encoding uses
        *({"a/b": np.ones(2), "a": {"b": np.zeros(2)}}, {1: np.ones(2), "1": np.zeros(2)}),  # names that may collide
    ],
    ids=repr,
)
def test_edge_cases_keep_their_types_and_bits(value):
    assert bits(decoded(*encoded(value))) == bits(value)


def test_arrays_are_not_part_of_the_text():
    text, arrays = encoded({"m": [np.arange(3.0)], "count": 3})
    assert [array.tolist() for array in arrays.values()] == [[0.0, 1.0, 2.0]]
    assert "0.0, 1.0" not in text


@pytest.mark.parametrize("text", ["{", "{}", '{"code": "x"}', '{"array": "nowhere"}', '{"dict": 3}', '{"dict": [[1]]}'])
def test_a_text_that_is_not_an_encoded_value_is_an_error(text):
    with pytest.raises((KeyError, TypeError, ValueError)):
        decoded(text, {})
