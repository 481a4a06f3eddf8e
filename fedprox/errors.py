"""Errors that end a run, and their one-line texts."""

import re
import sysconfig
import traceback
from pathlib import Path

MAX_NAMES = 20  # of columns or classes that the log shows
MAX_LENGTH = 40  # characters of a name


class UserError(ValueError):
    """A mistake in the settings or in the user's files; the message is one line and names the remedy.

    `fedprox.main` and `fedprox.report` print it without a traceback and exit with status 2.
    """


class RunStopped(Exception):  # noqa: N818  # not always an error
    """The end of a run that cannot or must not continue; the message is one line. What was measured is kept.

    `fedprox.main` prints it without a traceback and exits with status 1.

    Attributes:
        status: The run's status in run.json: "failed" or "diverged".
    """

    def __init__(self, line: str, status: str = "failed") -> None:
        """Set the message and the run's status."""
        super().__init__(line)
        self.status = status


# What user code may raise; its sys.exit() is an error like any other.
USER_CODE_ERRORS = (Exception, SystemExit, GeneratorExit)


def on_record(error: BaseException) -> str:
    """Return in one line why a run failed."""
    is_expected = isinstance(error, (UserError, RunStopped, OSError, MemoryError))
    return one_line(error) if is_expected else with_location(error)


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, with a remedy if a file or memory is what failed."""
    if isinstance(error, SystemExit):
        return with_location(error)
    text = joined_lines(str(error)) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "name another folder with hydra.run.dir=<folder>, or in a sweep hydra.sweep.dir=<folder>"
        text = f"{error.filename}: {error.strerror}; {remedy}"
    if isinstance(error, MemoryError):
        details = f" ({text})" if str(error) else ""
        text = f"out of memory{details}; reduce num_clients, batch_size or dataset.size"
    return printable(text)


def with_location(error: BaseException) -> str:
    """Return an error of the user's code as "ValueError: its message (my_model.py:12)"."""
    place = _place(error)
    in_place = f" ({place})" if place else ""
    if isinstance(error, SystemExit):
        return f"sys.exit({'' if error.code is None else repr(error.code)}){in_place}"
    text = printable(joined_lines(str(error)))
    return f"{type(error).__name__}{': ' * bool(text)}{text}{in_place}"


def _place(error: BaseException) -> str:
    """Return file:line of the innermost call in the user's code, else of the innermost call; "" if unknown."""
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if not places:
        return ""
    own = [place for place in places if not any(place[0].is_relative_to(folder) for folder in _NOT_THE_USERS)]
    file, line = (own or places)[-1]
    return f"{file.name}:{line}"


_NOT_THE_USERS = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))]


def joined_lines(text: str) -> str:
    r"""Return the lines of a text in one: "a:\n b\n c" as "a: b; c"."""
    lines = "; ".join(line.strip() for line in text.splitlines() if line.strip())
    return lines.replace(":; ", ": ").replace(".; ", "; ")


def printable(text: str) -> str:
    r"""Return a text that is safe on a terminal and in a log.

    Names of files and classes may come from strangers. What is not printable (control characters, escape codes,
    line breaks, marks that change the direction of writing, halves of surrogate pairs) becomes \x1b, \u202e and
    the like. Addresses of objects are left out: they differ from run to run.
    """
    text = _ADDRESS.sub("", text)
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}")


def some_names(names: tuple[str, ...]) -> str:
    """Return up to 20 names, safe for a terminal, and how many more there are."""
    shown = [name if len(name) <= MAX_LENGTH else name[: MAX_LENGTH - 3] + "..." for name in names[:MAX_NAMES]]
    more = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join([*map(printable, shown), *more])
