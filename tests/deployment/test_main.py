"""The command python -m fedprox.deployment, without Flower's processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedprox.deployment import __main__ as deployment
from fedprox.deployment import daemons
from fedprox.deployment.kits import Federation, prepare


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_help_names_the_four_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        deployment.main(["--help"])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert all(f"    {name} " in out for name in ("prepare", "up", "status", "down"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "the following arguments are required: COMMAND; see --help"),
        (["start"], "invalid choice: 'start'"),
        (["up"], "one of the arguments --nodes --sites is required"),
        (["up", "--nodes", "0"], "--nodes must be at least 1, got 0"),
        (["up", "--nodes", "two"], "invalid int value: 'two'"),
        (["up", "--nodes", "2", "--sites", "a"], "not allowed with argument"),
        (["up", "--sites", "a,b", "--data", "sites"], "sites/a is not a folder; --data must have a folder per site"),
        (["up", "--sites", "a,a"], "different names"),
        (["prepare", "--server", "here", "--sites", "a"], "--server must be host:port"),
        (["prepare", "--server", "here:1", "--sites", "a,"], "a site's name must have"),
        (["prepare", "--sites", "a"], "--server"),
        (["status"], "no federation runs in deployment; start one with"),
        (["status", "--folder", "elsewhere"], "no federation runs in elsewhere"),
        (["status", "--nodes", "2"], "unrecognized arguments: --nodes 2"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_2_and_leaves_nothing(tmp_path, capsys, words, line):
    assert deployment.main(words) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("error: ")
    assert line in told.err
    assert list(tmp_path.iterdir()) == []


def test_prepare_says_what_is_to_be_done_next(capsys):
    words = ["--server", "fl.example.org:8000", "--sites", "hospital_a,hospital_b", "--connection", "hospitals"]
    assert deployment.main(["prepare", *words]) == 0
    out = capsys.readouterr().out
    assert "FLWR_HOME=deployment/home flwr supernode register deployment/sites/hospital_a/key.pub hospitals" in out
    assert sorted(kit.name for kit in Path("deployment/sites").iterdir()) == ["hospital_a", "hospital_b"]


def test_down_without_a_federation_says_so(capsys):
    assert deployment.main(["down"]) == 0
    assert capsys.readouterr().out == "nothing runs in deployment\n"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that puts a shell script in the place of Flower's programs."""
    folder = tmp_path.parent / f"{tmp_path.name}-programs"
    folder.mkdir()
    monkeypatch.setattr(
        daemons, "environment", lambda more: {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **more}
    )
    monkeypatch.setattr(daemons, "END_S", 1.0)

    def write(text: str) -> None:
        for name in ("flower-superlink", "flower-supernode"):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)

    return write


def test_a_superlink_that_does_not_start_is_told_by_its_last_line_and_nothing_is_left(programs, capsys):
    programs("echo starting; echo the port is taken; exit 3")
    assert deployment.main(["up", "--nodes", "2"]) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err == "error: superlink did not start: the port is taken (deployment/logs/superlink.log)"
    assert not Path("deployment/processes.json").exists()


CHILD = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid(); time.sleep(600)"


def test_down_ends_processes_that_daemons_have_started_even_if_they_ignore_signals(programs, capsys):
    programs(f"{sys.executable} -c '{CHILD}' flower-superexec & sleep 600")
    daemon = _superlink()
    until = time.monotonic() + 30
    while not _children() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)  # it has come to ignore SIGTERM
    assert deployment.main(["down"]) == 0
    assert capsys.readouterr().out == "1 processes stopped\n"
    assert daemon not in {pid for pid, _, _ in daemons._processes()}
    assert _children() == []


def _superlink() -> int:
    """Start a SuperLink as `up` does, and return its process."""
    prepare(Federation(Path("deployment"), "127.0.0.1", 1, {"a": ""}))
    daemons._start(Path("deployment"), "superlink", Path("deployment/start_server.sh"), {})
    return daemons._running(Path("deployment"))["superlink"]


def _children() -> list[int]:
    return [
        pid for pid, _, command in daemons._processes() if CHILD in command and command.endswith("flower-superexec")
    ]


def test_up_beside_a_federation_that_runs_is_refused(programs, capsys):
    programs("sleep 600")
    _superlink()
    assert deployment.main(["up", "--nodes", "1"]) == 2
    assert "a federation runs in deployment already; stop it with" in capsys.readouterr().err
    assert deployment.main(["down"]) == 0


@pytest.mark.parametrize("text", ["", "[]", '{"superlink": "x"}', "no json"])
def test_a_damaged_list_of_processes_is_told_in_one_line(capsys, text):
    Path("deployment").mkdir()
    Path("deployment/processes.json").write_text(text)
    assert deployment.main(["down"]) == 2
    assert "processes.json is damaged" in capsys.readouterr().err


def test_up_does_not_touch_the_folder_that_was_prepared_for_a_server(capsys):
    assert deployment.main(["prepare", "--server", "fl.example.org:8000", "--sites", "a"]) == 0
    script = Path("deployment/start_server.sh").read_text()
    assert deployment.main(["up", "--nodes", "1"]) == 2
    assert "deployment holds another federation" in capsys.readouterr().err
    assert Path("deployment/start_server.sh").read_text() == script


def test_a_process_that_has_got_the_number_of_a_daemon_is_left_alone(capsys):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as another:
        Path("deployment").mkdir()
        Path("deployment/processes.json").write_text(f'{{"superlink": {another.pid}}}')
        assert deployment.main(["down"]) == 0
        assert capsys.readouterr().out == "nothing runs in deployment\n"
        assert another.poll() is None
        another.send_signal(signal.SIGKILL)
