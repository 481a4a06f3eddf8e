"""Any Flower strategy on a planned cohort."""

import logging
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flowers
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    Krum,
    Strategy,
    strategy_utils,
)

from fedprox.engines.identity import act_as_server
from fedprox.errors import RunStopped, UserError
from fedprox.federation.messages import node_id, task_of
from fedprox.federation.planned_strategy import PlannedStrategy
from fedprox.plan.authors import AuthorsProtocol
from fedprox.plan.plan import Plan
from fedprox.plan.protocols import PaperProtocol
from fedprox.solvers.generators import Generators
from fedprox.strategies.fedprox import FedAvgWithStragglerDrop, FedDane, FedProx

NO_GRID = None  # a planned strategy does not read the nodes of a grid


@pytest.fixture(autouse=True)
def _flower(monkeypatch):
    """Let this process make messages, and fail instead of waiting for missing nodes."""
    act_as_server()

    def sleep(_: float) -> None:
        raise AssertionError("the strategy waits for more nodes than the cohort has")

    monkeypatch.setattr(strategy_utils, "sleep", sleep)


def record(**arrays: np.ndarray) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def content(num_examples: int, **arrays: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": record(**arrays), "metrics": MetricRecord({"num-examples": num_examples})})


def plan(fraction: float = 0.5, per_round: int = 4, sampling: str = "uniform") -> Plan:
    """Return twelve clients, client k with k + 1 examples."""
    return Plan(np.arange(1, 13), per_round, 5, 10, fraction, PaperProtocol(), seed=0, sampling=sampling)


def configure(planned: PlannedStrategy, round_num: int = 1, **arrays: np.ndarray) -> list[Message]:
    start = record(**(arrays or {"w": np.zeros(2, dtype=np.float32)}))
    return planned.configure_train(round_num, start, ConfigRecord({"proximal-mu": 0.5}), NO_GRID)


def replies(messages: list[Message], models: list[list[float]]) -> list[Message]:
    """Return a reply with a given model to each message; a client's weight is its number of examples."""
    return [
        Message(content(task_of(message).client + 1, w=np.array(model, dtype=np.float32)), reply_to=message)
        for message, model in zip(messages, models, strict=True)
    ]


def clients(messages: list[Message]) -> list[int]:
    return [message.metadata.dst_node_id - node_id(0) for message in messages]


# The planned cohort


class Wrapped(Strategy):
    """Fake: a strategy around another one, in some attribute."""

    def __init__(self, inner: Strategy | None = None) -> None:
        self.parts = {"inner": [inner or FedAvg()]}

    @property
    def inner(self) -> Strategy:
        return self.parts["inner"][0]

    def configure_train(self, *arguments):
        return self.inner.configure_train(*arguments)

    def aggregate_train(self, *arguments):
        return self.inner.aggregate_train(*arguments)

    def configure_evaluate(self, *_):
        raise AssertionError

    aggregate_evaluate = summary = configure_evaluate


MODELS = [[1.0, -1.0], [2.0, 0.0], [-4.0, 8.0], [9.0, 3.0]]


@pytest.mark.parametrize("make", [FedProx, FedAvgWithStragglerDrop, FedAvg, FedAvgM, Wrapped])
def test_strategies_that_average_return_the_weighted_average(make):
    # FedAvgM's defaults are momentum 0 and rate 1.
    planned = PlannedStrategy(make(), plan(fraction=0.0))
    messages = configure(planned)
    arrays, _ = planned.aggregate_train(1, replies(messages, MODELS))
    n = np.array(clients(messages)) + 1.0
    # Flower averages in float32: a few roundings of 6e-8.
    np.testing.assert_allclose(arrays["w"].numpy(), n @ np.array(MODELS) / n.sum(), rtol=1e-6)


def test_messages_have_the_order_of_the_plan_whatever_flower_samples():
    expected = [task.client for task in plan().tasks(1)]
    assert expected != sorted(expected)
    for seed in range(5):
        random.seed(seed)  # Flower samples by Python's global generator
        assert clients(configure(PlannedStrategy(FedProx(), plan()))) == expected


def test_every_message_carries_its_clients_task_and_the_global_model_and_mu():
    w = np.array([3.0, -4.0], dtype=np.float32)
    messages = configure(PlannedStrategy(FedProx(), plan()), round_num=3, w=w)
    assert [task_of(message) for message in messages] == list(plan().tasks(3))
    assert clients(messages) == [task.client for task in plan().tasks(3)]
    for message in messages:
        assert message.content["arrays"]["w"].numpy().tolist() == [3.0, -4.0]
        assert message.content["config"]["proximal-mu"] == 0.5


def test_fedprox_asks_stragglers_and_a_dropping_strategy_does_not():
    for round_num in range(1, 11):
        tasks = plan().tasks(round_num)
        assert clients(configure(PlannedStrategy(FedProx(), plan()), round_num)) == [task.client for task in tasks]
        for strategy in (FedAvgWithStragglerDrop(), Wrapped(FedAvgWithStragglerDrop())):
            asked = configure(PlannedStrategy(strategy, plan()), round_num)
            assert clients(asked) == [task.client for task in tasks if not task.is_straggler]
            assert len(asked) == 2


class NeverAsked(FedAvg):
    """Fake: a dropping strategy that must not be called."""

    drops_stragglers = True

    def configure_train(self, *_):
        raise AssertionError("asked to configure a round without clients")

    def aggregate_train(self, *_):
        raise AssertionError("asked to aggregate nothing")


def test_without_clients_there_is_no_message_and_no_model():
    planned = PlannedStrategy(NeverAsked(), plan(fraction=1.0))
    assert configure(planned) == []
    assert planned.aggregate_train(1, []) == (None, None)


@pytest.mark.parametrize("make", [FedAvg, FedAdam, FedMedian, Krum, Wrapped])
@pytest.mark.parametrize("per_round", [1, 4])
def test_any_flower_strategy_with_its_defaults_trains_the_planned_cohort(make, per_round):
    planned = PlannedStrategy(make(), plan(per_round=per_round))
    for round_num in range(1, 4):
        messages = configure(planned, round_num)
        assert [task_of(message) for message in messages] == list(plan(per_round=per_round).tasks(round_num))
        models = [[float(place), -1.0] for place in range(per_round)]
        arrays, _ = planned.aggregate_train(round_num, replies(messages, models))
        assert arrays["w"].numpy().shape == (2,)
        assert np.isfinite(arrays["w"].numpy()).all()


@pytest.mark.parametrize(
    ("make", "expected"),
    # n_k is k + 1, and the counts are 4, 7, 9 and 30; a median of four is the mean of the middle two: 8.
    [(FedProx, None), (FedAvg, None), (FedMedian, 8), (FedAdam, ...), (Krum, ...)],
)
def test_integers_and_flags_keep_their_dtype_with_any_strategy(make, expected):
    planned, counts = PlannedStrategy(make(), plan()), [4, 7, 9, 30]
    start = {"w": np.zeros(2, dtype=np.float32), "batches": np.array(0), "mask": np.array([True, False])}
    messages = configure(planned, **start)
    answers = [
        Message(content(task_of(message).client + 1, **start | {"batches": np.array(count)}), reply_to=message)
        for message, count in zip(messages, counts, strict=True)
    ]
    arrays, _ = planned.aggregate_train(1, answers)
    assert (arrays["batches"].dtype, arrays["batches"].shape) == ("int64", ())
    assert arrays["mask"].numpy().tolist() == [True, False]
    assert list(arrays) == ["w", "batches", "mask"]
    if expected is None:
        n = np.array(clients(messages)) + 1
        expected = round(float((n * counts).sum() / n.sum()))
    if expected is not ...:  # adaptive strategies take a step, Krum chooses one of the four
        assert arrays["batches"].numpy().item() == expected


# Settings of the run


class OneConfigEach(FedAvg):
    """Fake: each message has a config of its own, with a mu of the strategy's."""

    def configure_train(self, server_round, arrays, config, grid):
        messages = super().configure_train(server_round, arrays, config, grid)
        own = {"proximal-mu": 7.0, "learning-rate-factor": 0.0, "measure-gamma": True, "extra": "kept"}
        for message in messages:
            message.content = RecordDict({**message.content, "config": ConfigRecord({**config, **own})})
        return messages


class NoConfig(FedAvg):
    """Fake: messages hold the model alone."""

    def configure_train(self, server_round, arrays, config, grid):
        messages = super().configure_train(server_round, arrays, config, grid)
        for message in messages:
            message.content = RecordDict({"arrays": arrays})
        return messages


class Takes(FedAvg):
    """Fake: takes a setting away from the record that all messages share."""

    def configure_train(self, server_round, arrays, config, grid):
        del config["proximal-mu"]
        return super().configure_train(server_round, arrays, config, grid)


@pytest.mark.parametrize("make", [FedProx, flowers.FedProx, OneConfigEach, NoConfig, Takes])
def test_the_runs_settings_reach_the_clients_whatever_the_strategy_writes(make):
    decided = {"proximal-mu": 0.5, "learning-rate-factor": 0.25, "measure-gamma": False}
    messages = PlannedStrategy(make(), plan()).configure_train(
        3, record(w=np.zeros(2, dtype=np.float32)), ConfigRecord({**decided}), NO_GRID
    )
    assert [task_of(message) for message in messages] == list(plan().tasks(3))
    for message in messages:
        sent = dict(message.content["config"])
        assert {name: sent[name] for name in decided} == decided
        assert sent.get("extra") == ("kept" if make is OneConfigEach else None)


def warnings(caplog) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.name == "fedprox"]


def test_a_strategys_own_mu_is_reported_once_and_flowers_default_is_not(caplog):
    planned, plain = PlannedStrategy(OneConfigEach(), plan()), PlannedStrategy(flowers.FedProx(), plan())
    with caplog.at_level(logging.WARNING, "fedprox"):
        for round_num in (1, 2):
            configure(planned, round_num)
            configure(plain, round_num)
    assert warnings(caplog) == [
        "OneConfigEach sets proximal-mu=7.0, but clients get the run's mu=0.5; set mu=7.0 if that is meant"
    ]


# Random numbers of a strategy


class Draws(FedAvg):
    """Fake: adds what each global generator gives to the model."""

    def aggregate_train(self, server_round, replies):
        drawn = [random.random(), np.random.random(), float(torch.rand(()))]
        return record(w=np.array(drawn)), None


def drawn(round_num: int, **streams: int) -> list[float]:
    planned = PlannedStrategy(Draws(), plan(), **streams)
    messages = configure(planned, round_num, w=np.zeros(3, dtype=np.float32))
    arrays, _ = planned.aggregate_train(round_num, replies(messages, [[0.0] * 3] * len(messages)))
    return arrays["w"].numpy().tolist()


def test_a_strategys_draws_depend_on_seed_repetition_and_round():
    before = Generators()
    one = drawn(1, seed=3, repetition=1)
    assert not before.have_moved()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert drawn(1, seed=3, repetition=1) == one
    others = [drawn(2, seed=3, repetition=1), drawn(1, seed=4, repetition=1), drawn(1, seed=3, repetition=2)]
    assert all(a != b for other in others for a, b in zip(other, one, strict=True))


# Errors and wrong results of a strategy


class Returns(FedAvg):
    """Fake: returns what it was made with, or raises it."""

    def __init__(self, messages=None, result=None) -> None:
        super().__init__()
        self.messages, self.result = messages, result

    def configure_train(self, *arguments):
        sent = super().configure_train(*arguments)
        return sent if self.messages is None else self.messages(sent)

    def aggregate_train(self, *arguments):
        return self.result()


def raises(*_):
    raise ValueError("boom\nat once")


def ends(*_):
    raise SystemExit(0)


def without(name: str):
    def messages(sent):
        for message in sent:
            message.content = RecordDict({key: value for key, value in message.content.items() if key != name})
        return sent

    return messages


MESSAGES = {
    "raises": (raises, r"ValueError: boom; at once \(test_planned_strategy.py:\d+\)"),
    "ends the process": (ends, r"sys\.exit\(0\) \("),
    "none": (lambda sent: [], "returned no message for any of the 4 clients"),
    "None": (lambda sent: 5, "must return messages, got a value of type int"),
    "text": (lambda sent: ["a"], "must return messages, got a value of type str among them"),
    "of another type": (
        lambda sent: [Message(each.content, each.metadata.dst_node_id, "query") for each in sent],
        "must return messages of type train, got query",
    ),
    "without the model": (without("arrays"), "must send the model as the ArrayRecord 'arrays'"),
}


@pytest.mark.parametrize(("messages", "line"), MESSAGES.values(), ids=MESSAGES)
def test_wrong_messages_stop_the_run_with_one_line(messages, line):
    with pytest.raises(RunStopped, match=f"^round 2: Returns.configure_train:? {line}") as stopped:
        configure(PlannedStrategy(Returns(messages), plan()), 2)
    assert "\n" not in str(stopped.value)


def model(**arrays: object):
    return lambda: (record(**{name: np.asarray(value) for name, value in arrays.items()}), None)


def metrics(**values: object):
    return lambda: (None, MetricRecord(values))


RESULTS = {
    "raises": (raises, r"ValueError: boom; at once \(test_planned_strategy.py:\d+\)"),
    "None": (lambda: None, "must return a tuple of arrays and metrics, got None"),
    "arrays alone": (lambda: record(w=np.zeros(2)), "must return a tuple .* got a value of type ArrayRecord"),
    "a dict": (lambda: ({"w": np.zeros(2)}, None), "must return arrays as an ArrayRecord or None, got .* dict"),
    "another name": (model(v=[0.0, 0.0]), "must return the arrays of the model by name: 'v' is not one of them"),
    "no array": (model(), "must return the arrays of the model by name: 'w' is missing"),
    "another shape": (model(w=[0.0, 0.0, 0.0]), r"must return 'w' of shape \(2,\), got \(3,\)"),
    "text": (model(w=["a", "b"]), "must return numbers, got 'w' of type <U1"),
    "metrics of text": (lambda: (None, "good"), "must return metrics as a MetricRecord or None, got .* str"),
    "a list as metric": (metrics(a=[1.0, 2.0]), "must return one number for each metric.*'a' is a value of type list"),
    "a comma in a name": (metrics(**{"a,b": 1.0}), "must name metrics by letters, .* got 'a,b'"),
    "no name": (metrics(**{"": 1.0}), "must name metrics by letters, .* got ''"),
}


@pytest.mark.parametrize(("result", "line"), RESULTS.values(), ids=RESULTS)
def test_a_wrong_result_stops_the_run_with_one_line(result, line):
    planned = PlannedStrategy(Returns(result=result), plan())
    messages = configure(planned, 2)
    with pytest.raises(RunStopped, match=f"^round 2: Returns.aggregate_train:? {line}") as stopped:
        planned.aggregate_train(2, replies(messages, MODELS))
    assert "\n" not in str(stopped.value)


def test_metrics_that_are_true_or_false_become_1_or_0():
    planned = PlannedStrategy(
        Returns(result=lambda: (None, {"good": True, "late": np.False_, "mean": np.float32(0.5)})), plan()
    )
    messages = configure(planned, 2)
    assert dict(planned.aggregate_train(2, replies(messages, MODELS))[1]) == {"good": 1, "late": 0, "mean": 0.5}


def test_a_strategy_that_returns_no_model_is_reported_once(caplog):
    planned = PlannedStrategy(Returns(result=lambda: (None, None)), plan())
    with caplog.at_level(logging.WARNING, "fedprox"):
        for round_num in (1, 2):
            assert planned.aggregate_train(round_num, replies(configure(planned, round_num), MODELS)) == (None, None)
    line = "round 1: Returns.aggregate_train returned no model from 4 replies: the model stays as it is"
    assert warnings(caplog) == [line]


# Metrics


class Adds(FedAvg):
    """Fake: adds a metric to those of its superclass, which it reads."""

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return arrays, MetricRecord({**metrics, "twice": 2 * metrics["train-loss"]})


@pytest.mark.parametrize(
    ("make", "expected"),
    # n_k is k + 1 and the loss 10 k: the mean weighted by n_k is that of Flower's default.
    [(FedProx, None), (FedAvg, None), (FedMedian, None), (Adds, {"twice"})],
)
def test_only_metrics_that_a_strategy_adds_to_the_clients_are_returned(make, expected):
    planned = PlannedStrategy(make(), plan())
    answers = replies(configure(planned), MODELS)
    for answer in answers:
        answer.content["metrics"]["train-loss"] = 10.0 * (answer.content["metrics"]["num-examples"] - 1)
    n = np.array([answer.content["metrics"]["num-examples"] for answer in answers])
    _, metrics = planned.aggregate_train(1, answers)
    assert (metrics and set(metrics)) == expected
    if expected:
        assert metrics["twice"] == pytest.approx(2 * (n * 10.0 * (n - 1)).sum() / n.sum())


# sampling=proportional


@pytest.mark.parametrize("make", [FedAvg, FedAdam, Krum, lambda: Wrapped(FedProx())])
def test_a_strategy_that_weights_by_examples_is_refused_with_sampling_proportional(make):
    # Its weights n_k would count a client's size twice.
    with pytest.raises(UserError, match=r"sampling=proportional goes with a simple mean.*sampling=uniform"):
        PlannedStrategy(make(), plan(sampling="proportional"))


def drawn_twice(**changes) -> Plan:
    """Return two clients with 1 and 9 examples, and four draws, so that one of them comes twice or more."""
    settings = {"client_sizes": np.array([1, 9]), "clients_per_round": 4, "sampling": "proportional"}
    return replace(plan(), **settings | changes)


def test_every_draw_of_a_client_has_its_own_message_and_task_and_counts_once():
    tasks = drawn_twice(stragglers_fraction=0.0).tasks(1)
    assert len({task.client for task in tasks}) < 4
    for strategy in (FedProx(), FedAvgWithStragglerDrop(), FedDane()):
        planned = PlannedStrategy(strategy, drawn_twice(stragglers_fraction=0.0))
        messages = dane_messages(planned)
        assert [task_of(message) for message in messages] == list(tasks)
        assert clients(messages) == [task.client for task in tasks]
        assert len({id(message) for message in messages}) == 4
        arrays, _ = planned.aggregate_train(1, replies(messages, MODELS))
        assert arrays["w"].numpy().tolist() == [2.0, 2.5]  # the simple mean: (1 + 2 - 4 + 9) / 4, (-1 + 0 + 8 + 3) / 4


def test_a_strategy_is_offered_each_client_of_a_round_once():
    class Asking(FedProx):
        """Fake: notes the nodes that it may ask."""

        def configure_train(self, server_round, arrays, config, grid):
            self.offered = list(grid.get_node_ids())
            return super().configure_train(server_round, arrays, config, grid)

    strategy = Asking()
    configure(PlannedStrategy(strategy, drawn_twice()))
    assert sorted(strategy.offered) == sorted({node_id(task.client) for task in drawn_twice().tasks(1)})


def test_fedavg_drops_the_draws_that_are_stragglers_and_keeps_the_other_draws_of_the_same_client():
    planned = PlannedStrategy(FedAvgWithStragglerDrop(), drawn_twice())
    kept_of_dropped = 0
    for round_num in range(1, 11):
        tasks = replace(drawn_twice(), drops_stragglers=True).tasks(round_num)
        trained = [task for task in tasks if not task.is_dropped]
        assert len(trained) == 2
        assert [task_of(message) for message in configure(planned, round_num)] == trained
        dropped = {task.client for task in tasks if task.is_dropped}
        kept_of_dropped += any(task.client in dropped for task in trained)
    assert kept_of_dropped > 0


def test_feddanes_second_cohort_counts_each_draw_too():
    grid = GradientGrid()
    messages = dane_messages(PlannedStrategy(FedDane(), drawn_twice()), grid=grid)
    k = list(drawn_twice().gradient_clients(1))
    assert len(set(k)) < len(k)
    assert clients(grid.asked) == k
    assert len({(message.metadata.dst_node_id, message.metadata.group_id) for message in grid.asked}) == 4
    expected = np.mean(k)
    for message in messages:
        assert message.content["gradient"]["w"].numpy().tolist() == [np.float32(expected), np.float32(-expected)]


# FedDANE


class GradientGrid:
    """Fake: client k answers the gradient (k, -k)."""

    def __init__(self) -> None:
        self.asked: list[Message] = []

    def send_and_receive(self, messages, *, timeout=None):
        self.asked += messages
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        client = task_of(message).client
        gradient = record(w=np.array([client, -client], dtype=np.float32))
        metrics = MetricRecord({"num-examples": client + 1})
        return Message(RecordDict({"gradient": gradient, "metrics": metrics}), reply_to=message)


def dane_messages(planned: PlannedStrategy, round_num: int = 1, grid: GradientGrid | None = None) -> list[Message]:
    start = record(w=np.array([3.0, -4.0], dtype=np.float32))
    return planned.configure_train(round_num, start, ConfigRecord({"proximal-mu": 0.5}), grid or GradientGrid())


def test_feddane_first_asks_a_second_cohort_for_gradients_at_the_global_model():
    grid, planned = GradientGrid(), PlannedStrategy(FedDane(), plan())
    dane_messages(planned, 2, grid)
    assert [message.metadata.message_type for message in grid.asked] == ["query.gradient"] * 4
    assert clients(grid.asked) == list(plan().gradient_clients(2))
    assert [task_of(message).client for message in grid.asked] == clients(grid.asked)
    assert all(message.content["arrays"]["w"].numpy().tolist() == [3.0, -4.0] for message in grid.asked)


def test_every_train_message_carries_the_gradient_weighted_by_examples():
    messages = dane_messages(PlannedStrategy(FedDane(), plan()))
    k = np.array(plan().gradient_clients(1))
    expected = float(((k + 1) * k).sum() / (k + 1).sum())
    assert abs(expected - k.mean()) > 0.1  # the plain mean would be another number
    assert [task_of(message) for message in messages] == list(plan().tasks(1))
    for message in messages:
        assert message.metadata.message_type == "train"
        assert message.content["arrays"]["w"].numpy().tolist() == [3.0, -4.0]
        assert message.content["config"]["proximal-mu"] == 0.5
        # One rounding to float32.
        np.testing.assert_allclose(message.content["gradient"]["w"].numpy(), [expected, -expected], rtol=1e-7)


def test_other_strategies_ask_for_no_gradients_and_send_none():
    grid, planned = GradientGrid(), PlannedStrategy(FedProx(), plan())
    messages = dane_messages(planned, grid=grid)
    assert grid.asked == []
    assert all("gradient" not in message.content for message in messages)


def test_feddane_is_refused_with_the_authors_protocol():
    ids = [f"f_{client:05d}" for client in range(12)]
    settings = {"clients_per_round": 4, "num_epochs": 5, "batch_size": 10, "stragglers_fraction": 0.5}
    theirs = AuthorsProtocol().plan(client_sizes=np.arange(1, 13), client_ids=ids, **settings)
    with pytest.raises(UserError, match=r"feddane.*protocol=paper or flower"):
        PlannedStrategy(FedDane(), theirs)
