"""A small federation for the tests of engines."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import ray
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import nn

from fedprox.data.federated import ClientIndex, FederatedData, LabelledData
from fedprox.engines import ray as engine
from fedprox.federation.client_app import ClientSpec
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.plan.plan import Plan
from fedprox.plan.protocols import PaperProtocol
from fedprox.solvers.problem import SgdSettings
from fedprox.strategies.fedprox import FedProx

SIZES = [1, 9, 4, 23, 7, 12]
SHAPE, NUM_CLASSES = (2, 3), 4


@dataclass(frozen=True)
class Federation:
    """Six clients with 1 to 23 examples, all of them in each round, half of them stragglers.

    Attributes:
        spec: Everything an engine needs.
        plan: The plan of the rounds.
        start: The initial global model.
        messages: Returns a round's messages from any global model.
        drawn_plan: Six draws of the clients, with sampling=proportional.
        drawn_messages: Returns a round's messages of that plan.
    """

    spec: ClientSpec
    plan: Plan
    start: ArrayRecord
    messages: Callable[..., list[Message]]
    drawn_plan: Plan
    drawn_messages: Callable[..., list[Message]]


@pytest.fixture(scope="module")
def no_ray() -> Iterator[None]:
    """End the Ray of earlier tests, and afterwards that of this module."""
    _stop_ray()
    yield
    _stop_ray()


def _stop_ray() -> None:
    ray.shutdown()
    engine._pools.clear()
    engine._shared.clear()


@pytest.fixture(scope="session")
def federation() -> Federation:
    rng = np.random.default_rng(0)
    num_examples = sum(SIZES)
    data = LabelledData(
        features=rng.normal(size=(num_examples, *SHAPE)).astype(np.float32),
        labels=rng.integers(NUM_CLASSES, size=num_examples),
        test_features=np.empty((0, *SHAPE), dtype=np.float32),
        test_labels=np.empty(0, dtype=np.int64),
        num_classes=NUM_CLASSES,
        mean=np.zeros((), dtype=np.float32),
        std=np.ones((), dtype=np.float32),
    )
    train = ClientIndex.from_lists(np.split(rng.permutation(num_examples), np.cumsum(SIZES)[:-1]))
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.25), nn.Linear(6, NUM_CLASSES))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nn.init.normal_(model[2].weight)
    held_out = ClientIndex.from_lists([np.empty(0, dtype=np.int64)] * len(SIZES))
    spec = ClientSpec(FederatedData(data, train, held_out), model, SgdSettings(0.1, 4, momentum=0.5))
    plan = Plan(np.array(SIZES), len(SIZES), 3, 4, 0.5, PaperProtocol(), seed=0)
    start = ArrayRecord(model.state_dict())

    def messages(round_num: int = 1, arrays: ArrayRecord = start, mu: float = 0.5, plan: Plan = plan) -> list[Message]:
        config = ConfigRecord({"proximal-mu": mu})
        return PlannedStrategy(FedProx(), plan).configure_train(round_num, arrays, config, None)

    drawn_plan = replace(plan, sampling="proportional")
    return Federation(spec, plan, start, messages, drawn_plan, partial(messages, plan=drawn_plan))
