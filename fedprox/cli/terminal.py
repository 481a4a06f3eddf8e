"""Standard output and error that may be closed or lose their reader, without ending the run or losing its files."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

_NOT_READ = 128 + 13  # the exit status of a program that SIGPIPE, number 13, has ended


class _Stream(io.FileIO):
    """A file descriptor that becomes /dev/null once it cannot be written.

    Attributes:
        error: Why it cannot be written; None while it can.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or discard the data after an error."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # also for child processes, and for code that writes past Python
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


class _Text(io.TextIOWrapper):
    """A text stream that stays open if the user's code closes it."""

    def close(self) -> None:
        """Write what is buffered."""
        self.flush()


def ends_quietly(main: Callable[[], int]) -> int:
    """Call a program's main function and return its exit status, whatever happens to standard output and error.

    If their reader leaves (`... | head`), the program finishes silently, and the status is 141 instead of 0. If they
    cannot be written for another reason, such as a full disk, standard error gets one line, and the status is 1
    instead of 0.
    """
    _open_closed_descriptors()
    before = (sys.stdout, sys.stderr)
    out, err = _Stream(1, "w", closefd=False), _Stream(2, "w", closefd=False)
    own = sys.stdout, sys.stderr = _text(out, before[0]), _text(err, before[1])
    try:
        status = main()
    except SystemExit as end:  # argparse's
        status = int(end.code or 0)
    finally:
        sys.stdout, sys.stderr = own  # the user's code may have replaced them
        sys.stdout.flush()
        if out.error and out.error.errno != errno.EPIPE:
            print(f"error: standard output cannot be written: {out.error.strerror}", file=sys.stderr)
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
    errors = [error for error in (out.error, err.error) if error]
    if status or not errors:
        return status
    return _NOT_READ if all(error.errno == errno.EPIPE for error in errors) else 1


def _open_closed_descriptors() -> None:
    """Open those of the first three descriptors that are closed: a table that got number 2 would receive warnings."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _text(raw: _Stream, like: TextIO | None) -> TextIO:
    """Return a text stream with the properties of Python's own, which is None if the descriptor was closed."""
    names = ("encoding", "errors", "line_buffering", "write_through")
    is_text = isinstance(like, io.TextIOWrapper)
    options: dict[str, Any] = {name: getattr(like, name) for name in names} if is_text else {"encoding": "utf-8"}
    return _Text(io.BufferedWriter(raw), **options)
