"""CIFAR-10 (Krizhevsky 2009) from the files that torchvision downloads."""

import pickletools
import tarfile
import zlib
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from fedprox.data.federated import Integers, LabelledData
from fedprox.data.sources.download import SILENCE_S, cannot_download, give_up_after, torchvision_datasets, what_failed
from fedprox.data.sources.images import Bytes, channel_sums, channels_first, mean_and_std
from fedprox.errors import UserError
from fedprox.storage import read_regular

PIXELS = 3 * 32 * 32  # of one picture: its red, then its green, then its blue plane
NUM_CLASSES = 10


def read_batch(file: Path) -> tuple[Bytes, Integers]:
    """Return a batch's pictures, shape (n, 32, 32, 3), and their labels, shape (n,).

    The files are pickles of {"data": the pixels, "labels": a list of numbers, ...} (Krizhevsky 2009). Such a file
    is a program that can do anything when it is loaded; here it is data. The pixels are its longest string, and the
    labels are the numbers that stand between the string "labels" and the next string.

    Raises:
        UserError: If the file has no such strings and numbers, or not as many labels as pictures.
    """
    pixels, in_labels = b"", False
    labels: list[int] = []
    try:
        for opcode, argument, _ in pickletools.genops(read_regular(file)):
            if isinstance(argument, (str, bytes, bytearray)) and opcode.name != "GLOBAL":
                in_labels = argument in ("labels", b"labels")
                if len(argument) > len(pixels):  # Python 2 wrote bytes as str, which come as Latin-1
                    pixels = argument.encode("latin-1") if isinstance(argument, str) else bytes(argument)
            elif in_labels and opcode.name == "BININT1" and argument is not None:
                labels.append(argument)
    except (OSError, ValueError, UnicodeEncodeError) as error:
        raise _no_batch(file, str(error)) from error
    if not labels or len(pixels) != len(labels) * PIXELS or max(labels) >= NUM_CLASSES:
        raise _no_batch(file, f"it has {len(labels)} labels and {len(pixels):,} bytes of pixels")
    planes = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(labels, dtype=np.int64)


def _no_batch(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file} must hold pictures of 32 x 32 pixels and as many labels 0 .. {NUM_CLASSES - 1} ({reason}); delete it "
        "to have it unpacked or downloaded again, or set data_dir="
    )


CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # batches.meta


def cifar10(data_dir: str) -> LabelledData:
    """Return CIFAR-10 with the global test set: 50,000 + 10,000 images, uint8 shape (n, 3, 32, 32).

    They lie in memory with channels last. Model input is (x - mean) / std of each channel over all training
    pixels, computed here: mean 125.3, 123.0, 113.9 and std 63.0, 62.1, 66.7, as commonly used.

    Args:
        data_dir: Folder with cifar-10-batches-py in it, or where to download that (170 MB).

    Raises:
        UserError: If a file is altered, or missing and cannot be downloaded, or torchvision does not work.
    """
    train, labels, test, test_labels = _load(data_dir)
    mean, std = mean_and_std(channel_sums(train), train.shape[1] * train.shape[2])
    return LabelledData(
        features=channels_first(train),
        labels=labels,
        test_features=channels_first(test),
        test_labels=test_labels,
        num_classes=NUM_CLASSES,
        mean=mean,
        std=std,
        class_names=CLASS_NAMES,
    )


@lru_cache(maxsize=1)  # what is in the files is known beforehand, so jobs with different partitions share it
def _load(data_dir: str) -> tuple[Bytes, Integers, Bytes, Integers]:
    """Return training pictures (n, 32, 32, 3) and labels, test pictures and labels, from the original files."""
    root = Path(data_dir).expanduser()
    source = torchvision_datasets("CIFAR-10").cifar
    _fetch(source, root)
    kind = source.CIFAR10
    train, test = (_joined(root / kind.base_folder, names) for names in (kind.train_list, kind.test_list))
    return *train, *test


def _joined(folder: Path, names: list[list[str]]) -> tuple[Bytes, Integers]:
    """Return the pictures, channels last, and the labels of several batches, given as torchvision's [name, MD5]."""
    pictures, labels = zip(*(read_batch(folder / name) for name, _ in names), strict=True)
    return np.concatenate(pictures), np.concatenate(labels)


def _fetch(source: Any, root: Path) -> None:
    """Download and unpack the archive if a file is missing; one that lies in data_dir needs no network.

    Raises:
        UserError: If a file is altered, or missing and no server gives it.
    """
    kind = source.CIFAR10
    folder = root / kind.base_folder
    md5 = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
    for name in md5:
        if (folder / name).exists():
            _check(source, folder / name, md5[name])
    missing = [name for name in md5 if not (folder / name).exists()]
    if not missing:
        return
    try:
        with give_up_after(SILENCE_S):
            source.download_and_extract_archive(kind.url, root, filename=kind.filename, md5=kind.tgz_md5)
    except (RuntimeError, OSError, EOFError, zlib.error, tarfile.TarError, HTTPException) as error:
        archive = f"{kind.filename} beside that folder"
        raise cannot_download("CIFAR-10", folder, missing[0], md5, archive, error) from error
    for name in md5:
        _check(source, folder / name, md5[name])


def _check(source: Any, file: Path, md5: str) -> None:
    """Raise UserError unless a file is the original."""
    try:
        original = source.check_integrity(file, md5)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {what_failed(error)}; mend that or set data_dir=") from error
    if not original:
        raise UserError(
            f"{file} must be the original file with MD5 {md5}, but it is truncated or altered; delete it to have it "
            "unpacked or downloaded again, or set data_dir="
        )
