"""Import of torchvision, its downloads, and files with a known MD5, with one line for whatever fails."""

import hashlib
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from fedprox.errors import UserError
from fedprox.storage import check_regular

SILENCE_S = 10.0  # after so long without an answer from the server a download fails


def torchvision(module: str, needed_by: str, instead: str = "dataset=digits or dataset=synthetic_1_1") -> ModuleType:
    """Return a module of torchvision, imported only here because that takes as long as torch itself.

    Args:
        module: Its name, such as "datasets".
        needed_by: What needs it, such as "MNIST".
        instead: What works without it.

    Raises:
        UserError: If the import fails, as it does if torchvision was built for another torch.
    """
    try:
        return import_module(f"torchvision.{module}")
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise UserError(
            f"{needed_by} needs torchvision, whose import failed: {what_failed(error)}; install the torch and "
            f"torchvision of requirements.txt together, or use {instead}"
        ) from error


@contextmanager
def downloading(dataset: str, folder: Path, files: Iterable[str], archives: str) -> Iterator[None]:
    """Let torchvision download missing files, with a timeout, and turn a failure into one line.

    Args:
        dataset: The data set's name.
        folder: The folder below data_dir that should hold its files.
        files: All of them.
        archives: What can be put there instead, such as "their .gz archives".

    Raises:
        UserError: If no server gives the files, or they cannot be unpacked; the line names three remedies.
    """
    missing = [name for name in files if not (folder / name).exists()]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)  # torchvision itself would wait forever
    try:
        yield
    except Exception as error:  # whatever torchvision raises for servers, damaged archives and full disks
        raise UserError(
            f"{dataset}: {missing[0]} is not in {folder} and cannot be downloaded ({what_failed(error)}); put the "
            f"files {', '.join(files)} there (or {archives}), or set data_dir= to a folder that has them in the same "
            "place, or use an embedded data set: dataset=digits or dataset=synthetic_1_1"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def original(file: Path, md5: str) -> NDArray[np.uint8]:
    """Return the bytes of a file.

    Raises:
        UserError: If it cannot be read, or is not the original, which has this MD5.
    """
    try:
        check_regular(file)
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {what_failed(error)}; fix that or set data_dir=") from error
    if hashlib.md5(content.data, usedforsecurity=False).hexdigest() != md5:
        raise UserError(
            f"{file} must be the original file with MD5 {md5}, but it is truncated or altered "
            f"({len(content):,} bytes); delete it to have it unpacked or downloaded again, or set data_dir="
        )
    return content


def what_failed(error: Exception) -> str:
    """Return an error's type and message without line breaks, at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
