"""Submission of a job, with a program in the place of Flower's that answers what a test wants."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedprox.config.compose import compose
from fedprox.config.files import read_config
from fedprox.deployment import flower, submit
from fedprox.deployment.flower import Flower
from fedprox.errors import RunStopped, UserError

FAKE = """\
#!{python}
import json, os, sys, time
with open({calls!r}, "a") as opened:
    opened.write(json.dumps([*sys.argv[1:], os.environ.get("FLWR_HOME", "")]) + "\\n")
while sys.argv[1] == {wait!r} and not os.path.exists("goes on"):
    time.sleep(0.02)
answer = {answers!r}.get(sys.argv[1])
if answer is None:
    sys.exit("no such command")
if isinstance(answer, str):
    print(answer, flush=True)
else:
    print("words for people {{}}")
    print(json.dumps(answer))
    sys.exit(not answer["success"])
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Return a function that replaces Flower's command line, and returns the calls that were made of it."""

    def replace(wait: str = "", **answers):
        program, calls = tmp_path / "flwr", tmp_path / "calls"
        known = {
            "run": {"success": True, "run-id": "17"},
            "log": "\x1b[92mround 1\x1b[0m \x07",
            "stop": {"success": True},
        }
        text = FAKE.format(python=sys.executable, calls=str(calls), answers={**known, **answers}, wait=wait)
        program.write_text(text)
        program.chmod(0o755)
        monkeypatch.setattr(flower, "program", lambda name: str(program))
        return lambda: [json.loads(line) for line in calls.read_text().splitlines()]

    monkeypatch.chdir(tmp_path)
    return replace


def ended(status: str, details: str = "") -> dict:
    return {"success": True, "runs": [{"run-id": "17", "status": f"finished:{status}", "status-details": details}]}


def submitted(*overrides: str, resume: bool = False):
    words = ["experiment=digits", "engine=deployment", "engine.connection=hospitals", *overrides]
    run_dir = Path("runs/f")
    run_dir.mkdir(parents=True, exist_ok=True)
    return submit.submit(compose(words), run_dir, resume=resume, origin={})


def test_a_job_is_run_followed_and_its_end_asked_for_at_the_named_connection(fake, capsys):
    calls = fake(list=ended("completed"))
    assert submitted() is None
    assert [call[:3] for call in calls()] == [
        ["run", "runs/f/job", "hospitals"],
        ["log", "17", "hospitals"],
        ["list", "hospitals", "--run-id"],
    ]
    assert capsys.readouterr().out == "round 1 \\x07\n"  # nothing that a server sends reaches the terminal as a code
    assert (Path("runs/f/job") / "config.yaml").exists()


def test_a_mistake_that_the_server_found_is_the_users(fake):
    fake(list=ended("failed", "ServerApp failed with exception: exit status 2: mu must be\n >= 0"))
    with pytest.raises(UserError, match=r"^mu must be\n >= 0$"):
        submitted()


@pytest.mark.parametrize(
    ("details", "line"),
    [
        (
            "ServerApp failed with exception: exit status 1: round 2: client 1: gone",
            "round 2: client 1: gone; continue",
        ),
        ("Task crashed", "Task crashed; continue with"),
        ("", "the run failed; continue with"),
    ],
)
def test_a_fault_ends_the_run_in_one_line_that_says_how_to_continue(fake, details, line):
    fake(list=ended("failed", details))
    with pytest.raises(RunStopped, match=line) as stopped:
        submitted("engine.run_dir=/srv/f")
    assert "flwr run runs/f/job hospitals -c 'resume=true run-dir=\"/srv/f\"'" in str(stopped.value)


def test_a_run_that_was_stopped_elsewhere_counts_as_interrupted(fake):
    fake(list=ended("stopped"))
    with pytest.raises(KeyboardInterrupt):
        submitted()


def test_a_superlink_that_does_not_answer_is_told_in_flowers_words(fake):
    fake(
        run={
            "success": False,
            "error-message": "Using SuperLink: hospitals\n\nConnection to the SuperLink\nis unavailable.",
        }
    )
    with pytest.raises(
        UserError,
        match=r"flwr run hospitals: Connection to the SuperLink; is unavailable. Also check its .root-certificates",
    ):
        submitted()


@pytest.mark.parametrize("during", ["run", "log"])
def test_ctrl_c_stops_flowers_run_also_while_it_is_being_submitted(fake, tmp_path, during):
    calls = fake(wait=during, list=ended("stopped"))
    code = (
        "from tests.deployment.test_submit import submitted; from fedprox.deployment import flower; "
        f"flower.program = lambda name: {str(tmp_path / 'flwr')!r}; submitted()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not any(call[0] == during for call in _calls(tmp_path)) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    (tmp_path / "goes on").touch()  # Flower's command is not hit by the signal
    assert process.wait(timeout=30) == -signal.SIGINT
    assert [call[0] for call in calls()] == [*dict.fromkeys(["run", during]), "stop"]


def _calls(folder: Path) -> list:
    file = folder / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_resume_submits_the_run_again_with_the_settings_that_it_had(fake, fedprox):
    assert fedprox("experiment=digits", "engine=local", "num_rounds=1", "mu=0.5").status == 0
    fake(list=ended("completed"))
    resumed = fedprox("resume=run", "engine=deployment", "engine.connection=hospitals", "num_rounds=3")
    assert (resumed.status, resumed.err) == (0, "")
    written = read_config(Path("run/job/config.yaml"))
    assert (written.num_rounds, written.mu, written.checkpoint.every, written.is_deployment) == (3, 0.5, 1, True)
    assert "resume = true" in Path("run/job/pyproject.toml").read_text()


def test_without_a_federation_here_nothing_is_submitted(fake):
    calls = fake()
    with pytest.raises(UserError, match=r"no federation runs in deployment; .* up --nodes .*engine.connection="):
        submitted("engine.connection=null")
    assert not Path("calls").exists()
    assert not Path("runs/f/job").exists()
    assert calls


def test_a_wrong_setting_is_refused_before_anything_is_submitted(fake):
    fake()
    with pytest.raises(UserError, match="round_timeout must be given with engine=deployment"):
        submitted("round_timeout=null")
    with pytest.raises(UserError, match=r"model.width"):
        submitted("+model.width=3")
    assert not Path("calls").exists()


def test_flowers_home_is_the_users_own_unless_one_is_named():
    assert "FLWR_HOME" not in Flower("a").environment() or "FLWR_HOME" in os.environ
    assert Flower("a", Path("/home/x")).environment()["FLWR_HOME"] == "/home/x"
    assert Flower("a").environment()["FLWR_TELEMETRY_ENABLED"] == "0"
