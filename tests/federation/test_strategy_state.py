"""A restored strategy continues like the one whose state was taken."""

import logging

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flowers

from fedprox.engines.identity import act_as_server
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.federation.strategy_state import StrategyState, is_plain
from fedprox.plan.plan import Plan
from fedprox.plan.protocols import PaperProtocol
from fedprox.runs.serialize import decoded, encoded
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.fedprox import FedProx

START = {"weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(2, np.float32)}


class Wraps(flowers.FedAvg):
    """Fake: delegates to a strategy in some attribute."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.others = [inner]

    def configure_train(self, *arguments):
        return self.others[0].configure_train(*arguments)

    def aggregate_train(self, *arguments):
        return self.others[0].aggregate_train(*arguments)


STRATEGIES = {
    "FedProx": FedProx,
    "FedAvg": flowers.FedAvg,
    "FedAdam": flowers.FedAdam,
    "FedAvgM": lambda: flowers.FedAvgM(server_momentum=0.9, server_learning_rate=0.5),
    "QFedAvg": lambda: flowers.QFedAvg(client_learning_rate=0.1, q=0.5, train_loss_key="train-loss"),
    "FedMedian": flowers.FedMedian,
    "Bulyan": lambda: flowers.Bulyan(num_malicious_nodes=0),
    "wrapped": lambda: Wraps(flowers.FedAdam()),
}
CHANGE = {"FedAdam", "FedAvgM", "wrapped"}  # momenta


@pytest.fixture(autouse=True)
def _flower():
    act_as_server()


def planned(strategy) -> PlannedStrategy:
    return PlannedStrategy(strategy, Plan(np.arange(1, 11), 5, 3, 4, 0.5, PaperProtocol(), seed=0))


def played(strategy: PlannedStrategy, arrays, rounds: range):
    """Yield the global model after each round; a client's reply depends only on round and client."""
    for round_num in rounds:
        messages = strategy.configure_train(round_num, arrays, ConfigRecord({"proximal-mu": 0.0}), None)
        arrays, _ = strategy.aggregate_train(round_num, [answer(message, round_num) for message in messages])
        yield arrays


def answer(message: Message, round_num: int) -> Message:
    rng = np.random.default_rng([round_num, message.metadata.dst_node_id])
    model = {name: to_numpy(array) for name, array in message.content["arrays"].items()}
    moved = {name: (value + rng.normal(size=value.shape)).astype(np.float32) for name, value in model.items()}
    metrics = MetricRecord({"num-examples": message.metadata.dst_node_id, "train-loss": float(rng.uniform(0.5, 2))})
    return Message(RecordDict({"arrays": to_record(moved), "metrics": metrics}), reply_to=message)


def bits(record) -> dict:
    return {name: (array.dtype, to_numpy(array).tobytes()) for name, array in record.items()}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("num_done", [0, 1, 4])
def test_after_a_restart_at_any_round_the_next_ones_are_the_same(name, num_done):
    make, start = STRATEGIES[name], to_record(START)
    one = planned(make())
    *_, arrays = [start, *played(one, start, range(1, num_done + 1))]
    text, kept = encoded([one.state(), arrays])  # as in a checkpoint, before the first one continues
    whole = [bits(model) for model in played(one, arrays, range(num_done + 1, num_done + 4))]
    state, arrays = decoded(text, kept)
    other = planned(make())
    other.restore(state)
    assert [bits(model) for model in played(other, arrays, range(num_done + 1, num_done + 4))] == whole
    if name in CHANGE and num_done:  # and without the state they are not
        other = planned(make())
        assert [bits(model) for model in played(other, arrays, range(num_done + 1, num_done + 4))] != whole


def test_later_rounds_do_not_change_a_state_that_was_taken():
    strategy = planned(flowers.FedAdam())
    rounds = played(strategy, to_record(START), range(1, 4))
    next(rounds)
    state = strategy.state()
    before = encoded(state)[1]
    before = {name: array.copy() for name, array in before.items()}
    list(rounds)
    after = encoded(state)[1]
    assert before.keys() == after.keys()
    assert all(np.array_equal(array, after[name]) for name, array in before.items())


def test_constructor_arguments_are_not_state():
    strategy = planned(FedProx())
    list(played(strategy, to_record(START), range(1, 3)))
    assert strategy.state() == {"layers": [{}], "statistics": None}


class Counting(FedProx):
    """Counts rounds in an attribute, in a list in place, and in a NumPy array in place."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.seen, self.sums = 0, [], np.zeros(2)

    def round(self) -> None:
        self.count += 1
        self.seen.append(self.count)
        self.sums += self.count


def test_attributes_that_change_in_place_are_state_too():
    one, other = Counting(), Counting()
    state = StrategyState(one)
    fresh = StrategyState(other)
    one.round()
    one.round()
    taken = state.take()
    one.round()
    fresh.restore(taken)
    assert (other.count, other.seen, other.sums.tolist()) == (2, [1, 2], [3.0, 3.0])
    other.round()
    assert (other.count, other.seen, other.sums.tolist()) == (one.count, one.seen, one.sums.tolist())


class WithStateDict(Counting):
    """Defines its state itself."""

    def state_dict(self) -> dict:
        return {"rounds": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["rounds"]


def test_a_strategys_own_state_dict_is_used():
    one, other = WithStateDict(), WithStateDict()
    state = StrategyState(one)
    one.round()
    assert state.take() == [{"rounds": 1}]
    StrategyState(other).restore([{"rounds": 5}])
    assert (other.count, other.seen) == (5, [])


def test_what_cannot_be_saved_is_named_once(caplog):
    strategy = Counting()
    state = StrategyState(strategy)
    with caplog.at_level(logging.WARNING, "fedprox"):
        state.take()
        assert caplog.messages == []
        strategy.history = {1: object()}
        for _ in range(3):
            assert "history" not in state.take()[0]
    assert len(caplog.messages) == 1
    assert "Counting.history changes and cannot be saved" in caplog.messages[0]
    assert "state_dict()" in caplog.messages[0]


@pytest.mark.parametrize("value", [object(), print, {1, 2}, {(1,): 2}, [1, {"a": b"bytes"}], 1j])
def test_other_values_are_not_plain(value):
    assert not is_plain(value)


@pytest.mark.parametrize("value", [None, 1, True, 0.5, "a", [1, (2, {"a": np.ones(2)})], to_record(START), np.int64(3)])
def test_numbers_strings_arrays_and_containers_are_plain(value):
    assert is_plain(value)
