"""Tables of labelled examples in one file: NumPy's .npz and .csv, whose labels are any names of classes.

No error shows a value of the file: a site's errors are reported to the server.
"""

import csv
import io
import re
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedprox.errors import UserError, printable
from fedprox.storage import read_regular

NAMES = (("features", "labels"), ("x", "y"))  # of the arrays in a .npz file
_WHOLE = re.compile(r"([+-]?\d+)\.0*")

ClassNames = NDArray[np.str_]


class Table(NamedTuple):
    """Labelled examples as a file holds them.

    Attributes:
        features: Numbers of any type, shape (n, *input_shape).
        labels: Names of classes, shape (n,): "7" for 7 and 7.0.
        columns: Names of the features of a .csv file.
    """

    features: NDArray[Any]
    labels: ClassNames
    columns: tuple[str, ...] = ()


def read_npz(file: Path) -> Table:
    """Return the arrays `features` and `labels` (or `x` and `y`) of a .npz file; nothing is unpickled.

    Raises:
        UserError: If the file is damaged, or the arrays are missing or do not fit together.
    """
    try:
        with np.load(io.BytesIO(_content(file)), allow_pickle=False) as source:
            names = next((pair for pair in NAMES if set(pair) <= set(source.files)), None)
            if names:
                features, labels = (source[name] for name in names)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file raises
        raise UserError(
            f"{file.name} cannot be read as an .npz file without pickled objects ({type(error).__name__}); write it "
            "again with numpy.savez"
        ) from error
    if names is None:
        raise UserError(f"{file.name} must hold the arrays features and labels, or x and y; save it with these names")
    if features.ndim < 2 or features.dtype.kind not in "biuf" or labels.shape != features.shape[:1]:
        raise UserError(
            f"{file.name} must hold features of shape (n, *input_shape), numbers, and labels of shape (n,), got "
            f"{features.shape} ({features.dtype}) and {labels.shape}; fix the file"
        )
    return Table(features, _class_names(file, labels))


def _class_names(file: Path, labels: NDArray[Any]) -> ClassNames:
    """Return labels, which are whole numbers or text, as text."""
    kind = labels.dtype.kind
    if kind == "U":
        return np.char.strip(labels)
    if kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "biu":
        raise UserError(f"{file.name} must have whole numbers or text as labels, got {labels.dtype}; convert them")
    return (labels.astype(np.int64) if kind == "b" else labels).astype(np.str_)


def read_csv(file: Path, label: str) -> Table:
    """Return the rows of a .csv file: comma-separated UTF-8 with a header, numbers but for the label column.

    Features are float32, in the order of the columns.

    Args:
        file: The file.
        label: Name of the column of class names.

    Raises:
        UserError: If the file does not have this form.
    """
    try:
        text = io.StringIO(_content(file).decode("utf-8-sig"), newline="")
        header, *rows = csv.reader(text, strict=True, skipinitialspace=True)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise UserError(
            f"{file.name} must be comma-separated text in UTF-8 with a header ({type(error).__name__}); export it again"
        ) from error
    names = [name.strip() for name in header]
    if label not in names:
        raise UserError(  # without the first line, which is an example if there is no header
            f"{file.name} must have the label column dataset.label={label}, but its first line has {len(names)} "
            "columns without it; add a header, or set dataset.label"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{file.name} has the column {printable(twice[0])} twice; rename or remove one")
    if len(names) < 2:
        raise UserError(f"{file.name} must have a column of numbers besides {label}; add one")
    rows = [row for row in rows if row]  # blank lines
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise UserError(f"{file.name}: row {number} must have {len(names)} values, got {len(row)}; fix the file")
    at = names.index(label)
    labels = [_WHOLE.sub(r"\1", text) if _WHOLE.fullmatch(text) else text for text in (row[at].strip() for row in rows)]
    if "" in labels:
        raise UserError(f"{file.name}: row {labels.index('') + 1} has no {label}; fill it in, or leave the row out")
    columns = names[:at] + names[at + 1 :]
    features = _numbers(file, [row[:at] + row[at + 1 :] for row in rows], columns)
    return Table(features, np.array(labels, dtype=np.str_), tuple(columns))


def _numbers(file: Path, rows: list[list[str]], columns: list[str]) -> NDArray[np.float32]:
    """Return rows of text as finite float32, shape (num_rows, num_columns)."""
    numbers = np.empty((len(rows), len(columns)), dtype=np.float32)
    with np.errstate(over="ignore"):  # reported below
        for number, row in enumerate(rows):
            numbers[number] = [_number(text) for text in row]
    if not np.isfinite(numbers).all():
        number, place = np.argwhere(~np.isfinite(numbers))[0].tolist()
        raise UserError(
            f"{file.name}: {printable(columns[place])} in row {number + 1} must be a finite number; encode, fill in or "
            "leave out what is not"
        )
    return numbers


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def _content(file: Path) -> bytes:
    try:
        return read_regular(file)
    except OSError as error:
        raise UserError(f"{file.name} cannot be read ({error.strerror}); fix that") from error
