"""CIFAR-10 (Krizhevsky 2009) from the files that torchvision downloads."""

import tarfile
import zlib
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from fedprox.data.channels import Bytes, channel_sums, channels_first, mean_and_std
from fedprox.data.cifar_batches import NUM_CLASSES, read_batch
from fedprox.data.download import SILENCE_S, cannot_download, give_up_after, torchvision_datasets, what_failed
from fedprox.data.federated import Integers, LabelledData
from fedprox.errors import UserError

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
