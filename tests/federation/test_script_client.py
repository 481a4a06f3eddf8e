"""Clients that are runs of a script: tasks from messages, and replies from answers."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from safetensors.numpy import load_file, save_file

from fedprox.engines.identity import act_as_server
from fedprox.errors import UserError
from fedprox.federated import Task
from fedprox.federation.messages import TaskMessage, client_of
from fedprox.federation.script_client import INITIAL, ScriptSpec, answer, arguments, task_for, write_task
from fedprox.plan.plan import ClientTask
from fedprox.strategies.arrays import to_record
from fedprox.strategies.updates import arrays_of, metrics_of

W = {"weight": np.ones((2, 3), dtype=np.float32), "bias": np.array([1, 2], dtype=np.int64)}
CONFIG = ConfigRecord({"server-round": 7, "proximal-mu": 0.25, "learning-rate-factor": 0.5})
SPEC = ScriptSpec("/nowhere/train.py", "/", 4)


@pytest.fixture(autouse=True, scope="module")
def _may_make_messages() -> None:
    act_as_server()


def message(kind: str = "train", records=None, **task) -> TaskMessage:
    work = {"client": 3, "num_epochs": 2, "num_steps": 9, "is_straggler": False, "batch_key": (0, 0, 7, 3)} | task
    return TaskMessage({"arrays": to_record(W), "config": CONFIG} | (records or {}), ClientTask(**work), kind)


# Tasks.


def test_a_task_says_all_that_the_message_does():
    task = task_for(replace(SPEC, learning_rate=0.1, data="sites/{client}/{round}"), message())
    expected = Task("train", 7, 3, name="3", data="sites/3/7", mu=0.25, num_epochs=2, learning_rate=0.05)
    assert task == replace(expected, seed=task.seed)
    assert [task_for(SPEC, message(kind)).kind for kind in ("evaluate", INITIAL)] == ["evaluate", "initial"]


def test_seeds_differ_between_rounds_clients_and_draws_and_nothing_else_decides_them():
    keys = [(0, 0, 7, 3), (0, 0, 8, 3), (0, 0, 7, 4), (0, 0, 7, 3, 1), (1, 0, 7, 3)]
    seeds = [task_for(SPEC, message(batch_key=key)).seed for key in keys]
    assert len(set(seeds)) == len(keys)
    assert task_for(replace(SPEC, args="--lr 1", site="a"), message()).seed == seeds[0]
    without_key = [task_for(SPEC, message(batch_key=(), epochs_before=epochs)).seed for epochs in (0, 2)]
    assert without_key[0] != without_key[1]


def test_a_message_without_settings_is_a_task_of_round_0_without_mu():
    empty = TaskMessage({}, ClientTask(1, 1, 1, False, ()), INITIAL)
    task = task_for(replace(SPEC, learning_rate=0.1), empty)
    assert (task.round_num, task.mu, task.learning_rate, task.client) == (0, 0.0, 0.1, 1)


def test_arguments_are_taken_apart_as_in_a_shell_before_values_are_put_in():
    args = "--name '{site}' --out \"a b/{client}_{round}\" --data={data} --json '{\"lr\": {client}}' {other}"
    task = task_for(replace(SPEC, site="st mary's", data="/my data"), message())
    assert arguments(replace(SPEC, args=args), task) == [
        *("--name", "st mary's", "--out", "a b/3_7", "--data=/my data", "--json", '{"lr": 3}', "{other}")
    ]


def test_the_folder_of_a_task_holds_the_model_with_the_clients_own_statistics(tmp_path):
    own = {"bias": np.array([5, 6], dtype=np.int64)}
    asked = message(records={"local": to_record(own)})
    write_task(tmp_path, task_for(SPEC, asked), asked)
    assert json.loads((tmp_path / "task.json").read_text()) == asdict(task_for(SPEC, asked))
    model = load_file(tmp_path / "model.safetensors")
    assert {name: array.tolist() for name, array in model.items()} == {"weight": [[1] * 3] * 2, "bias": [5, 6]}


def test_a_task_without_a_model_has_no_file_for_it(tmp_path):
    asked = TaskMessage({}, ClientTask(1, 1, 1, False, ()), INITIAL)
    write_task(tmp_path, task_for(SPEC, asked), asked)
    assert [file.name for file in tmp_path.iterdir()] == ["task.json"]


# Answers.


def test_an_answer_is_the_reply_with_arrays_in_the_order_of_the_message(tmp_path):
    save_file({"bias": W["bias"] + 1, "weight": W["weight"] * 2}, tmp_path / "update.safetensors")
    (tmp_path / "update.json").write_text(json.dumps({"num-examples": 4, "train-loss": 0.5}))
    reply = answer(tmp_path, message())
    assert client_of(reply) == 3
    assert [(name, array.tolist()) for name, array in arrays_of(reply).items()] == [
        *[("weight", [[2.0] * 3] * 2), ("bias", [2, 3])]
    ]
    assert metrics_of(reply) == {"num-examples": 4, "train-loss": 0.5}


def test_an_evaluation_has_numbers_alone_and_initial_weights_have_both(tmp_path):
    (tmp_path / "update.json").write_text(json.dumps({"accuracy": 0.5, "num-examples": 4}))
    reply = answer(tmp_path, message("evaluate"))
    assert dict(reply.content["metrics"]) == {"accuracy": 0.5, "num-examples": 4}
    assert "arrays" not in reply.content
    save_file(W, tmp_path / "update.safetensors")
    (tmp_path / "update.json").write_text(json.dumps({"evaluates": 1}))
    reply = answer(tmp_path, TaskMessage({}, ClientTask(0, 1, 1, False, ()), INITIAL))
    assert isinstance(reply.content["arrays"], ArrayRecord)
    assert set(reply.content["arrays"]) == set(W)
    assert dict(reply.content["metrics"]) == {"evaluates": 1}


def test_an_answer_that_is_not_complete_is_none(tmp_path):
    save_file(W, tmp_path / "update.safetensors")
    (tmp_path / "update.json.part").write_text("{}")
    assert answer(tmp_path, message()) is None


def test_arguments_that_are_no_list_are_refused(tmp_path):
    (tmp_path / "train.py").touch()
    spec = ScriptSpec(str(tmp_path / "train.py"), str(tmp_path), 1, args="--name 'a")
    with pytest.raises(UserError, match=r"client.args=--name 'a is not a list of arguments as in a shell: No closing"):
        spec.check()


def test_a_script_that_is_not_python_is_refused(tmp_path):
    (tmp_path / "train.py").write_text("#!/bin/sh\nfor i in 1; do echo $i; done\n")
    with pytest.raises(UserError, match="is not a Python program"):
        ScriptSpec(str(tmp_path / "train.py"), str(tmp_path), 1).check()
