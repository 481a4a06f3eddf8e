"""Files in LEAF's JSON format, read without conversion; any other form is refused.

A data set is a folder with train/*.json and test/*.json, each file {"users": [...], "num_samples": [...],
"user_data": {id: {"x": [...], "y": [...]}}}. A user there is a client here.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from fedprox.errors import UserError
from fedprox.storage import read_regular

SIDES = ("train", "test")
KEYS = {"users": list, "num_samples": list, "user_data": dict}
FIX = "fix the file, or prepare the data set again"

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class LeafExamples:
    """One client's examples in a file.

    Attributes:
        where: The file and the client's id, as errors name them.
        x: Inputs as in the JSON, at least one.
        y: Labels as in the JSON, as many as inputs.
    """

    where: str
    x: list[Any]
    y: list[Any]


def data_folder(path: str) -> Path:
    """Return the data set's folder, also for path=2024, of which Hydra makes a number.

    Raises:
        UserError: If the path is empty.
    """
    if not str(path).strip():
        raise UserError("dataset.path must name the folder of a LEAF data set, got nothing")
    return Path(os.path.expanduser(str(path)))  # Path.expanduser raises for an unknown ~name


def json_files(folder: Path, sides: Sequence[str] = SIDES) -> dict[str, list[Path]]:
    """Return the files of each side, sorted by name.

    Raises:
        UserError: If a side has none.
    """
    remedy = "set dataset.path= to the folder that holds train/*.json and test/*.json"
    if not folder.is_dir():
        raise UserError(f"{folder} must be the folder of a LEAF data set, but does not exist; {remedy}")
    files = {side: sorted(filter(_is_json, (folder / side).glob("*"))) for side in sides}
    for side in sides:
        if not files[side]:
            found = "has no .json file" if (folder / side).is_dir() else "does not exist"
            raise UserError(f"{folder / side} must hold LEAF's JSON files, but {found}; {remedy}")
    return files


def _is_json(file: Path) -> bool:
    """Return whether a file is a JSON file; ._x.json is macOS's metadata of x.json."""
    return file.suffix.lower() == ".json" and not file.name.startswith(".")


def read(
    files: Mapping[str, list[Path]], keep: Callable[[LeafExamples], Kept]
) -> tuple[tuple[str, ...], tuple[Kept, ...], tuple[Kept, ...]]:
    """Return the ids, sorted, and `keep` of each client's training and of each client's test examples.

    Raises:
        UserError: If there is no client, or a client is on one side only.
    """
    train, test = (read_side(files[side], keep) for side in SIDES)
    if not train and not test:
        raise UserError(f"{files['train'][0]} and all other files have no user; prepare the data set again")
    for here, there, side, other in ((train, test, "train", "test"), (test, train, "test", "train")):
        if alone := sorted(here.keys() - there.keys()):
            raise UserError(
                f"{files[other][0].parent}: user {alone[0]!r} ({len(alone)} in all) is in {side}/ but not here; "
                "split each user's examples in two (LEAF: preprocess.sh -t sample), not the users"
            )
    ids = tuple(sorted(train))
    return ids, tuple(train[user] for user in ids), tuple(test[user] for user in ids)


def read_side(files: list[Path], keep: Callable[[LeafExamples], Kept]) -> dict[str, Kept]:
    """Return `keep` of each client's examples by id; a file's JSON is dropped before the next file is read."""
    kept: dict[str, Kept] = {}
    for file in files:
        for user, examples in _clients_in(file):
            if user in kept:
                raise UserError(f"{examples.where} is in {file.parent} twice; merge its examples, or leave one out")
            kept[user] = keep(examples)
    return kept


def _clients_in(file: Path) -> Iterator[tuple[str, LeafExamples]]:
    """Yield each client's id and examples, and drop them afterwards.

    Raises:
        UserError: If the file does not have LEAF's form.
    """
    content = _parse(file)
    for key, kind in KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise UserError(
                f"{file} must be an object with the lists users and num_samples and the object user_data, "
                f"but {key} is missing or of another type; {FIX}"
            )
    users, sizes, user_data = (content[key] for key in KEYS)
    if wrong := [user for user in users if not isinstance(user, str)]:
        raise UserError(f"{file}: users must be strings, as in user_data, got {wrong[0]!r:.60}; {FIX}")
    if len(users) != len(sizes):
        raise UserError(f"{file} has {len(users)} users but {len(sizes)} num_samples; {FIX}")
    if unlisted := sorted(user_data.keys() - set(users)):
        raise UserError(f"{file}: user {unlisted[0]!r} is in user_data but not in users; {FIX}")
    seen = set()
    for user, size in zip(users, sizes, strict=True):
        where = f"{file}: user {user!r}"
        if user not in user_data and user not in seen:
            raise UserError(f"{where} is in users but not in user_data; {FIX}")
        if user in seen:
            raise UserError(f"{where} is in users twice; merge its examples, or leave one out")
        seen.add(user)
        yield user, _examples(where, user_data.pop(user), size)


def _examples(where: str, entry: Any, size: Any) -> LeafExamples:
    """Return one client's examples, after a check that there are as many x as y as num_samples says."""
    x, y = (entry.get(key) if isinstance(entry, dict) else None for key in "xy")
    if not (isinstance(x, list) and isinstance(y, list)):
        missing = "y" if isinstance(x, list) else "x"
        raise UserError(f"{where} must have the lists x and y, but {missing} is missing or not a list; {FIX}")
    if len(x) != len(y):
        raise UserError(f"{where} has {len(x)} x but {len(y)} y; {FIX}")
    if type(size) not in (int, float):
        raise UserError(f"{where}: num_samples must be numbers, got {size!r:.60}; {FIX}")
    if len(x) != size:
        raise UserError(f"{where} has {len(x)} examples, but num_samples says {size}; {FIX}")
    if not x:
        raise UserError(f"{where} has no example; leave it out of train/ and test/")
    return LeafExamples(where, x, y)


def _parse(file: Path) -> Any:
    """Return a file's JSON.

    Raises:
        UserError: If the file cannot be read or is not JSON.
    """
    try:
        content = read_regular(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); fix that or set dataset.path=") from error
    # Python's own parser is slower, but reads all that Python writes: nan, and halves of surrogate pairs.
    with suppress(ValueError):
        return orjson.loads(content)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} must be JSON, but is truncated or altered ({error}); copy or prepare it again"
        ) from error
