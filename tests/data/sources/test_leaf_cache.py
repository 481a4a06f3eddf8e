"""Cache of large LEAF data sets: used only if nothing changed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedprox.data.federated import FederatedData
from fedprox.data.sources import leaf as leaf_cache
from fedprox.data.sources.leaf import leaf
from fedprox.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return a data set that is large enough for a cache, which may be in it or in tmp_path / "home"."""
    monkeypatch.setattr(leaf_cache, "SMALLEST_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for side, sizes in (("train", {"é\0": 4, "b": 9}), ("test", {"é\0": 2, "b": 1})):
        write(tmp_path / "data" / side / "data.json", sizes)
    return tmp_path / "data"


def write(file: Path, sizes: dict[str, int], first: float = 0.5) -> None:
    """Write a file whose features count upwards from `first`, by 1."""
    file.parent.mkdir(parents=True, exist_ok=True)
    user_data = {}
    for user, size in sizes.items():
        user_data[user] = {
            "x": (first + np.arange(2.0 * size).reshape(size, 2)).tolist(),
            "y": [i % 3 for i in range(size)],
        }
    file.write_text(json.dumps({"users": list(sizes), "num_samples": list(sizes.values()), "user_data": user_data}))


def spoil(folder: Path) -> None:
    """Make the JSON unusable without changing its size or time."""
    for file in folder.rglob("*.json"):
        stat = file.stat()
        file.write_bytes(b"?" * stat.st_size)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def assert_same(one: FederatedData, other: FederatedData) -> None:
    assert one.client_ids == other.client_ids
    assert one.examples.num_classes == other.examples.num_classes
    pairs = [(one.examples.features, other.examples.features), (one.examples.labels, other.examples.labels)]
    for index, its in ((one.train, other.train), (one.held_out, other.held_out)):
        pairs += [(index.indices, its.indices), (index.offsets, its.offsets)]
    for array, its in pairs:
        assert array.dtype == its.dtype
        assert array.tolist() == its.tolist()


def test_the_second_time_the_same_data_come_from_the_cache(folder):
    first = leaf(str(folder))
    assert (folder / ".fedprox-cache" / "leaf.npz").is_file()
    assert [path.name for path in (folder / ".fedprox-cache").iterdir()] == ["leaf.npz"]  # nothing half-written
    spoil(folder)
    assert_same(leaf(str(folder)), first)


def change_time(folder: Path) -> None:
    file = folder / "test" / "data.json"
    stat = file.stat()
    write(file, {"é\0": 2, "b": 1}, first=1.5)
    assert file.stat().st_size == stat.st_size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def add_a_file(folder: Path) -> None:
    for side in ("train", "test"):
        write(folder / side / "more.json", {"c": 1})


def another_version(folder: Path) -> None:
    leaf_cache.VERSION += 1


@pytest.mark.parametrize("change", [change_time, add_a_file, another_version])
def test_after_any_change_of_the_files_or_of_the_format_the_cache_is_made_again(folder, tmp_path, monkeypatch, change):
    monkeypatch.setattr(leaf_cache, "VERSION", leaf_cache.VERSION)
    leaf(str(folder))
    cache = folder / ".fedprox-cache" / "leaf.npz"
    old = cache.read_bytes()
    change(folder)
    read = leaf(str(folder))
    assert cache.read_bytes() != old
    shutil.copytree(folder / "train", tmp_path / "copy" / "train")
    shutil.copytree(folder / "test", tmp_path / "copy" / "test")
    assert_same(read, leaf(str(tmp_path / "copy")))  # read from the files
    spoil(folder)
    assert_same(leaf(str(folder)), read)  # and from the new cache


def test_a_label_out_of_range_is_named_from_the_cache_as_from_the_files(folder, tmp_path):
    lines = []
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            leaf(str(folder), num_classes=2)
        lines.append(str(caught.value))
        spoil(folder)
    assert lines[0] == lines[1]
    assert f"{folder}/train/data.json: user 'b'" in lines[0]
    folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"moved/train/data\.json: user 'b'"):
        leaf(str(tmp_path / "moved"), num_classes=2)
