"""CIFAR-10 from small files in torchvision's layout: the real ones are a download of 170 MB."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fedprox.data.sources.cifar10 import cifar10
from tests.data.refusals import line_of

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
NAMES = [*TRAIN, "test_batch", "batches.meta"]
PER_BATCH = 4


def batch(number: int) -> dict:
    """Return a batch as CIFAR-10's files have it: a row is an image's red, then green, then blue plane."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": [(number + i) % 10 for i in range(PER_BATCH)]}


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """Return small files, whose checksums torchvision gets; nothing listens at the download's address."""
    from torchvision.datasets.cifar import CIFAR10

    contents = {name: pickle.dumps(batch(number)) for number, name in enumerate(NAMES[:-1])}
    contents["batches.meta"] = pickle.dumps({"label_names": [f"class {label}" for label in range(10)]})
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in TRAIN])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/" + ARCHIVE)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(packed(contents)).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return contents


def packed(contents: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz", compresslevel=0) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = made.getvalue()
    return content[:4] + bytes(4) + content[8:]  # without the time


@pytest.fixture
def small(files, tmp_path) -> Path:
    """Return a data_dir that has the small files."""
    (tmp_path / FOLDER).mkdir()
    for name, content in files.items():
        (tmp_path / FOLDER / name).write_bytes(content)
    return tmp_path


def error_line(data_dir: Path) -> str:
    return line_of(cifar10, str(data_dir))


def assert_is_the_small_set(data) -> None:
    batches = [batch(number) for number in range(6)]
    pixels = np.concatenate([each["data"] for each in batches])
    features = np.concatenate([data.features, data.test_features])
    assert features.dtype == np.uint8
    assert (features == pixels.reshape(-1, 3, 32, 32)).all()
    assert data.labels.tolist() == [label for each in batches[:5] for label in each["labels"]]
    assert data.test_labels.tolist() == batches[5]["labels"]
    assert (len(data.features), len(data.test_features), data.num_classes) == (5 * PER_BATCH, PER_BATCH, 10)


def test_the_five_batches_are_for_training_and_the_sixth_is_the_test_set(small):
    assert_is_the_small_set(cifar10(str(small)))


def test_the_images_lie_in_memory_with_channels_last(small):
    data = cifar10(str(small))
    for features in (data.features, data.test_features):
        assert features.transpose(0, 2, 3, 1).flags.c_contiguous
    assert np.shares_memory(data.features, cifar10(str(small)).features)  # one copy for all jobs of a sweep


def test_model_input_has_mean_0_and_std_1_in_each_channel_of_the_training_set(small):
    data = cifar10(str(small))
    assert data.mean.shape == data.std.shape == (3, 1, 1)
    x = data.model_input(data.features).astype(np.float64)
    # float32 inputs of size 1
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=(0, 2, 3)), 1, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_the_original_is_named_and_never_unpickled(small, monkeypatch, name):
    path = small / FOLDER / name
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(pickle, "load", None)
    line = error_line(small)
    assert f"{path} must be the original file with MD5 " in line
    assert "delete it" in line
    assert "data_dir=" in line


def test_without_files_and_network_one_line_names_three_remedies(files, tmp_path):
    line = error_line(tmp_path)
    assert f"CIFAR-10: data_batch_1 is not in {tmp_path / FOLDER} and cannot be downloaded (" in line
    assert all(name in line for name in NAMES)
    for remedy in (f"{ARCHIVE} beside that folder", "data_dir=", "dataset=digits", "dataset=synthetic_1_1"):
        assert remedy in line


def test_the_archive_in_data_dir_is_unpacked_without_a_network(files, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(packed(files))
    assert_is_the_small_set(cifar10(str(tmp_path)))


def test_a_truncated_archive_is_never_used(files, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(packed(files)[:-20])
    assert "data_batch_1 is not in" in error_line(tmp_path)
    assert not (tmp_path / FOLDER).exists()
