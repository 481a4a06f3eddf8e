"""Tables of .csv and .parquet files, read with pandas by the roles of their columns.

No error shows a value of the file: a site's errors are reported to the server. Rows are counted from 1, without the
header.
"""

import csv
import difflib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedprox.data.federated import Floats, Task
from fedprox.data.sources.categories import Categories
from fedprox.errors import UserError, printable
from fedprox.storage import check_regular

# What pandas says of rows with too many values, and of quotes
_RAGGED = re.compile(r"Expected (\d+) fields in line (\d+), saw (\d+)")
_UNCLOSED = re.compile(r"EOF inside string starting at row (\d+)")


@dataclass(frozen=True)
class Roles:
    """What the columns of a table are for; the fields are named like the settings.

    Attributes:
        label: Columns of the labels.
        client: Column of the clients' names.
        split: Column that says which rows are for testing.
        features: Columns of the features; None for all others.
        ignore: Columns that are none of these.
        has_classes: Whether labels are names of classes; else they are numbers.
        client_is_optional: Whether the column of clients may be missing.
        suggests: Whether errors may name columns that no setting names: without a header they are values.
    """

    label: tuple[str, ...]
    client: str | None = None
    split: str | None = None
    features: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    has_classes: bool = True
    client_is_optional: bool = False
    suggests: bool = True

    @classmethod
    def of(
        cls,
        label: str | list[str],
        client: str | None,
        split: str | None,
        features: list[str] | None,
        ignore: list[str] | None,
        task: Task,
    ) -> "Roles":
        """Return the roles that settings give to columns.

        Raises:
            UserError: If there are several columns of classes, or no column.
        """
        labels = (label,) if isinstance(label, str) else tuple(map(str, label))
        if not labels or (task == "classification" and len(labels) > 1):
            raise UserError(
                f"dataset.label must name one column of classes, got {len(labels)}; several are for numbers "
                "(loss=mse) or for labels that are true together (loss=bce)"
            )
        named = None if features is None else tuple(map(str, features))
        return cls(labels, client, split, named, tuple(map(str, ignore or ())), task == "classification")

    @property
    def names(self) -> tuple[str, ...]:
        """Columns that hold names."""
        given = (*(self.label if self.has_classes else ()), self.client, self.split)
        return tuple(name for name in given if name is not None)

    def found_in(self, file: Path, columns: Sequence[str]) -> "Roles":
        """Return the roles of a file's columns, with its columns of features.

        Raises:
            UserError: If a column is missing or has two roles, or no column is left.
        """
        client = self.client if self.client in columns or not self.client_is_optional else None
        role_of: dict[str, str] = {}
        for role, name in replace(self, client=client).given:
            if name not in columns:
                raise self._missing(file, role, name, columns)
            if name in role_of:
                raise UserError(
                    f"dataset.{role} must not name {printable(name)}, which is in dataset.{role_of[name]}, too; leave "
                    "it out of one"
                )
            role_of[name] = role
        # Only now: without a header these are values.
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise UserError(f"{file.name} has the column {printable(twice[0])} twice; rename or remove one")
        free = tuple(name for name in columns if name not in role_of)
        features = free if self.features is None else self.features
        if not features:
            others = ", ".join(map(printable, role_of))
            raise UserError(f"{file.name} must have a column of numbers besides {others}; add one")
        return replace(self, client=client, features=features)

    @property
    def given(self) -> list[tuple[str, str]]:
        """Each setting and a column that it names."""
        settings = {"label": self.label, "client": (self.client,), "split": (self.split,)}
        settings |= {"features": self.features or (), "ignore": self.ignore}
        return [(setting, name) for setting, names in settings.items() for name in names if name is not None]

    def _missing(self, file: Path, role: str, name: str, columns: Sequence[str]) -> UserError:
        """Return the error for a column that a file does not have."""
        close = difflib.get_close_matches(name, columns, n=1) if self.suggests else []
        remedy = f"did you mean {printable(close[0])}?" if close else f"add a header, or set dataset.{role}"
        return UserError(
            f"{file.name} must have the column dataset.{role}={printable(name)}, got {len(columns)} columns without "
            f"it; {remedy}"
        )


class Frame(NamedTuple):
    """The rows of a file, by the roles of its columns.

    Attributes:
        features: Finite numbers, shape (n, num_features).
        columns: Their names.
        labels: Columns of labels that are numbers, finite, shape (n, num_labels).
        names: Columns of names.
    """

    features: Floats
    columns: tuple[str, ...]
    labels: Floats
    names: dict[str, Categories]


def read_csv(file: Path, roles: Roles, separator: str = ",") -> Frame:
    """Return the rows of a .csv file: UTF-8 with a header; blank lines are skipped.

    Raises:
        UserError: If the file does not have this form, or a column does not fit its role.
    """
    with _reading(file, f"a table with a header, whose values are separated by {separator!r}"):
        check_regular(file)
        columns = _header(file, separator)
        roles = roles.found_in(file, columns)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows that are longer than the header
            read = pd.read_csv(
                file,
                sep=separator,
                names=columns,
                header=0,
                index_col=False,  # all columns are read: with usecols rows may be longer than the header
                dtype=dict.fromkeys(roles.names, str),
                keep_default_na=False,  # NA and None are names like others
                na_values={name: [""] for name in columns},
                skipinitialspace=True,
                low_memory=False,  # a column's type is that of all its rows
                compression=None,
            )
    return frame_of(file, read, roles)


def read_parquet(file: Path, roles: Roles) -> Frame:
    """Return the rows of a .parquet file.

    Raises:
        UserError: If pyarrow is not installed, the file is damaged, or a column does not fit its role.
    """
    try:
        import pyarrow.parquet as source  # of the extra `data`
    except ImportError as error:
        raise UserError(
            f"{file.name} is read by pyarrow, which is not installed; install it with pip install 'fedprox[data]'"
        ) from error
    with _reading(file, "a whole .parquet file"):
        check_regular(file)
        schema = source.read_schema(file)
        index = (schema.pandas_metadata or {}).get("index_columns", ())  # numbers of rows, if they are no column
        named = {name for _, name in roles.given}
        columns = [name for name in schema.names if name not in index or name in named]
        roles = roles.found_in(file, columns)
        wanted = list({*(roles.features or ()), *roles.label, *roles.names})
        read = source.ParquetFile(file).read(columns=wanted).to_pandas(ignore_metadata=True)
    return frame_of(file, read, roles)


@contextmanager
def _reading(file: Path, form: str) -> Iterator[None]:
    """Turn whatever a file that does not have its form raises into a UserError."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; name a file that does") from None
    except OSError as error:
        raise UserError(f"{file.name} cannot be read ({error.strerror or type(error).__name__}); fix that") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name} must be text in UTF-8; save it in that encoding") from error
    except pd.errors.ParserWarning as error:
        raise UserError(f"{file.name}: row 1 has more values than the header; fix the file") from error
    except Exception as error:
        if found := _RAGGED.search(str(error)):
            raise UserError(
                f"{file.name}: line {found[2]} must have {found[1]} values, got {found[3]}; fix it"
            ) from error
        if found := _UNCLOSED.search(str(error)):
            raise UserError(f"{file.name}: a quote that begins in row {found[1]} has no end; fix it") from error
        raise UserError(f"{file.name} must be {form} ({type(error).__name__}); export it again") from error


def _header(file: Path, separator: str) -> list[str]:
    """Return the names of a .csv file's columns."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True, skipinitialspace=True, delimiter=separator)
        header = next((row for row in rows if row), None)
    if header is None:
        raise UserError(f"{file.name} is empty; export it again, with a header")
    return [name.strip() for name in header]


def frame_of(file: Path, read: pd.DataFrame, roles: Roles) -> Frame:
    """Return a table's rows by the roles of its columns, which `found_in` has completed.

    Raises:
        UserError: If a column does not fit its role.
    """
    columns = roles.features or ()
    remedy = "leave the column out" + " with dataset.ignore" * roles.suggests
    return Frame(
        _numbers(file, read, columns, remedy),
        columns,
        _numbers(file, read, () if roles.has_classes else roles.label, "name another column in dataset.label"),
        {name: _names(file, read[name], name) for name in roles.names},
    )


def _numbers(file: Path, read: pd.DataFrame, columns: Sequence[str], remedy: str) -> Floats:
    """Return columns as finite float32, shape (n, num_columns)."""
    numbers = np.empty((len(read), len(columns)), dtype=np.float32)
    with np.errstate(over="ignore"):  # reported below
        for place, name in enumerate(columns):
            numbers[:, place] = _as_numbers(read[name])
    finite = np.isfinite(numbers)
    if not finite.all():
        row, place = np.argwhere(~finite)[0].tolist()
        raise _not_finite(file, read[columns[place]], row, remedy)
    return numbers


def _as_numbers(column: "pd.Series[Any]") -> NDArray[Any]:
    """Return a column as numbers, nan for what is none."""
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):  # or bool
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if column.dtype.kind in "mMc":  # dates, durations and complex numbers
        return np.full(len(column), np.nan)
    return np.array([_number(value) for value in column], dtype=np.float64)


def _number(value: Any) -> float:
    """Return a value of a column that pandas does not take for numbers, nan if it is none."""
    if isinstance(value, (list, np.ndarray)):
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan
    except OverflowError:
        return np.inf


def _not_finite(file: Path, column: "pd.Series[Any]", row: int, remedy: str) -> UserError:
    """Return the error for a value that is not a finite number."""
    where = f"{file.name}: {printable(str(column.name))} in row {row + 1}"
    value = column.iloc[row]
    if np.ndim(value) == 0 and pd.isna(value):
        return UserError(f"{where} has no value; fill it in, or leave the row out")
    if column.dtype.kind in "mM":
        return UserError(f"{where} is a date or a duration and must be a number; convert it, or {remedy}")
    if isinstance(value, (int, float)):
        return UserError(f"{where} must be finite in float32; replace it, or leave the row out")
    return UserError(f"{where} must be a finite number; encode text as numbers, or {remedy}")


def _names(file: Path, column: "pd.Series[Any]", name: str) -> Categories:
    """Return a column of names."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    is_missing = column.isna().to_numpy(dtype=bool)
    if not is_missing.any():
        found = Categories.of(*pd.factorize(column))
        is_missing = np.array([not each for each in found.names])[found.codes]
    if is_missing.any():
        row = int(is_missing.argmax()) + 1
        raise UserError(f"{file.name}: row {row} has no {printable(name)}; fill it in, or leave the row out")
    return found
