"""A CSV file that grows by whole rows, and that an interrupted run can go on with."""

import csv
import errno
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedprox.errors import UserError
from fedprox.storage import naming

Mark = Mapping[str, Any]


def is_kept(file: Path, mark: Mark) -> bool:
    """Return whether a file begins with all that it had when it was marked."""
    try:
        with file.open("rb") as opened:
            return bool(hashlib.sha256(opened.read(mark["num_bytes"])).hexdigest() == mark["sha256"])
    except OSError:
        return False


class CsvTable:
    """Appends rows; what stands after the last mark can be taken back.

    Attributes:
        columns: The header.
        mark: How far the file is kept.
    """

    def __init__(self, file: Path, columns: Sequence[str], mark: Mark | None = None) -> None:
        """Begin a file with its header, or go on where it was marked: what stands after that goes.

        Raises:
            UserError: If what stands before the mark is not what stood there.
        """
        self.columns = tuple(columns)
        self._name = file
        self._digest = hashlib.sha256()
        if mark is None:
            self._file = file.open("w+b", buffering=0)
            self._num_bytes = 0
            self.add([columns])
        else:
            self._file = file.open("r+b", buffering=0)
            kept = self._file.read(mark["num_bytes"])
            self._digest.update(kept)
            if self._digest.hexdigest() != mark["sha256"]:
                self._file.close()
                raise UserError(f"{file} was changed since the last checkpoint; bring it back, or start the run anew")
            self._num_bytes = len(kept)
        self.set_mark()
        self.back_to_mark()

    def add(self, rows: Iterable[Iterable[object]]) -> None:
        """Append rows."""
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        content = text.getvalue().encode()
        with naming(self._name):
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._digest.update(content)
        self._num_bytes += len(content)

    def widen(self, columns: Sequence[str]) -> None:
        """Add columns, which are empty in the rows that there are; earlier marks do not fit any longer."""
        self._file.seek(0)
        _, *rows = csv.reader(io.StringIO(self._file.read().decode(), newline=""))
        self._file.seek(0)
        self._file.truncate()
        self._digest, self._num_bytes = hashlib.sha256(), 0
        self.columns = (*self.columns, *columns)
        self.add([self.columns, *([*row, *[""] * len(columns)] for row in rows)])
        self.set_mark()

    def set_mark(self) -> None:
        """Keep the file as far as it has come now."""
        self.mark: Mark = {"num_bytes": self._num_bytes, "sha256": self._digest.hexdigest()}

    def back_to_mark(self) -> None:
        """Take away what came after the last mark."""
        self._file.seek(self.mark["num_bytes"])
        self._file.truncate()

    def sync(self) -> None:
        """Return once the rows are on the disk."""
        with naming(self._name):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
