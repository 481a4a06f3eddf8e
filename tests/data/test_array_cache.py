"""Where caches may be; what they hold and when they are used is tested with LEAF's and with pictures."""

from fedprox.data import array_cache


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
