"""Clients that the data set itself defines."""

import numpy as np

from fedprox.data.federated import Integers
from fedprox.errors import UserError


def natural(labels: Integers, num_clients: int, rng: np.random.Generator) -> list[Integers]:
    """Stand for a data set's own division into clients; a divided data set never calls this.

    Raises:
        UserError: Always: the data set is not divided.
    """
    raise UserError(
        "partition=natural is for data sets that come divided into clients, and this one does not; "
        "choose another, such as partition=power_law, iid or shards"
    )
