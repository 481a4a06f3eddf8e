"""MNIST: data from the files, downloads, and errors for files that are not right."""

import gzip
import hashlib
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from fedprox.data.sources import download
from fedprox.data.sources.mnist import MD5, mnist, mnist_pooled
from tests.data.refusals import line_of

LABEL_FILE = "t10k-labels-idx1-ubyte"
IMAGE_FILE = "train-images-idx3-ubyte"


@pytest.fixture
def no_network(monkeypatch):
    """Set torchvision's mirrors to ports of this machine on which nothing listens."""
    from torchvision.datasets.mnist import MNIST

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", "https://127.0.0.1:9/"])


@pytest.fixture
def copied(data_dir, tmp_path, no_network) -> Path:
    """Return a data_dir of links to MNIST's files, where a test can spoil one."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MD5:
        (raw / name).symlink_to((data_dir / "MNIST" / "raw" / name).resolve())
    return tmp_path


def replace(data_dir: Path, name: str, content: bytes) -> Path:
    """Put other content in the place of one file."""
    path = data_dir / "MNIST" / "raw" / name
    path.unlink()
    path.write_bytes(content)
    return path


def error_line(data_dir: Path) -> str:
    return line_of(mnist, str(data_dir))


def raw_pixels(data_dir: Path, name: str) -> np.ndarray:
    """Return a file's pixels, shape (n, 784), which follow the 16 bytes of its header."""
    content = (data_dir / "MNIST" / "raw" / name).read_bytes()
    return np.frombuffer(content[16:], dtype=np.uint8).reshape(-1, 784)


def test_mnist_has_60000_images_to_train_on_and_a_global_test_set_of_10000(data_dir):
    data = mnist(str(data_dir))
    assert (data.features.shape, data.test_features.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert (data.features.dtype, data.labels.dtype) == (np.uint8, np.int64)
    # Digits 0 .. 9 of the original's training and test part.
    assert np.bincount(data.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (data.features.reshape(-1, 784) == raw_pixels(data_dir, IMAGE_FILE)).all()


def test_model_input_is_the_pixel_over_255_less_01307_over_03081(data_dir):
    data = mnist(str(data_dir))
    images = data.features[:20]
    expected = (images / 255 - 0.1307) / 0.3081  # in float64; float32 has seven digits
    np.testing.assert_allclose(data.model_input(images), expected, atol=1e-6)
    assert images.min() == 0
    assert images.max() == 255


def test_pooled_has_the_training_images_first_and_no_global_test_set(data_dir):
    pooled = mnist_pooled(str(data_dir))
    pixels = pooled.features.reshape(-1, 784)
    assert (pixels[:60_000] == raw_pixels(data_dir, IMAGE_FILE)).all()
    assert (pixels[60_000:] == raw_pixels(data_dir, "t10k-images-idx3-ubyte")).all()
    assert np.bincount(pooled.labels).tolist() == [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]
    assert (len(pooled.test_features), len(pooled.test_labels)) == (0, 0)


def test_pooled_model_input_is_normalised_pixel_by_pixel_over_all_images(data_dir):
    pooled = mnist_pooled(str(data_dir))
    for row, column in ((14, 14), (0, 0), (3, 20)):  # a busy pixel, one that is always 0, a rare one
        pixel = pooled.features[:, row, column].astype(np.float64)
        expected = (pixel - pixel.mean()) / (pixel.std() + 0.001)
        some = pooled.model_input(pooled.features[::500])[:, row, column]
        np.testing.assert_allclose(some, expected[::500], rtol=1e-5, atol=1e-5)
    assert (pooled.features[:, 0, 0] == 0).all()


def test_a_file_that_is_not_the_original_is_named_and_never_used(copied, data_dir):
    content = (data_dir / "MNIST" / "raw" / LABEL_FILE).read_bytes()
    for spoilt in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path = replace(copied, LABEL_FILE, spoilt)
        line = error_line(copied)
        assert f"{path} must be the original" in line
        assert "delete it" in line
        assert "data_dir=" in line
        assert path.read_bytes() == spoilt  # the user may delete it, we do not
    for name in reversed(MD5):  # the last file first, so that each is the first one that is wrong
        path = replace(copied, name, b"nothing")
        assert str(path) in error_line(copied)


def test_without_files_and_network_one_line_names_three_remedies(tmp_path, no_network):
    line = error_line(tmp_path)
    assert str(tmp_path / "MNIST" / "raw") in line
    assert all(name in line for name in MD5)
    for remedy in ("data_dir=", "dataset=digits", "dataset=synthetic_1_1"):
        assert remedy in line


def test_a_silent_server_ends_in_a_timeout(tmp_path, no_network, monkeypatch):
    from torchvision.datasets.mnist import MNIST

    monkeypatch.setattr(download, "SILENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        assert "timed out" in error_line(tmp_path)
    assert socket.getdefaulttimeout() is None  # as before


@pytest.fixture
def packed(copied, monkeypatch) -> Path:
    """Return a data_dir that has the four files as archives, whose MD5s torchvision gets, too."""
    from torchvision.datasets.mnist import MNIST

    md5 = {}
    for name in MD5:
        path = copied / "MNIST" / "raw" / name
        content = gzip.compress(path.read_bytes(), compresslevel=0)
        path.unlink()
        path.with_name(f"{name}.gz").write_bytes(content)
        md5[f"{name}.gz"] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(MNIST, "resources", list(md5.items()))
    return copied


def test_archives_in_the_folder_are_unpacked_without_a_network(packed):
    assert mnist(str(packed)).test_labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_a_download_that_is_not_the_original_is_refused(packed, monkeypatch):
    from torchvision.datasets import mnist as source

    def fetch(url, download_root, filename, md5):
        (Path(download_root) / filename.removesuffix(".gz")).write_bytes(b"a login page")

    monkeypatch.setattr(source, "download_and_extract_archive", fetch)
    assert "cannot be downloaded (" in error_line(packed)
    assert "truncated or altered (12 bytes)" in error_line(packed)  # at the next attempt


def test_a_file_that_cannot_be_read_is_named(copied):
    path = copied / "MNIST" / "raw" / LABEL_FILE
    path.unlink()
    path.mkdir()
    assert f"{path} cannot be read" in error_line(copied)


def test_a_torchvision_that_does_not_import_is_one_clear_line(tmp_path, monkeypatch):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    line = error_line(tmp_path)
    assert "operator torchvision::nms does not exist" in line
    assert "install the torch and torchvision of requirements.txt together" in line
