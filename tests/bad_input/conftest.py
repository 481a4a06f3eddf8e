"""What every refused command must leave: one line, exit status 2, no run, and unchanged files."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest


@pytest.fixture
def refused(fedprox, tmp_path, no_network) -> Callable[..., str]:
    """Return a function that runs a refused command, checks what it leaves, and returns its error line."""

    def run(*arguments: str, says: Iterable[str] = ()) -> str:
        before = contents(tmp_path)
        line = the_line(fedprox(*arguments))
        assert [words for words in says if words not in line] == [], line
        assert_nothing_is_damaged(before, tmp_path)
        return line

    return run


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Point torchvision's mirrors at a port of this machine where nothing listens."""
    from torchvision.datasets.cifar import CIFAR10
    from torchvision.datasets.mnist import EMNIST, MNIST

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    for kind in (EMNIST, CIFAR10):
        monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/archive")


def the_line(ended) -> str:
    """Return the error line of a refused command, whose only line it is, and whose status is 2."""
    assert ended.err.startswith("error: "), ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.endswith("\n")
    assert ended.status == 2
    return ended.err.removeprefix("error: ").rstrip("\n")


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Return the content of every file below a folder except Hydra's; None if it cannot be read."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    files = [path for path in files if ".hydra" not in path.parts and path.name not in ("main.log", "multirun.yaml")]
    return {file: content(file) for file in files}


def content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except PermissionError:
        return None


def assert_nothing_is_damaged(before: dict[Path, bytes | None], folder: Path) -> None:
    """Assert that no file has changed, and that no new file is a run's."""
    after = contents(folder)
    assert [file for file in before if after.get(file, b"gone") != before[file]] == []
    of_runs = ("metrics.csv", "clients.csv", "run.json", "model.safetensors", "MODEL.md", "curves.png")
    assert [file for file in after.keys() - before.keys() if file.name in of_runs] == []


@pytest.fixture(name="the_line")
def the_line_fixture() -> Callable[..., str]:
    """Return `the_line`."""
    return the_line
