"""What data sets that come through torchvision share: its import, and downloads that end in one line if they fail."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from fedprox.errors import UserError

SILENCE_S = 10.0  # how long a server may say nothing before the download is given up


def torchvision(module: str, who: str, instead: str = "dataset=digits or dataset=synthetic_1_1") -> ModuleType:
    """Return a module of torchvision, imported here because it takes as long as torch itself.

    Args:
        module: Its name, such as "datasets".
        who: Who needs it, such as "MNIST".
        instead: What works without.

    Raises:
        UserError: If the import fails, as it does where torchvision was built for another torch.
    """
    try:
        return import_module(f"torchvision.{module}")
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise UserError(
            f"{who} needs torchvision, whose import failed: {what_failed(error)}; install the torch and "
            f"torchvision of requirements.txt together, or use {instead}"
        ) from error


@contextmanager
def downloading(dataset: str, folder: Path, files: Iterable[str], archives: str) -> Iterator[None]:
    """Let torchvision fetch what is missing, wait only so long for a silent server, and explain in one line a failure.

    Args:
        dataset: What the data set is called.
        folder: The folder below data_dir that should hold its files.
        files: All of them.
        archives: What would do instead, such as "their .gz archives".

    Raises:
        UserError: If no server gives the files, or what came cannot be unpacked; with the three ways out.
    """
    missing = [name for name in files if not (folder / name).exists()]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_S)  # torchvision itself would wait without end
    try:
        yield
    except Exception as error:  # whatever servers, damaged archives and full disks make torchvision raise
        raise UserError(
            f"{dataset}: {missing[0]} is not in {folder} and cannot be downloaded ({what_failed(error)}); put the "
            f"files {', '.join(files)} there (or {archives}), or set data_dir= to a folder that has them in the same "
            "place, or use an embedded data set: dataset=digits or dataset=synthetic_1_1"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def what_failed(error: Exception) -> str:
    """Return what went wrong without line breaks, at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
