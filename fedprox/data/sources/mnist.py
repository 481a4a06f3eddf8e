"""MNIST from its four files: with the test set of the earlier Flower baseline, or pooled as in the authors' program."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedprox.data.federated import Integers, LabelledData
from fedprox.data.sources.download import downloading, original, torchvision

# Of the uncompressed files, which torchvision does not check.
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MEAN, STD = 0.1307, 0.3081  # of the training pixels scaled to 0 .. 1, as commonly used with MNIST

Bytes = NDArray[np.uint8]


def mnist(data_dir: str) -> LabelledData:
    """Return MNIST with the global test set: 60,000 + 10,000 images, uint8 shape (n, 28, 28).

    Model input is (x / 255 - 0.1307) / 0.3081.

    Args:
        data_dir: Folder with MNIST/raw in it, or where to download that.

    Raises:
        UserError: If a file is altered, or missing and cannot be downloaded.
    """
    train_images, train_labels, test_images, test_labels = _load(data_dir)
    return LabelledData(
        features=train_images,
        labels=train_labels,
        test_features=test_images,
        test_labels=test_labels,
        num_classes=10,
        mean=np.array(MEAN * 255, dtype=np.float32),
        std=np.array(STD * 255, dtype=np.float32),
    )


def mnist_pooled(data_dir: str) -> LabelledData:
    """Return MNIST as the authors divide it: 70,000 images, those for training first, in file order.

    Model input is (x - mean) / (std + 0.001), mean and std of each pixel's raw values 0 .. 255 over all
    70,000, shape (28, 28) (litian96/FedProx, data/mnist/generate_niid.py). They are summed in float64 here and in
    float32 there, so the inputs differ by 6e-5 on average, 0.02 at most. There is no global test set: each client tests
    on its held-out part.

    Args:
        data_dir: Folder with MNIST/raw in it, or where to download that.

    Raises:
        UserError: If a file is altered, or missing and cannot be downloaded.
    """
    train_images, train_labels, test_images, test_labels = _load(data_dir)
    images = np.concatenate([train_images, test_images])
    mean = images.mean(axis=0, dtype=np.float64)
    # E[x^2] - E[x]^2 from sums that are exact in float64; 255^2 fits into uint16, so no copy in float64 is needed.
    variance = np.square(images, dtype=np.uint16).mean(axis=0, dtype=np.float64) - mean**2
    std = np.sqrt(np.maximum(variance, 0)) + 0.001
    return LabelledData.without_test_set(images, np.concatenate([train_labels, test_labels]), 10, mean=mean, std=std)


@lru_cache(maxsize=1)  # the files' contents are fixed, so jobs with different partitions share them
def _load(data_dir: str) -> tuple[Bytes, Integers, Bytes, Integers]:
    """Return training images and labels, test images and labels, from files with the right MD5.

    torchvision only downloads missing files: importing it takes as long as importing torch.
    """
    root = Path(data_dir).expanduser()
    raw = root / "MNIST" / "raw"
    contents = {name: original(raw / name, md5) for name, md5 in MD5.items() if (raw / name).exists()}
    if missing := [name for name in MD5 if name not in contents]:
        datasets = torchvision("datasets", "MNIST")
        with downloading("MNIST", raw, MD5, "their .gz archives"):
            datasets.MNIST(root, download=True)
        contents |= {name: original(raw / name, MD5[name]) for name in missing}
    # The header of an image file is four numbers of four bytes, that of a label file two.
    train_images, test_images = (contents[name][16:].reshape(-1, 28, 28) for name in MD5 if "images" in name)
    train_labels, test_labels = (contents[name][8:].astype(np.int64) for name in MD5 if "labels" in name)
    return train_images, train_labels, test_images, test_labels
