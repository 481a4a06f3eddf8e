"""MNIST, EMNIST and CIFAR-10 from files that are not what they should be."""

from pathlib import Path

import pytest


@pytest.fixture
def spoilt(data_dir, tmp_path, no_network):
    """Return a function that makes a data_dir of links to MNIST's files, with other content (None: none) for one."""

    def make(name: str, change) -> Path:
        raw = tmp_path / "spoilt" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for source in (data_dir / "MNIST" / "raw").glob("*-ubyte"):
            if source.name != name:
                (raw / source.name).symlink_to(source.resolve())
            elif (content := change(source.read_bytes())) is not None:
                (raw / name).write_bytes(content)
        return tmp_path / "spoilt"

    return make


FILE_CHANGES = {
    "missing": (lambda content: None, ["is not in", "dataset=digits"]),
    "truncated": (lambda content: content[: len(content) // 2], ["truncated or altered", "5,004 bytes", "delete it"]),
    "empty": (lambda content: b"", ["truncated or altered", "0 bytes", "delete it"]),
    "altered": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), ["altered", "10,008 bytes", "delete it"]),
}


@pytest.mark.parametrize(("change", "words"), FILE_CHANGES.values(), ids=FILE_CHANGES)
def test_a_data_file_that_is_not_the_original_is_named(refused, spoilt, change, words):
    folder = spoilt("t10k-labels-idx1-ubyte", change)
    refused(
        "engine=local",
        "num_rounds=1",
        f"data_dir={folder}",
        says=("t10k-labels-idx1-ubyte", str(folder / "MNIST" / "raw"), "data_dir=", *words),
    )
