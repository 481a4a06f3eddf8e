"""Where caches may be; what they hold and when they are used is tested with LEAF's and with images."""

import numpy as np
import pytest

from fedprox.data import cache as array_cache


def test_the_cache_is_beside_the_data_or_else_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    beside, users = array_cache.places(tmp_path, "things")
    assert beside == tmp_path / ".fedprox-cache"
    assert users.parent == tmp_path / "home" / "fedprox" / "things"


def test_a_read_only_folder_is_left_alone_even_by_root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o555)
    (users,) = array_cache.places(folder, "things")
    assert users.is_relative_to(tmp_path / "home")


def test_a_cache_that_a_read_only_folder_brings_along_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    (folder / ".fedprox-cache").mkdir(parents=True)
    folder.chmod(0o555)
    beside, _ = array_cache.places(folder, "things")
    assert beside == folder / ".fedprox-cache"


@pytest.mark.parametrize("kept", [["key"], ["key", "x"], ["x", "y"]])
def test_a_cache_that_lists_only_some_of_its_arrays_is_made_again(tmp_path, kept):
    arrays = {"x": np.arange(3), "y": np.zeros(2)}
    array_cache.cached([tmp_path], "c.npz", "of these files", lambda: arrays)
    with np.load(tmp_path / "c.npz") as whole:
        np.savez(tmp_path / "c.npz", **{name: whole[name] for name in kept})
    made = []
    for _ in range(2):
        got = array_cache.cached([tmp_path], "c.npz", "of these files", lambda: made.append(1) or arrays)
        assert {name: array.tolist() for name, array in got.items()} == {"x": [0, 1, 2], "y": [0.0, 0.0]}
    assert len(made) == 1


def test_a_cache_without_a_checksum_as_earlier_versions_wrote_it_is_made_again(tmp_path):
    key = np.frombuffer(b"of these files", dtype=np.uint8)
    np.savez(tmp_path / "c.npz", key=key, x=np.arange(3))
    got = array_cache.cached([tmp_path], "c.npz", "of these files", lambda: {"x": np.arange(4)})
    assert got["x"].tolist() == [0, 1, 2, 3]
