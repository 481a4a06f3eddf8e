"""CIFAR-10 (Krizhevsky 2009), downloaded and read by torchvision."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from fedprox.data.federated import Integers, LabelledData
from fedprox.data.sources.channels import Bytes, channel_sums, channels_first, mean_and_std
from fedprox.data.sources.download import downloading, original, torchvision


def cifar10(data_dir: str) -> LabelledData:
    """Return CIFAR-10 with the global test set: 50,000 + 10,000 images, uint8 shape (n, 3, 32, 32).

    They lie in memory with channels last. Model input is (x - mean) / std of each channel over all training
    pixels, computed here: mean 125.3, 123.0, 113.9 and std 63.0, 62.1, 66.7, as commonly used.

    Args:
        data_dir: Folder with cifar-10-batches-py in it, or where to download that (170 MB).

    Raises:
        UserError: If a file is altered, or missing and cannot be downloaded, or torchvision does not work.
    """
    train, labels, test, test_labels, names = _load(data_dir)
    mean, std = mean_and_std(channel_sums(train), train.shape[1] * train.shape[2])
    return LabelledData(
        features=channels_first(train),
        labels=labels,
        test_features=channels_first(test),
        test_labels=test_labels,
        num_classes=len(names),
        mean=mean,
        std=std,
        class_names=names,
    )


@lru_cache(maxsize=1)  # the files' contents are fixed, so jobs with different partitions share them
def _load(data_dir: str) -> tuple[Bytes, Integers, Bytes, Integers, tuple[str, ...]]:
    """Return training images (n, 32, 32, 3) and labels, test images and labels, and the classes' names.

    The files are pickles, programs that could do anything when they are loaded. torchvision loads one only after
    comparing its MD5 with that of the original.

    Raises:
        UserError: If a file is altered, or missing and no server gives it.
    """
    root = Path(data_dir).expanduser()
    datasets = torchvision("datasets", "CIFAR-10")
    kind = datasets.CIFAR10
    folder = root / kind.base_folder
    md5 = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
    present = [name for name in md5 if (folder / name).exists()]
    for name in present:  # torchvision does not say which file is altered
        original(folder / name, md5[name])
    if len(present) < len(md5):
        with downloading("CIFAR-10", folder, md5, f"{kind.filename} beside that folder"):
            datasets.utils.download_and_extract_archive(kind.url, root, filename=kind.filename, md5=kind.tgz_md5)
    train, test = (kind(root, train=is_train) for is_train in (True, False))
    (images, labels), (test_images, test_labels) = (
        (np.ascontiguousarray(side.data), np.array(side.targets, dtype=np.int64)) for side in (train, test)
    )
    return images, labels, test_images, test_labels, tuple(train.classes)
