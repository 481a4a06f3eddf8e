"""Data sets of Hugging Face's library datasets, from the folders that save_to_disk writes."""

import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from fedprox.data.federated import FederatedData, LabelledData, Task
from fedprox.data.sources.categories import Categories
from fedprox.data.sources.image_files import SIDES, TEST_SIDES
from fedprox.data.sources.own_files import checked_features
from fedprox.data.sources.own_rows import Rows, assembled, joined
from fedprox.errors import UserError, one_line, printable

if TYPE_CHECKING:
    from fedprox.data.sources.frames import Roles


def hugging_face(
    path: str,
    seed: int,
    label: str | list[str] = "label",
    client: str | None = None,
    features: list[str] | None = None,
    ignore: list[str] | None = None,
    test_fraction: float | None = None,
    normalise: bool = True,
    task: Task = "classification",
) -> LabelledData | FederatedData:
    """Return a data set that was saved on disk; nothing is downloaded. It needs the package datasets.

    Features are one column of images or of arrays, or any number of columns of numbers. Test rows are those of the
    split test or, without it, validation; without either they are drawn. Other splits are left out.

    Args:
        path: The folder that `save_to_disk` of a Dataset or a DatasetDict has written.
        seed: Draws the test rows if there is no split of them.
        label: As in `fedprox.data.sources.own_files.csv`.
        client: Likewise.
        features: Likewise.
        ignore: Likewise.
        test_fraction: Likewise.
        normalise: Likewise.
        task: What the labels are; from the loss.

    Raises:
        UserError: If datasets is not installed, a setting is wrong, or a column does not fit its role.
    """
    from fedprox.data.sources import frames

    source = _library()
    folder = os.path.expanduser(path)
    try:
        loaded = source.load_from_disk(folder)
    except Exception as error:  # whatever a damaged data set raises
        raise UserError(
            f"dataset.path={path} cannot be read: {one_line(error)}; name a folder that save_to_disk has written"
        ) from error
    splits = loaded if isinstance(loaded, source.DatasetDict) else {"train": loaded}
    sides = {SIDES.get(name.lower(), name): split for name, split in splits.items()}
    if "train" not in sides:
        raise UserError(f"dataset.path={path} must have the split train, got {printable(', '.join(splits))}")
    roles = frames.Roles.of(label, client, None, features, ignore, task)
    rows = _rows(f"{Path(folder).name}/train", sides["train"], roles)
    if test := next((side for side in TEST_SIDES if side in sides), None):
        roles = replace(roles, client_is_optional=True)
        rows = joined(rows, _rows(f"{Path(folder).name}/{test}", sides[test], roles))
    return assembled(rows, seed=seed, test_fraction=test_fraction, normalise=normalise, task=task)


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "dataset=hugging_face needs the package datasets; install it with pip install 'fedprox[huggingface]'"
        ) from error
    library: ModuleType = datasets
    return library


def _rows(source: str, split: Any, roles: "Roles") -> Rows:
    """Return the rows of one split."""
    from fedprox.data.sources import frames

    file = Path(source)
    roles = roles.found_in(file, split.column_names)
    columns = roles.features or ()
    is_array = len(columns) == 1 and type(split.features[columns[0]]).__name__ != "Value"
    named = [name for _, name in roles.given if name not in roles.ignore and not (is_array and name in columns)]
    frame = frames.frame_of(
        file, split.select_columns(named).to_pandas(), replace(roles, features=()) if is_array else roles
    )
    features = frame.features
    if is_array:
        features = checked_features(file.name, np.asarray(split.with_format("numpy")[:][columns[0]]))
    names = {name: _as_named(source, split.features[name], each) for name, each in frame.names.items()}
    return Rows(
        source,
        features,
        names[roles.label[0]] if roles.has_classes else frame.labels,
        () if roles.has_classes else roles.label,
        names.get(roles.client or ""),
    )


def _as_named(source: str, feature: Any, column: Categories) -> Categories:
    """Return a column's names: those that a ClassLabel has for its numbers, of which -1 is a missing one."""
    if not hasattr(feature, "int2str"):
        return column
    if "-1" in column.names:
        row = int((column.codes == column.names.index("-1")).argmax()) + 1
        raise UserError(f"{source}: row {row} has no label; leave the row or the split out")
    return Categories.of(column.codes, feature.int2str([int(name) for name in column.names]))
