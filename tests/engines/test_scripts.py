"""The engine that computes clients by processes of a script."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message

from fedprox.engines import scripts
from fedprox.engines.scripts import ScriptGrid
from fedprox.errors import RunStopped, UserError
from fedprox.federation.messages import TaskMessage, client_of, is_late
from fedprox.federation.script_client import INITIAL, ScriptSpec
from fedprox.plan.plan import ClientTask
from fedprox.strategies.updates import arrays_of, metrics_of

NUM_CLIENTS = 3
# A client fails as the file "faults" says; every process notes its id, and that of a child that would outlive it.
SCRIPT = """
import argparse, json, os, pathlib, random, signal, subprocess, sys, time
import numpy as np
import torch
from fedprox import federated

def raises(): raise ValueError("no such column:\\n  age")
def exits(): sys.exit("bad data")
def exits_with_3(): print("see here"); sys.exit(3)
def exits_at_once(): print("see there", flush=True); os._exit(4)
def is_killed(): os.kill(os.getpid(), signal.SIGKILL)
def hangs(): time.sleep(1000)
def is_stubborn(): signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)

parser = argparse.ArgumentParser()
parser.add_argument("--pids", default="")
parser.add_argument("--wait", type=float, default=0.0)
args = parser.parse_args()
task = federated.init()
if args.pids:
    child = subprocess.Popen(["sleep", "1000"])
    for pid in (os.getpid(), child.pid):
        open(f"{args.pids}/{pid}", "w").close()
faults = pathlib.Path(__file__).with_name("faults.json")
fault = json.loads(faults.read_text()).get(str(task.client), "") if faults.exists() else ""
time.sleep(args.wait)
model = torch.nn.Linear(4, 2)
if fault == "early":
    federated.send(model, num_examples=1)
test = lambda model: {"accuracy": 0.25, "loss": float(model.weight.abs().sum()), "num_examples": 5}
while federated.is_running():
    federated.receive(model, evaluate=test)
    if fault in globals():
        globals()[fault]()
    if fault == "silent":
        break
    x = torch.tensor(np.random.rand(8, 4) + random.random(), dtype=torch.float32)
    if fault == "other":
        model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    federated.send(model, num_examples=10 + task.client, metrics={"train_loss": 0.5, "f1": 1})
print("done", os.environ.get("CUDA_VISIBLE_DEVICES"), file=sys.stderr)
if fault == "afterwards":
    raise OSError("no figure")
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> ScriptSpec:
    folder = tmp_path_factory.mktemp("script")
    (folder / "train.py").write_text(SCRIPT)
    return ScriptSpec(str(folder / "train.py"), str(folder), NUM_CLIENTS, learning_rate=0.1)


@pytest.fixture(scope="module")
def warm(spec) -> ScriptGrid:
    """Return an engine whose server has the libraries."""
    return ScriptGrid(spec, at_once=NUM_CLIENTS)


@pytest.fixture
def grid(warm, spec, monkeypatch):
    """Return what gives that engine other settings, and lets clients of this test fail."""
    faults = Path(spec.folder) / "faults.json"

    def grid(failing: dict[int, str] | None = None, at_once: int = NUM_CLIENTS, **settings) -> ScriptGrid:
        faults.write_text(json.dumps(failing or {}))
        monkeypatch.setattr(warm, "_at_once", at_once)
        monkeypatch.setattr(warm, "_spec", replace(spec, **settings))
        return warm

    yield grid
    faults.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def initial(warm) -> ArrayRecord:
    (reply,) = warm.send_and_receive([TaskMessage({}, ClientTask(0, 1, 1, False, (0, 5)), INITIAL)])
    assert dict(reply.content["metrics"]) == {"evaluates": 1}
    return reply.content["arrays"]


@pytest.fixture
def messages(initial):
    def messages(round_num: int = 1, kind: str = "train", num_clients: int = NUM_CLIENTS) -> list[Message]:
        config = ConfigRecord({"server-round": round_num, "proximal-mu": 0.5, "learning-rate-factor": 1.0})
        tasks = [ClientTask(client, 1, 1, False, (0, 0, round_num, client)) for client in range(num_clients)]
        return [TaskMessage({"arrays": initial, "config": config}, task, kind) for task in tasks]

    return messages


def models(replies: list[Message]) -> list[bytes]:
    return [b"".join(array.tobytes() for array in arrays_of(reply).values()) for reply in replies]


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Answers.


def test_processes_at_once_and_one_after_another_give_the_same_as_a_bare_one(spec, grid, messages):
    replies = grid(at_once=1).send_and_receive(messages())
    assert [client_of(reply) for reply in replies] == [0, 1, 2]
    assert [metrics_of(reply)["num-examples"] for reply in replies] == [10, 11, 12]
    assert {metrics_of(reply)["f1"] for reply in replies} == {1.0}
    assert len(set(models(replies))) == NUM_CLIENTS
    assert models(grid().send_and_receive(messages())) == models(replies)
    assert models(grid().send_and_receive(messages(round_num=2))) != models(replies)  # other seeds
    bare = ScriptGrid(replace(spec, preload=False))
    assert models(bare.send_and_receive(messages(num_clients=1))) == models(replies[:1])
    assert bare.peak_memory_bytes() > 10e6


def test_an_evaluation_asks_all_clients_for_numbers_about_the_global_model(grid, initial, messages):
    replies = grid().send_and_receive(messages(kind="evaluate"))
    loss = float(np.abs(initial["weight"].numpy()).sum())
    expected = {"accuracy": 0.25, "loss": pytest.approx(loss), "num-examples": 5}
    assert [dict(reply.content["metrics"]) for reply in replies] == [expected] * NUM_CLIENTS


def test_no_messages_give_no_replies(grid):
    assert grid().send_and_receive([]) == []


def test_what_processes_print_is_kept_in_a_folder_if_one_is_named(grid, messages, tmp_path):
    grid(output=str(tmp_path / "out")).send_and_receive(messages(round_num=4))
    printed = {file.name: file.read_text() for file in (tmp_path / "out").iterdir()}
    assert set(printed) == {f"round_4_train_client_{client}.log" for client in range(NUM_CLIENTS)}
    assert all(text.startswith("done ") for text in printed.values())


def test_processes_at_once_get_the_visible_gpus_in_turn(spec, messages, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-77")
    spec = replace(spec, output=str(tmp_path), args="--wait 1")
    ScriptGrid(spec, at_once=3).send_and_receive(messages())
    assert sorted(file.read_text() for file in tmp_path.iterdir()) == ["done 3\n", "done 3\n", "done GPU-77\n"]


# Faults: one line for the client, and the others answer.


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("raises", r"ValueError: no such column: age \(train.py:\d+\)"),
        ("exits", r"sys.exit\('bad data'\) \(train.py:\d+\)"),
        ("exits_with_3", r"sys.exit\(3\) \(train.py:\d+\): see here"),
        ("exits_at_once", "exit status 4: see there"),
        ("is_killed", "the script was killed by SIGKILL, perhaps for want of memory"),
        ("silent", r"the script ended without federated.send\(\)"),
        ("early", r"RuntimeError: federated.send\(\) before federated.receive\(\): .* \(train.py:\d+\)"),
        ("other", r"RuntimeError: .* optimizer trains another model than .* \(train.py:\d+\)"),
    ],
)
def test_a_client_that_fails_says_why_in_one_line_and_the_others_answer(grid, messages, fault, line):
    replies = grid({1: fault}).send_and_receive(messages())
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert re.fullmatch(line, replies[1].error.reason), replies[1].error.reason


def test_arguments_that_the_script_does_not_take_are_its_own_error(grid, messages):
    (reply,) = grid(args="--learning 1").send_and_receive(messages(num_clients=1))
    assert reply.error.reason.startswith("sys.exit(2) (train.py:")
    assert reply.error.reason.endswith("): train.py: error: unrecognized arguments: --learning 1")


def test_a_fault_after_the_answer_is_a_warning(grid, messages, caplog):
    replies = grid({1: "afterwards"}).send_and_receive(messages())
    assert not any(reply.has_error() for reply in replies)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("client 1 failed after it had answered: OSError: no figure (train.py:")


def test_clients_that_hang_are_late_and_their_processes_and_those_childs_end(grid, messages, tmp_path):
    asked = grid({1: "hangs", 2: "is_stubborn"}, args=f"--pids {tmp_path}")
    replies = asked.send_and_receive(messages(), timeout=6)
    assert [is_late(reply) for reply in replies[1:]] == [True, True]
    pids = [int(file.name) for file in tmp_path.iterdir()]
    assert len(pids) == 2 * NUM_CLIENTS
    until(lambda: not any(map(is_alive, pids)), 5)  # a child's end is its new parent's matter
    assert not grid().send_and_receive(messages(num_clients=1))[0].has_error()


def test_clients_that_had_no_time_to_start_are_late(grid, messages):
    assert all(map(is_late, grid().send_and_receive(messages(), timeout=0.0)))


# The end: no process stays.

RUN = """
import sys
from flwr.app import ConfigRecord
from fedprox.engines.scripts import ScriptGrid
from fedprox.federation.messages import TaskMessage
from fedprox.federation.script_client import ScriptSpec
from fedprox.plan.plan import ClientTask
grid = ScriptGrid(ScriptSpec(sys.argv[1], sys.argv[2], 2, f"--pids {sys.argv[2]} --wait 1000"), 2)
grid.send_and_receive([TaskMessage({}, ClientTask(client, 1, 1, False, ())) for client in range(2)])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_stays_however_this_one_ends(spec, tmp_path, number):
    root = str(Path(scripts.__file__).parents[2])
    command = [sys.executable, "-c", RUN, spec.script, str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.DEVNULL)
    until(lambda: len(list(tmp_path.iterdir())) == 4)
    pids = [int(file.name) for file in tmp_path.iterdir()]
    process.send_signal(number)
    process.wait(30)
    until(lambda: not any(map(is_alive, pids)), 20)


def test_an_engine_that_is_given_up_ends_its_process_and_removes_its_folder(spec):
    grid = ScriptGrid(replace(spec, preload=False))
    grid.send_and_receive([])
    pid, folder = grid._server.pid, grid._server.folder
    assert is_alive(pid)
    assert folder.exists()
    del grid
    until(lambda: not is_alive(pid), 5)
    assert not folder.exists()


def test_the_end_of_the_process_that_starts_the_others_ends_the_run_in_one_line(spec, messages):
    grid = ScriptGrid(replace(spec, preload=False))
    grid.send_and_receive([])
    os.kill(grid._server.pid, signal.SIGKILL)
    until(lambda: not is_alive(grid._server.pid), 5)
    with pytest.raises(RunStopped, match=r"the process that starts client.script has ended; continue with resume="):
        grid.send_and_receive(messages())


def test_a_missing_working_directory_is_a_users_error(spec, tmp_path):
    with pytest.raises(UserError, match="is not a folder on this machine"):
        ScriptGrid(replace(spec, folder=str(tmp_path / "none"))).send_and_receive([])


def test_a_missing_script_is_refused_before_any_process_starts(spec):
    with pytest.raises(UserError, match="No such file"):
        ScriptGrid(replace(spec, script="/nowhere/train.py"))
