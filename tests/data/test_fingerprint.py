"""The fingerprint by which a resumed run knows its data."""

from dataclasses import replace

import numpy as np
import pytest

from fedprox.data import fingerprint as module
from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.data.fingerprint import fingerprint

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 2, 3, 3)).astype(np.uint8)


def federated() -> FederatedData:
    """Return two clients with two training examples each; one has a held-out example."""
    data = LabelledData(
        features=PIXELS.copy(),
        labels=np.array([0, 1, 0, 1, 1, 0]),
        test_features=PIXELS[:2].copy(),
        test_labels=np.array([1, 0]),
        num_classes=2,
        mean=np.array(3, dtype=np.float32),
        std=np.array(2, dtype=np.float32),
    )
    train = ClientIndex.from_lists([np.array([0, 1]), np.array([2, 3])])
    return FederatedData(data, train, ClientIndex.from_lists([np.array([4]), np.empty(0, np.int64)]), ("a", "b"))


def test_a_fingerprint_is_32_hex_digits_and_the_same_for_equal_data():
    assert len(fingerprint(federated())) == 32
    assert int(fingerprint(federated()), 16) > 0
    assert fingerprint(federated()) == fingerprint(federated())


def with_one_changed(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = 1 - changed.flat[0] if changed.max() <= 1 else changed.flat[0] + 1
    return changed


def shared(**arrays):
    """Return a change of the shared arrays."""
    return lambda data: replace(data, examples=replace(data.examples, **arrays))


def index(*parts: list[int]) -> ClientIndex:
    return ClientIndex.from_lists([np.array(part, dtype=np.int64) for part in parts])


CHANGES = {
    **{
        name: shared(**{name: with_one_changed(getattr(federated().examples, name))})
        for name in ("features", "labels", "test_features", "test_labels", "mean", "std")
    },
    "num_classes": shared(num_classes=3),
    "float features": shared(features=PIXELS.astype(np.float32), test_features=PIXELS[:2].astype(np.float32)),
    "another order of a client's examples": lambda data: replace(data, train=index([1, 0], [2, 3])),
    "another cut between clients": lambda data: replace(data, train=index([0, 1, 2], [3])),
    "held out by the other client": lambda data: replace(data, held_out=index([], [4])),
    "another one held out": lambda data: replace(data, held_out=index([5], [])),
    "ids": lambda data: replace(data, client_ids=("a", "c")),
    "no ids": lambda data: replace(data, client_ids=()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_decides_numbers_changes_the_fingerprint(change):
    assert fingerprint(change(federated())) != fingerprint(federated())


def test_the_order_in_memory_does_not_change_the_fingerprint(monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 40)  # 18 bytes an example: copied in pieces of two
    data = federated()
    channels_last = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    spaced = np.zeros((6, 4, 3, 3), np.uint8)
    spaced[:, ::2] = PIXELS
    for features in (channels_last, np.asfortranarray(PIXELS), spaced[:, ::2]):
        assert not features.flags.c_contiguous
        assert fingerprint(replace(data, examples=replace(data.examples, features=features))) == fingerprint(data)


def test_the_byte_order_does_not_change_the_fingerprint():
    data = federated()
    other = replace(data.examples, mean=data.examples.mean.astype(">f4"), labels=data.examples.labels.astype(">i8"))
    assert fingerprint(replace(data, examples=other)) == fingerprint(data)


def test_jobs_that_divide_one_data_set_read_its_features_once(monkeypatch):
    data = federated()
    read = []
    digest = module._digest
    monkeypatch.setattr(module, "_digest", lambda arrays, text: read.extend(arrays) or digest(arrays, text))
    fingerprint(data)
    fingerprint(data)
    fingerprint(replace(data, client_ids=("a", "c")))
    assert read.count("features") == 1
    assert read.count("train.indices") == 2  # of two objects
