"""Places of caches and their use; which changes of the files invalidate them is tested with each source."""

import logging
import os

import numpy as np
import pytest

from fedprox.data import cache as array_cache
from fedprox.data.cache import cached, places

ARRAYS = {"x": np.arange(12).reshape(3, 4), "y": np.zeros(2), "none": np.zeros(0)}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Maker:
    """Makes arrays, and counts how often."""

    def __init__(self) -> None:
        self.num = 0

    def __call__(self):
        self.num += 1
        return ARRAYS

    def check(self, *folders, key: str = "these files") -> None:
        got = cached(list(folders), "c.npz", key, self)
        assert {name: (array.dtype, array.tolist()) for name, array in got.items()} == {
            name: (array.dtype, array.tolist()) for name, array in ARRAYS.items()
        }


def test_the_cache_is_beside_the_data_or_else_in_the_users_folder(tmp_path, home, monkeypatch):
    beside, users = places(tmp_path, "things")
    assert beside == tmp_path / ".fedprox-cache"
    assert users.parent == home / "fedprox" / "things"
    monkeypatch.chdir(tmp_path.parent)
    assert places(tmp_path.relative_to(tmp_path.parent), "things")[1] == users  # by its absolute path
    (tmp_path / "other").mkdir()
    assert places(tmp_path / "other", "things")[1] != users
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places(tmp_path, "things")[1].parent == tmp_path / ".cache" / "fedprox" / "things"


def test_without_a_known_home_there_is_no_cache_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "~/.cache")  # not expanded
    assert places(tmp_path, "things") == [tmp_path / ".fedprox-cache"]


def test_a_read_only_folder_is_not_written_even_by_root_but_its_cache_is_used(tmp_path, home):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o555)
    assert [place.is_relative_to(home) for place in places(tmp_path / "data", "things")] == [True]
    (tmp_path / "shared" / ".fedprox-cache").mkdir(parents=True)
    (tmp_path / "shared").chmod(0o555)
    assert places(tmp_path / "shared", "things")[0] == tmp_path / "shared" / ".fedprox-cache"


def test_arrays_are_made_once_for_each_key_and_nothing_half_written_is_left(tmp_path):
    make = Maker()
    for key, num in (("a", 1), ("a", 1), ("b", 2), ("b", 2), ("a", 3)):
        make.check(tmp_path / "cache", key=key)
        assert make.num == num
    assert os.listdir(tmp_path / "cache") == ["c.npz"]


def test_the_first_place_that_can_be_written_has_the_cache(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fedprox")
    make = Maker()
    (tmp_path / "a file").write_text("so no folder can be made here")  # root may write everywhere else
    for _ in range(2):
        make.check(tmp_path / "a file" / "cache", tmp_path / "second")
    assert (make.num, os.listdir(tmp_path / "second")) == (1, ["c.npz"])
    for _ in range(2):
        make.check(tmp_path / "a file" / "cache")
    assert make.num == 3
    assert caplog.text.count("no cache can be written in") == 2


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write_bytes(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    Maker().check(tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_a_damaged_cache_is_never_used_and_is_replaced(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fedprox")
    make = Maker()
    make.check(tmp_path)
    file = tmp_path / "c.npz"
    whole = file.read_bytes()
    for kept in (["key"], ["x", "y"]):
        np.savez(file, **{name: array for name, array in np.load(file).items() if name in kept})
        make.check(tmp_path)
    damaged = [whole[:i] for i in range(0, len(whole), 41)] + [b"PK\x05\x06" + bytes(18)]  # an empty archive
    damaged += [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in range(0, len(whole), 41)]
    for content in damaged:
        file.write_bytes(content)
        make.check(tmp_path)
    assert f"{file} cannot be used (BadZipFile) and is made again" in caplog.text
    num = make.num
    make.check(tmp_path)
    assert make.num == num  # the last one was replaced


def test_a_key_depends_on_everything_that_the_arrays_are_made_from():
    keys = {array_cache.key_of(each) for each in ([1, "a", [2, 3]], [1, "a", [2, 4]], [2, "a", [2, 3]], [1, "b", []])}
    assert len(keys) == 4
    assert array_cache.key_of((1, "a", (2, 3))) in keys  # tuples are lists
