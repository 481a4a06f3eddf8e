"""How a run ends before its time: mistakes that the user can mend, and faults; each is told in one line."""

import re
import sysconfig
import traceback
from pathlib import Path


class UserError(ValueError):
    """A mistake in the settings or in the user's files, told in one line that says what to do.

    `fedprox.main` and `fedprox.report` print it without a traceback and exit with status 2.
    """


class RunStopped(Exception):  # noqa: N818  # not always an error
    """The end of a run that shall not or cannot go on, told in one line; what was measured is kept.

    `fedprox.main` prints it without a traceback and exits with status 1.

    Attributes:
        status: What run.json says of the run: "failed" or "diverged".
    """

    def __init__(self, line: str, status: str = "failed") -> None:
        """Say why, and in which status the run ends."""
        super().__init__(line)
        self.status = status


# What the user's code may raise: its sys.exit() is an error like any other.
USERS = (Exception, SystemExit, GeneratorExit)


def on_record(error: BaseException) -> str:
    """Return in one line why a run failed."""
    told = (UserError, RunStopped, OSError, MemoryError)
    return one_line(error) if isinstance(error, told) else reason(error)


def reason(error: BaseException) -> str:
    """Return an error of the user's code as "ValueError: what it says (my_model.py:12)"."""
    place = _place(error)
    if isinstance(error, SystemExit):
        return f"sys.exit({'' if error.code is None else repr(error.code)}){f' ({place})' if place else ''}"
    told = printable("; ".join(_told(error)))
    return f"{type(error).__name__}{': ' * bool(told)}{told}{f' ({place})' if place else ''}"


def _place(error: BaseException) -> str:
    """Return file:line of the innermost call in the user's own code, else of the innermost; "" if it is unknown."""
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if not places:
        return ""
    own = [place for place in places if not any(place[0].is_relative_to(folder) for folder in _NOT_THE_USERS)]
    file, line = (own or places)[-1]
    return f"{file.name}:{line}"


_NOT_THE_USERS = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))]


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, Hydra's and OmegaConf's many-line ones included; of an exit, its place."""
    if isinstance(error, SystemExit):
        return reason(error)
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "name another place with hydra.run.dir=<folder>, in a sweep hydra.sweep.dir=<folder>"
        return printable(" ".join(f"{error.filename}: {error.strerror}; {remedy}".splitlines()))
    told = _told(error)
    if isinstance(error, MemoryError):
        told = [
            f"there is not enough memory ({'; '.join(told) or 'no more is said'}); ask for less, such as fewer clients"
        ]
    if override := getattr(error, "override", None):  # Hydra's grammar errors know it but do not say it
        told.insert(0, f"{override} is not understood")
    if key := getattr(error, "full_key", None):  # OmegaConf's
        told.insert(0, f"{key}:")
    if told and told[0].startswith("Error merging override") and error.__cause__:
        told += _told(error.__cause__)[:1]  # the cause says what is wrong with the value
    text = " ".join("; ".join(told).splitlines()) or type(error).__name__  # what is quoted may have breaks of its own
    return printable(text.replace(":; ", ": ").replace(".; ", "; "))


def printable(text: str) -> str:
    r"""Return a text that is safe on a terminal and in a log.

    Names of files and classes may come from strangers. What is not printable (control characters, escape codes,
    line breaks, marks that change the direction of writing, halves of surrogate pairs) becomes \x1b, \u202e and
    the like; addresses of objects, which say nothing, are left out.
    """
    text = _ADDRESS.sub("", text)
    return text if text.isprintable() else "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}")


def _told(error: BaseException) -> list[str]:
    """Return a message's lines that tell the user something."""
    lines = [line.strip() for line in str(error).partition("Config search path:")[0].splitlines()]
    return [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "See https://"))]
