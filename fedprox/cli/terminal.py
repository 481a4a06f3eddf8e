"""Standard output and error that may be closed, or lose their reader: no run ends for that, and nothing is lost."""

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

_NOT_READ = 128 + 13  # what a shell expects of a program that SIGPIPE, number 13, has ended


class _Stream(io.FileIO):
    """A file descriptor that becomes /dev/null when it cannot be written any more.

    Attributes:
        error: Why it cannot; None while it can.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write, or do as if."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for what is written there past Python, and by processes that follow
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


def ends_quietly(main: Callable[[], int]) -> int:
    """Call a program's main function and return its exit status, whatever becomes of standard output and error.

    Whoever reads them may leave (`... | head`): then the program does what is left without a word, and the status is
    141 in the place of 0. Where they cannot be written for another reason, such as a full disk, that is one line of
    standard error, and the status is 1 in the place of 0.
    """
    _open_closed_descriptors()
    before = (sys.stdout, sys.stderr)
    out, err = _Stream(1, "w", closefd=False), _Stream(2, "w", closefd=False)
    sys.stdout, sys.stderr = _text(out, before[0]), _text(err, before[1])
    try:
        status = main()
    except SystemExit as end:  # argparse's
        status = int(end.code or 0)
    finally:
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
    """Give closed ones of the first three descriptors to /dev/null: a table that got number 2 would hold warnings."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _text(raw: _Stream, like: TextIO | None) -> TextIO:
    """Return a text stream with the properties of Python's own, which is None where the descriptor was closed."""
    if not isinstance(like, io.TextIOWrapper):
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=like.encoding,
        errors=like.errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )
