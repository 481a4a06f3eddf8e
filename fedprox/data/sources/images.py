"""From files of images to one array, decoded by Pillow in threads."""

import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fedprox.data.federated import Floats, Integers
from fedprox.data.sources.download import what_failed
from fedprox.errors import UserError

SQUARED_AT_ONCE = 50  # images whose squares are in memory at once

Bytes = NDArray[np.uint8]


def channels_first(images: Bytes) -> Bytes:
    """Return images of shape (n, height, width, C) as (n, C, height, width): a view, still channels last in memory.

    `LabelledData.model_input` keeps that order, in which convolutions on the CPU are fastest.
    """
    return np.ascontiguousarray(images).transpose(0, 3, 1, 2)


def channel_sums(images: Bytes) -> Integers:
    """Return each image's sum of x and of x^2 by channel, shape (n, 2, C), exact.

    From them follows the mean of any choice of images without another look at their pixels.

    Args:
        images: Shape (n, height, width, C).
    """
    num, height, width, channels = images.shape
    sums = np.empty((num, 2, channels), dtype=np.int64)
    # In float64 sums of whole numbers are exact below 2^53.
    ones = np.ones((1, height * width))
    for first in range(0, num, SQUARED_AT_ONCE):
        x = images[first : first + SQUARED_AT_ONCE].reshape(-1, height * width, channels).astype(np.float64)
        sums[first : first + SQUARED_AT_ONCE, 0] = (ones @ x)[:, 0]
        sums[first : first + SQUARED_AT_ONCE, 1] = (ones @ np.square(x, out=x))[:, 0]
    return sums


def mean_and_std(sums: Integers, pixels: int) -> tuple[Floats, Floats]:
    """Return mean and deviation of each channel over all pixels of all images, shape (C, 1, 1).

    A channel that never changes has the deviation 1, so that its model input is 0.

    Args:
        sums: Of the images, as from `channel_sums`, at least one.
        pixels: Height times width.
    """
    count = len(sums) * pixels
    total, squares = sums.sum(axis=0)
    mean = total / count
    # (count * sum of x^2 - (sum of x)^2) / count^2 in whole numbers of any size, so that nothing cancels
    spread = [count * int(q) - int(s) ** 2 for s, q in zip(total, squares, strict=True)]
    std = np.array([math.sqrt(each) / count if each else 1.0 for each in spread])
    return mean.astype(np.float32).reshape(-1, 1, 1), std.astype(np.float32).reshape(-1, 1, 1)


TAKEN_AT_ONCE = 64  # images that a thread takes at once: small ones take less time than the handing over
# Pillow's names for what is read: not all that it can, EPS would start another program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
RANGES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits
COLOURLESS = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L")  # Pillow's names for images of grey

Read = Callable[[str], bytes]
Pixels = Bytes | NDArray[np.uint16]


@dataclass(frozen=True)
class Wanted:
    """What a data set's images are to be like.

    Attributes:
        size: Height and width: the largest square in the middle of an image, made so large or so small
            (bicubic, anti-aliased). None: as they are, all alike.
        channels: 1, grey, or 3, colours. None: as they are, all alike.
        skip_broken: Leave out images that cannot be decoded, instead of an error.
    """

    size: int | None
    channels: int | None
    skip_broken: bool


@dataclass(frozen=True)
class Wide:
    """The images of a set that have 16 bits for a number.

    Attributes:
        num: How many there are.
        largest: Their largest number.
    """

    num: int = 0
    largest: int = 0

    @property
    def white(self) -> int:
        """The smallest of RANGES that holds all their numbers; it becomes 255."""
        return next(white for white in RANGES if white >= self.largest)


def decoded(read: Read, names: Sequence[str], wanted: Wanted, num_threads: int) -> tuple[Bytes, dict[int, str], Wide]:
    """Return images, shape (n, height, width, C), what is wrong with those left out, by their places, and the wide.

    A transparent image keeps its colours and loses its transparency; of an animation the first image is
    taken; a photograph is turned as its EXIF data say. Images of 16 bits are scaled to 8, all of them by the same
    factor: by the range that they use, so numbers up to 255 stay as they are.

    Args:
        read: Returns the bytes of one of the names; called in any thread.
        names: The images, in the order of the result.
        wanted: What they are to be like.
        num_threads: How many of them are decoded at a time.

    Raises:
        UserError: If one is broken and is not to be left out, or they are not alike, or none is left.
    """
    images: Bytes | None = None
    first, broken, num = "", {}, 0
    wide: dict[int, NDArray[np.uint16]] = {}
    with _no_bombs(), closing(_each(read, names, wanted, num_threads)) as each:
        for place, outcome in enumerate(each):
            if isinstance(outcome, str):
                if not wanted.skip_broken:
                    raise _broken(names[place], outcome)
                broken[place] = outcome
                continue
            if images is None:
                first, images = names[place], _room(len(names), outcome.shape)
            if outcome.shape != images.shape[1:]:
                raise _unlike(first, images.shape[1:], names[place], outcome.shape)
            if outcome.dtype == np.uint16:
                wide[num] = outcome.astype(np.uint16, copy=False)
            else:
                images[num] = outcome
            num += 1
    if images is None:
        raise UserError(f"none of {len(names)} images can be read; {names[0]}: {broken[0]}")
    found = Wide(len(wide), max((int(each.max()) for each in wide.values()), default=0))
    for place, image in wide.items():
        images[place] = np.rint(image * (255 / found.white))
    return images[:num], broken, found


@contextmanager
def _no_bombs() -> Iterator[None]:
    """Let Pillow refuse an image that says it has more than 89 million pixels, of which it would only warn."""
    from PIL import Image  # here: see `decode`

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _room(num: int, shape: tuple[int, ...]) -> Bytes:
    """Return an array for `num` images of a shape (height, width, C).

    Raises:
        UserError: If this machine has not the memory for it.
    """
    size_bytes, memory_bytes = num * math.prod(shape), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size_bytes > memory_bytes:
        raise UserError(
            f"{num} images of {shape[1]} x {shape[0]} pixels take {size_bytes / 1e9:.1f} GB, and this machine has "
            f"{memory_bytes / 1e9:.1f} GB; make them smaller with dataset.size="
        )
    return np.empty((num, *shape), dtype=np.uint8)


def _each(read: Read, names: Sequence[str], wanted: Wanted, num_threads: int) -> Generator[Pixels | str, None, None]:
    """Yield each image, or what is wrong with it, in order, and show progress on a terminal."""
    chunks = [names[first : first + TAKEN_AT_ONCE] for first in range(0, len(names), TAKEN_AT_ONCE)]
    silent = True if multiprocessing.parent_process() else None  # joblib's workers would share the line; None asks tty
    bar = tqdm(total=len(names), desc="decoding", unit="image", unit_scale=True, disable=silent, leave=False)
    with bar, ThreadPoolExecutor(num_threads) as executor:
        outcomes = executor.map(lambda chunk: [_outcome(read, name, wanted) for name in chunk], chunks)
        try:
            for chunk in outcomes:
                yield from chunk
                bar.update(len(chunk))
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _outcome(read: Read, name: str, wanted: Wanted) -> Pixels | str:
    from PIL import UnidentifiedImageError  # here: see `decode`

    try:
        return decode(read(name), wanted)
    except UnidentifiedImageError:  # whose own words are an object's address
        return f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    except Exception as error:  # whatever a damaged file raises: OSError, SyntaxError, struct.error, BadZipFile, ...
        return what_failed(error)


def decode(content: bytes, wanted: Wanted) -> Pixels:
    """Return one image, shape (height, width, C), as uint16 if it has 16 bits for a number.

    Raises:
        Exception: Any, if it cannot be decoded.
    """
    from PIL import Image, ImageOps  # here: 0.1 s, which no other data set needs

    with Image.open(BytesIO(content), formats=FORMATS) as stored:
        wide = _sixteen_bits(stored)
        if wide is not None:
            return _as_wanted(wide, wanted)
        image: Image.Image = ImageOps.exif_transpose(stored)
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode} have no fixed range; save it with 8 or 16 bits")
        grey = image.mode in COLOURLESS if wanted.channels is None else wanted.channels == 1
        image = image.convert("L" if grey else "RGB")
        if wanted.size is not None:
            image = ImageOps.fit(image, (wanted.size, wanted.size))
        pixels = np.asarray(image)
    return pixels[:, :, None] if grey else pixels


def _sixteen_bits(image: Any) -> NDArray[np.uint16] | None:
    """Return a grey image that has 16 bits for a number, upright, shape (height, width, 1); None if it has 8.

    Raises:
        ValueError: If its colours have 16 bits, of which Pillow gives half.
    """
    args = image.tile[0].args if image.tile else ""
    raw, *more = (args,) if isinstance(args, str) else args or ("",)
    white = more[0] if image.format == "PPM" and more and isinstance(more[0], int) else None
    if image.mode.startswith("I;16"):
        return _upright(image).astype(np.uint16)[:, :, None]
    if image.format == "PPM" and image.mode == "I":  # which Pillow stretches to 65535
        return np.rint(_upright(image) * ((white or 65535) / 65535)).astype(np.uint16)[:, :, None]
    if ";16" in str(raw) or (white or 0) > 255:
        raise ValueError("colours of 16 bits are more than Pillow reads; save it with 8 bits, or in grey")
    return None


def _upright(image: Any) -> NDArray[Any]:
    from PIL import ImageOps  # here: see `decode`

    return np.asarray(ImageOps.exif_transpose(image))


def _as_wanted(pixels: NDArray[np.uint16], wanted: Wanted) -> NDArray[np.uint16]:
    """Return a grey image, shape (height, width, 1), with the channels and of the size that are wanted."""
    from PIL import Image, ImageOps  # here: see `decode`

    if wanted.size is not None and pixels.shape[:2] != (wanted.size, wanted.size):
        image = Image.fromarray(pixels[:, :, 0].astype(np.float32))
        fitted = np.asarray(ImageOps.fit(image, (wanted.size, wanted.size)))[:, :, None]
        pixels = np.rint(np.clip(fitted, 0, 65535)).astype(np.uint16)
    return np.repeat(pixels, 3, axis=2) if wanted.channels == 3 else pixels


def _broken(name: str, reason: str) -> UserError:
    return UserError(
        f"{name} cannot be read as an image ({reason}); mend or remove it, or set dataset.skip_broken=true"
    )


def _unlike(first: str, shape: tuple[int, ...], name: str, other: tuple[int, ...]) -> UserError:
    """Return the error for two images, shapes (height, width, C), that cannot be in one array."""
    if shape[:2] != other[:2]:
        sizes = f"{first} has {shape[1]} x {shape[0]} pixels and {name} {other[1]} x {other[0]}"
        return UserError(f"all images must have one size, but {sizes}; set dataset.size={min(shape[:2])} or another")
    return UserError(
        f"all images must have the same number of channels, but {first} has {shape[2]} and {name} {other[2]}; set "
        "dataset.channels=3 for colours or 1 for grey"
    )
