"""Files that are there whole or not at all, whenever the process or the machine dies; folders that one process has."""

import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprox.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What a run writes into its directory; see `fedprox.runs.writer`.
TABLES = ("metrics.csv", "clients.csv", "classes.csv")
RESULTS = ("model.safetensors", "curves.png")
CHECKPOINTS = "checkpoint"
HYDRAS = ("config.yaml", "hydra.yaml", "overrides.yaml")  # in .hydra/
OWN = ("run.json", *TABLES, *RESULTS, "main.log", ".hydra", CHECKPOINTS)
PATIENCE_S = 0.5  # with those who have a folder for a moment, to see whether it is taken


def write_atomic(file: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it, which takes its name once it is on the disk.

    Raises:
        OSError: If there is no room, and the like; it names the file.
    """
    temporary = file.with_name(file.name + ".part")
    with annotate_errors(file):
        try:
            with temporary.open("wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            temporary.replace(file)
        except OSError:
            with suppress(OSError):
                temporary.unlink()  # its room may be needed
            raise


def check_regular(file: Path) -> None:
    """Raise OSError for a pipe, a device or a socket, which could be waited for without end, and for a folder."""
    _check_mode(file, file.stat().st_mode)


def read_regular(file: Path, most_bytes: int | None = None) -> bytes:
    """Return what a regular file holds.

    Raises:
        OSError: If it is not one, is larger than `most_bytes`, or cannot be read.
    """
    check_regular(file)  # first: to open a device may do something
    opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # what has become a pipe since then is not waited for
    with os.fdopen(opened, "rb") as content:
        status = os.fstat(opened)
        _check_mode(file, status.st_mode)
        if most_bytes is not None and status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes", str(file))
        return content.read()


def _check_mode(file: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file but a pipe, a device or a socket", str(file))


def check_no_links(run_dir: Path) -> None:
    """Raise UserError if a run directory has a link in the place of a file that a run writes: it may lead anywhere."""
    written = [run_dir / f"{name}{ending}" for name in OWN for ending in ("", ".part")]
    for file in (*written, *(run_dir / CHECKPOINTS).glob("*"), *(run_dir / ".hydra").glob("*")):
        if file.is_symlink():
            raise UserError(f"{file} is a link, and a run writes there; put what it leads to in its place")


def files_of_a_run(run_dir: Path) -> list[Path]:
    """Return the files in a directory that a run has written, run.json first; what is somebody else's is not listed.

    Raises:
        UserError: If something else is in the place of one of them.
    """
    single = [run_dir / f"{name}{ending}" for name in OWN for ending in ("", ".part")]
    checkpoints, hydras = folders = run_dir / CHECKPOINTS, run_dir / ".hydra"
    found = [file for file in single if file not in (checkpoints, hydras) or file.is_symlink()]
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} must be a folder; move that file away")
    if not checkpoints.is_symlink():
        found += checkpoints.glob("round_*.safetensors*")
    if not hydras.is_symlink():
        found += [hydras / name for name in HYDRAS]
    there = [file for file in found if file.is_symlink() or file.exists()]
    for file in there:
        if file.is_dir() and not file.is_symlink():
            raise UserError(f"{file} is a folder where a file of the run belongs; move it away")
    return there


@contextmanager
def annotate_errors(file: Path) -> Iterator[None]:
    """Let what is wrong with writing a file name it: the system's own error does not say which was full."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Have a folder for this process alone, as long as this lasts or the process lives.

    Args:
        folder: Exists.
        wait: Wait for another process as long as that takes.

    Raises:
        UserError: If another process has it.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + (float("inf") if wait else PATIENCE_S)
        while not _try_lock(opened, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise UserError(f"{folder} is being written by another process; wait for it or name another")
            time.sleep(0.02)
        yield
    finally:
        os.close(opened)


def is_locked(folder: Path) -> bool:
    """Return whether a process has a folder for itself; True also where that cannot be told.

    To see it, this process has it too for an instant, which one that is about to take it waits for.
    """
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(opened, fcntl.LOCK_SH, without_locks=False)
    finally:
        os.close(opened)


def _try_lock(opened: int, kind: int, without_locks: bool = True) -> bool:
    """Return whether a lock was to be had; on a file system without locks, what is said."""
    try:
        fcntl.flock(opened, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without_locks
    return True


def checksum(text: str, arrays: "Mapping[str, NDArray[Any]]") -> str:
    """Return the SHA-256 of the text and of each array's name, type, shape and numbers."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.ravel().data if array.size else b"")
    return digest.hexdigest()
