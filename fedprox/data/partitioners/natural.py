"""Clients that the data set itself defines."""

import numpy as np

from fedprox.data.federated import Integers
from fedprox.data.partitioners.iid import iid
from fedprox.errors import UserError

NUM_CLIENTS = 10  # the default of `natural_or_iid`


def natural(labels: Integers, num_clients: int, rng: np.random.Generator) -> list[Integers]:
    """Stand for a data set's own division into clients; a divided data set never calls this.

    Raises:
        UserError: Always: the data set is not divided.
    """
    raise UserError(
        "partition=natural is for data sets that come divided into clients, and this one does not; "
        "choose another, such as partition=power_law, iid or shards"
    )


def natural_or_iid(labels: Integers, num_clients: int, rng: np.random.Generator) -> list[Integers]:
    """Divide a data set that does not come divided as `iid` does; a divided data set never calls this.

    Args:
        labels: One for each example.
        num_clients: Number of clients.
        rng: The only randomness.
    """
    return iid(labels, num_clients, rng)
