"""Files of images in a folder or a .zip file, and the classes that their folders name."""

import errno
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fedprox.data.sources.download import what_failed
from fedprox.errors import UserError, printable
from fedprox.storage import check_regular, read_regular

SUFFIXES = (
    *(".apng", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg"),
    *(".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
# Names of the sides, in any capitalisation.
SIDES = {
    **{"train": "train", "training": "train", "trn": "train", "test": "test", "testing": "test", "tst": "test"},
    **{"val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val"},
}
# Longer names of them, such as seg_train, test-set and val2017, if all folders have such names and hold folders alone.
_LONGER = re.compile(
    rf"(?:.*[\W_])?({'|'.join(SIDES)})[\W_]?(?:set|data|dataset|images?|imgs?|pics?|split|samples?|examples?)?[\W_]?\d*"
)
TEST_SIDES = ("test", "val")  # the first that exists is the test set
# Hidden, like any name that begins with a dot.
HIDDEN = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
MAX_FILE_BYTES = 600_000_000  # more than the 89 million pixels that Pillow accepts, of six bytes each
UNPACKED_BYTES = 1 << 26  # an archive's member that is larger than this
MAX_RATIO = 100  # and so many times its packed size is a bomb: no image compresses like that
MAX_REASONS = 8  # suffixes that are listed
LAYOUT = "<class>/x.png, or train/<class>/x.png and test/<class>/x.png"


class ImageFile(NamedTuple):  # a tuple: there are many, and tuples are written as JSON quickly
    """A file whose suffix says that it is an image.

    Attributes:
        name: Its path below the folder or in the .zip file, with "/" between folders.
        size_bytes: Its size.
        stamp: Time of change in ns since 1970; in a .zip file the checksum.
    """

    name: str
    size_bytes: int
    stamp: int


@dataclass
class Source:
    """The files of a folder or an archive.

    Attributes:
        read: Returns the bytes of one of the files; any number of threads may call it.
        files: The images, according to their suffixes.
        folders: All folders that are not hidden, by their path below the root.
        passed_over: Number of other files, by reason.
    """

    read: Callable[[str], bytes]
    files: list[ImageFile] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    passed_over: Counter[str] = field(default_factory=Counter)

    def is_image(self, name: str) -> bool:
        """Return whether a file is an image, and count one that is not."""
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in SUFFIXES:
            self.passed_over[f"*{suffix}" if suffix else "without a suffix"] += 1
        return suffix in SUFFIXES


@dataclass(frozen=True)
class ClassTree:
    """The images for training and for testing, and their classes.

    Attributes:
        classes: Names in sorted order; a class's position is its number.
        train: Names of images, sorted by class and then by name.
        train_labels: Their classes' numbers.
        test: The same for testing; empty if there is one tree without train/ and test/.
        test_labels: Their classes' numbers.
        empty: Folders in the place of a class that hold no image, and so are not classes.
        num_outside: Number of images in no class or side.
    """

    classes: tuple[str, ...]
    train: tuple[str, ...]
    train_labels: tuple[int, ...]
    test: tuple[str, ...]
    test_labels: tuple[int, ...]
    empty: tuple[str, ...] = ()
    num_outside: int = 0


@contextmanager
def opened(path: str) -> Iterator[Source]:
    """Open a folder or a .zip file of images; hidden files and folders (.x, __MACOSX) are left out.

    Raises:
        UserError: If it is neither, or cannot be read.
    """
    if not path.strip():
        raise UserError("dataset.path must name a folder of images or a .zip file of one, got nothing")
    place = Path(os.path.expanduser(path))  # Path.expanduser raises for an unknown ~name
    with ExitStack() as stack:
        try:
            if place.is_dir():
                source = _folder(place)
            else:
                check_regular(place)
                source = _archive(stack.enter_context(zipfile.ZipFile(place)))
        except FileNotFoundError:
            raise UserError(f"dataset.path={path} is missing; name a folder of images or a .zip file of one") from None
        except OSError as error:
            raise UserError(f"dataset.path={path} cannot be read ({what_failed(error)}); fix that") from error
        except Exception as error:  # BadZipFile, and whatever else a damaged archive raises
            raise UserError(
                f"dataset.path={path} is neither a folder nor a whole .zip file ({what_failed(error)}); copy it again, "
                "or unpack it and name the folder"
            ) from error
        yield source


def _folder(root: Path) -> Source:
    source = Source(lambda name: read_regular(root / name, MAX_FILE_BYTES))
    _list(str(root), "", source)
    return source


def _list(folder: str, prefix: str, source: Source, above: tuple[str, ...] = ()) -> None:
    """Add the files below a folder, whose path below the root is `prefix`; links are followed.

    Raises:
        OSError: If a folder cannot be read, or is one of those `above`, real paths: a link leads in a circle.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise OSError(errno.ELOOP, "a link leads in a circle", folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                source.passed_over["hidden"] += 1
            elif entry.is_dir():
                source.folders.add(prefix + entry.name)
                _list(entry.path, f"{prefix}{entry.name}/", source, (*above, real))
            elif source.is_image(entry.name):
                status = entry.stat(follow_symlinks=entry.is_file())  # a broken link's own status
                source.files.append(ImageFile(prefix + entry.name, status.st_size, status.st_mtime_ns))


def _archive(archive: zipfile.ZipFile) -> Source:
    members: dict[str, zipfile.ZipInfo] = {}
    source = Source(lambda name: _member(archive, members[name]))
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")  # as some programs on Windows write it
        parts = name.split("/")
        if any(map(_is_hidden, parts)):
            source.passed_over["hidden"] += not name.endswith("/")
            continue
        source.folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if not name.endswith("/") and source.is_image(name):
            source.passed_over["replaced by a later one of the same name"] += name in members
            members[name] = info
    source.files = [ImageFile(name, each.file_size, each.CRC) for name, each in members.items()]
    return source


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Return the bytes of an archive's member, unless it declares more than an image can have."""
    is_bomb = info.file_size > max(UNPACKED_BYTES, MAX_RATIO * info.compress_size)
    if is_bomb or info.file_size > MAX_FILE_BYTES:
        raise ValueError(f"{info.compress_size:,} bytes that unpack to {info.file_size:,}, more than an image has")
    with archive.open(info) as member:  # ends after the bytes that it declares
        return member.read(info.file_size)


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part in HIDDEN


def class_tree(source: Source, path: str, *, one_site: bool = False) -> ClassTree:
    """Return the classes and sides according to the names of the folders.

    A class is a folder with all images below it. Folders above that hold a single folder and nothing else do not count.
    If there is train/ beside test/ (or val/, used only without test/), those two are the sides and other folders are
    not read; otherwise all is one tree. Sides have other names, too (SIDES). Images in no class are not read.

    Args:
        source: All images and folders.
        path: The place's name in errors.
        one_site: The images are one client's own, which need not have all classes: one is enough, and the two sides
            may have different ones.

    Raises:
        UserError: If no images are in folders; or, unless `one_site`, there are fewer than two classes or the sides'
            classes differ.
    """
    parts = [file.name.split("/") for file in source.files]
    depth = _depth(parts)
    heads = {each[depth] for each in parts if len(each) > depth + 1}
    if not heads:
        passed_over = reasons(source.passed_over)
        raise UserError(
            f"dataset.path={path} must hold images in one folder for each class, {LAYOUT}; got "
            f"{len(source.files)} images, none in such a folder{f' ({passed_over})' * bool(passed_over)}; known "
            f"suffixes are {' '.join(SUFFIXES)}"
        )
    has_folders_alone = all(len(each) != depth + 2 for each in parts)
    sides = _sides(heads, path, has_folders_alone)
    if not sides:
        train, test = _by_class(parts, depth), {}
    else:
        train, test = (_by_class([each for each in parts if each[depth] == side], depth + 1) for side in sides)
        if not one_site:
            _check_same(train, test, sides, path)
    if len(train) < 2 and not one_site:
        raise UserError(
            f"dataset.path={path} must hold two classes or more, got {', '.join(train) or 'none'}; make a folder for "
            f"each, {LAYOUT}"
        )
    num_outside = len(parts) - sum(map(len, [*train.values(), *test.values()]))
    empty = _empty(source.folders, parts, depth + (2 if sides else 1))
    classes = tuple(sorted(train.keys() | test.keys()))
    return ClassTree(classes, *_in_order(train, classes), *_in_order(test, classes), empty, num_outside)


def _empty(folders: set[str], parts: list[list[str]], depth: int) -> tuple[str, ...]:
    """Return the folders, down to the depth of classes, without an image below them; of nested ones the topmost."""
    full = {"/".join(each[:length]) for each in parts for length in range(min(len(each), depth + 1))}
    return tuple(sorted(each for each in folders - full if each.count("/") < depth and os.path.dirname(each) in full))


def _sides(heads: set[str], path: str, has_folders_alone: bool) -> tuple[str, str] | None:
    """Return the folders for training and testing; None if all folders are classes.

    Args:
        heads: Names of the folders.
        path: The place's name in errors.
        has_folders_alone: Whether no image is in one of them directly, so that they are hardly classes.

    Raises:
        UserError: If two folders could be the same side, or all are sides, but not one of each.
    """
    matches = {head: _LONGER.fullmatch(head.lower()) for head in heads}
    are_longer = has_folders_alone and all(matches.values())
    named: dict[str, list[str]] = {}
    for head in sorted(heads):
        name = match[1] if are_longer and (match := matches[head]) else head.lower()
        if side := SIDES.get(name):
            named.setdefault(side, []).append(head)
    test_side = next((side for side in TEST_SIDES if side in named), None)
    if "train" in named and test_side:
        for side in ("train", test_side):
            if len(named[side]) > 1:
                raise UserError(
                    f"dataset.path={path} must have one folder for each side, got {'/ and '.join(named[side])}/; put "
                    "them together, or rename one"
                )
        return named["train"][0], named[test_side][0]
    if len(heads) > 1 and len(heads) == sum(map(len, named.values())):
        raise UserError(
            f"dataset.path={path} must have train/ beside test/ or val/, or a folder for each class, got "
            f"{'/ and '.join(sorted(heads))}/, which are sides and not classes; rename or move them"
        )
    return None


def reasons(passed_over: Counter[str]) -> str:
    """Return how many files were passed over and why: "3 files passed over: 2 *.txt, 1 hidden"; "" for none."""
    counts = [(reason, num) for reason, num in passed_over.most_common() if num]
    listed = [f"{num} {reason[:40]}" for reason, num in counts[:MAX_REASONS]]
    if rest := sum(num for _, num in counts[MAX_REASONS:]):
        listed.append(f"{rest} of other kinds")
    total = sum(num for _, num in counts)
    return printable(f"{total} file{'s' * (total > 1)} passed over: {', '.join(listed)}") if listed else ""


def _depth(parts: list[list[str]]) -> int:
    """Return the number of single folders above all classes, or above train/ and test/."""
    depth = 0
    while parts and all(len(each) > depth + 2 for each in parts) and len({each[depth] for each in parts}) == 1:
        depth += 1
    return depth


def _by_class(parts: list[list[str]], depth: int) -> dict[str, list[str]]:
    """Return the names of each class's images; the class is the folder at `depth`."""
    classes: dict[str, list[str]] = {}
    for each in parts:
        if len(each) > depth + 1:
            classes.setdefault(each[depth], []).append("/".join(each))
    return classes


def _in_order(side: dict[str, list[str]], classes: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return a side's images by class and name, and their classes' numbers."""
    names = [sorted(side.get(each, ())) for each in classes]
    labels = [label for label, members in enumerate(names) for _ in members]
    return tuple(name for members in names for name in members), tuple(labels)


def _check_same(train: dict[str, list[str]], test: dict[str, list[str]], sides: tuple[str, str], path: str) -> None:
    """Raise UserError unless both sides have the same classes."""
    for one, other, (side, lacking) in ((train, test, sides), (test, train, sides[::-1])):
        if more := sorted(one.keys() - other.keys()):
            raise UserError(
                f"dataset.path={path} must have the same classes in {sides[0]}/ and {sides[1]}/, but {lacking}/ has no "
                f"images of {', '.join(more[:5])}, which {side}/ has; add them, or remove the class from {side}/"
            )


def name_of(path: str) -> str:
    """Return the name of a folder or .zip file of images: "cifar10-jpeg" for /data/cifar10-jpeg.zip."""
    place = Path(os.path.expanduser(str(path))).absolute()
    return printable(place.stem if place.suffix.lower() == ".zip" else place.name)
