"""Atomic files, the files that belong to a run, and locks on folders."""

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
CONTRIBUTIONS, PERSONAL, CARD = "contribution.csv", "personal.csv", "MODEL.md"
RESULTS = ("model.safetensors", CARD, "curves.png", CONTRIBUTIONS, PERSONAL)
CHECKPOINTS = "checkpoint"
HYDRAS = ("config.yaml", "hydra.yaml", "overrides.yaml")  # in .hydra/
OWN = ("run.json", *TABLES, *RESULTS, "main.log", ".hydra", CHECKPOINTS)
PATIENCE_S = 0.5  # `is_locked` in another process holds a lock for a moment


def write_atomic(file: Path, content: bytes) -> None:
    """Write a file so that it is complete or absent whenever the process or the machine dies.

    A temporary file beside it takes its name once it is on the disk.

    Raises:
        OSError: If the disk is full, for example; the error names the file.
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
                temporary.unlink()  # frees the disk
            raise


def check_regular(file: Path) -> None:
    """Raise OSError for a folder, and for a pipe, a device or a socket, of which reading may never end."""
    _check_mode(file, file.stat().st_mode)


def read_regular(file: Path, most_bytes: int | None = None) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: If it is not regular, is larger than `most_bytes`, or cannot be read.
    """
    check_regular(file)  # first, because opening a device may have effects
    opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # which does not wait if it has become a pipe meanwhile
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


def check_own_files(run_dir: Path) -> None:
    """Raise UserError unless a resumed run would change no file but its own, and wait for none.

    A link may lead anywhere; a file with a second name, a hard link, changes under both if it is written in place; a
    pipe may have no end.
    """
    written = [run_dir / f"{name}{ending}" for name in OWN for ending in ("", ".part")]
    for file in (*written, *(run_dir / CHECKPOINTS).glob("*"), *(run_dir / ".hydra").glob("*")):
        try:
            status = file.lstat()
        except OSError:
            continue
        if stat.S_ISLNK(status.st_mode):
            raise UserError(f"{file} is a link, but a run writes there; replace it with the file that it leads to")
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise UserError(f"{file} is a pipe, a device or a socket, but a run writes there; remove it")
        is_in_place = file.name not in ("run.json", *RESULTS) and file.parent.name != CHECKPOINTS
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1 and is_in_place:
            raise UserError(
                f"{file} has a second name, a hard link, under which a resumed run would change it, too; copy the "
                "directory with cp -r, and resume the copy"
            )


def files_of_a_run(run_dir: Path) -> list[Path]:
    """Return the files in a directory that a run has written, run.json first; other files are not listed.

    Raises:
        UserError: If a file is in the place of a folder, or a folder in the place of a file.
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
    """Make errors of writing a file name it: the system's error for a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder for this process within the context, or until the process dies.

    Args:
        folder: An existing folder.
        wait: Whether to wait for another process without a limit.

    Raises:
        UserError: If another process has locked it.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + (float("inf") if wait else PATIENCE_S)
        while not _try_lock(opened, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise UserError(f"{folder} is being written by another process; wait for it or name another folder")
            time.sleep(0.02)
        yield
    finally:
        os.close(opened)


def is_locked(folder: Path) -> bool:
    """Return whether a process has locked a folder; True also if the file system has no locks.

    The check itself takes the lock for an instant, for which `locked` waits.
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
    """Return whether a lock was taken; on a file system without locks, `without_locks`."""
    try:
        fcntl.flock(opened, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without_locks
    return True


def checksum(text: str, arrays: "Mapping[str, NDArray[Any]]") -> str:
    """Return the SHA-256 of a text and of each array's name, type, shape and values."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.ravel().data if array.size else b"")
    return digest.hexdigest()
