"""Data of sites: each has its own folder and is one client.

In simulation one process reads all sites (`sites`). In a federation each site reads its own (`read_site`). What it then
tells, and what the server makes of it, is in `fedprox.data.sources.site_facts` for both.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedprox.data.federated import FederatedData, LabelledData, split
from fedprox.data.sources.categories import in_order
from fedprox.data.sources.channels import channels_first, taken
from fedprox.data.sources.image_files import TEST_SIDES
from fedprox.data.sources.image_folder import site_images
from fedprox.data.sources.images import Wanted
from fedprox.data.sources.leaf import user_arrays
from fedprox.data.sources.leaf_files import data_folder
from fedprox.data.sources.site_facts import Site, SiteError, agree, check_name, facts, federated
from fedprox.data.sources.tables import ClassNames, Table, read_csv, read_npz
from fedprox.errors import UserError
from fedprox.seeds import Stream, generator

MOST_CLASSES = 100  # of a table with more than half as many classes as rows: labels may be ids or names of persons
FORMATS = ("image_folder", "npz", "csv", "leaf")


@dataclass(frozen=True)
class SiteFormat:
    """What a site's folder holds, and how it is read: the same at all sites.

    Attributes:
        format: One of FORMATS; None for what a site's folder holds.
        seed: Draws the held-out examples of a site without a test set.
        hold_out: Their share; see `federated.split`.
        label: The column of class names in .csv files.
        size: Height and width of images, as in `image_folder`.
        channels: Colours of images, as in `image_folder`.
        skip_broken: Leave out images that cannot be decoded.
        normalise: Whether model input is (x - mean) / std over the training examples of all sites.
        cache_dir: Folder of the cache of decoded images; None for beside the images.
    """

    format: str | None
    seed: int = 0
    hold_out: float = 0.1
    label: str = "label"
    size: int | None = None
    channels: int | None = None
    skip_broken: bool = False
    normalise: bool = True
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        """Raise UserError for an unknown format."""
        if self.format not in (None, *FORMATS):
            raise UserError(
                f"dataset.format must be one of {', '.join(FORMATS)}, or null for what folders hold, got {self.format}"
            )

    def at(self, place: Path) -> str:
        """Return the format of a site's data.

        Raises:
            SiteError: If there are files of several formats, and none is given.
        """
        if self.format is not None:
            return self.format
        kinds = {"npz": "*.npz", "csv": "*.csv", "leaf": "train/*.json"}
        found = [form for form, pattern in kinds.items() if any(place.glob(pattern))]
        if len(found) > 1:
            raise SiteError(f"its folder {place} holds files of the formats {' and '.join(found)}; set dataset.format")
        return found[0] if found else "image_folder"


def sites(
    format: str | None,
    path: str | None,
    seed: int,
    hold_out: float = 0.1,
    label: str = "label",
    size: int | None = None,
    channels: int | None = None,
    skip_broken: bool = False,
    normalise: bool = True,
    classes: list[str] | None = None,
    cache_dir: str | None = None,
) -> FederatedData:
    """Return the data of simulated sites: every folder in `path` is a client, whose id is the folder's name.

    Clients are in the sorted order of their names. Training examples come first, client by client, then held-out ones.

    Args:
        format: One of FORMATS, or None for what a folder holds; see docs/data.md.
        path: The folder of the sites' folders.
        seed: Draws the held-out examples of a site without a test set.
        hold_out: Their share; see `federated.split`.
        label: The column of class names in .csv files.
        size: Height and width of images, as in `image_folder`.
        channels: Colours of images, as in `image_folder`.
        skip_broken: Leave out images that cannot be decoded.
        normalise: Whether model input is (x - mean) / std over the training examples of all sites.
        classes: The classes' names in the order of their numbers; None for those that the sites have, sorted.
        cache_dir: Folder of the cache of decoded images; None for beside the images.

    Raises:
        UserError: If a site's folder is not as described, or the sites do not fit together; it names the site.
    """
    form = SiteFormat(format, seed, hold_out, label, size, channels, skip_broken, normalise, cache_dir)
    if path is None or not str(path).strip():
        raise UserError(
            "dataset.path must name the folder of the sites' folders; without it, only engine=deployment can run, "
            "where every node names its own"
        )
    folder = data_folder(path)
    if not folder.is_dir():
        raise UserError(f"dataset.path={path} must be a folder with a folder for each site; name one")
    own = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not own:
        raise UserError(f"dataset.path={path} must hold a folder for each site, got none; make one")
    read = [read_site(each.name, each, form) for each in own]
    return federated(read, agree([facts(site, normalise=normalise) for site in read], classes))


def read_site(name: str, place: Path, form: SiteFormat) -> Site:
    """Return a site's examples, of which the held-out ones are its own test set, or else drawn by the seed.

    Args:
        name: The site's name.
        place: Its folder; for images a .zip file, too.
        form: What the folder holds.

    Raises:
        UserError: If the files are not as described. It is a SiteError if the line shows nothing of the data.
    """
    check_name(name)
    with _naming(name):
        if not place.exists():
            raise SiteError(f"its data {place} do not exist; name its folder, or put the data there")
        kind = form.at(place)
        train, test, white = _images(place, form) if kind == "image_folder" else _tables(place, kind, form.label)
        if not len(train.labels):
            raise SiteError("it has no training example; add some, or leave the site out")
        if test is None:
            train, test = _held_out(name, train, form)
        if not len(test.labels):
            raise SiteError(
                f"it has no held-out example, on which the model is tested there, with {len(train.labels)} training "
                f"examples and hold_out={form.hold_out:g}; raise hold_out, or give it a test set"
            )
        if test.columns != train.columns:
            raise SiteError("its test set has other columns than its training set; give both the same")
        if kind != "image_folder":
            _check_classes(np.concatenate([train.labels, test.labels]))
        return Site(name, _labelled(train, test), train.columns, white)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Begin every error with the site's name; what may be told to the server stays a SiteError."""
    try:
        yield
    except UserError as error:
        kind = SiteError if isinstance(error, SiteError) else UserError
        raise kind(f"site {name}: {error}") from error


def _check_classes(labels: ClassNames) -> None:
    """Raise SiteError if labels are hardly classes, before their names leave the site."""
    num_classes = len(np.unique(labels))
    if num_classes > max(MOST_CLASSES, len(labels) / 2):
        raise SiteError(
            f"it has {num_classes} different labels in {len(labels)} rows, which are hardly classes; name the label "
            "column in dataset.label"
        )


def _labelled(train: Table, test: Table) -> LabelledData:
    """Return a site's examples, whose classes are numbered in the order of their names."""
    classes = in_order({*train.labels.tolist(), *test.labels.tolist()})
    numbers = {name: number for number, name in enumerate(classes)}
    labels, test_labels = (
        np.array([numbers[name] for name in side.labels.tolist()], dtype=np.int64) for side in (train, test)
    )
    zero, one = np.zeros((), np.float32), np.ones((), np.float32)
    return LabelledData(train.features, labels, test.features, test_labels, len(classes), zero, one, classes)


def _images(place: Path, form: SiteFormat) -> tuple[Table, Table | None, int]:
    """Return a site's training images and its own test images, as tables, and the value that became 255."""
    if place.is_dir() and not any(place.iterdir()):
        raise SiteError(f"its folder {place} is empty; put images there, in one folder for each class")
    found = site_images(str(place), Wanted(form.size, form.channels, form.skip_broken), form.cache_dir)
    names = np.array(found.classes, dtype=np.str_)
    test = None if found.test is None else Table(channels_first(found.test), names[found.test_labels])
    return Table(channels_first(found.train), names[found.train_labels]), test, found.white


def _tables(place: Path, kind: str, label: str) -> tuple[Table, Table | None, int]:
    """Return a site's training table, its own test table, and 0."""
    if not place.is_dir():
        raise SiteError(f"its data {place} must be a folder; name the folder that holds them")
    if kind == "leaf":
        own, held = user_arrays(place)
        train = Table(own.features, own.labels.astype(np.str_))
        return train, Table(held.features, held.labels.astype(np.str_)) if held else None, 0
    files = sorted(each for each in place.glob(f"*.{kind}") if not each.name.startswith("."))
    tests = [place / f"{side}.{kind}" for side in TEST_SIDES if place / f"{side}.{kind}" in files]
    left = [each for each in files if each.stem not in TEST_SIDES]
    first = place / f"train.{kind}"
    if first not in left and len(left) != 1:
        raise SiteError(
            f"its folder {place} must hold train.{kind} and perhaps test.{kind}, or one "
            f".{kind} file alone, got {len(files)} such files; put it there"
        )
    files = [first if first in left else left[0], *tests[:1]]
    try:
        tables = [read_npz(each) if kind == "npz" else read_csv(each, label) for each in files]
    except UserError as error:  # which shows no value
        raise SiteError(str(error)) from error
    return tables[0], tables[1] if tests else None, 0


def _held_out(name: str, table: Table, form: SiteFormat) -> tuple[Table, Table]:
    """Return a site's examples split in two: shuffled by a stream of the site's own, then as `split` does."""
    rng = generator(form.seed, Stream.SITE, zlib.crc32(name.encode()))
    parts = split([rng.permutation(len(table.labels))], form.hold_out)
    train, held_out = (
        table._replace(features=taken(table.features, part[0]), labels=table.labels[part[0]]) for part in parts
    )
    return train, held_out
