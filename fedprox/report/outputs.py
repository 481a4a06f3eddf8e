"""Output files of the reports, checked before any work."""

import os
from pathlib import Path

from fedprox.errors import UserError

FIGURES = (".png", ".pdf", ".svg")
TABLES = (".md", ".csv", ".tex")


def check_writable(file: Path, endings: tuple[str, ...], option: str) -> None:
    """Raise UserError unless `file` has one of the endings and can be written.

    Args:
        file: The value of the option.
        endings: The allowed ones, in lower case, with their dots.
        option: Such as "--out", for the message.
    """
    if file.suffix.lower() not in endings:
        raise UserError(f"{option} must end in {' or '.join(endings)}, got {file}")
    if file.is_dir():
        raise UserError(f"{option} must name a file, but {file} is a directory")
    if not file.parent.is_dir():
        raise UserError(f"{option} names {file}, but the folder {file.parent} does not exist; create it first")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"{option} names {file}, which is not writable; choose another file")
