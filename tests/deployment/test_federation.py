"""Federations of two nodes on this machine, with Flower's processes: the commands of docs/deployment.md.

This file holds all tests that start nodes, so that never more than one federation runs. It takes more than a minute. A
machine on which nodes do not start in time skips it. tests/faults/sites.py tries that a run resumes to the bytes of a
simulation, whatever is killed.
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
ADMIN = PAGE.commands[6:]
START_S, RUN_S = 90.0, 300.0


class Place:
    """A folder in which the page's commands run.

    Attributes:
        folder: The folder.
        environment: Of the commands; Flower's home is in the folder.
        log: The output of the command that was started last.
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
        self.log = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"  # a pipe would outlive the command
        with self.log.open("w") as log:
            return subprocess.Popen(
                words,
                cwd=self.folder,
                env={**self.environment, **variables, **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, command: str, timeout: float = RUN_S) -> tuple[int, str]:
        """Run a command; return its exit status and output. One that takes too long is interrupted."""
        with self.start(command) as process:
            log = self.log
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
        return process.returncode, log.read_text()

    def record(self, run: str | Path) -> dict:
        """Return a run's record."""
        return json.loads((self.folder / run / "run.json").read_text())

    def rows(self, run: str | Path) -> list[dict]:
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


def small(command: str, run: str, num_rounds: int) -> str:
    """Return an experiment's command with two clients, few rounds and a run directory."""
    return f"{re.sub('=3', '=2', command)} num_rounds={num_rounds} hydra.run.dir={run}"


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


def test_every_command_of_the_page_is_run_here():
    simulated, up, federated, status, down, connected = PAGE.commands[:6]
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
    assert [command.startswith(each) for command, each in zip(ADMIN, beginnings, strict=True)] == [True] * 6


def test_a_researchers_run_has_the_bytes_of_the_simulation_and_down_leaves_nothing(place):
    before = of_flower()
    simulated, up, federated, status, down = PAGE.commands[:5]
    assert place.run(small(simulated, "runs/l", 1))[0] == 0
    ended, out = place.run(up.replace("3", "2"), timeout=START_S)
    if ended:
        pytest.skip(f"SuperNodes do not start in time on this machine: {out[-500:]}")
    try:
        ended, out = place.run(small(federated, "runs/f", 1))
        assert ended == 0, out
        for name in ("model.safetensors", "clients.csv"):
            assert (place.folder / "runs/f" / name).read_bytes() == (place.folder / "runs/l" / name).read_bytes()
        assert place.rows("runs/f") == place.rows("runs/l")
        assert len(place.rows("runs/f")) == 2
        ended, out = place.run(status)
        assert ended == 0
        assert "SuperNodes: 2 online, 0 offline" in out
        assert "finished:completed" in out
    finally:
        ended, out = place.run(down)
    assert (ended, out) == (0, "3 processes stopped\n")
    assert of_flower().keys() - before.keys() == set()


@pytest.fixture
def hospitals(place) -> Iterator[int]:
    """Run the administrator's commands on the loopback device; yield the server's port."""
    with ExitStack() as stack:
        yield _hospitals(place, stack)


def _hospitals(place: Place, stack: ExitStack) -> int:
    port = free_port()
    prepare, server, register_a, register_b, site, _ = (word.replace("deployment/", "hospitals/") for word in ADMIN)
    for name in ("hospital_a", "hospital_b"):
        (place.folder / "data" / name).mkdir(parents=True)
    ended, out = place.run(f"{prepare.replace('fl.example.org:8000', f'127.0.0.1:{port}')} --folder hospitals")
    assert ended == 0, out
    superlink = _daemon(place, stack, server, SUPERLINK_HOST="127.0.0.1")
    if not wait(lambda: _answers(port), superlink, START_S):
        pytest.skip("the SuperLink does not start in time on this machine")
    for command in (register_a, register_b):
        ended, out = place.run(command)
        assert ended == 0, out
    for name in ("hospital_a", "hospital_b"):
        command = site.replace("hospital_a", name).replace("/data/xrays", f"data/{name}")
        _daemon(place, stack, command, SUPERNODE_PORT=str(free_port()))
    return port


def _daemon(place: Place, stack: ExitStack, command: str, **more: str) -> subprocess.Popen:
    """Start a process that ends with the stack."""
    process = place.start(command, **more)
    stack.callback(process.wait, 60)
    stack.callback(process.terminate)
    return process


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def test_ctrl_c_stops_a_researchers_run_at_the_administrators_server_and_strangers_take_no_part(place, hospitals):
    home, listed = place.folder / "hospitals" / "home", ADMIN[-1].replace("deployment/", "hospitals/")
    (place.folder / "flower").mkdir()
    (place.folder / "flower" / "config.toml").write_text((home / "config.toml").read_text())
    with ExitStack() as stack:
        authority = place.folder / "hospitals/ca/ca.crt"
        _stranger(place, stack, hospitals, "without_key", "--root-certificates", str(authority))
        _stranger(place, stack, hospitals, "without_tls", "--insecure")
        until = time.monotonic() + START_S
        while (online := place.run(listed)[1].count("online")) < 2:
            if time.monotonic() > until:
                pytest.skip(f"{online} of 2 SuperNodes are online in time on this machine")
        with place.start(small(PAGE.commands[5], "runs/c", 2)) as process:
            log, run_dirs = place.log, place.folder / "hospitals" / "runs"
            assert wait(lambda: any(len(place.rows(each)) == 2 for each in run_dirs.iterdir()), process), (
                log.read_text()
            )
            process.send_signal(signal.SIGINT)
            assert process.wait(RUN_S) == 130
        (run_dir,) = run_dirs.iterdir()
        until = time.monotonic() + RUN_S
        while place.record(run_dir)["status"] == "running" and time.monotonic() < until:
            time.sleep(0.2)
        assert place.record(run_dir)["status"] == "interrupted"
        assert [file.name for file in (run_dir / "checkpoint").iterdir()] == ["round_000001.safetensors"]
        assert place.rows(run_dir) == place.rows("runs/l")
        out = log.read_text()
        assert f"run directory on this server: {run_dir}" in out
        assert "continue with flwr run runs/c/job hospitals -c 'resume=true" in out
        nodes = json.loads(place.run(f"{listed} --format json")[1])["nodes"]
        assert [node["status"] for node in nodes] == ["online", "online"]


def _stranger(place: Place, stack: ExitStack, port: int, name: str, *words: str) -> subprocess.Popen:
    """Start a SuperNode with a key that nobody has registered, which asks to be clients 0 and 1."""
    kit = place.folder / name
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
    return _daemon(place, stack, shlex.join(["flower-supernode", "--superlink", f"127.0.0.1:{port}", *node, *words]))
