"""The user's own data in a .csv, .parquet or .npz file, perhaps with a second one to test on."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedprox.data import checks
from fedprox.data.federated import FederatedData, LabelledData, Task
from fedprox.data.sources.categories import Categories
from fedprox.data.sources.channels import channels_first
from fedprox.data.sources.own_rows import Rows, assembled, joined, sides_of
from fedprox.data.sources.tables import class_names, npz_arrays
from fedprox.errors import UserError, printable, some_names

if TYPE_CHECKING:
    from fedprox.data.sources.frames import Frame, Roles  # imports pandas, which most data sets do not need

ONE_SET = (("x", "y"), ("features", "labels"))  # names of arrays in a .npz file
TWO_SETS = ("x_train", "y_train", "x_test", "y_test")
CLIENTS = ("client", "client_train", "client_test")
CHANNELS = (1, 3, 4)  # of an image: grey, colours, colours and transparency

Array = NDArray[Any]
_log = logging.getLogger("fedprox")


def csv(
    path: str,
    seed: int,
    label: str | list[str] = "label",
    client: str | None = None,
    split: str | None = None,
    features: list[str] | None = None,
    ignore: list[str] | None = None,
    test_path: str | None = None,
    test_fraction: float | None = None,
    normalise: bool = True,
    separator: str = ",",
    task: Task = "classification",
) -> LabelledData | FederatedData:
    """Return the rows of a .csv file: UTF-8 with a header; numbers, except in columns of names.

    Args:
        path: The file.
        seed: Draws the test rows if nothing says which they are.
        label: Column of the classes, under any names; with another task one or several columns of numbers.
        client: Column of the clients' names: then the rows come divided. None: a partition divides them.
        split: Column that says which rows are for training and which for testing, as `sides_of` reads it.
        features: Columns of the features; None for all that have no other role.
        ignore: Columns that are no features.
        test_path: A second file, to test on: its rows are the clients' held-out examples if it has their column, else
            the global test set.
        test_fraction: Share of the rows, of each client if there are any, that is drawn for testing; None: 0.2. Only
            without `split` and `test_path`.
        normalise: Whether model input is (x - mean) / std of each feature over the training rows.
        separator: The character between values.
        task: What the labels are; from the loss.

    Raises:
        UserError: If a setting is wrong, or a file is not as described; the line names file, row and column.
    """
    from fedprox.data.sources import frames

    separator = "\t" if separator == "\\t" else separator  # as a shell passes it on
    if len(separator) != 1:
        raise UserError(f"dataset.separator must be one character or \\t, got {separator!r}; such as ';'")
    roles = frames.Roles.of(label, client, split, features, ignore, task)
    rows = _table(partial(frames.read_csv, separator=separator), roles, path, test_path)
    return assembled(rows, seed=seed, test_fraction=test_fraction, normalise=normalise, task=task)


def parquet(
    path: str,
    seed: int,
    label: str | list[str] = "label",
    client: str | None = None,
    split: str | None = None,
    features: list[str] | None = None,
    ignore: list[str] | None = None,
    test_path: str | None = None,
    test_fraction: float | None = None,
    normalise: bool = True,
    task: Task = "classification",
) -> LabelledData | FederatedData:
    """Return the rows of a .parquet file; arguments and errors are those of `csv`. It needs pyarrow."""
    from fedprox.data.sources import frames

    roles = frames.Roles.of(label, client, split, features, ignore, task)
    rows = _table(frames.read_parquet, roles, path, test_path)
    return assembled(rows, seed=seed, test_fraction=test_fraction, normalise=normalise, task=task)


def npz(
    path: str,
    seed: int,
    test_path: str | None = None,
    test_fraction: float | None = None,
    normalise: bool = True,
    task: Task = "classification",
) -> LabelledData | FederatedData:
    """Return the arrays of a .npz file; nothing is unpickled.

    They are x and y (or features and labels), or x_train, y_train, x_test and y_test. With client, or client_train and
    perhaps client_test, which name each row's client, the rows come divided. x has shape (n, *input_shape); images have
    their channels last or first. y has shape (n,), whole numbers or text; with another task it has numbers, shape (n,)
    or (n, num_outputs).

    Args:
        path: The file.
        seed: Draws the test rows if nothing says which they are.
        test_path: A second file with x and y, to test on.
        test_fraction: As in `csv`.
        normalise: Whether model input is (x - mean) / std, of each channel of images and each feature of rows, over the
            training rows. Tokens, which are 64-bit integers, stay as they are.
        task: What the labels are; from the loss.

    Raises:
        UserError: If a setting is wrong, or a file is not as described.
    """
    rows = _arrays(_file("path", path), test_path, task)
    return assembled(rows, seed=seed, test_fraction=test_fraction, normalise=normalise, task=task)


def _arrays(file: Path, test_path: str | None, task: Task) -> Rows:
    """Return the rows of a .npz file's arrays and those to test on, if there are any."""
    arrays = npz_arrays(file, (TWO_SETS, *ONE_SET), CLIENTS)
    has_test, (x, y) = "x_test" in arrays, list(arrays.values())[:2]
    own = CLIENTS[1:] if has_test else CLIENTS[:1]
    if others := [name for name in CLIENTS if name in arrays and name not in own]:
        raise UserError(f"{file.name}: the array {others[0]} has no meaning there; call it {' or '.join(own)}")
    rows = _of_arrays(file, x, y, arrays.get(own[0]), task)
    if test_path is None:
        if not has_test:
            return rows
        return joined(rows, _of_arrays(file, arrays["x_test"], arrays["y_test"], arrays.get("client_test"), task))
    if has_test:
        raise UserError(f"dataset.test_path={test_path} is a second test set: {file.name} has x_test; leave it out")
    place = _test_file(file, test_path)
    x, y, *client = npz_arrays(place, ONE_SET, ("client",)).values()
    return joined(rows, _of_arrays(place, x, y, client[0] if client else None, task))


def _file(setting: str, path: str) -> Path:
    """Return the file that a setting names."""
    if not path.strip():
        raise UserError(f"dataset.{setting} must name a file, got nothing")
    return Path(os.path.expanduser(path))  # Path.expanduser raises for an unknown ~name


def _test_file(file: Path, test_path: str) -> Path:
    """Return the file to test on, which is not the one to train on."""
    place = _file("test_path", test_path)
    if place.resolve() == file.resolve():
        raise UserError(f"dataset.test_path must be another file than dataset.path, got {test_path}; leave it out")
    return place


def _table(read: "Callable[[Path, Roles], Frame]", roles: "Roles", path: str, test_path: str | None) -> Rows:
    """Return the rows of a table and, with `test_path`, those of a second one with the same features."""
    file = _file("path", path)
    frame = read(file, roles)
    _log.info("%s: %d features: %s", printable(file.name), len(frame.columns), some_names(frame.columns))
    rows = _of_frame(file, frame, roles)
    if test_path is None:
        return rows
    if roles.split:
        raise UserError(
            f"dataset.split={roles.split} and dataset.test_path={test_path} are two test sets; give one of them"
        )
    place = _test_file(file, test_path)
    roles = replace(roles, features=frame.columns, ignore=(), client_is_optional=True)
    return joined(rows, _of_frame(place, read(place, roles), roles))


def _of_frame(file: Path, frame: "Frame", roles: "Roles") -> Rows:
    """Return the rows of a table by the roles of its columns."""
    return Rows(
        file.name,
        frame.features,
        frame.names[roles.label[0]] if roles.has_classes else frame.labels,
        () if roles.has_classes else roles.label,
        frame.names.get(roles.client or ""),
        sides_of(file.name, frame.names[roles.split]) if roles.split else None,
    )


def _of_arrays(file: Path, x: Array, y: Array, client: Array | None, task: Task) -> Rows:
    """Return the rows of arrays.

    Raises:
        UserError: If the arrays do not have their form, or do not fit together.
    """
    features = checked_features(f"{file.name}: x", x)
    for name, array in (("y", y), ("client", client)):
        if array is not None and (not array.ndim or len(array) != len(x)):
            raise UserError(f"{file.name}: {name} must have {len(x)} rows, as x has, got {array.shape}; fix the file")
    y_name = f"{file.name}: y"
    labels = _categories(file, y) if task == "classification" else checks.floats(y_name, checks.numbers(y_name, y))
    return Rows(file.name, features, labels, clients=None if client is None else _categories(file, client), first_row=0)


def checked_features(name: str, x: Array) -> Array:
    """Return features of one array: bytes and tokens (64-bit integers) as they are, other numbers as float32.

    Images of shape (n, height, width, channels) get their channels first.

    Raises:
        UserError: If they are not finite numbers of shape (n, *input_shape).
    """
    if x.ndim < 2 or x.dtype.kind not in checks.NUMERIC:
        raise UserError(
            f"{name} must be numbers of shape (n, *input_shape), got {x.shape} ({x.dtype}); give all examples one shape"
        )
    is_kept = x.dtype == np.uint8 or (x.dtype.kind in "iu" and x.dtype.itemsize == 8)
    return _with_channels_first(name, x if is_kept else checks.floats(name, x))


def _with_channels_first(name: str, x: Array) -> Array:
    """Return images of shape (n, height, width, channels) as (n, channels, height, width), all else as it is."""
    if x.ndim != 4 or x.shape[3] not in CHANNELS:
        return x
    if x.shape[1] in CHANNELS:
        raise UserError(f"{name} of shape {x.shape} may have its channels first or last; pad the images by a pixel")
    return channels_first(x)


def _categories(file: Path, values: Array) -> Categories:
    """Return whole numbers or text as names."""
    names, codes = np.unique(class_names(file, values), return_inverse=True)
    return Categories.of(codes.astype(np.int64), names.tolist())
