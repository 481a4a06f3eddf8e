"""Tables of labelled examples in one file: NumPy's .npz and .csv, whose labels are any names of classes.

No error shows a value of the file: a site's errors are reported to the server.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedprox.errors import UserError
from fedprox.storage import read_regular

NAMES = (("features", "labels"), ("x", "y"))  # of the arrays in a .npz file

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
    features, labels = npz_arrays(file, NAMES).values()
    check_examples(file, features, labels)
    return Table(features, class_names(file, labels))


def npz_arrays(file: Path, choices: Sequence[Sequence[str]], more: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Return arrays of a .npz file by name; nothing is unpickled.

    Args:
        file: The file.
        choices: Names of arrays; the first choice is read of which the file has all.
        more: Names of arrays that are read if they are there.

    Raises:
        UserError: If the file is damaged, or has all arrays of no choice.
    """
    try:
        with np.load(io.BytesIO(_content(file)), allow_pickle=False) as source:
            names = next((each for each in choices if set(each) <= set(source.files)), None)
            if names:
                return {name: source[name] for name in (*names, *(each for each in more if each in source.files))}
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file raises
        raise UserError(
            f"{file.name} cannot be read as an .npz file without pickled objects ({type(error).__name__}); write it "
            "again with numpy.savez"
        ) from error
    listed = ", or ".join(" and ".join(each) for each in choices)
    raise UserError(f"{file.name} must hold the arrays {listed}; save it with these names")


def check_examples(file: Path, features: NDArray[Any], labels: NDArray[Any]) -> None:
    """Raise UserError unless features are numbers, and there is a label for each."""
    if features.ndim < 2 or features.dtype.kind not in "biuf" or labels.shape != features.shape[:1]:
        raise UserError(
            f"{file.name} must hold features of shape (n, *input_shape), numbers, and labels of shape (n,), got "
            f"{features.shape} ({features.dtype}) and {labels.shape}; fix the file"
        )


def class_names(file: Path, labels: NDArray[Any]) -> ClassNames:
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
    from fedprox.data.sources import frames  # here: it imports pandas, which most data sets do not need

    rows = frames.read_csv(file, frames.Roles((label,), suggests=False))
    codes, names = rows.names[label]
    return Table(rows.features, np.array(names, dtype=np.str_)[codes], rows.columns)


def _content(file: Path) -> bytes:
    try:
        return read_regular(file)
    except OSError as error:
        raise UserError(f"{file.name} cannot be read ({error.strerror}); fix that") from error
