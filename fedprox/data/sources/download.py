"""What the data sets that come through torchvision share: its import, patience, and what the user is told."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from fedprox.errors import UserError

SILENCE_S = 10.0  # how long a server may say nothing before the download is given up


def torchvision_datasets(dataset: str) -> ModuleType:
    """Return torchvision.datasets, imported here because it takes as long as torch itself.

    Args:
        dataset: Who needs it, such as "MNIST".

    Raises:
        UserError: If the import fails, as it does where torchvision was built for another torch.
    """
    try:
        return import_module("torchvision.datasets")
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise UserError(
            f"{dataset} needs torchvision, whose import failed: {what_failed(error)}; install the torch and "
            "torchvision of requirements.txt together, or use dataset=digits or dataset=synthetic_1_1"
        ) from error


@contextmanager
def give_up_after(timeout_s: float) -> Iterator[None]:
    """Bound how long a silent server is waited for; torchvision itself would wait without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def cannot_download(
    dataset: str, folder: Path, name: str, files: Iterable[str], archives: str, error: Exception
) -> UserError:
    """Return the error for a file that no server gives, with the three ways out.

    Args:
        dataset: What the data set is called.
        folder: The folder below data_dir that should hold the file.
        name: The file.
        files: All files of the data set.
        archives: What would do instead, such as "their .gz archives".
        error: What went wrong.
    """
    return UserError(
        f"{dataset}: {name} is not in {folder} and cannot be downloaded ({what_failed(error)}); put the files "
        f"{', '.join(files)} there (or {archives}), or set data_dir= to a folder that has them in the same "
        "place, or use an embedded data set: dataset=digits or dataset=synthetic_1_1"
    )


def what_failed(error: Exception) -> str:
    """Return what went wrong without line breaks, at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
