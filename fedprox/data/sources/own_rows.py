"""Rows of the user's own data, however they are stored: their test set, their clients, their classes."""

import logging
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedprox.data.checks import MAX_CLASSES
from fedprox.data.federated import (
    ClientIndex,
    Features,
    FederatedData,
    Floats,
    Integers,
    LabelledData,
    Labels,
    Task,
    split,
)
from fedprox.data.sources.categories import Categories
from fedprox.data.sources.channels import concatenated, taken
from fedprox.data.sources.image_files import SIDES, TEST_SIDES
from fedprox.data.sources.normalisation import mean_and_std
from fedprox.errors import UserError, printable
from fedprox.seeds import Stream, generator

TEST_FRACTION = 0.2  # the default
MOST_CLASSES = 10  # more of them than this, and than half of the rows, are probably numbers to predict

Mask = NDArray[np.bool_]
_log = logging.getLogger("fedprox")


class Sides(NamedTuple):
    """Which rows are for training and which for testing; rows that are for neither are left out."""

    train: Mask
    test: Mask


@dataclass(frozen=True)
class Rows:
    """Labelled rows of a file.

    Attributes:
        source: The file's name, with which errors begin.
        features: Shape (n, *input_shape).
        labels: Classes; or numbers, shape (n,) or (n, num_outputs).
        outputs: Names of the columns of labels that are numbers; empty if they have none.
        clients: The clients that hold the rows; None if a partition is to divide them.
        sides: What the rows are for; None if the file does not say.
        first_row: Number of the first row in errors.
    """

    source: str
    features: Features
    labels: Categories | Floats
    outputs: tuple[str, ...] = ()
    clients: Categories | None = None
    sides: Sides | None = None
    first_row: int = 1

    def __post_init__(self) -> None:
        """Raise UserError if there is no row."""
        if not len(self.features):
            raise UserError(f"{self.source} must have at least one row, got none; export it again")


def sides_of(source: str, column: Categories) -> Sides:
    """Return what a column says that rows are for: train or test, or one of their other names in `SIDES`.

    Rows of val are for testing if none is called test; otherwise they are left out.

    Raises:
        UserError: If the column has another name, or one side is missing.
    """
    meant = [SIDES.get(name.lower()) for name in column.names]
    if None in meant:
        row = int((column.codes == meant.index(None)).argmax()) + 1
        raise UserError(f"{source}: dataset.split must be train, val or test, but is none of them in row {row}; fix it")
    test = next((side for side in TEST_SIDES if side in meant), None)
    if "train" not in meant or test is None:
        raise UserError(
            f"{source}: dataset.split must divide the rows into train and test, but all are {meant[0]}; without "
            "dataset.split the share dataset.test_fraction of them is drawn"
        )
    is_train, is_test = (np.array([each == side for each in meant])[column.codes] for side in ("train", test))
    if num := int((~(is_train | is_test)).sum()):
        _log.info("%s: %d rows of val are left out, because others are for testing", printable(source), num)
    return Sides(is_train, is_test)


def joined(rows: Rows, test: Rows) -> Rows:
    """Return the rows of two files, for training and for testing.

    Raises:
        UserError: If their examples have not the same form, or only the second one has clients.
    """
    if test.clients and not rows.clients:
        raise UserError(f"{test.source} has clients, but {rows.source} has none; name them in both, or in none")
    for what in ("shape", "dtype"):
        own, other = (each.features[0].shape if what == "shape" else each.features.dtype for each in (rows, test))
        if own != other:
            raise UserError(f"{test.source} must have examples of the {what} {own} like {rows.source}, got {other}")
    if isinstance(rows.labels, Categories) and isinstance(test.labels, Categories):
        labels: Categories | Floats = rows.labels.joined(test.labels)
    else:
        labels = np.concatenate([rows.labels, test.labels])
    return Rows(
        rows.source,
        concatenated([rows.features, test.features]),
        labels,
        rows.outputs,
        rows.clients.joined(test.clients) if rows.clients and test.clients else rows.clients,
        Sides(is_first := np.arange(len(rows.features) + len(test.features)) < len(rows.features), ~is_first),
    )


def assembled(
    rows: Rows, *, seed: int, test_fraction: float | None = None, normalise: bool = True, task: Task = "classification"
) -> LabelledData | FederatedData:
    """Return rows as data to divide or, if they have clients, as divided data; classes and clients are in order.

    Without clients the test rows are the global test set. With clients they are the clients' held-out examples; rows
    without a client are the global test set.

    Args:
        rows: The rows.
        seed: Draws the test rows if no side is given.
        test_fraction: Share of the rows that is drawn then, of each client if there are any; None: TEST_FRACTION.
        normalise: Whether model input is (x - mean) / std over the training rows (`mean_and_std`).
        task: What the labels are.

    Raises:
        UserError: If a setting is out of its range, or the rows cannot be trained and tested on.
    """
    sides = _sides(rows, test_fraction, seed)
    (features, (labels, num_outputs, names)) = rows.features, _labels(rows, task)
    mean, std = np.zeros((), np.float32), np.ones((), np.float32)
    if normalise:
        mean, std = mean_and_std(taken(features, sides.train))

    def examples(own: slice | Mask, test: slice | Mask) -> LabelledData:
        train, tested = (taken(features, own), labels[own]), (taken(features, test), labels[test])
        return LabelledData(*train, *tested, num_outputs, mean, std, names, task)

    if rows.clients is None:
        return examples(*sides)
    clients = rows.clients.in_order()
    num_owned = len(clients.codes)
    train, held_out = (_by_client(clients, side[:num_owned]) for side in sides)
    if not train.sizes.all():
        name = printable(clients.names[train.sizes.argmin()])
        raise UserError(
            f"{rows.source}: client {name} has no row for training; to test on clients that do not train, put their "
            "rows into dataset.test_path without the column of clients"
        )
    return FederatedData(examples(slice(num_owned), slice(num_owned, None)), train, held_out, clients.names)


def _sides(rows: Rows, test_fraction: float | None, seed: int) -> Sides:
    """Return which rows are for training and which for testing, drawn as `split` divides them if they do not say."""
    if rows.sides:
        if test_fraction is not None:
            raise UserError(
                f"dataset.test_fraction={test_fraction:g} draws a test set, but {rows.source} has one; leave it out"
            )
        return rows.sides
    fraction = TEST_FRACTION if test_fraction is None else test_fraction
    if not (0 if rows.clients is None else 1e-9) <= fraction < 1:
        least = "at least 0" if rows.clients is None else "above 0"
        raise UserError(f"dataset.test_fraction must be {least} and below 1, got {fraction:g}; take {TEST_FRACTION}")
    if rows.clients is None:
        drawn = [generator(seed, Stream.TEST_SPLIT).permutation(len(rows.features))]
    else:
        drawn = _shuffled_by_client(rows, rows.clients, seed)
    is_train = np.zeros(len(rows.features), dtype=bool)
    is_train[split(drawn, fraction)[0].indices] = True
    return Sides(is_train, ~is_train)


def _shuffled_by_client(rows: Rows, clients: Categories, seed: int) -> list[Integers]:
    """Return each client's rows, shuffled by a stream of its own: the other clients make no difference.

    Raises:
        UserError: If a client has one row, of which none would be left to test on.
    """
    index = _by_client(clients, np.ones(len(clients.codes), dtype=bool))
    if len(alone := np.flatnonzero(index.sizes == 1)):
        name, row = printable(clients.names[alone[0]]), index[alone[0]][0] + rows.first_row
        raise UserError(
            f"{rows.source}: client {name} has one row, {row}, so it cannot both train and test ({len(alone)} such "
            "clients); leave them out, or say which rows are for testing by dataset.split or dataset.test_path"
        )
    streams = (generator(seed, Stream.TEST_SPLIT, zlib.crc32(name.encode())) for name in clients.names)
    return [rng.permutation(index[client]) for client, rng in enumerate(streams)]


def _by_client(clients: Categories, mask: Mask) -> ClientIndex:
    """Return each client's rows among those of a mask, in their order."""
    rows = np.flatnonzero(mask)
    owners = clients.codes[rows]
    sizes = np.bincount(owners, minlength=len(clients.names))
    return ClientIndex(rows[np.argsort(owners, kind="stable")], np.concatenate([[0], np.cumsum(sizes)]))


def _labels(rows: Rows, task: Task) -> tuple[Labels, int, tuple[str, ...]]:
    """Return the labels, the number of a model's outputs, and the names of classes or outputs."""
    if not isinstance(rows.labels, Categories):
        columns = rows.labels.reshape(len(rows.labels), -1)
        if task == "multilabel" and (wrong := (columns != 0) & (columns != 1)).any():
            row, place = np.argwhere(wrong)[0].tolist()
            name = printable(rows.outputs[place]) if rows.outputs else f"y[:, {place}]"
            raise UserError(
                f"{rows.source}: {name} in row {row + rows.first_row} must be 0 or 1, as labels that are true "
                "together are (loss=bce); predict other numbers with loss=mse"
            )
        return columns, columns.shape[1], rows.outputs
    classes = rows.labels.in_order()
    num, num_rows = len(classes.names), len(classes.codes)
    if num < 2:
        raise UserError(f"{rows.source}: dataset.label must have two classes or more, got one; name another column")
    if num > max(MOST_CLASSES, num_rows / 2) or num > MAX_CLASSES:
        raise UserError(
            f"{rows.source}: dataset.label has {num:,} different values in {num_rows:,} rows, which are hardly "
            "classes; name another column, or predict numbers with loss=mse"
        )
    return classes.codes, num, classes.names
