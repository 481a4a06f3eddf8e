"""Fingerprints by which a resumed run recognises its data."""

from dataclasses import replace

import numpy as np
import pytest

from fedprox.data import federated as module
from fedprox.data import fingerprint
from fedprox.data.federated import ClientIndex, FederatedData, LabelledData

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
    return FederatedData(data, [[0, 1], [2, 3]], [[4], []], ("a", "b"))


def with_one_changed(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = 1 - changed.flat[0] if changed.max() <= 1 else changed.flat[0] + 1
    return changed


def shared(**arrays):
    """Return a change of the shared arrays."""
    return lambda data: replace(data, examples=replace(data.examples, **arrays))


def index(*parts: list[int]) -> ClientIndex:
    return ClientIndex.from_lists(parts)


CHANGES = {
    **{
        name: shared(**{name: with_one_changed(getattr(federated().examples, name))})
        for name in ("features", "labels", "test_features", "test_labels", "mean", "std")
    },
    "num_classes": shared(num_classes=3),
    "float features": shared(features=PIXELS.astype(np.float32), test_features=PIXELS[:2].astype(np.float32)),
    "last pixel": shared(features=np.concatenate([PIXELS[:5], 255 - PIXELS[5:]])),
    "two examples exchanged": shared(features=PIXELS[[2, 1, 0, 3, 4, 5]]),
    "another order of a client's examples": lambda data: replace(data, train=index([1, 0], [2, 3])),
    "another cut between clients": lambda data: replace(data, train=index([0, 1, 2], [3])),
    "held out by the other client": lambda data: replace(data, held_out=index([], [4])),
    "ids": lambda data: replace(data, client_ids=("a", "c")),
}


def test_equal_data_have_the_same_fingerprint():
    # This value must not change: runs that were made before could not be resumed.
    assert federated().fingerprint[:32] == "def678a19bf136a5b28f8c74297300d5"


@pytest.fixture(params=["small", "large"])
def _sizes(request, monkeypatch):
    """Let arrays be hashed in pieces of two examples, of 18 bytes each, as small or as large ones are."""
    monkeypatch.setattr(fingerprint, "PIECE_BYTES", 40)
    monkeypatch.setattr(fingerprint, "LARGE_BYTES", {"small": 1 << 28, "large": 100}[request.param])


@pytest.mark.usefixtures("_sizes")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_everything_that_decides_numbers_changes_the_fingerprint(change):
    assert change(federated()).fingerprint != federated().fingerprint


@pytest.mark.usefixtures("_sizes")
def test_the_order_in_memory_does_not_change_the_fingerprint():
    data = federated()
    channels_last = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    spaced = np.zeros((6, 4, 3, 3), np.uint8)
    spaced[:, ::2] = PIXELS
    for features in (channels_last, np.asfortranarray(PIXELS), spaced[:, ::2]):
        assert not features.flags.c_contiguous
        assert replace(data, examples=replace(data.examples, features=features)).fingerprint == data.fingerprint


def test_jobs_that_divide_one_data_set_read_its_features_once(monkeypatch):
    data, read = federated(), []
    monkeypatch.setattr(module, "digest", lambda arrays, text: read.extend(arrays) or fingerprint.digest(arrays, text))
    for each in (data, data, replace(data, client_ids=("a", "c"))):
        assert each.fingerprint
    assert read.count("features") == 1
    assert read.count("train.indices") == 2  # of two objects
