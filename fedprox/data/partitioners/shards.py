"""Examples sorted by label and dealt in shards (McMahan et al. 2017)."""

import numpy as np

from fedprox.data.federated import Integers
from fedprox.data.partitioners.sizes import check_num_clients
from fedprox.errors import UserError


def shards(
    labels: Integers, num_clients: int, rng: np.random.Generator, *, shards_per_client: int = 2
) -> list[Integers]:
    """Sort by label, cut into equal shards and deal each client some of them (McMahan et al. 2017, sec. 3).

    Args:
        labels: Classes, shape (num_examples,).
        num_clients: Number of clients, between 1 and num_examples // shards_per_client.
        rng: Deals the shards.
        shards_per_client: Shards of each client, >= 1; shard sizes differ by at most one.

    Raises:
        UserError: If a setting breaks its rule, or a shard would have no example.
    """
    if shards_per_client < 1:
        raise UserError(f"shards_per_client must be >= 1, got {shards_per_client}; the FedAvg paper has 2")
    largest = len(labels) // shards_per_client
    check_num_clients(num_clients, largest, "ask for fewer clients or lower shards_per_client")
    num_shards = num_clients * shards_per_client
    cut = np.array_split(np.argsort(labels, kind="stable"), num_shards)
    dealt = rng.permutation(num_shards).reshape(num_clients, shards_per_client).tolist()
    return [np.concatenate([cut[shard] for shard in hand]) for hand in dealt]
