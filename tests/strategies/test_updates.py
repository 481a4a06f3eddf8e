"""Messages whose records are made when they are read: ordinary Flower messages that cost nothing unread."""

import copy
import pickle

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedprox.engines.identity import act_as_server
from fedprox.federation.messages import TaskMessage, record_of, task_of
from fedprox.plan.plan import ClientTask
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.averaging import no_metrics, weighted_average
from fedprox.strategies.fedprox import FedProx
from fedprox.strategies.updates import TrainReply, arrays_of, integers_of, metrics_of

TASK = ClientTask(7, 2, 5, True, (0, 0, 3, 7, 1), epochs_before=4, draw=1)
ARRAYS = {"w": np.array([[1.0, -2.0]], np.float32), "n": np.array(3)}
METRICS = {"num-examples": 4, "train-loss": 0.5, "num-steps": 5}


@pytest.fixture(autouse=True)
def _flower():
    act_as_server()


def asked() -> TaskMessage:
    return TaskMessage({"arrays": to_record(ARRAYS), "config": ConfigRecord({"proximal-mu": 0.5})}, TASK)


def reply() -> TrainReply:
    return TrainReply(asked(), {name: torch.from_numpy(array) for name, array in ARRAYS.items()}, METRICS)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in other)


def test_a_message_reads_like_any_flower_message():
    message = asked()
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (9, "1")
    assert (message.metadata.message_type, message.has_content(), message.has_error()) == ("train", True, False)
    assert set(message.content) == {"arrays", "config", "task"}
    assert task_of(message) == TASK  # now from the record
    answer = reply()
    assert (answer.metadata.src_node_id, answer.metadata.group_id) == (9, "1")
    assert dict(answer.content["metrics"]) == METRICS
    assert same({name: array.numpy() for name, array in answer.content["arrays"].items()}, ARRAYS)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda message: pickle.loads(pickle.dumps(message))])
def test_a_copy_is_an_ordinary_message(copied):
    message, answer = copied(asked()), copied(reply())
    assert type(message) is type(answer) is Message
    assert task_of(message) == TASK
    assert record_of(message, "config") == ConfigRecord({"proximal-mu": 0.5})
    assert same(arrays_of(answer), ARRAYS)
    assert dict(metrics_of(answer)) == METRICS


def test_changes_of_the_records_count():
    message, answer, other = asked(), reply(), reply()
    message.content["task"]["client"] = 3
    message.content["config"]["proximal-mu"] = 2.0
    assert (task_of(message).client, record_of(message, "config")["proximal-mu"]) == (3, 2.0)
    answer.content["arrays"] = to_record({"w": np.zeros(1)})
    answer.content["metrics"]["num-examples"] = 9
    assert (arrays_of(answer)["w"].tolist(), metrics_of(answer)["num-examples"]) == ([0.0], 9)
    other.content = RecordDict({**other.content, "arrays": to_record({"w": np.ones(2)})})
    assert arrays_of(other)["w"].tolist() == [1.0, 1.0]


def test_our_strategies_read_no_records_and_return_the_same_model_as_from_records():
    strategy = FedProx(train_metrics_aggr_fn=no_metrics)
    answers, read = [reply(), reply()], [reply(), reply()]
    for each in read:
        each.content  # noqa: B018
    arrays, _ = strategy.aggregate_train(2, answers)
    assert all(each.is_unread for each in answers)
    assert same({name: to_numpy(array) for name, array in arrays.items()}, ARRAYS)
    assert all(arrays[name].data == array.data for name, array in weighted_average(read).items())


def test_integers_are_found_in_a_reply_that_is_read_or_not():
    answer = reply()
    assert integers_of(answer) == {"n": np.int64}
    assert answer.is_unread
    assert set(answer.content) == {"arrays", "metrics"}
    assert integers_of(answer) == {"n": np.int64}
