"""Decoding of image files into one array, by Pillow in threads."""

import multiprocessing
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from fedprox.data.sources.channels import Bytes
from fedprox.data.sources.download import what_failed
from fedprox.errors import UserError

CHUNK = 64  # images that a thread takes at once: a small one is decoded faster than handed over
# Pillow's names of the formats to read: not all that it knows, EPS would start another program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
RANGES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits
COLOURLESS = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L")  # Pillow's names of grey modes

Read = Callable[[str], bytes]
Pixels = Bytes | NDArray[np.uint16]


@dataclass(frozen=True)
class Wanted:
    """How a data set's images are decoded.

    Attributes:
        size: Height and width: the largest square in the middle of an image, resized (bicubic, anti-aliased). None:
            unchanged, and all alike.
        channels: 1, grey, or 3, colours. None: unchanged, and all alike.
        skip_broken: Leave out images that cannot be decoded, instead of an error.
    """

    size: int | None
    channels: int | None
    skip_broken: bool


@dataclass(frozen=True)
class Decoded:
    """Decoded images.

    Attributes:
        images: Shape (n, height, width, C).
        broken: Positions of the images that are left out, and why.
        num_wide: Number of images that had 16 bits.
        largest: The largest value of those.
    """

    images: Bytes
    broken: dict[int, str]
    num_wide: int
    largest: int


def full_range(largest: int) -> int:
    """Return the smallest of RANGES that holds the largest value of images of 16 bits; it becomes 255."""
    return next(white for white in RANGES if white >= largest)


def decoded(read: Read, names: Sequence[str], wanted: Wanted, num_threads: int) -> Decoded:
    """Decode images.

    A transparent image keeps its colours and loses its transparency; an animation gives its first image; a photograph
    is rotated as its EXIF data say. Images of 16 bits are scaled to 8, all of them by the same factor: by the range
    that they use, so values up to 255 do not change.

    Args:
        read: Returns the bytes of one of the names; called in any thread.
        names: The images, in the order of the result.
        wanted: Size and channels.
        num_threads: How many images are decoded at once.

    Raises:
        UserError: If an image is broken and not to be skipped, two images differ in shape, or all are broken.
    """
    images: Bytes | None = None
    first, num = "", 0
    broken: dict[int, str] = {}
    wide: dict[int, NDArray[np.uint16]] = {}
    with warnings.catch_warnings(), closing(_each(read, names, wanted, num_threads)) as each:
        # Pillow only warns about an image that declares more than 89 million pixels.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for position, outcome in enumerate(each):
            if isinstance(outcome, str):
                if not wanted.skip_broken:
                    raise UserError(
                        f"{names[position]} cannot be read as an image ({outcome}); fix or remove it, or set "
                        "dataset.skip_broken=true"
                    )
                broken[position] = outcome
                continue
            if images is None:
                first, images = names[position], np.empty((len(names), *outcome.shape), dtype=np.uint8)
            if outcome.shape != images.shape[1:]:
                raise UserError(
                    "all images must have the same height, width and channels, but "
                    f"{first} has {images.shape[1:]} and {names[position]} {outcome.shape}; set dataset.size, such as "
                    "32, and dataset.channels=3 for colours or 1 for grey"
                )
            if outcome.dtype == np.uint16:
                wide[num] = outcome.astype(np.uint16, copy=False)
            else:
                images[num] = outcome
            num += 1
    if images is None:
        raise UserError(f"none of {len(names)} images can be read; {names[0]}: {broken[0]}")
    largest = max((int(each.max()) for each in wide.values()), default=0)
    for position, image in wide.items():
        images[position] = np.rint(image * (255 / full_range(largest)))
    return Decoded(images[:num], broken, len(wide), largest)


def _each(read: Read, names: Sequence[str], wanted: Wanted, num_threads: int) -> Generator[Pixels | str, None, None]:
    """Yield each image, or why it cannot be decoded, in order, and show progress on a terminal."""
    chunks = [names[first : first + CHUNK] for first in range(0, len(names), CHUNK)]
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
    try:
        return decode(read(name), wanted)
    except UnidentifiedImageError:  # its message is an object's address
        return f"it is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    except Exception as error:  # whatever a damaged file raises: OSError, SyntaxError, struct.error, BadZipFile, ...
        return what_failed(error)


def decode(content: bytes, wanted: Wanted) -> Pixels:
    """Return one image, shape (height, width, C), as uint16 if it has 16 bits.

    Raises:
        Exception: Any, if it cannot be decoded.
    """
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
    """Return a grey image that has 16 bits, upright, shape (height, width, 1); None if it has 8.

    Raises:
        ValueError: If its colours have 16 bits, of which Pillow gives only 8.
    """
    args = image.tile[0].args if image.tile else ""
    raw, *more = (args,) if isinstance(args, str) else args or ("",)
    white = more[0] if image.format == "PPM" and more and isinstance(more[0], int) else 0  # a PPM's largest value
    is_stretched = image.format == "PPM" and image.mode == "I"  # by Pillow, to 65535
    if is_stretched or image.mode.startswith("I;16"):
        factor = (white or 65535) / 65535 if is_stretched else 1
        return np.rint(np.asarray(ImageOps.exif_transpose(image)) * factor).astype(np.uint16)[:, :, None]
    if ";16" in str(raw) or white > 255:
        raise ValueError("colours of 16 bits are more than Pillow reads; save it with 8 bits, or in grey")
    return None


def _as_wanted(pixels: NDArray[np.uint16], wanted: Wanted) -> NDArray[np.uint16]:
    """Return a grey image, shape (height, width, 1), with the wanted size and channels."""
    if wanted.size is not None and pixels.shape[:2] != (wanted.size, wanted.size):
        image = Image.fromarray(pixels[:, :, 0].astype(np.float32))
        fitted = np.asarray(ImageOps.fit(image, (wanted.size, wanted.size)))[:, :, None]
        pixels = np.rint(np.clip(fitted, 0, 65535)).astype(np.uint16)
    return np.repeat(pixels, 3, axis=2) if wanted.channels == 3 else pixels
