"""Federations of two nodes on this machine, with Flower's processes: the commands of docs/deployment.md.

This file holds all tests that start nodes, so that never more than one federation runs. It takes more than a minute. A
machine on which nodes do not start in time skips it.
"""

import csv
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from fedprox.deployment.kits import _new_site_key
from tests.test_documented_commands import ROOT, read_document

PAGE = read_document("docs/deployment.md", (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8"))
START_S, RUN_S = 90.0, 300.0


class Place:
    """A folder in which the page's commands run.

    Attributes:
        folder: The folder.
        environment: Of the commands; Flower's home is in the folder.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        programs = Path(sys.executable).parent
        self.folder = folder
        self.environment = {
            **environment,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }

    def start(self, command: str, **more: str) -> subprocess.Popen:
        """Start a command of the page in a session of its own; words such as NAME=value before it are variables."""
        words = shlex.split(command)
        variables = {}
        while found := re.fullmatch(r"(\w+)=(.*)", words[0]):
            variables[found[1]] = found[2]
            del words[0]
        words[0] = sys.executable if words[0] == "python" else words[0]
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env={**self.environment, **variables, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str, timeout: float = RUN_S) -> tuple[int, str]:
        """Run a command; return its exit status and output. One that takes too long is interrupted."""
        with self.start(command) as process:
            try:
                out = process.communicate(timeout=timeout)[0]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                out = process.communicate()[0]
            return process.returncode, out

    def record(self, run: str) -> dict:
        return json.loads((self.folder / run / "run.json").read_text())

    def rows(self, run: str) -> list[dict]:
        """Return the rows of metrics.csv without times; none before the run has begun."""
        with suppress(FileNotFoundError), (self.folder / run / "metrics.csv").open() as opened:
            return [{key: text for key, text in row.items() if key != "time_s"} for row in csv.DictReader(opened)]
        return []


def wait(is_so: Callable[[], bool], process: subprocess.Popen, timeout: float = RUN_S) -> bool:
    """Wait until a condition holds, while a process runs; return whether it came to hold in time."""
    until = time.monotonic() + timeout
    while time.monotonic() < until and process.poll() is None:
        if is_so():
            return True
        time.sleep(0.2)
    return is_so()


def of_flower() -> dict[int, str]:
    """Return Flower's processes on this machine: id -> command."""
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,stat=,command="], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    running = {int(line[0]): line[2] for line in lines if len(line) == 3 and not line[1].startswith("Z")}
    return {pid: text for pid, text in running.items() if re.search(r"flower-super(link|node|exec)|flwr-\w+app", text)}


def of_page(start: str) -> str:
    """Return the command of the page that begins like this."""
    (found,) = [command for command in PAGE.commands if command.startswith(start)]
    return found


def small(command: str, run: str) -> str:
    """Return an experiment's command with two clients, two rounds and a run directory."""
    return f"{re.sub('=3', '=2', command)} num_rounds=2 hydra.run.dir={run}"


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory, module_environment) -> Place:
    return Place(tmp_path_factory.mktemp("federation"), module_environment)


@pytest.fixture(scope="module")
def module_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "FEDPROX_DATA_DIR": os.environ.get("FEDPROX_DATA_DIR", "data")}


def assert_same_bytes(place: Place, run: str, other: str) -> None:
    for name in ("model.safetensors", "clients.csv"):
        assert (place.folder / run / name).read_bytes() == (place.folder / other / name).read_bytes()
    assert place.rows(run) == place.rows(other)
    assert len(place.rows(run)) == 3


def test_every_command_of_the_page_is_run_here():
    simulated, up, federated, status, down, connected, *admin = PAGE.commands
    assert [up, status, down] == [f"python -m fedprox.deployment {word}" for word in ("up --nodes 3", "status", "down")]
    assert federated == simulated.replace("engine=local", "engine=deployment")
    assert connected.endswith("engine=deployment engine.connection=hospitals")
    beginnings = [
        "python -m fedprox.deployment prepare",
        "deployment/start_server.sh",
        *["FLWR_HOME="] * 2,
        "data=",
        "FLWR_HOME=",
    ]
    assert [command.startswith(each) for command, each in zip(admin, beginnings, strict=True)] == [True] * 6


def test_a_run_that_ctrl_c_interrupts_resumes_to_the_bytes_of_a_simulation_and_down_leaves_nothing(place):
    before = of_flower()
    simulated, up, federated, status, down = PAGE.commands[:5]
    assert place.run(small(simulated, "runs/l"))[0] == 0
    ended, out = place.run(up.replace("3", "2"), timeout=START_S)
    if ended:
        pytest.skip(f"SuperNodes do not start in time on this machine: {out[-500:]}")
    try:
        with place.start(small(federated, "runs/f")) as process:
            assert wait(lambda: len(place.rows("runs/f")) == 2, process), process.communicate()[0]
            process.send_signal(signal.SIGINT)
            out = process.communicate(timeout=RUN_S)[0]
        assert (process.returncode, out.splitlines()[-1][:12]) == (130, "interrupted;")
        assert place.record("runs/f")["status"] == "interrupted"
        kept = [file.name for file in (place.folder / "runs/f/checkpoint").iterdir()]
        assert kept == ["round_000001.safetensors"]
        ended, out = place.run("python -m fedprox.main resume=runs/f")
        assert ended == 0, out
        assert_same_bytes(place, "runs/f", "runs/l")
        ended, out = place.run(status)
        assert ended == 0
        assert "SuperNodes: 2 online, 0 offline" in out
        assert ("finished:stopped" in out, "finished:completed" in out) == (True, True)
        assert place.run(up.replace("3", "2"))[0] == 2  # one runs there already
    finally:
        assert place.run(down) == (0, "3 processes stopped\n")
    assert of_flower().keys() - before.keys() == set()
    assert place.run(status)[0] == 2


@pytest.fixture
def hospitals(place) -> Iterator[int]:
    """Run the administrator's commands on the loopback device; yield the server's port."""
    with ExitStack() as stack:
        yield _hospitals(place, stack)


def _hospitals(place: Place, stack: ExitStack) -> int:
    port = free_port()
    prepare, server, *others = PAGE.commands[6:]
    registers, site, _ = others[:2], others[2], others[3]
    for name in ("hospital_a", "hospital_b"):
        (place.folder / "data" / name).mkdir(parents=True)
    ended, out = place.run(f"{prepare.replace('fl.example.org:8000', f'127.0.0.1:{port}')} --folder hospitals")
    assert ended == 0, out

    def started(command: str, **more: str) -> subprocess.Popen:
        process = place.start(command, **more)
        stack.callback(lambda: process.communicate(timeout=60))
        stack.callback(process.terminate)
        return process

    superlink = started(server.replace("deployment/", "hospitals/"))
    if not wait(lambda: _answers(port), superlink, START_S):
        pytest.skip("the SuperLink does not start in time on this machine")
    for command in registers:
        ended, out = place.run(command.replace("deployment/", "hospitals/"))
        assert ended == 0, out
    for name in ("hospital_a", "hospital_b"):
        command = site.replace("deployment/", "hospitals/").replace("hospital_a", name)
        started(command.replace("/data/xrays", f"data/{name}"), SUPERNODE_PORT=str(free_port()))
    return port


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def test_the_administrators_federation_runs_a_researchers_job_and_refuses_strangers(place, hospitals):
    (place.folder / "flower").mkdir()
    config = (place.folder / "hospitals" / "home" / "config.toml").read_text()
    (place.folder / "flower" / "config.toml").write_text(config)
    strangers = [
        _stranger(place, hospitals, "--root-certificates", str(place.folder / "hospitals/ca/ca.crt")),
        _stranger(place, hospitals, "--insecure"),
    ]
    try:
        listed = PAGE.commands[-1].replace("deployment/", "hospitals/")
        until = time.monotonic() + START_S
        while (online := place.run(listed)[1].count("online")) < 2:
            if time.monotonic() > until:
                pytest.skip(f"{online} of 2 SuperNodes are online in time on this machine")
        ended, out = place.run(small(PAGE.commands[5], "runs/c"))
        assert ended == 0, out
        (run_dir,) = (place.folder / "hospitals" / "runs").iterdir()
        assert_same_bytes(place, str(run_dir), "runs/l")
        assert str(run_dir) in out
        assert (place.folder / "runs/c/job/config.yaml").exists()
        nodes = json.loads(place.run(f"{listed} --format json")[1].partition("\n")[2])["nodes"]
        assert [node["status"] for node in nodes] == ["online", "online"]
    finally:
        for stranger in strangers:
            stranger.terminate()
            stranger.communicate(timeout=60)


def _stranger(place: Place, port: int, *words: str) -> subprocess.Popen:
    """Start a SuperNode with a key that nobody has registered, which asks to be clients 0 and 1."""
    kit = place.folder / f"stranger{words[0]}"
    kit.mkdir()
    _new_site_key(kit)
    node = [
        "--auth-supernode-private-key",
        str(kit / "key"),
        "--port",
        str(free_port()),
        "--node-config",
        "clients='0-1'",
    ]
    return place.start(shlex.join(["flower-supernode", "--superlink", f"127.0.0.1:{port}", *node, *words]))
