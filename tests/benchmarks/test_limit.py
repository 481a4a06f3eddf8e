"""Counted arithmetic of W1."""

import pytest

from benchmarks.export import composed, prepared
from benchmarks.limit import gflop, gflop_per_s


def test_training_counts_four_and_evaluation_two_operations_per_weight_and_example():
    config = composed(
        ["dataset=digits", "num_clients=50", "num_rounds=3", "num_epochs=2", "stragglers_fraction=0.0", "engine=local"]
    )
    data, plan = prepared(config)
    cohorts = [[task.client for task in plan.tasks(t)] for t in (1, 2, 3)]
    steps = sum(2 * -(-int(data.train.sizes[client]) // 10) for cohort in cohorts for client in cohort)
    counts = gflop(config, data, plan)
    assert counts["steps"] == steps > 60
    assert counts["gflop_training"] == pytest.approx(steps * 10 * 4 * 10 * 64 / 1e9)  # B = 10, 10 classes, 8 x 8 pixels
    assert counts["gflop_evaluation"] == pytest.approx(4 * len(data.test_examples()[1]) * 2 * 10 * 64 / 1e9)


def test_the_speed_is_a_number_above_0():
    assert gflop_per_s(side=64, seconds=0.01) > 0
