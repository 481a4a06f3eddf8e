"""Flower's partitioners, of its package flwr-datasets."""

import inspect
from typing import Any

import numpy as np

from fedprox.data.federated import Integers
from fedprox.errors import UserError


def flower(
    labels: Integers, num_clients: int, rng: np.random.Generator, partitioner: str, **settings: Any
) -> list[Integers]:
    """Divide examples by a partitioner of Flower's, such as DirichletPartitioner.

    It is made with `settings`, and with num_partitions (`num_clients`), partition_by (the labels) and seed (drawn from
    `rng`) as far as it takes them.

    Args:
        labels: Classes, shape (num_examples,).
        num_clients: Number of clients.
        rng: Draws the partitioner's seed.
        partitioner: Name of a class in flwr_datasets.partitioner.
        **settings: Its other arguments.

    Raises:
        UserError: If flwr-datasets is not installed, has no such partitioner, or that does not take the settings or
            makes another number of clients.
    """
    try:
        from datasets import Dataset
        from flwr_datasets import partitioner as known
    except ImportError as error:
        raise UserError(
            "partition=flower needs the package flwr-datasets; install it with pip install 'fedprox[huggingface]'"
        ) from error
    called = getattr(known, partitioner, None)
    if not (inspect.isclass(called) and issubclass(called, known.Partitioner)):
        names = ", ".join(name for name in known.__all__ if name != "Partitioner")
        raise UserError(f"partition.partitioner must be one of {names}, got {partitioner}; choose one")
    takes = inspect.signature(called).parameters
    if unknown := sorted(settings.keys() - takes.keys()):
        raise UserError(f"partition.{unknown[0]} is unknown: {partitioner} takes {', '.join(takes)}; leave it out")
    offered = {"num_partitions": num_clients, "partition_by": "label", "seed": int(rng.integers(2**32))}
    made: Any = called(**{name: value for name, value in offered.items() if name in takes} | settings)
    made.dataset = Dataset.from_dict({"label": labels, "position": np.arange(len(labels))})
    if made.num_partitions != num_clients:
        raise UserError(
            f"num_clients must be {made.num_partitions}, as {partitioner} makes of these settings, got {num_clients}; "
            "set it"
        )
    return [np.asarray(made.load_partition(client)["position"], dtype=np.int64) for client in range(num_clients)]
