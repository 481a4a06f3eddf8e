"""Checks of all data: arrays and client indices are converted or refused when they are made.

Whatever a data set, a user's function or a file gives passes through here once, when `LabelledData`, `ClientIndex` and
`FederatedData` are made. Compiled code then reads the arrays without checking bounds, so there must be no way around
these checks. docs/data.md says what is accepted. The file is long because the checks share their conversions.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.errors import UserError, one_line, printable

MAX_CLASSES = 1_000_000  # a model has an output for each class
SHOWN = 60  # characters of a wrong value
FLOAT32_MAX = float(np.finfo(np.float32).max)
TASKS = ("classification", "regression", "multilabel")
NUMERIC = "biuf"  # NumPy's kinds: bool, signed and unsigned integers, floats

Array = NDArray[Any]
Integers = NDArray[np.int64]


def examples(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of LabelledData, converted to the types that its docstring promises.

    Args:
        given: The fields by name, of any type.

    Raises:
        UserError: If a field breaks its rule; the line names the array, the row, the value and a remedy.
    """
    num_classes, task = _num_classes(given["num_classes"]), given["task"]
    if task not in TASKS:
        raise UserError(f"task must be {', '.join(TASKS[:-1])} or {TASKS[-1]}, got {shown(task)}; name one of them")
    features = _features("features", given["features"])
    if not len(features):
        raise UserError("features must have at least one example, got none; check that the data set is not empty")
    test_features = _test_features(given["test_features"], features)
    mean, std = (_statistic(name, given[name], features.shape[1:]) for name in ("mean", "std"))
    for name, array in (("features", features), ("test_features", test_features)):
        _check_model_input(name, array, mean, std)
    return {
        "features": features,
        "labels": _labels("labels", given["labels"], len(features), num_classes, task),
        "test_features": test_features,
        "test_labels": _labels("test_labels", given["test_labels"], len(test_features), num_classes, task),
        "mean": mean,
        "std": std,
        "num_classes": num_classes,
        "class_names": _names("class_names", given["class_names"], "class", num_classes),
        "task": task,
    }


def positions(name: str, value: Any) -> Integers:
    """Return example numbers as int64, shape (n,).

    Args:
        name: Their name in errors, such as "train: client 3".
        value: Integers, or floats without a fraction; a mask of bool is not accepted.

    Raises:
        UserError: If it is anything else.
    """
    array = numbers(name, value)
    if array.ndim != 1:
        raise UserError(f"{name} must be a list of example numbers, got shape {array.shape}; give one axis")
    if not array.size:
        return np.empty(0, dtype=np.int64)
    if array.dtype.kind == "b":
        raise UserError(f"{name} must be example numbers, got a mask of bool; give numpy.flatnonzero(mask)")
    return _whole(name, array, "must be integers, the numbers of examples")


def client_lists(name: str, value: Any) -> list[Integers]:
    """Return the example numbers of clients 0, 1, ..., given as any iterable of lists or arrays.

    Raises:
        UserError: If it is anything else.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise UserError(
            f"{name} must be a list with an array of example numbers for each client, got {_kind(value)}; "
            "see docs/data.md"
        )
    return [
        part
        if type(part) is np.ndarray and part.dtype == np.int64 and part.ndim == 1  # fast for 100,000 clients
        else positions(f"{name}: client {client}", part)
        for client, part in enumerate(value)
    ]


def offsets(value: Any, num_indices: int) -> Integers:
    """Return the offsets between which each client's indices lie, shape (num_clients + 1,).

    Raises:
        UserError: If they do not rise from 0 to the number of indices.
    """
    array = positions("offsets", value)
    if not len(array) or array[0] != 0 or array[-1] != num_indices or (np.diff(array) < 0).any():
        raise UserError(
            f"offsets must rise from 0 to the number of indices, {num_indices}, got {shown(array.tolist())}; "
            "use ClientIndex.from_lists"
        )
    return array


def check_clients(parts: Mapping[str, tuple[Integers, Integers]], num_examples: int) -> None:
    """Raise UserError unless every example number exists and belongs to one client only.

    Args:
        parts: Indices and offsets by name, such as "train" and "held_out".
        num_examples: Number of examples.
    """
    (one, (_, own)), *others = parts.items()
    if len(own) < 2:
        raise UserError(f"{one} must have a list of examples for at least one client, got none; give one for each")
    for other, (_, ends) in others:
        if len(ends) != len(own):
            raise UserError(
                f"{other} must have as many clients as {one}, {len(own) - 1}, got {len(ends) - 1}; give an empty list "
                "to each client without such examples"
            )
    for name, (indices, ends) in parts.items():
        wrong = (indices < 0) | (indices >= num_examples)
        if wrong.any():
            place = int(wrong.argmax())
            raise UserError(
                f"{name}: client {_owner(ends, place)} holds example {indices[place]}, but the examples are "
                f"0 to {num_examples - 1}; number them by their rows in features"
            )
    counts = np.bincount(np.concatenate([indices for indices, _ in parts.values()]), minlength=num_examples)
    if counts.max() > 1:
        raise _shared(parts, int(counts.argmax()))


def client_ids(value: Any, num_clients: int) -> tuple[str, ...]:
    """Return the clients' names as text.

    Raises:
        UserError: If there are not as many as clients, or two are the same.
    """
    ids = _names("client_ids", value, "client", num_clients)
    if len(set(ids)) < len(ids):
        twice = next(each for place, each in enumerate(ids) if each in ids[:place])
        raise UserError(f"client_ids must be unique, got {shown(twice)} twice; give each client its own name")
    return ids


def parts(value: Any, num_examples: int, num_clients: int, source: str) -> list[Integers]:
    """Return each client's example numbers as a partition returned them.

    Args:
        value: What the partition returned.
        num_examples: Number of examples to divide.
        num_clients: Number of clients asked for.
        source: The partition, for errors: "partition._target_=my_partition.halves".

    Raises:
        UserError: If there is no list for each client, one is empty, or two clients share an example.
    """
    given = client_lists(source, value)
    if len(given) != num_clients:
        raise UserError(
            f"{source} must return {num_clients} arrays, one for each client, got {len(given)}; fix the function"
        )
    sizes = np.array([len(part) for part in given])
    if not sizes.all():
        raise UserError(
            f"{source} must give every client an example, but client {sizes.argmin()} has none; lower num_clients"
        )
    ends = np.concatenate([[0], np.cumsum(sizes)])
    check_clients({source: (np.concatenate(given), ends)}, num_examples)
    return given


def check_between(name: str, value: float, least: float, most: float, remedy: str) -> None:
    """Raise UserError unless least <= value <= most, which nan never meets."""
    if not least <= value <= most:
        raise UserError(f"{name} must be between {least:g} and {most:g}, got {value}; {remedy}")


def _num_classes(value: Any) -> int:
    """Return the number of classes; 10.0 and arrays of one integer are accepted, too."""
    try:
        is_whole_float = isinstance(value, (float, np.floating)) and value.is_integer()
        number = int(value) if is_whole_float else operator.index(value)
    except Exception:  # whatever __index__ of an unknown type raises
        number = 0
    if isinstance(value, (bool, np.bool_)) or not 1 <= number <= MAX_CLASSES:
        raise UserError(
            f"num_classes must be an integer between 1 and {MAX_CLASSES:,}, got {shown(value)}; count the classes"
        )
    return number


def _features(name: str, value: Any) -> Array:
    """Return features as uint8, int64 (tokens) or float32, finite, shape (n, *input_shape)."""
    array = numbers(name, value)
    if array.ndim < 2 or 0 in array.shape[1:]:
        remedy = "give features[:, None]" if array.ndim == 1 else "give each example at least one number"
        raise UserError(f"{name} must have shape (num_examples, *input_shape), got {array.shape}; {remedy}")
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        return _tokens(name, array)
    return _laid_out(array if array.dtype == np.uint8 else floats(name, array))


def _tokens(name: str, array: Array) -> Array:
    """Return token sequences as int64."""
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        place = _first((array < 0) | (array > np.iinfo(np.int64).max))
        raise UserError(
            f"int64 {name} are token sequences and must be >= 0, got {array[place]} in row {place[0]}; "
            "give other numbers as float32, such as features.astype('float32')"
        )
    return np.require(array, np.int64, ["C", "A", "W"])  # torch warns about read-only arrays


def floats(name: str, array: Array) -> Array:
    """Return an array as float32, or raise UserError unless it is finite in that."""
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        converted = array.astype(np.float32, order="K", copy=False)
        # min and max are nan if any number is: a mask of all numbers would cost a quarter of their memory
        if converted.size and not (np.isfinite(converted.min()) and np.isfinite(converted.max())):
            place = _first(~np.isfinite(converted))
            raise UserError(
                f"{name} must be finite in float32, got {shown(array[place])}{_in_row(place)}; leave out or replace "
                "such values"
            )
    return converted


def _laid_out(array: Array) -> Array:
    """Return an array in C order, or images with channels last as decoders make them; copy any other order."""
    images = array.ndim == 4 and array.transpose(0, 2, 3, 1).flags.c_contiguous
    return np.require(array, requirements=["A"] if images else ["A", "C"])


def _test_features(value: Any, features: Array) -> Array:
    """Return the test features in the type and input shape of the training features."""
    array = numbers("test_features", value)
    if array.ndim and not len(array):
        return np.empty((0, *features.shape[1:]), dtype=features.dtype)
    if features.dtype == np.int64:
        if array.dtype.kind not in "iu":
            raise UserError(
                f"test_features must be token sequences like features, 64-bit integers, got {array.dtype}; "
                "give both as integers, or both as float32"
            )
        array = array.astype(np.int64)
    elif array.dtype.kind in "iu" and array.dtype != np.uint8:
        array = array.astype(np.float32)  # not tokens, as the training features are not
    array = _features("test_features", array)
    if array.shape[1:] != features.shape[1:]:
        raise UserError(
            f"test_features must have the input shape of features, {features.shape[1:]}, got {array.shape[1:]}; "
            "prepare both in the same way"
        )
    return array


def _labels(name: str, value: Any, num_examples: int, num_classes: int, task: str) -> Array:
    """Return labels in the form of their task; see `LabelledData`."""
    if task == "classification":
        return labels(name, value, num_examples, num_classes)
    array = numbers(name, value)
    if array.ndim < 2 and num_classes == 1:
        array = array.reshape(-1, 1)
    if array.ndim and not len(array):
        array = array.reshape(0, num_classes)
    if array.shape != (num_examples, num_classes):
        raise UserError(
            f"{name} must have shape {(num_examples, num_classes)} for {task}, a row for each example and a column for "
            f"each output, got {array.shape}; set num_classes to the number of outputs"
        )
    if task == "multilabel" and (wrong := (array != 0) & (array != 1)).any():
        place = _first(wrong)
        raise UserError(
            f"{name} must be 0 or 1 for multilabel, got {shown(array[place])} in row {place[0]}, column {place[1]}; "
            "give a column for each label, 1 where an example has it"
        )
    return np.require(floats(name, array), np.float32, ["C", "A", "W"])


def labels(name: str, value: Any, num_examples: int, num_classes: int) -> Integers:
    """Return labels as int64, shape (num_examples,), all between 0 and num_classes - 1, or raise UserError."""
    array = numbers(name, value)
    if array.ndim and not len(array):
        array = array.reshape(-1)
    if array.ndim != 1:
        remedy = "give one number for each example"
        if array.ndim == 2 and array.shape[1] == 1:
            remedy = f"give {name}[:, 0]"
        elif array.ndim == 2:
            remedy = f"give {name}.argmax(axis=1) if they are one-hot"
        raise UserError(f"{name} must have one axis, got shape {array.shape}; {remedy}")
    if len(array) != num_examples:
        features = name.replace("labels", "features")
        raise UserError(
            f"{name} must have as many rows as {features}, {num_examples}, got {len(array)}; give one for each example"
        )
    whole = _whole(name, array, f"must be integers, the classes 0 to {num_classes - 1}")
    if len(whole) and not 0 <= whole.min() <= whole.max() < num_classes:
        raise _outside(name, whole, num_classes)
    return whole


def _outside(name: str, labels: Integers, num_classes: int) -> UserError:
    """Return the error for the first label that is not a class."""
    row = int(((labels < 0) | (labels >= num_classes)).argmax())
    least, most = int(labels.min()), int(labels.max())
    remedy = "number the classes from 0"
    if most - least < num_classes:  # all would fit if they were shifted
        remedy += f": {'subtract' if least > 0 else 'add'} {abs(least)}"
    elif least >= 0 and most < MAX_CLASSES:
        remedy += f", or set num_classes={most + 1}"
    return UserError(
        f"{name} must be between 0 and num_classes - 1 = {num_classes - 1}, got {labels[row]} in row {row}; {remedy}"
    )


def _whole(name: str, array: Array, rule: str) -> Integers:
    """Return integers, or floats without a fraction, as int64 in memory that may be written."""
    with np.errstate(invalid="ignore"):  # nan and infinity become some integer, from which they differ
        whole = np.require(array, np.int64, ["C", "A", "W"])
    if array.dtype.kind in "fu" and (wrong := whole != array).any():
        row = int(wrong.argmax())
        raise UserError(f"{name} {rule}, got {shown(array[row])} in row {row}; round them first, or fix their source")
    return whole


def _statistic(name: str, value: Any, input_shape: tuple[int, ...]) -> Array:
    """Return mean or std as float32 that broadcasts over the input shape."""
    array = floats(name, numbers(name, value))
    try:
        fits = np.broadcast_shapes(array.shape, input_shape) == input_shape
    except ValueError:
        fits = False
    if not fits:
        raise UserError(
            f"{name} must be one number or broadcast over the input shape {input_shape}, got shape {array.shape}; give "
            "one number for all, or one for each channel or pixel"
        )
    if name == "std" and array.size and array.min() <= 0:
        place = _first(array <= 0)
        where = f" at position {place if len(place) > 1 else place[0]}" if place else ""
        raise UserError(f"std must be > 0, got {array[place]:g}{where}; give 1 for what never varies")
    return np.require(array, requirements=["A", "C"])


def _check_model_input(name: str, features: Array, mean: Array, std: Array) -> None:
    """Raise UserError if (x - mean) / std may overflow float32, or if tokens have a mean."""
    if features.dtype == np.int64:
        if np.any(mean != 0) or np.any(std != 1):
            raise UserError(
                "int64 features are token sequences and must have mean 0 and std 1, got "
                f"{shown(mean)} and {shown(std)}; give features that are not tokens as uint8 or float32"
            )
    elif features.size:
        largest = 255.0 if features.dtype == np.uint8 else max(-float(features.min()), float(features.max()))
        bound = (largest + float(np.abs(mean).max())) / float(std.min())
        if bound > FLOAT32_MAX:
            raise UserError(
                f"({name} - mean) / std must be finite in float32, but may reach {bound:.3g}; give the mean and std of "
                "the features"
            )


def _names(name: str, value: Any, owner: str, num: int) -> tuple[str, ...]:
    """Return names as text: one for each of `num`, or none at all."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UserError(f"{name} must be a list of names, got {shown(value)}; give a name to each {owner}, or none")
    names = tuple(map(str, value))
    if names and len(names) != num:
        raise UserError(f"{name} must have {num} names, one for each {owner}, got {len(names)}; give all, or none")
    return names


def numbers(name: str, value: Any) -> Array:
    """Return an array of numbers from a list, a tensor or an array, copied only if need be, or raise UserError."""
    if (place := _masked(value)) is not None:
        where = _in_row(place)
        raise UserError(f"{name} must have all values, got a masked one{where}; leave such examples out or fill them")
    try:
        array = np.asarray(_without_torch(value))
        if array.dtype.kind == "O":
            array = np.asarray(array.tolist())  # Python's own numbers
    except Exception as error:  # lists of unequal lengths, and whatever an unknown type raises
        raise UserError(
            f"{name} must be an array, a list or a tensor of numbers, all rows of one shape, got "
            f"{_unequal(value) or f'{_kind(value)} that NumPy does not take: {one_line(error)}'}"
        ) from error
    if array.dtype.kind in NUMERIC:
        return array
    if array.size:
        raise _not_numbers(name, value, array)
    return array.astype(np.float64)


def _masked(value: Any) -> tuple[int, ...] | None:
    """Return the index of the first masked value, of which NumPy would take the data; None if there is none."""
    if isinstance(value, (list, tuple)):
        for row, part in enumerate(value):
            if isinstance(part, (list, tuple, np.ma.MaskedArray)) and (place := _masked(part)) is not None:
                return row, *place
        return None
    return _first(np.ma.getmaskarray(value)) if np.ma.is_masked(value) else None


def _unequal(value: Any) -> str:
    """Return the first row of a list that has another length than row 0, as errors name it; "" if there is none."""
    if not isinstance(value, (list, tuple)):
        return ""
    lengths = [f"of length {len(part)}" if hasattr(part, "__len__") else "of no length" for part in value]
    row = next((row for row, length in enumerate(lengths) if length != lengths[0]), 0)
    return f"row {row} {lengths[row]} and row 0 {lengths[0]}" if row else ""


def _without_torch(value: Any) -> Any:
    """Return a torch tensor, on any device and with or without a gradient, or a list of tensors, as arrays."""
    if isinstance(value, (list, tuple)) and any(hasattr(each, "detach") for each in value):
        return [_without_torch(each) for each in value]
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    is_narrow = tensor.is_floating_point() and tensor.element_size() < 4  # NumPy does not have bfloat16
    return (tensor.float() if is_narrow else tensor).numpy()


def _not_numbers(name: str, value: Any, array: Array) -> UserError:
    """Return the error for an array of text, objects, complex numbers, dates, ..."""
    if array.ndim == 0:
        return UserError(
            f"{name} must be an array, a list or a tensor of numbers, got {_kind(value)}; make an array of it"
        )
    rows = value if isinstance(value, (list, tuple)) else array.tolist()
    row, wrong = next(((row, each) for row, part in enumerate(rows) for each in _not_real(part)), (0, array.flat[0]))
    remedy = "convert them, such as with astype('float32')"
    if "labels" in name:
        remedy = "number the classes from 0, such as with numpy.unique(labels, return_inverse=True)[1]"
    kind = array.dtype if array.dtype.kind != "U" else "text"
    return UserError(f"{name} must be numbers, got {shown(wrong)} ({kind}) in row {row}; {remedy}")


def _not_real(value: Any) -> Iterator[Any]:
    """Yield the values that are not real numbers, however deep in lists."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _not_real(each)
    elif not isinstance(value, Real):
        yield value


def _shared(parts: Mapping[str, tuple[Integers, Integers]], example: int) -> UserError:
    """Return the error for an example that is listed twice."""
    holders = [
        f"client {_owner(ends, place)}" + f" ({name})" * (len(parts) > 1)
        for name, (indices, ends) in parts.items()
        for place in np.flatnonzero(indices == example)[:2].tolist()
    ]
    prefix = "" if len(parts) > 1 else f"{next(iter(parts))}: "
    return UserError(
        f"{prefix}each example must belong to one client, and only once, but example {example} belongs to {holders[0]} "
        f"and to {holders[1]}; leave it out of one, or repeat it in features and labels"
    )


def _owner(ends: Integers, place: int) -> int:
    """Return the client that a place in the indices belongs to."""
    return int(np.searchsorted(ends, place, side="right")) - 1


def _first(wrong: Array) -> tuple[int, ...]:
    """Return the index of the first True in an array of bool."""
    return tuple(int(each) for each in np.unravel_index(int(wrong.argmax()), wrong.shape))


def _in_row(place: tuple[int, ...]) -> str:
    return f" in row {place[0]}" if place else ""


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def shown(value: Any) -> str:
    """Return a value for an error message, at most 60 printable characters."""
    if isinstance(value, np.generic | np.ndarray) and value.size == 1:
        value = value.item()
    try:
        text = printable(repr(value))
    except Exception:  # whatever __repr__ of an unknown type raises
        text = _kind(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
