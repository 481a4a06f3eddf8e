"""Clients as the data set itself has them."""

import numpy as np

from fedprox.data.federated import Integers
from fedprox.errors import UserError


def natural(labels: Integers, num_clients: int, rng: np.random.Generator) -> list[Integers]:
    """Stand for the division that a data set brings along; such a data set never calls this.

    Raises:
        UserError: Always: the data set does not come divided.
    """
    raise UserError(
        "partition=natural is for data sets that come divided into clients, and this one does not; "
        "choose another, such as partition=power_law, iid or shards"
    )
