"""Clients that fail, diverge or are late, with an engine whose replies are made by hand."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedprox.engines.identity import act_as_server
from fedprox.errors import RunStopped
from fedprox.evaluation.metrics import Evaluation, FederationMetrics
from fedprox.federation.failures import FailurePolicy, diverges
from fedprox.federation.messages import client_of, draw_of, failed, group_id, late, node_id
from fedprox.federation.results import Round

NAN, INF = math.nan, math.inf


def message(client: int, draw: int = 0) -> Message:
    act_as_server()
    return Message(RecordDict(), dst_node_id=node_id(client), message_type="train", group_id=group_id(draw))


def reply(to: Message, loss: float = 1.0, drift: float | None = 1.0, weight: float = 1.0) -> Message:
    metrics = {"num-examples": 1, "train-loss": loss} | ({} if drift is None else {"drift": drift})
    arrays = ArrayRecord({"w": Array(np.array([0.0, weight])), "n": Array(np.array([3]))})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=to)


class ByHand:
    """Clients 0 .. 4: 1 raises, 2 is late, 3 does not reply, 4 has a loss of nan."""

    timeout: float | None = None

    def send_and_receive(self, messages, *, timeout=None):
        self.timeout = timeout
        answers = [reply, lambda to: failed(to, "ValueError: no (m.py:3)"), late, None, lambda to: reply(to, loss=NAN)]
        asked = [(answers[client], to) for to in messages for client in [to.metadata.dst_node_id - 2]]
        return [answer(to) for answer, to in asked if answer]


def counted(clients, round_num: int = 7, **settings) -> list[int]:
    grid = FailurePolicy(**settings).filtering(ByHand(), round_num)
    return [client_of(reply) for reply in grid.send_and_receive([message(client) for client in clients])]


@pytest.mark.parametrize(
    ("clients", "words", "status"),
    [
        ([0, 1], ["round 7", "client 1", "ValueError: no (m.py:3)", "on_client_error=drop"], "failed"),
        ([0, 2, 3], ["round 7: 2 of 3 clients (2 and 3) did not answer", "on_timeout=drop"], "failed"),
        (
            [0, 4],
            ["round 7: the updates of 1 of 2 clients (client 4) are nan or infinite", "on_divergence=drop"],
            "diverged",
        ),
    ],
)
def test_by_default_the_run_stops_with_one_line_that_names_round_client_and_reason(clients, words, status):
    with pytest.raises(RunStopped) as stopped:
        counted(clients, round_timeout=60)
    assert [word for word in words if word not in str(stopped.value)] == []
    assert "\n" not in str(stopped.value)
    assert stopped.value.status == status


@pytest.mark.parametrize(
    ("setting", "clients", "left"),
    [
        ("on_client_error", [1, 0], [0]),
        ("on_timeout", [2, 0, 3], [0]),
        ("on_divergence", [4, 0], [0]),
        ("on_client_error", [1], []),
    ],
)
def test_with_drop_the_others_count_and_the_log_names_the_dropped(setting, clients, left, caplog):
    with caplog.at_level(logging.WARNING, "fedprox"):
        assert counted(clients, round_timeout=60, **{setting: "drop"}) == left
    assert len(caplog.records) == 1
    assert all(str(client) in caplog.text for client in clients if client not in left)


def test_with_continue_diverged_updates_count():
    assert counted([4, 0], on_divergence="continue") == [4, 0]


def test_a_model_that_raises_for_all_clients_of_the_first_round_ends_the_run_with_drop_too():
    with pytest.raises(RunStopped, match="all 2 clients of the first round failed"):
        counted([1, 1], round_num=1, on_client_error="drop")
    assert counted([1, 1], round_num=2, on_client_error="drop") == []
    assert counted([1, 0], round_num=1, on_client_error="drop") == [0]


class SecondDraw:
    """The second draw of a client fails, is late or diverges; its others, and those of other clients, do not."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def send_and_receive(self, messages, *, timeout=None):
        given = [self.answer(to) if draw_of(to) == 1 else reply(to) for to in messages]
        return [answer for answer in given if answer][::-1]  # in any order


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("on_client_error", lambda to: failed(to, "ValueError: no")),
        ("on_timeout", late),
        ("on_timeout", lambda to: None),
        ("on_divergence", lambda to: reply(to, loss=NAN)),
    ],
)
def test_a_dropped_draw_leaves_the_clients_other_draws_in(setting, answer, caplog):
    draws = [(5, 0), (5, 1), (3, 0), (5, 2)]
    grid = FailurePolicy(round_timeout=60, **{setting: "drop"}).filtering(SecondDraw(answer), 7)
    counted = grid.send_and_receive([message(*draw) for draw in draws])
    assert [(client_of(each), draw_of(each)) for each in counted] == [(5, 0), (3, 0), (5, 2)]
    assert "5 (draw 2)" in caplog.text


def test_all_messages_of_a_round_share_its_timeout():
    filtered = FailurePolicy(round_timeout=60).filtering(grid := ByHand(), 1)
    left = []
    for _ in range(2):
        filtered.send_and_receive([message(0)])
        left.append(grid.timeout)
    assert 59 < left[1] < left[0] <= 60
    FailurePolicy().filtering(grid, 1).send_and_receive([message(0)])
    assert grid.timeout is None


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_loss_and_drift_show_divergence_and_without_drift_the_arrays(number):
    to = message(0)
    assert not diverges(reply(to))
    assert diverges(reply(to, loss=number))
    assert diverges(reply(to, drift=number))
    assert diverges(reply(to, drift=None, weight=number))
    assert not diverges(reply(to, drift=None))


def outcome(test_loss: float, train_loss: float | None = None) -> Round:
    federation = None if train_loss is None else FederationMetrics(train_loss, *[0.5] * 6)
    return Round(3, ArrayRecord(), Evaluation(test_loss, 0.5, federation), (), 0.0)


@pytest.mark.parametrize(("losses", "name"), [((NAN,), "test loss is nan"), ((1.0, INF), "training loss is inf")])
def test_a_global_loss_that_is_not_finite_stops_the_run_or_warns_once_or_is_ignored(losses, name, caplog):
    with pytest.raises(RunStopped, match=f"round 3: the global model's {name}") as stopped:
        FailurePolicy().check(outcome(*losses))
    assert stopped.value.status == "diverged"
    dropping = FailurePolicy(on_divergence="drop")
    for _ in range(3):
        dropping.check(outcome(*losses))
    assert [record.getMessage() for record in caplog.records] == [f"round 3: the global model's {name}"]
    FailurePolicy(on_divergence="continue").check(outcome(*losses))
    assert len(caplog.records) == 1
    FailurePolicy().check(outcome(1.0, 2.0))


def test_nan_before_any_training_is_attributed_to_the_initial_model():
    with pytest.raises(RunStopped, match=r"round 0: .* this is the initial model") as error:
        FailurePolicy().check(replace(outcome(NAN), round_num=0))
    assert "learning_rate" not in str(error.value)
