"""Federated data: shared arrays of examples, and for each client a list of indices into them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fedprox.data import checks
from fedprox.data.fingerprint import digest
from fedprox.errors import UserError

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Features = NDArray[np.uint8] | Floats | Integers
Labels = Integers | Floats
Task = Literal["classification", "regression", "multilabel"]


@dataclass(frozen=True)
class LabelledData:
    """Examples that a partition will divide among clients.

    Lists, tensors, other types, byte orders and strides are converted to the arrays below; anything else is refused in
    one line (`fedprox.data.checks`).

    Attributes:
        features: Training examples, shape (num_examples, *input_shape), at least one: numbers as uint8 or float32,
            or token sequences as int64 with input_shape (length,). Other numbers become float32.
        labels: What a model is to predict, by the task: classes 0 .. num_classes - 1 as int64, shape (num_examples,);
            numbers (regression) or zeros and ones (multilabel) as float32, shape (num_examples, num_classes).
        test_features: The global test set, like `features`; empty if each client tests on its own examples.
        test_labels: Its labels.
        num_classes: Number of classes, and of a model's outputs; for other tasks than classification the latter alone.
        mean: Subtracted from the features to make model input; float32, broadcasts over input_shape; 0 for tokens.
        std: Divides them after that, > 0; 1 for tokens.
        class_names: Names of the classes, such as their folders, or of the outputs; empty if they are only numbers.
        task: "classification", "regression" or "multilabel".

    Examples:
        Lists are converted, and a label out of range is refused.

        >>> data = LabelledData([[0.5], [1.5]], [0, 1], [[2.5]], [1], num_classes=2, mean=0.0, std=0.5)
        >>> data.model_input(data.test_features)
        array([[5.]], dtype=float32)
        >>> LabelledData([[0.5], [1.5]], [0, 5], [[2.5]], [1], num_classes=2, mean=0.0, std=0.5)
        Traceback (most recent call last):
            ...
        fedprox.errors.UserError: labels must be between 0 and num_classes - 1 = 1, got 5 in row 1; ...
    """

    features: Features
    labels: Labels
    test_features: Features
    test_labels: Labels
    num_classes: int
    mean: Floats
    std: Floats
    class_names: tuple[str, ...] = ()
    task: Task = "classification"

    def __post_init__(self) -> None:
        """Convert the fields, or raise UserError."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in checks.examples(given).items():
            object.__setattr__(self, name, value)

    @classmethod
    def without_test_set(
        cls,
        features: Features,
        labels: Labels,
        num_classes: int,
        *,
        mean: Floats | float = 0.0,
        std: Floats | float = 1.0,
        class_names: tuple[str, ...] = (),
        task: Task = "classification",
    ) -> "LabelledData":
        """Return examples without a global test set; by default the model input is the features unchanged."""
        mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        return cls(features, labels, features[:0], labels[:0], num_classes, mean, std, class_names, task)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of everything here that decides a run's numbers; the class names do not."""
        names = ("features", "labels", "test_features", "test_labels", "mean", "std")
        what = str(self.num_classes) + (f" {self.task}" if self.task != "classification" else "")
        return digest({name: getattr(self, name) for name in names}, what)

    @property
    def classes(self) -> Integers:
        """The labels if they are classes.

        Raises:
            UserError: If they are not.
        """
        if self.task != "classification":
            raise UserError(f"the labels must be classes for this, got labels for {self.task}; use other data")
        return cast(Integers, self.labels)

    def model_input(self, features: Features) -> Floats | Integers:
        """Return (features - mean) / std as float32, same shape; tokens unchanged, int64."""
        if features.dtype == np.int64:
            return features.astype(np.int64, copy=False)  # integers, as embeddings take them
        if features.ndim == 4 and not features.flags.c_contiguous:  # images with channels last
            return self._normalised(features.transpose(0, 2, 3, 1), (1, 2, 0)).transpose(0, 3, 1, 2)
        return self._normalised(features)

    def _normalised(self, features: Features, axes: tuple[int, ...] = ()) -> Floats:
        """Return (features - mean) / std as float32; `axes` is the order of the features' axes after the first."""
        mean, std = self.mean, self.std
        if axes:  # broadcast to whole images: NumPy would loop over single pixels otherwise
            shape = self.features.shape[1:]
            mean, std = (np.ascontiguousarray(np.broadcast_to(each, shape).transpose(axes)) for each in (mean, std))
        model_input: Floats = np.subtract(features, mean, dtype=np.float32)
        model_input /= std
        return model_input


@dataclass(frozen=True)
class ClientIndex:
    """The examples that each client holds: client k has indices[offsets[k]:offsets[k + 1]]."""

    indices: Integers
    offsets: Integers

    def __post_init__(self) -> None:
        """Convert the fields, or raise UserError."""
        object.__setattr__(self, "indices", checks.positions("indices", self.indices))
        object.__setattr__(self, "offsets", checks.offsets(self.offsets, len(self.indices)))

    @classmethod
    def from_lists(cls, lists: Iterable[Any], name: str = "lists") -> "ClientIndex":
        """Return the index of clients 0, 1, ... from a list or an array of example numbers for each.

        Raises:
            UserError: If `lists` is anything else; the line begins with `name` and the client.
        """
        parts = checks.client_lists(name, lists)
        sizes = np.array([len(part) for part in parts], dtype=np.int64)
        indices = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return cls(indices, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> Integers:
        """Return the example numbers of one client."""
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    @cached_property
    def sizes(self) -> Integers:
        """Number of examples of each client (n_k), shape (num_clients,); read-only."""
        sizes = np.diff(self.offsets)
        sizes.flags.writeable = False
        return sizes


@dataclass(frozen=True)
class FederatedData:
    """Labelled data divided among clients; every example belongs to at most one of them.

    Attributes:
        examples: The shared arrays.
        train: Each client's training examples, as positions in `examples.features`.
        held_out: Each client's own test examples, as positions, too; may be empty.
        client_ids: The clients' unique names in the files or in the authors' program; empty if they are only numbers.
    """

    examples: LabelledData
    train: ClientIndex
    held_out: ClientIndex
    client_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Convert lists of lists to client indices; raise UserError if a rule is broken."""
        if not isinstance(self.examples, LabelledData):
            kind = type(self.examples).__name__
            raise UserError(f"FederatedData's examples must be LabelledData, got a {kind}; make that of them first")
        for side in ("train", "held_out"):
            if not isinstance(lists := getattr(self, side), ClientIndex):
                object.__setattr__(self, side, ClientIndex.from_lists(lists, side))
        indices = {side: getattr(self, side) for side in ("train", "held_out")}
        checks.check_clients(
            {side: (each.indices, each.offsets) for side, each in indices.items()}, len(self.examples.labels)
        )
        object.__setattr__(self, "client_ids", checks.client_ids(self.client_ids, self.num_clients))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the examples' fingerprint, the clients' training and held-out examples, and their ids."""
        indices = {"train": self.train, "held_out": self.held_out}
        arrays = {
            f"{side}.{name}": getattr(each, name) for side, each in indices.items() for name in ("indices", "offsets")
        }
        return digest(arrays, json.dumps([self.examples.fingerprint, self.client_ids]))

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return len(self.train)

    @property
    def num_left_over(self) -> int:
        """Number of examples in `examples.features` that no client holds."""
        return len(self.examples.labels) - len(self.train.indices) - len(self.held_out.indices)

    def client_examples(self, client: int) -> tuple[Floats | Integers, Labels]:
        """Return one client's training examples as model input (n_k, *input_shape), and labels (n_k, ...)."""
        features, labels = self.stored_examples(client)
        return self.examples.model_input(features), labels

    def stored_examples(self, client: int) -> tuple[Features, Labels]:
        """Return the same features as stored, before they become model input, and the labels."""
        positions = self.train[client]
        return self.examples.features[positions], self.examples.labels[positions]

    def client_held_out(self, client: int) -> tuple[Floats | Integers, Labels]:
        """Return one client's held-out examples as model input, and their labels."""
        positions = self.held_out[client]
        return self.examples.model_input(self.examples.features[positions]), self.examples.labels[positions]

    def test_examples(self) -> tuple[Floats | Integers, Labels]:
        """Return the global test set, or without one all clients' held-out examples in client order."""
        if len(self.examples.test_labels):
            return self.examples.model_input(self.examples.test_features), self.examples.test_labels
        return self.held_out_examples()

    def held_out_examples(self) -> tuple[Floats | Integers, Labels]:
        """Return all clients' held-out examples in client order as model input (n, *input_shape), and labels."""
        positions = self.held_out.indices
        return self.examples.model_input(self.examples.features[positions]), self.examples.labels[positions]


def authors_ids(num_clients: int) -> tuple[str, ...]:
    """Return f_00000, f_00001, ..., the names of clients in the authors' generators."""
    return tuple(f"f_{client:05d}" for client in range(num_clients))


def divide(
    data: LabelledData, parts: list[Integers], rng: np.random.Generator, *, hold_out: float = 0.1
) -> FederatedData:
    """Return the data divided among clients, each one's examples shuffled and then split in two.

    Args:
        data: The examples that `parts` points into.
        parts: Positions of each client's examples, from a partition.
        rng: Shuffles each client's examples, in the order of the clients.
        hold_out: Share of its examples that a client tests on, in [0, 1); see `split`.

    Raises:
        UserError: If `hold_out` is out of its range.
    """
    train, held_out = split([rng.permutation(part) for part in parts], hold_out)
    return FederatedData(data, train, held_out, authors_ids(len(parts)))


def split(parts: list[Integers], hold_out: float) -> tuple[ClientIndex, ClientIndex]:
    """Return each client's training examples and its held-out ones, without reordering them.

    The first int((1 - hold_out) * n) of a client's n examples are for training, but at least one; the
    rest is held out. hold_out = 0.1 gives int(0.9 * n), as in the authors' generators.

    Args:
        parts: Positions of each client's examples.
        hold_out: In [0, 1); 0 holds nothing out.

    Raises:
        UserError: If `hold_out` is out of its range.

    Examples:
        >>> train, held_out = split([np.arange(10), np.arange(10, 14)], hold_out=0.25)
        >>> train[1].tolist(), held_out[1].tolist()
        ([10, 11, 12], [13])
    """
    if not 0 <= hold_out < 1:
        raise UserError(f"hold_out must be >= 0 and < 1, got {hold_out}; the paper holds 0.1 out")
    cuts = [max(1, int((1 - hold_out) * len(part))) for part in parts]
    train = [part[:cut] for part, cut in zip(parts, cuts, strict=True)]
    held_out = [part[cut:] for part, cut in zip(parts, cuts, strict=True)]
    return ClientIndex.from_lists(train), ClientIndex.from_lists(held_out)
