"""ServerApp and ClientApp together in this process: Flower's part is a grid that calls the ClientApp for a message."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import Context, RecordDict

from fedprox.config.compose import compose
from fedprox.deployment import client_app, job, server_app
from fedprox.deployment.client_app import clients_of
from fedprox.deployment.job import Job
from fedprox.deployment.server_app import JobFailed, run_directory
from fedprox.engines import superlink
from fedprox.engines.identity import act_as_server
from fedprox.experiment import run as experiment

DIGITS = ["experiment=digits", "num_clients=3", "clients_per_round=2", "num_rounds=3"]


class Federation:
    """A Flower grid whose nodes play clients by our ClientApp, in this process.

    Attributes:
        configs: Node config of each node.
        on_message: Called with every message that is not the question whom a node plays.
    """

    run = SimpleNamespace(fab_hash="abc")

    def __init__(self, *configs: dict) -> None:
        self.configs = dict(enumerate(configs, start=50))
        self.on_message = lambda message: None
        self._answers: dict = {}

    def get_node_ids(self):
        return list(self.configs)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node, ids = message.metadata.dst_node_id, [*ids, f"id {len(self._answers)}"]
            message.metadata.__dict__["_message_id"] = ids[-1]
            if message.metadata.message_type != "query.who":
                self.on_message(message)
            context = Context(1, node, self.configs[node], RecordDict(), {})
            self._answers[ids[-1]] = client_app.app(message, context)
        return ids

    def pull_messages(self, ids):
        return [self._answers[each] for each in ids]


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    act_as_server()
    monkeypatch.setattr(superlink, "POLL_S", 0.001)
    log = logging.getLogger("fedprox")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    flower = logging.getLogger("flwr").level
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)
    logging.getLogger("flwr").setLevel(flower)


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Return a function that runs a job on a federation, as Flower's ServerApp process does."""

    def submit(grid: Federation, *overrides: str, resume: bool = False) -> Path:
        run_dir = tmp_path / "f"
        config = compose([*DIGITS, "engine=deployment", "engine.start_timeout=0", *overrides])
        job.write(Job(config, str(run_dir), resume, {"overrides": list(overrides)}), tmp_path / "job", tmp_path)
        monkeypatch.syspath_prepend(tmp_path / "job")
        origin = json.dumps({"overrides": list(overrides)})
        settings = {"run-dir": str(run_dir), "resume": resume, "origin": origin, "asks": ""}
        server_app.app(grid, Context(123, 1, {}, RecordDict(), settings))
        return run_dir

    return submit


def partitions(number: int = 3) -> list[dict]:
    return [{"partition-id": k, "num-partitions": number} for k in range(number)]


def rows(run_dir: Path) -> list[dict]:
    with (run_dir / "metrics.csv").open() as opened:
        return [{name: value for name, value in row.items() if name != "time_s"} for row in csv.DictReader(opened)]


def record(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


def assert_same(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "clients.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert rows(one) == rows(other)


def simulated(folder: Path, *overrides: str) -> Path:
    folder.mkdir()
    experiment.run(compose([*DIGITS, "engine=local", *overrides]), folder)
    return folder


@pytest.mark.parametrize(
    ("nodes", "overrides"),
    [
        (partitions(), []),
        (partitions(), ["strategy=feddane", "stragglers_fraction=0.5"]),
        (partitions(), ["strategy=scaffold", "update=float32"]),
        ([{"clients": "0-1"}, {"clients": "2"}], ["sampling=proportional", "clients_per_round=3"]),
        ([{"site": "b"}, {"site": "c"}, {"site": "a"}], ["num_rounds=2"]),
    ],
)
def test_a_federation_gives_the_bytes_of_a_simulation(submitted, tmp_path, nodes, overrides):
    assert_same(submitted(Federation(*nodes), *overrides), simulated(tmp_path / "l", *overrides))


SCRIPT = """
import sys
import torch
from fedprox import federated
from beside import loss_of

task, model = federated.init(), torch.nn.Linear(3, 1)
while federated.is_running():
    federated.receive(model, evaluate=lambda model: {"loss": loss_of(model)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * (1 + task.client))
    loss_of(model).backward()
    optimizer.step()
    at_home = float(sys.argv[1:] == [task.name, task.data] == ["ab"[task.client], f"/data/{'ab'[task.client]}"])
    federated.send(model, num_examples=1 + task.client, metrics={"at_home": at_home})
"""


def test_a_script_at_nodes_gives_the_bytes_of_a_simulation_and_knows_its_site(submitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text(
        "import torch\ndef loss_of(model): return model(torch.rand(5, 3)).square().mean()"
    )
    script = ["client=script", "client.script=train.py", "num_clients=2", "num_rounds=1"]
    script += ["clients_per_round=null", "~experiment"]
    nodes = [{"site": name, "data": f"/data/{name}"} for name in "ab"]
    federated = submitted(Federation(*nodes), *script, "client.args='{site} {data}'")
    local = simulated(tmp_path / "l", *script)
    assert (federated / "model.safetensors").read_bytes() == (local / "model.safetensors").read_bytes()
    assert [row["test_loss"] for row in rows(federated)] == [row["test_loss"] for row in rows(local)]
    assert [row["at_home"] for row in rows(federated)] == ["", "1.0"]
    assert [row["at_home"] for row in rows(local)] == ["", "0.0"]


def test_the_run_directory_is_complete_and_names_flowers_run_and_the_job(submitted):
    run_dir = submitted(Federation(*partitions()), "mu=0.1")
    assert record(run_dir)["flower"] == {"run_id": "123", "job": "abc"}
    assert record(run_dir)["overrides"] == ["mu=0.1"]
    assert record(run_dir)["status"] == "finished"
    assert sorted(file.name for file in (run_dir / ".hydra").iterdir()) == ["config.yaml", "overrides.yaml"]
    assert "round 3/3" in (run_dir / "main.log").read_text()


def test_a_checkpoint_is_written_every_round_and_failed_clients_are_dropped_unless_told_otherwise():
    config = compose([*DIGITS, "engine=deployment"])
    assert (config.checkpoint.every, config.on_client_error, config.on_timeout) == (1, "drop", "drop")
    assert config.round_timeout == 3600.0
    told = compose([*DIGITS, "engine=deployment", "on_client_error=stop", "checkpoint.every=5", "round_timeout=9"])
    assert (told.checkpoint.every, told.on_client_error, told.round_timeout) == (5, "stop", 9.0)


def test_a_client_whose_code_raises_fails_with_its_own_line(submitted, capfd, monkeypatch):
    monkeypatch.setattr(client_app, "_grid", lambda message, context: 1 / 0)
    with pytest.raises(JobFailed, match=r"exit status 1: .*client 0: node 50: ZeroDivisionError: division by zero"):
        submitted(Federation(*partitions()), "on_client_error=stop", "clients_per_round=3")
    assert "Traceback" not in capfd.readouterr().err


def test_a_mistake_in_the_settings_ends_with_status_2_and_leaves_no_record(submitted, tmp_path):
    with pytest.raises(JobFailed, match=r"exit status 2: .*no SuperNode plays client 2"):
        submitted(Federation(*partitions(2)))
    assert not (tmp_path / "f" / "run.json").exists()


def test_a_signal_interrupts_the_run_with_its_checkpoint_and_only_then_flower_ends_it(submitted, tmp_path):
    grid, status = Federation(*partitions()), []
    grid.on_message = lambda message: _kill_in_round(2, grid)

    def flowers_own(*_):
        status.append(record(tmp_path / "f")["status"])

    earlier = signal.signal(signal.SIGINT, flowers_own)
    try:
        run_dir = submitted(grid)
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert status == ["interrupted"]
    assert [file.name for file in (run_dir / "checkpoint").iterdir()] == ["round_000001.safetensors"]
    grid.on_message = lambda message: None
    assert_same(submitted(grid, resume=True), simulated(tmp_path / "l"))
    assert record(run_dir)["resumed"][0]["after_round"] == 1


def test_a_resumed_run_has_the_sites_that_it_began_with(submitted, tmp_path):
    grid = Federation({"site": "b"}, {"site": "c"}, {"site": "d"})
    grid.on_message = lambda message: _kill_in_round(2, grid)
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run_dir = submitted(grid)
    finally:
        signal.signal(signal.SIGINT, earlier)
    grid.on_message = lambda message: None
    grid.configs[99] = {"site": "a"}
    assert_same(submitted(grid, resume=True), simulated(tmp_path / "l"))
    assert record(run_dir)["sites"] == ["b", "c", "d"]


def _kill_in_round(round_num: int, grid: Federation) -> None:
    grid.num_messages = getattr(grid, "num_messages", 0) + 1
    if grid.num_messages == 2 * round_num:  # two clients a round
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_signal_does_not_disturb_the_writing_of_files():
    before = signal.getsignal(signal.SIGTERM)
    written = []
    with pytest.raises(KeyboardInterrupt):
        _write_despite_signals(written)
    assert written == ["all"]
    assert signal.getsignal(signal.SIGTERM) is before


def _write_despite_signals(written: list[str]) -> None:
    with server_app._interrupted_by_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            written.append("all")


def test_the_server_chooses_the_run_directory_of_a_job_that_names_none(monkeypatch):
    monkeypatch.setenv("FEDPROX_RUNS", "/srv/runs")
    assert run_directory("", 17) == Path("/srv/runs/17")
    assert run_directory("/there", 17) == Path("/there")


@pytest.mark.parametrize(
    ("config", "clients"),
    [
        ({"partition-id": 3}, [3]),
        ({"clients": "0-3"}, [0, 1, 2, 3]),
        ({"clients": "1,4-5"}, [1, 4, 5]),
        ({"clients": 7}, [7]),
        ({"site": "a", "partition-id": 3}, []),
        ({}, []),
    ],
)
def test_a_node_config_names_the_clients(config, clients):
    assert clients_of(config) == clients


def test_nothing_heavy_is_imported_before_a_message_is_answered():
    code = "import sys, fedprox.deployment.client_app; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numba", "hydra", "ray", "fedprox.config.schema"} & set(shown.stdout.split())
