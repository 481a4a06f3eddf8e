"""From files of pictures to one array, decoded by Pillow in threads."""

import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from tqdm import tqdm

from fedprox.data.channels import Bytes
from fedprox.data.download import what_failed
from fedprox.errors import UserError

CHUNK = 64  # pictures that a thread takes at once: small ones take less time than the handing over
# Pillow's names for what is read: not all that it can, EPS would start another program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
COLOURLESS = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L")  # Pillow's names for pictures of grey

Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Wanted:
    """What a data set's pictures are to be like.

    Attributes:
        size: Height and width: the largest square in the middle of a picture, made so large or so small
            (bicubic, anti-aliased). None: as they are, all alike.
        channels: 1, grey, or 3, colours. None: as they are, all alike.
        skip_broken: Leave out pictures that cannot be decoded, instead of an error.
    """

    size: int | None
    channels: int | None
    skip_broken: bool


def decoded(read: Read, names: Sequence[str], wanted: Wanted, num_threads: int) -> tuple[Bytes, dict[int, str]]:
    """Return pictures, shape (n, height, width, C), and what is wrong with those left out, by their places.

    A transparent picture keeps its colours and loses its transparency; of an animation the first picture is
    taken; a photograph is turned as its EXIF data say.

    Args:
        read: Returns the bytes of one of the names; called in any thread.
        names: The pictures, in the order of the result.
        wanted: What they are to be like.
        num_threads: How many of them are decoded at a time.

    Raises:
        UserError: If one is broken and is not to be left out, or they are not alike, or none is left.
    """
    pictures: Bytes | None = None
    first, broken, num = "", {}, 0
    with _no_bombs(), closing(_each(read, names, wanted, num_threads)) as each:
        for place, outcome in enumerate(each):
            if isinstance(outcome, str):
                if not wanted.skip_broken:
                    raise _broken(names[place], outcome)
                broken[place] = outcome
                continue
            if pictures is None:
                first, pictures = names[place], _room(len(names), outcome.shape)
            if outcome.shape != pictures.shape[1:]:
                raise _unlike(first, pictures.shape[1:], names[place], outcome.shape)
            pictures[num] = outcome
            num += 1
    if pictures is None:
        raise UserError(f"none of {len(names)} pictures can be read; {names[0]}: {broken[0]}")
    return pictures[:num], broken


@contextmanager
def _no_bombs() -> Iterator[None]:
    """Let Pillow refuse a picture that says it has more than 89 million pixels, of which it would only warn."""
    from PIL import Image  # here: see `decode`

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _room(num: int, shape: tuple[int, ...]) -> Bytes:
    """Return an array for `num` pictures of a shape (height, width, C).

    Raises:
        UserError: If this machine has not the memory for it.
    """
    size_bytes, memory_bytes = num * math.prod(shape), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size_bytes > memory_bytes:
        raise UserError(
            f"{num} pictures of {shape[1]} x {shape[0]} pixels take {size_bytes / 1e9:.1f} GB, and this machine has "
            f"{memory_bytes / 1e9:.1f} GB; make them smaller with dataset.size="
        )
    return np.empty((num, *shape), dtype=np.uint8)


def _each(read: Read, names: Sequence[str], wanted: Wanted, num_threads: int) -> Generator[Bytes | str, None, None]:
    """Yield each picture, or what is wrong with it, in order, and show progress on a terminal."""
    chunks = [names[first : first + CHUNK] for first in range(0, len(names), CHUNK)]
    silent = True if multiprocessing.parent_process() else None  # joblib's workers would share the line; None asks tty
    bar = tqdm(total=len(names), desc="decoding", unit="picture", unit_scale=True, disable=silent, leave=False)
    with bar, ThreadPoolExecutor(num_threads) as executor:
        outcomes = executor.map(lambda chunk: [_outcome(read, name, wanted) for name in chunk], chunks)
        try:
            for chunk in outcomes:
                yield from chunk
                bar.update(len(chunk))
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _outcome(read: Read, name: str, wanted: Wanted) -> Bytes | str:
    try:
        return decode(read(name), wanted)
    except Exception as error:  # whatever a damaged file raises: OSError, SyntaxError, struct.error, BadZipFile, ...
        return what_failed(error)


def decode(content: bytes, wanted: Wanted) -> Bytes:
    """Return one picture, shape (height, width, C).

    Raises:
        Exception: Any, if it cannot be decoded.
    """
    from PIL import Image, ImageOps  # here: 0.1 s, which no other data set needs

    with Image.open(BytesIO(content), formats=FORMATS) as image:
        picture: Image.Image = ImageOps.exif_transpose(image)
        if picture.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {picture.mode} have no fixed range; save it with 8 or 16 bits")
        if picture.mode.startswith("I;16"):  # convert() would cut off at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        grey = picture.mode in COLOURLESS if wanted.channels is None else wanted.channels == 1
        picture = picture.convert("L" if grey else "RGB")
        if wanted.size is not None:
            picture = ImageOps.fit(picture, (wanted.size, wanted.size))
        pixels = np.asarray(picture)
    return pixels[:, :, None] if grey else pixels


def _broken(name: str, reason: str) -> UserError:
    return UserError(
        f"{name} cannot be read as a picture ({reason}); mend or remove it, or set dataset.skip_broken=true"
    )


def _unlike(first: str, shape: tuple[int, ...], name: str, other: tuple[int, ...]) -> UserError:
    """Return the error for two pictures, shapes (height, width, C), that cannot be in one array."""
    if shape[:2] != other[:2]:
        sizes = f"{first} has {shape[1]} x {shape[0]} pixels and {name} {other[1]} x {other[0]}"
        return UserError(f"all pictures must have one size, but {sizes}; set dataset.size={min(shape[:2])} or another")
    return UserError(
        f"all pictures must have the same number of channels, but {first} has {shape[2]} and {name} {other[2]}; set "
        "dataset.channels=3 for colours or 1 for grey"
    )
