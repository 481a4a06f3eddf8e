"""Pictures in a folder or in a .zip file, and the classes that their folders name."""

import errno
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from fedprox.data.download import what_failed
from fedprox.errors import UserError

SUFFIXES = (
    *(".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff"),
    ".webp",
)
TEST_FOLDERS = ("test", "val")  # the first that is there
LAYOUT = "<class>/x.png, or train/<class>/x.png and test/<class>/x.png"


class PictureFile(NamedTuple):  # tuples: there are many, and a data class is slow to write down
    """A file that a suffix says to be a picture.

    Attributes:
        name: Its path below the folder or in the .zip file, with "/" between folders.
        size_bytes: Its size.
        stamp: Time of change in ns since 1970; in a .zip file the checksum.
    """

    name: str
    size_bytes: int
    stamp: int


class Source(Protocol):
    """Where pictures are; any number of threads may read."""

    files: list[PictureFile]

    def read(self, name: str) -> bytes:
        """Return what a file holds."""

    def close(self) -> None:
        """Give back what reading needs."""


@dataclass(frozen=True)
class ClassTree:
    """Which pictures are for training, which for testing, and of which class they are.

    Attributes:
        classes: Names in sorted order; a class's place is its number.
        train: Pictures' names, by class and within a class sorted.
        train_labels: Their classes' numbers.
        test: Likewise; empty where there is one tree without train/ and test/.
        test_labels: Likewise.
    """

    classes: tuple[str, ...]
    train: tuple[str, ...]
    train_labels: tuple[int, ...]
    test: tuple[str, ...]
    test_labels: tuple[int, ...]


@contextmanager
def opened(path: str) -> Iterator[Source]:
    """Open a folder or a .zip file of pictures; hidden files and folders (.x, __MACOSX) are left out.

    Raises:
        UserError: If it is neither, or cannot be read.
    """
    source = _source(path)
    try:
        yield source
    finally:
        source.close()


def _source(path: str) -> Source:
    place = Path(path).expanduser()
    try:
        if place.is_dir():
            return _Folder(place)
        if place.exists():
            return _Zip(place)
    except OSError as error:
        raise UserError(f"dataset.path={path} cannot be read ({what_failed(error)}); mend that") from error
    except Exception as error:  # BadZipFile, and whatever else a damaged archive raises
        raise UserError(
            f"dataset.path={path} is neither a folder nor a whole .zip file ({what_failed(error)}); copy it again, or "
            "unpack it and name the folder"
        ) from error
    raise UserError(f"dataset.path={path} is not there; name a folder of pictures or a .zip file of one")


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.files = list(_listed(str(root), ""))

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def close(self) -> None:
        pass  # there is nothing open


def _listed(folder: str, prefix: str, above: tuple[str, ...] = ()) -> Iterator[PictureFile]:
    """Yield the pictures below a folder, `prefix` being its name below the root; links are followed.

    Raises:
        OSError: If a folder cannot be read, or is one of those `above`, real paths: a link leads in a circle.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise OSError(errno.ELOOP, "a link leads in a circle", folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _listed(entry.path, f"{prefix}{entry.name}/", (*above, real))
            elif _is_picture(entry.name):
                status = entry.stat(follow_symlinks=entry.is_file())  # of a link to nothing the link's own
                yield PictureFile(prefix + entry.name, status.st_size, status.st_mtime_ns)


class _Zip:
    def __init__(self, file: Path) -> None:
        self._archive = zipfile.ZipFile(file)
        self.files = [
            PictureFile(info.filename, info.file_size, info.CRC)
            for info in self._archive.infolist()
            if _is_picture(info.filename) and not any(map(_is_hidden, info.filename.split("/")))
        ]

    def read(self, name: str) -> bytes:
        return self._archive.read(name)

    def close(self) -> None:
        self._archive.close()


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def class_tree(files: list[PictureFile], path: str) -> ClassTree:
    """Return what the names of the pictures say about classes and sides.

    A class is a folder; its pictures are all below it. Folders above, of which each holds one folder and
    nothing else, do not count. Where train/ stands beside test/ (or val/, used only without test/), those
    two are the sides and other folders are not read; else all is one tree. Pictures in no class are not read.

    Args:
        files: All pictures.
        path: How errors call the place.

    Raises:
        UserError: If there are no pictures in folders, not two classes, or the sides' classes differ.
    """
    parts = [file.name.split("/") for file in files]
    depth = _depth(parts)
    heads = {each[depth] for each in parts if len(each) > depth + 1}
    if not heads:
        raise UserError(
            f"dataset.path={path} must hold pictures in one folder for each class, {LAYOUT}; got "
            f"{len(files)} pictures, none in such a folder (known are {' '.join(SUFFIXES)})"
        )
    test_folder = next((name for name in TEST_FOLDERS if {"train", name} <= heads), None)
    if test_folder is None:
        train, test = _by_class(parts, depth), {}
    else:
        sides = [[each for each in parts if each[depth] == side] for side in ("train", test_folder)]
        train, test = (_by_class(side, depth + 1) for side in sides)
        _check_same(train, test, test_folder, path)
    if len(train) < 2:
        raise UserError(
            f"dataset.path={path} must hold two classes or more, got {', '.join(train) or 'none'}; make a folder for "
            f"each, {LAYOUT}"
        )
    return ClassTree(tuple(sorted(train)), *_in_order(train), *_in_order(test))


def _depth(parts: list[list[str]]) -> int:
    """Return how many folders stand above all classes, or above train/ and test/, and hold nothing else."""
    depth = 0
    while parts and all(len(each) > depth + 2 for each in parts) and len({each[depth] for each in parts}) == 1:
        depth += 1
    return depth


def _by_class(parts: list[list[str]], depth: int) -> dict[str, list[str]]:
    """Return the names of each class's pictures; the class is the folder at `depth`."""
    classes: dict[str, list[str]] = {}
    for each in parts:
        if len(each) > depth + 1:
            classes.setdefault(each[depth], []).append("/".join(each))
    return classes


def _in_order(classes: dict[str, list[str]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return all pictures by class and name, and their classes' numbers."""
    names = [sorted(classes[name]) for name in sorted(classes)]
    labels = [label for label, members in enumerate(names) for _ in members]
    return tuple(name for members in names for name in members), tuple(labels)


def _check_same(train: dict[str, list[str]], test: dict[str, list[str]], test_folder: str, path: str) -> None:
    """Raise UserError unless both sides have the same classes."""
    for one, other, side, lacking in ((train, test, "train", test_folder), (test, train, test_folder, "train")):
        if more := sorted(one.keys() - other.keys()):
            raise UserError(
                f"dataset.path={path} must have the same classes in train/ and {test_folder}/, but {lacking}/ has no "
                f"pictures of {', '.join(more[:5])}, which {side}/ has; add them, or remove the class from {side}/"
            )
