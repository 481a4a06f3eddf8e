"""Data sets of images with one folder for each class, from a folder or a .zip file."""

import logging
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedprox.data import cache as array_cache
from fedprox.data.cache import Arrays
from fedprox.data.checks import check_between
from fedprox.data.federated import Integers, LabelledData
from fedprox.data.sources.channels import Bytes, channel_sums, channels_first, mean_and_std
from fedprox.data.sources.image_files import ClassTree, Source, class_tree, opened, reasons
from fedprox.data.sources.images import Wanted, decoded, full_range
from fedprox.errors import UserError, printable
from fedprox.seeds import Stream, generator

VERSION = 2  # of how images are decoded; a cache of another version is made again
MAX_SIZE = 4096  # 50 MB for an image with colours
TEST_FRACTION = 0.2  # the default
MAX_EMPTY = 10  # folders that are named
PIXELS = "pictures"  # their name in caches, which stays so that old caches are found

_log = logging.getLogger("fedprox")


def image_folder(
    path: str,
    seed: int,
    size: int | None = None,
    channels: int | None = None,
    test_fraction: float | None = None,
    skip_broken: bool = False,
    cache_dir: str | None = None,
) -> LabelledData:
    """Return the images below a folder or in a .zip file, uint8 shape (n, C, height, width).

    They lie in memory with channels last. Classes are the names of folders, numbered in sorted order: train/<class>/*
    and test/<class>/* (or val/), or <class>/* alone, of which int(test_fraction * n) of each class, drawn by the seed,
    are the test set (`image_files.class_tree`). Model input is (x - mean) / std of each channel over all training
    pixels.

    Images are decoded once; later they come from a cache that knows their names, sizes and times of change.

    Args:
        path: The folder or .zip file.
        seed: Draws the test set if there is none.
        size: Height and width to crop and resize all images to, 1 .. 4096; None: they have one size already.
        channels: 1 for grey or 3 for colours; None: they have the same already.
        test_fraction: At least 0 and below 1; None: 0.2. Only if there is no test/ or val/.
        skip_broken: Leave out images that cannot be decoded, and log how many.
        cache_dir: Folder of the cache; None: as `array_cache.places` has it.

    Raises:
        UserError: If a setting is out of its range, or the files are not as described.
    """
    path = str(path)  # Hydra makes a number of path=2024
    _check(size, channels, test_fraction)
    with opened(path) as source:
        tree = class_tree(source, path)
        _log_what_is_left_out(source, tree, path)
        if tree.test and test_fraction is not None:
            raise UserError(
                f"dataset.test_fraction divides one tree, and dataset.path={path} has train/ and its own test set, "
                f"got {test_fraction:g}; leave it out"
            )
        arrays = _cached(source, tree, path, Wanted(size, channels, skip_broken), cache_dir)
    _log_decoded(arrays, path)
    images, sums, labels = arrays[PIXELS], arrays["sums"], _labels(arrays, tree)
    train, test = _sides(arrays, tree, labels, TEST_FRACTION if test_fraction is None else test_fraction, seed)
    _check_classes(labels[train], tree, path)
    mean, std = mean_and_std(sums[train], images.shape[1] * images.shape[2])
    return LabelledData(
        features=channels_first(images[train]),
        labels=labels[train],
        test_features=channels_first(images[test]),
        test_labels=labels[test],
        num_classes=len(tree.classes),
        mean=mean,
        std=std,
        class_names=tree.classes,
    )


@dataclass(frozen=True)
class SiteImages:
    """One site's images.

    Attributes:
        train: Training images, uint8 shape (n, height, width, C).
        train_labels: Their classes' numbers, shape (n,).
        test: Images of the site's own test set, same shape; None if it has none.
        test_labels: Their classes' numbers.
        classes: Names of the site's classes.
        white: The value that became 255 in images of 16 bits (`images.RANGES`); 0 if there are none.
    """

    train: Bytes
    train_labels: Integers
    test: Bytes | None
    test_labels: Integers
    classes: tuple[str, ...]
    white: int


def site_images(path: str, wanted: Wanted, cache_dir: str | None = None) -> SiteImages:
    """Return one site's images, a folder or .zip file as `image_folder` reads; one class is enough.

    Raises:
        UserError: If a setting is out of its range, or the files are not as described.
    """
    _check(wanted.size, wanted.channels, None)
    with opened(path) as source:
        tree = class_tree(source, path, one_site=True)
        _log_what_is_left_out(source, tree, path)
        arrays = _cached(source, tree, path, wanted, cache_dir)
    _log_decoded(arrays, path)
    images, labels, cut = arrays[PIXELS], _labels(arrays, tree), _num_train(arrays, tree)
    num_wide, largest = arrays["wide"].tolist()
    return SiteImages(
        images[:cut],
        labels[:cut],
        images[cut:] if tree.test else None,
        labels[cut:],
        tree.classes,
        full_range(largest) if num_wide else 0,
    )


def _labels(arrays: Arrays, tree: ClassTree) -> Integers:
    """Return the classes of the decoded images, training images first."""
    return np.delete(np.array(tree.train_labels + tree.test_labels, dtype=np.int64), arrays["broken"])


def _num_train(arrays: Arrays, tree: ClassTree) -> int:
    """Return the number of decoded training images."""
    return len(tree.train) - int((arrays["broken"] < len(tree.train)).sum())


def _cached(source: Source, tree: ClassTree, path: str, wanted: Wanted, cache_dir: str | None) -> Arrays:
    """Return the images of both sides, training first, decoded now or earlier.

    PIXELS, sums: The images, shape (n, height, width, C), and the `channel_sums` of each.
    broken: Positions in the tree of the images left out.
    reason: Name of the first of them and what is wrong with it, as bytes.
    wide: How many have 16 bits, and their largest value.
    """
    names, place = tree.train + tree.test, Path(os.path.expanduser(path))

    def make() -> Arrays:
        _log.info("decoding %d images of %s ...", len(names), printable(path))
        made = decoded(source.read, names, wanted, os.cpu_count() or 1)
        reason = next((f"{names[first]}: {why}" for first, why in made.broken.items()), "")
        return {
            PIXELS: made.images,
            "sums": channel_sums(made.images),
            "broken": np.array(list(made.broken), dtype=np.int64),
            "reason": np.frombuffer(reason.encode(errors="replace"), dtype=np.uint8),
            "wide": np.array([made.num_wide, made.largest], dtype=np.int64),
        }

    folder = place if place.is_dir() else place.parent
    places = array_cache.places(folder, PIXELS) if cache_dir is None else [Path(cache_dir).expanduser()]
    # Another Pillow may come with another JPEG decoder, which rounds differently.
    made_from = [VERSION, version("pillow"), asdict(wanted), source.files]
    file = f"{PIXELS}-{array_cache.key_of([os.path.abspath(place), asdict(wanted)])[:16]}.npz"
    return array_cache.cached(places, file, array_cache.key_of(made_from), make)


def _log_what_is_left_out(source: Source, tree: ClassTree, path: str) -> None:
    """Log the files and folders that are not part of the data."""
    place = printable(path)
    if passed_over := reasons(source.passed_over):
        _log.info("%s: %s", place, passed_over)
    if num := tree.num_outside:
        _log.warning("%s: %d images are left out: they are in no class folder, or beside the sides", place, num)
    for folder in tree.empty[:MAX_EMPTY]:
        _log.warning("%s: %s/ holds no image and is not a class", place, printable(folder))
    if (more := len(tree.empty) - MAX_EMPTY) > 0:
        _log.warning("%s: %d more folders hold no image and are not classes", place, more)


def _log_decoded(arrays: Arrays, path: str) -> None:
    """Log how many images are left out because they are broken, and how images with 16 bits were scaled."""
    place = printable(path)
    if num := len(arrays["broken"]):
        reason = printable(arrays["reason"].tobytes().decode())
        _log.warning("%s: %d broken images are skipped, the first is %s", place, num, reason)
    num_wide, largest = arrays["wide"].tolist()
    if num_wide:
        white = full_range(largest)
        scaling = f"are divided by {white} / 255 = {white / 255:.4g} and rounded to 8 bits"
        _log.info(
            "%s: %d of %d images have 16 bits; their largest value is %d, so all of them %s",
            *(place, num_wide, len(arrays[PIXELS]), largest, "keep their values" if white == 255 else scaling),
        )


def _sides(
    arrays: Arrays, tree: ClassTree, labels: Integers, test_fraction: float, seed: int
) -> tuple[slice | Integers, slice | Integers]:
    """Return the positions of the training and of the test images: slices, which copy nothing, if the tree has sides.

    Args:
        arrays: From `_cached`.
        tree: The images to decode.
        labels: Classes of the decoded images, shape (n,).
        test_fraction: Of each class, if the tree has no test set.
        seed: Draws the test set.
    """
    if tree.test:
        num_train = _num_train(arrays, tree)
        return slice(0, num_train), slice(num_train, None)
    rng = generator(seed, Stream.TEST_SET)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(len(tree.classes)):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_test[members[: int(test_fraction * len(members))]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _check(size: int | None, channels: int | None, test_fraction: float | None) -> None:
    """Raise UserError for the first setting that is out of its range."""
    if size is not None:
        check_between("dataset.size", size, 1, MAX_SIZE, "null leaves the images unchanged")
    if channels not in (None, 1, 3):
        raise UserError(f"dataset.channels must be 1 or 3, got {channels}; null leaves the images unchanged")
    if test_fraction is not None and not 0 <= test_fraction < 1:
        raise UserError(f"dataset.test_fraction must be at least 0 and below 1, got {test_fraction}; take 0.2")


def _check_classes(labels: Integers, tree: ClassTree, path: str) -> None:
    """Raise UserError if no training image of a class could be decoded."""
    counts = np.bincount(labels, minlength=len(tree.classes))
    if not counts.all():
        raise UserError(
            f"dataset.path={path} must have images of every class, but all of {tree.classes[int(counts.argmin())]} "
            "are broken; fix them or remove the class"
        )
