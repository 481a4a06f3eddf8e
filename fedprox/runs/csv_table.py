"""CSV files that only grow, and that can be cut back to a mark.

A mark is a length and a checksum: the length says what to keep after an interruption, the checksum proves that what
is kept has not changed.
"""

import csv
import errno
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedprox.errors import UserError
from fedprox.storage import annotate_errors, check_regular, write_atomic

Mark = Mapping[str, Any]


def begins_as_marked(file: Path, mark: Mark) -> bool:
    """Return whether a file still begins with everything that it held when it was marked."""
    try:
        check_regular(file)  # a stranger's pipe would never end
        with file.open("rb") as opened:
            return bool(hashlib.sha256(opened.read(mark["num_bytes"])).hexdigest() == mark["sha256"])
    except OSError:
        return False


def _encoded(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


class CsvTable:
    """A table that grows by whole rows; rows after the last mark can be removed again.

    Attributes:
        columns: The header.
    """

    def __init__(self, file: Path, columns: Sequence[str], mark: Mark | None = None) -> None:
        """Begin a file with its header, or continue an existing one at a mark and remove what follows.

        Raises:
            UserError: If the part before the mark has changed.
        """
        self.columns = tuple(columns)
        self._name = file
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        # Unbuffered, so that a row is in the file as soon as `add` returns, even if the process is killed then.
        self._file = file.open("w+b" if mark is None else "r+b", buffering=0)
        if mark is None:
            self.add([columns])
        else:
            kept = self._file.read(mark["num_bytes"])
            self._count(kept)
            if self._digest.hexdigest() != mark["sha256"]:
                self._file.close()
                raise UserError(f"{file} was changed since the last checkpoint; restore it or start the run again")
        self.back_to(self.mark())

    def add(self, rows: Iterable[Iterable[object]]) -> None:
        """Append rows."""
        content = _encoded(rows)
        with annotate_errors(self._name):
            if self._file.write(content) != len(content):  # an unbuffered write may stop halfway on a full disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._count(content)

    def _count(self, content: bytes) -> None:
        self._digest.update(content)
        self._num_bytes += len(content)

    def widen(self, columns: Sequence[str]) -> None:
        """Add columns, which are empty in the existing rows; earlier marks no longer apply.

        The file is replaced in one step.
        """
        self._file.seek(0)
        _, *rows = csv.reader(io.StringIO(self._file.read().decode(), newline=""))
        wide = (*self.columns, *columns)
        content = _encoded([wide, *([*row, *[""] * len(columns)] for row in rows)])
        write_atomic(self._name, content)
        self._file.close()
        self._file = self._name.open("r+b", buffering=0)
        self._file.seek(len(content))
        self.columns, self._digest, self._num_bytes = wide, hashlib.sha256(content), len(content)

    def mark(self) -> Mark:
        """Return the mark of all rows so far."""
        return {"num_bytes": self._num_bytes, "sha256": self._digest.hexdigest()}

    def back_to(self, mark: Mark) -> None:
        """Remove the rows after a mark."""
        self._file.seek(mark["num_bytes"])
        self._file.truncate()

    def sync(self) -> None:
        """Return once the rows are on the disk."""
        with annotate_errors(self._name):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
