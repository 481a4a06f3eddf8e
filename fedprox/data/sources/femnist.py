"""The paper's FEMNIST (Li et al. 2020, sec. 5.1): ten lower-case letters of EMNIST, a few for each client."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.data.checks import check_between
from fedprox.data.federated import FederatedData, Integers, LabelledData, divide
from fedprox.data.sources.download import downloading, torchvision, what_failed
from fedprox.errors import UserError
from fedprox.seeds import Stream, generator

FILES = (
    "emnist-byclass-train-images-idx3-ubyte",
    "emnist-byclass-train-labels-idx1-ubyte",
    "emnist-byclass-test-images-idx3-ubyte",
    "emnist-byclass-test-labels-idx1-ubyte",
)
NUM_LABELS = 62  # of the split "byclass": 0 .. 9 are digits, 10 .. 35 upper-case letters, 36 .. 61 lower-case
FIRST_LETTER, NUM_LETTERS = 36, 10  # a .. j
LOG_MEAN, AT_LEAST, MIN_PER_CLASS = 4.0, 5, 2  # the authors'
MAX_SIGMA = 5.0  # keeps exp(4 + 5 z) below 2^63 for every z that is ever drawn
HOLD_OUT = 0.1
MAX_CLIENTS = 100_000  # there are fewer images

Bytes = NDArray[np.uint8]


def femnist(
    data_dir: str,
    seed: int,
    num_clients: int = 200,
    classes_per_client: int = 5,
    sigma: float = 1.0,
    inverted: bool = True,
) -> FederatedData:
    """Return EMNIST's lower-case a .. j divided as in the paper, uint8 shape (n, 28, 28), classes 0 .. 9.

    Client u has int(s / classes_per_client), at least 2, of each of the letters (u + j) mod 10, j = 0 ..
    classes_per_client - 1, with s = LogNormal(4, sigma) + 5. Each client's examples are shuffled; it trains on the
    first int(0.9 n) and tests on the others. There is no global test set. Model input is x / 255.

    The sizes, the choice of letters, the split, and paper as 1 and ink as 0 are those of the authors' generator
    (litian96/FedProx, data/nist/data/my_sample.py). With sigma = 1 the total is 18,542 on average, standard deviation
    1,647; the paper's is 18,345, mean 92. The generator sets no seed, so its draw cannot be repeated.

    Assumed or different: 5 letters per client as in the paper, the generator has 3. Images are EMNIST's, cropped and
    centred, from its training and test parts together; the authors scale NIST's whole 128 x 128 images. No two clients
    share an image; in the authors' generator all begin with a letter's first one. If a letter runs out, the last
    clients have fewer of it.

    Args:
        data_dir: Folder with EMNIST/raw in it, or where to download that (560 MB).
        seed: Seeds the sizes, the images and the shuffles.
        num_clients: Number of clients, 1 .. 100,000.
        classes_per_client: Between 1 and 10; the paper has 5, the authors' generator 3.
        sigma: Standard deviation of log(s - 5), between 0 and 5.
        inverted: Paper is 1 and ink 0, as in NIST's files; False: ink is 1 on 0, as in EMNIST's.

    Raises:
        UserError: If a setting is out of its range, there are too few images for so many clients, a file is damaged, or
            missing and cannot be downloaded, or torchvision does not work.
    """
    check_between("num_clients", num_clients, 1, MAX_CLIENTS, "the paper has 200")
    remedy = "the paper has 5, the authors' generator 3"
    check_between("classes_per_client", classes_per_client, 1, NUM_LETTERS, remedy)
    check_between("sigma", sigma, 0, MAX_SIGMA, "the authors have 1")
    images, labels = _load(data_dir)
    features = 255 - images if inverted else images
    data = LabelledData.without_test_set(features, labels, NUM_LETTERS, std=255, class_names=tuple("abcdefghij"))
    rng = generator(seed, Stream.PARTITION)
    amounts = images_per_letter(num_clients, classes_per_client, sigma, rng)
    return divide(data, _deal(labels, amounts, classes_per_client, rng), rng, hold_out=HOLD_OUT)


def images_per_letter(num_clients: int, classes_per_client: int, sigma: float, rng: np.random.Generator) -> Integers:
    """Return each client's number of images of each of its letters, shape (num_clients,); see `femnist`."""
    sizes = rng.lognormal(LOG_MEAN, sigma, num_clients) + AT_LEAST
    return np.maximum(MIN_PER_CLASS, (sizes / classes_per_client).astype(np.int64))


def _deal(labels: Integers, amounts: Integers, classes_per_client: int, rng: np.random.Generator) -> list[Integers]:
    """Return each client's images: `amounts[u]` of each of its letters, or those that earlier clients left.

    Args:
        labels: Letters 0 .. 9, shape (num_images,).
        amounts: Shape (num_clients,).
        classes_per_client: Between 1 and 10.
        rng: Shuffles the images of each letter.

    Raises:
        UserError: If no image is left for a client.
    """
    letters = (np.arange(len(amounts))[:, None] + np.arange(classes_per_client)) % NUM_LETTERS
    parts: list[list[Integers]] = [[] for _ in amounts]
    for letter in range(NUM_LETTERS):
        clients = np.flatnonzero((letters == letter).any(axis=1))
        images = rng.permutation(np.flatnonzero(labels == letter))
        *shares, _ = np.split(images, np.cumsum(amounts[clients]))
        for client, part in zip(clients.tolist(), shares, strict=True):
            parts[client].append(part)
    dealt = [np.concatenate(part) for part in parts]
    if empty := [client for client, part in enumerate(dealt) if not len(part)]:
        raise UserError(
            f"num_clients={len(amounts)} is too many: the {len(labels):,} images of a .. j run out before "
            f"client {empty[0]}; ask for fewer clients or lower dataset.sigma"
        )
    return dealt


def _load(data_dir: str) -> tuple[Bytes, Integers]:
    """Return the images of a .. j, those for training first, and their letters 0 .. 9."""
    raw = Path(data_dir).expanduser() / "EMNIST" / "raw"
    source = torchvision("datasets", "EMNIST").mnist
    if not all((raw / name).exists() for name in FILES):
        with downloading("EMNIST", raw, FILES, "gzip.zip, in which EMNIST comes"):
            _fetch(source, raw)
    train = _read(source, raw / FILES[0], raw / FILES[1])
    test = _read(source, raw / FILES[2], raw / FILES[3])
    return np.concatenate([train[0], test[0]]), np.concatenate([train[1], test[1]])


def _fetch(source: ModuleType, raw: Path) -> None:
    """Download EMNIST and unpack four files; torchvision's own class would unpack all six splits, 1.8 GB."""
    source.download_and_extract_archive(source.EMNIST.url, str(raw), md5=source.EMNIST.md5)
    for name in FILES:
        source.extract_archive(str(raw / "gzip" / f"{name}.gz"), str(raw))
    shutil.rmtree(raw / "gzip")  # archives of all six splits; the zip file stays


def _read(source: ModuleType, image_file: Path, label_file: Path) -> tuple[Bytes, Integers]:
    """Return one part's images of a .. j and their letters.

    Raises:
        UserError: If a file is not in the format, or the two do not belong together.
    """
    images = _parsed(source.read_image_file, image_file)
    labels = _parsed(source.read_label_file, label_file)
    if len(images) != len(labels) or images.shape[1:] != (28, 28):
        raise UserError(
            f"{image_file} and {label_file.name} must hold one label for each image of 28 x 28 pixels, got "
            f"{images.shape} and {len(labels):,} labels; delete both to have them unpacked or downloaded again"
        )
    if len(labels) and labels.max() >= NUM_LABELS:
        raise UserError(
            f"{label_file} must hold labels 0 .. {NUM_LABELS - 1} of the split byclass, got {labels.max()}; "
            "delete it to have it unpacked or downloaded again"
        )
    chosen = (labels >= FIRST_LETTER) & (labels < FIRST_LETTER + NUM_LETTERS)
    return images[chosen].transpose(0, 2, 1), labels[chosen] - FIRST_LETTER  # stored column by column


def _parsed(read: Callable[[str], Any], path: Path) -> NDArray[Any]:
    """Return a file's array, read by one of torchvision's functions."""
    try:
        array: NDArray[Any] = read(str(path)).numpy()
        return array
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise UserError(
            f"{path} cannot be read ({what_failed(error)}); delete it to have it unpacked or downloaded again, "
            "or set data_dir="
        ) from error
