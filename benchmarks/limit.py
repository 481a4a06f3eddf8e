"""The least that this machine needs for W1: its arithmetic at the speed of large matrix products."""

import json
import sys
import time
from collections.abc import Sequence

import torch

from benchmarks.export import composed, prepared
from benchmarks.workloads import WORKLOADS
from fedprox.config.schema import Config
from fedprox.data.federated import FederatedData
from fedprox.plan.plan import CohortPlan


def gflop(config: Config, data: FederatedData, plan: CohortPlan) -> dict[str, float]:
    """Return the floating-point operations of training and of evaluation, in 10^9.

    A product with W of shape (C, d) takes 2 C d for an example: one in evaluation, round 0 included, and two in a step,
    for the logits and for the gradient. A step counts with B examples; the last one of an epoch may have fewer.
    """
    num_weights = data.examples.num_classes * data.examples.features[0].size
    rounds = range(1, config.num_rounds + 1)
    num_steps = sum(task.num_steps for round_num in rounds for task in plan.tasks(round_num))
    num_tested = (config.num_rounds + 1) * len(data.test_examples()[1])
    return {
        "steps": num_steps,
        "gflop_training": 4e-9 * num_weights * config.batch_size * num_steps,
        "gflop_evaluation": 2e-9 * num_weights * num_tested,
    }


def gflop_per_s(side: int = 2048, seconds: float = 2.0) -> float:
    """Return the best speed of a product of two square float32 matrices on all cores, of many in some seconds."""
    a, b, best = torch.randn(side, side), torch.randn(side, side), 0.0
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        torch.mm(a, b)
        best = max(best, 2e-9 * side**3 / (time.perf_counter() - start))
    return best


def main(overrides: Sequence[str]) -> None:
    """Print the limit as a line of JSON."""
    config = composed([*WORKLOADS["W1"].cases[0].commands[0], *overrides])
    counts = gflop(config, *prepared(config))
    total, speed = counts["gflop_training"] + counts["gflop_evaluation"], gflop_per_s()
    print(json.dumps({**counts, "gflop": total, "gflop_per_s": speed, "limit_s": total / speed}))


if __name__ == "__main__":
    main(sys.argv[1:])
