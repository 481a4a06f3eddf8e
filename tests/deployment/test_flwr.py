"""What this project relies on in flwr: with a version outside the pin, these tests say what has changed."""

import inspect
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from packaging.requirements import Requirement

import fedprox
from fedprox.deployment import flower, kits
from fedprox.engines.identity import act_as_server
from fedprox.federation import messages

PACKAGE = Path(fedprox.__file__).parent
PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy")
NOT_PUBLIC = {"engines/identity.py": ["flwr.supercore.task_identity"]}


def test_every_name_of_flwr_that_is_not_public_is_listed_here():
    found = {}
    for file in PACKAGE.rglob("*.py"):
        imported = re.findall(r"^ *(?:from|import) (flwr\b[\w.]*)", file.read_text(encoding="utf-8"), re.MULTILINE)
        if names := [name for name in imported if name not in PUBLIC]:
            found[str(file.relative_to(PACKAGE))] = names
    assert found == NOT_PUBLIC


def test_the_installed_flwr_is_one_that_the_pin_allows():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    (pin,) = [Requirement(each) for each in project["dependencies"] if each.startswith("flwr")]
    assert pin.specifier.contains(version("flwr"))
    assert [each for each in ("1.40.9", "1.41.0", "1.42.0", "1.43.0") if pin.specifier.contains(each)] == [
        "1.41.0",
        "1.42.0",
    ]


def test_the_identity_of_a_task_is_taken_from_flower_where_it_has_given_one(monkeypatch):
    from flwr.supercore.task_identity import TaskIdentity

    monkeypatch.setattr(TaskIdentity, "_run_id", 77)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1234)
    act_as_server()
    assert (TaskIdentity.run_id, TaskIdentity.node_id) == (77, 1234)
    monkeypatch.setattr(TaskIdentity, "_run_id", None)
    act_as_server()
    assert (TaskIdentity.run_id, TaskIdentity.node_id) == (1, 1)


def test_the_grid_has_the_methods_that_the_engine_calls():
    for name, parameters in {
        "push_messages": ["messages"],
        "pull_messages": ["message_ids"],
        "get_node_ids": [],
    }.items():
        assert list(inspect.signature(getattr(Grid, name)).parameters)[1:] == parameters
    assert isinstance(inspect.getattr_static(Grid, "run"), property)


def test_a_message_keeps_what_the_engine_gives_it_and_a_reply_says_what_it_answers():
    act_as_server()
    message = Message(RecordDict(), 7, "train", ttl=12.5, group_id="2")
    assert (message.metadata.ttl, message.metadata.group_id, message.metadata.dst_node_id) == (12.5, "2", 7)
    message.metadata.__dict__["_message_id"] = "an id"
    for reply in (Message(RecordDict(), reply_to=message), Message(Error(2, "why"), reply_to=message)):
        assert reply.metadata.reply_to_message_id == "an id"
        assert (reply.metadata.src_node_id, reply.metadata.group_id) == (7, "2")


def test_the_codes_of_errors_are_flowers():
    from flwr.common.constant import ErrorCode

    assert ErrorCode.CLIENT_APP_RAISED_EXCEPTION == messages._RAISED
    assert ErrorCode.REPLY_MESSAGE_UNAVAILABLE == messages._LATE


@pytest.mark.parametrize("name", ["flower-superlink", "flower-supernode"])
def test_flowers_daemons_know_the_options_of_the_start_scripts(name):
    text = kits._SERVER if name == "flower-superlink" else kits._SITE
    used = set(re.findall(r"--[a-z-]+", text.partition(f"exec {name}")[2]))
    shown = subprocess.run([flower.program(name), "--help"], capture_output=True, text=True, check=True).stdout
    assert used <= set(re.findall(r"--[a-z-]+", shown))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["run"], ["--format", "--run-config"]),
        (["list"], ["--format", "--run-id"]),
        (["log"], ["--stream"]),
        (["stop"], ["--format"]),
        (["supernode", "register"], ["--format"]),
        (["supernode", "list"], ["--format"]),
    ],
)
def test_flowers_command_line_knows_the_options_that_are_used(words, options):
    shown = subprocess.run(
        [flower.program("flwr"), *words, "--help"],
        env=flower.environment({}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [each for each in options if each not in shown.stdout] == []
