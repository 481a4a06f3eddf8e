"""Data given as arrays in Python: examples with labels, and perhaps the client of each example."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.data import checks
from fedprox.data.federated import Integers, LabelledData, Task
from fedprox.errors import UserError

_FORMS = (
    "data must be (x, y), (x, y, clients), a mapping from client to (x, y), LabelledData, FederatedData, or a function "
    "that returns one of the last two"
)


@dataclass(frozen=True)
class OwnArrays:
    """Examples as given; `labelled` checks them.

    Attributes:
        features: Shape (n, *input_shape).
        labels: Shape (n,), or (n, outputs).
        clients: The client, 0, 1, ..., of each example, shape (n,); None if a partition is to divide them.
    """

    features: NDArray[Any]
    labels: NDArray[Any]
    clients: Integers | None
    _made: dict[Task, LabelledData] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_clients(self) -> int | None:
        """Number of clients; None if a partition is to divide the examples."""
        return None if self.clients is None else int(self.clients.max(initial=-1)) + 1

    @cached_property
    def task(self) -> Task:
        """What the labels are for if the loss does not say it: regression if any has a fraction."""
        with np.errstate(invalid="ignore"):
            has_fractions = self.labels.dtype.kind == "f" and bool((np.mod(self.labels, 1) > 0).any())
        return "regression" if has_fractions else "classification"

    def labelled(self, task: Task | None = None) -> LabelledData:
        """Return the examples, checked; for a task always the same object.

        Args:
            task: Of the loss; None if it has none, or that of classes.

        Raises:
            UserError: If they are not valid; the line names the array, the row and a remedy.
        """
        task = task or self.task
        if task not in self._made:
            self._made[task] = LabelledData.without_test_set(
                self.features, self.labels, self._num_outputs(task), task=task
            )
        return self._made[task]

    def _num_outputs(self, task: Task) -> int:
        if task != "classification":
            return self.labels.shape[1] if self.labels.ndim == 2 else 1
        finite = self.labels[np.isfinite(self.labels)]
        return max(1, int(finite.max(initial=0)) + 1)

    def partition(self) -> Callable[..., list[Integers]]:
        """Return the function that gives each client its own examples, as `partition=` calls it."""
        assert self.clients is not None
        order, sizes = np.argsort(self.clients, kind="stable"), np.bincount(self.clients)

        def own_clients(labels: Integers, num_clients: int, rng: np.random.Generator) -> list[Integers]:
            if num_clients != len(sizes):
                raise UserError(f"num_clients must be the data's own {len(sizes)}, got {num_clients}; leave it out")
            return np.split(order, np.cumsum(sizes)[:-1])

        return own_clients


def own_arrays(given: Any) -> OwnArrays:
    """Return data given as (x, y), (x, y, clients), or a mapping from client to (x, y).

    Clients are numbered in the order of the mapping, or of their sorted ids.

    Raises:
        UserError: If they have another form, or not as many labels or clients as examples.

    Examples:
        >>> own_arrays({"north": ([[1.0], [2.0]], [0, 1]), "south": ([[3.0]], [1])}).clients
        array([0, 0, 1])
        >>> own_arrays(([[1.0], [2.0], [3.0]], [0, 1, 1], ["b", "a", "b"])).clients
        array([1, 0, 1])
    """
    if isinstance(given, Mapping):
        return _of_clients(given)
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        length = f" of length {len(given)}" if isinstance(given, tuple | list) else ""
        raise UserError(f"{_FORMS}, got a {type(given).__name__}{length}; see docs/python.md")
    features, labels = _pair("", given[0], given[1])
    if len(given) == 2:
        return OwnArrays(features, labels, None)
    ids = np.asarray(given[2])
    if ids.shape != (len(features),):
        raise UserError(f"clients must have one id for each of {len(features)} examples, got shape {ids.shape}")
    return OwnArrays(features, labels, np.unique(ids, return_inverse=True)[1])


def _of_clients(given: Mapping[Any, Any]) -> OwnArrays:
    """Return the data of several clients, one after another."""
    if not given:
        raise UserError(f"{_FORMS}, got a mapping without clients; give each client (x, y)")
    pairs = []
    for client, pair in given.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError(f"{_FORMS}, got a {type(pair).__name__} for client {client!r}; give it (x, y)")
        pairs.append(_pair(f"client {client!r}: ", *pair))
    first = pairs[0]
    for client, pair in zip(given, pairs, strict=True):
        for name, own, other in zip(("features", "labels"), pair, first, strict=True):
            if own.shape[1:] != other.shape[1:]:
                raise UserError(
                    f"client {client!r}: {name} must have the shape of the first client's, {other.shape[1:]} for each "
                    f"example, got {own.shape[1:]}; prepare all clients' data in the same way"
                )
    sizes = [len(features) for features, _ in pairs]
    if not all(sizes):
        raise UserError(f"client {list(given)[sizes.index(0)]!r} has no example; leave it out of data")
    features, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return OwnArrays(features, labels, np.repeat(np.arange(len(sizes)), sizes))


def _pair(whose: str, x: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return features and labels as arrays with as many rows."""
    features, labels = checks.numbers(f"{whose}features", x), checks.numbers(f"{whose}labels", y)
    if not features.ndim or not labels.ndim or len(features) != len(labels):
        raise UserError(
            f"{whose}labels must have as many rows as features, got shapes {labels.shape} and {features.shape}; give "
            "one label for each example"
        )
    return features, labels
