"""CIFAR-10's batches without unpickling them: their opcodes are looked at, and none is carried out."""

import pickletools
from pathlib import Path

import numpy as np

from fedprox.data.channels import Bytes
from fedprox.data.federated import Integers
from fedprox.errors import UserError
from fedprox.storage import read_regular

PIXELS = 3 * 32 * 32  # of one picture: its red, then its green, then its blue plane
NUM_CLASSES = 10


def read_batch(file: Path) -> tuple[Bytes, Integers]:
    """Return a batch's pictures, shape (n, 32, 32, 3), and their labels, shape (n,).

    The files are pickles of {"data": the pixels, "labels": a list of numbers, ...} (Krizhevsky 2009). Such a file
    is a program that can do anything when it is loaded; here it is data. The pixels are its longest string, and the
    labels are the numbers that stand between the string "labels" and the next string.

    Raises:
        UserError: If the file has no such strings and numbers, or not as many labels as pictures.
    """
    pixels, in_labels = b"", False
    labels: list[int] = []
    try:
        for opcode, argument, _ in pickletools.genops(read_regular(file)):
            if isinstance(argument, (str, bytes, bytearray)) and opcode.name != "GLOBAL":
                in_labels = argument in ("labels", b"labels")
                if len(argument) > len(pixels):  # Python 2 wrote bytes as str, which come as Latin-1
                    pixels = argument.encode("latin-1") if isinstance(argument, str) else bytes(argument)
            elif in_labels and opcode.name == "BININT1" and argument is not None:
                labels.append(argument)
    except (OSError, ValueError, UnicodeEncodeError) as error:
        raise _no_batch(file, str(error)) from error
    if not labels or len(pixels) != len(labels) * PIXELS or max(labels) >= NUM_CLASSES:
        raise _no_batch(file, f"it has {len(labels)} labels and {len(pixels):,} bytes of pixels")
    planes = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(labels, dtype=np.int64)


def _no_batch(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file} must hold pictures of 32 x 32 pixels and as many labels 0 .. {NUM_CLASSES - 1} ({reason}); delete it "
        "to have it unpacked or downloaded again, or set data_dir="
    )
