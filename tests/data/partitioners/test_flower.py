"""Flower's partitioners divide all examples, as the seed says."""

import numpy as np
import pytest

from fedprox.data.partitioners.flower import flower
from fedprox.errors import UserError

pytest.importorskip("flwr_datasets")
LABELS = np.arange(200) % 4
PARTITIONERS = {
    "IidPartitioner": {},
    "DirichletPartitioner": {"alpha": 3.0},
    "PathologicalPartitioner": {"num_classes_per_partition": 2},
    "ShardPartitioner": {"num_shards_per_partition": 2},
    "LinearPartitioner": {},
}


def divided(partitioner, num_clients=5, seed=0, **settings):
    return flower(LABELS, num_clients, np.random.default_rng(seed), partitioner, **settings)


@pytest.mark.parametrize(("partitioner", "settings"), PARTITIONERS.items())
def test_every_example_goes_to_one_client(partitioner, settings):
    parts = divided(partitioner, **settings)
    assert len(parts) == 5
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))


def test_the_seed_decides_and_settings_count():
    def skewed(**settings):
        return [part.tolist() for part in divided("DirichletPartitioner", **settings)]

    assert skewed(alpha=3.0) == skewed(alpha=3.0) != skewed(alpha=3.0, seed=1)
    assert skewed(alpha=3.0) != skewed(alpha=100.0)


def test_unknown_partitioners_and_settings_and_another_number_of_clients_are_refused():
    with pytest.raises(UserError, match=r"must be one of .*DirichletPartitioner.*, got Dirichlet; choose one"):
        divided("Dirichlet")
    with pytest.raises(UserError, match=r"partition\.alpha is unknown: IidPartitioner takes num_partitions"):
        divided("IidPartitioner", alpha=3.0)
    with pytest.raises(
        UserError, match="num_clients must be 4, as NaturalIdPartitioner makes of these settings, got 5"
    ):
        divided("NaturalIdPartitioner")
