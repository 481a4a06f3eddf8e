"""Lower bound of W1's time on this machine: its arithmetic at the speed of large matrix products."""

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

    A product with W of shape (C, d) takes 2 C d operations per example. Evaluation, round 0 included, needs one; a
    step needs two, for the logits and for the gradient. Every step counts B examples, though the last of an epoch may
    have fewer.
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
    """Return the best speed among many products of two square float32 matrices on all cores."""
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
