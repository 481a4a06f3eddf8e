"""Files that are there whole or not at all, whenever the process or the machine dies; folders that one process has."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedprox.errors import UserError


def write_whole(file: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it, which takes its name once it is on the disk.

    Raises:
        OSError: If there is no room, and the like; it names the file.
    """
    temporary = file.with_name(file.name + ".part")
    with naming(file):
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


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Let what is wrong with writing a file name it: the system's own error does not say which was full."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Have a folder for this process alone, as long as this lasts or the process lives.

    Raises:
        UserError: If another process has it.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder} is being written by another process; wait for it or name another") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(opened)
