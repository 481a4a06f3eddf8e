"""Whole runs in which something fails: how they end, and the files they leave."""

import contextlib
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fedprox.cli.jobs import read_table
from tests.faults import shots
from tests.faults.compared import differences

SMALL = ("dataset=digits", "engine=local", "num_clients=20", "clients_per_round=4", "stragglers_fraction=0")
BROKEN = """
import torch
from torch import nn


class Logistic(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x):
        if self.training and len(x) == 7:
            raise ArithmeticError("seven examples")
        return self.linear(x.flatten(1))
"""


def rows(run_dir: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (run_dir / name).open() as file:
        return list(csv.DictReader(file))


def record(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


@pytest.fixture
def broken(tmp_path, monkeypatch) -> tuple[str, ...]:
    """Return settings of a model that raises on batches of seven examples, which some clients' last batches have."""
    (tmp_path / "broken_model.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    return (*SMALL, "model._target_=broken_model.Logistic", "batch_size=10", "num_epochs=1", "protocol=paper")


def raises(row: dict[str, str]) -> bool:
    return int(row["num_examples"]) % 10 == 7


def test_a_client_that_raises_ends_the_run_with_one_line_and_what_was_measured_is_kept(fedprox, broken, tmp_path):
    ended = fedprox(*broken, "num_rounds=30")
    assert ended.status == 1
    last = ended.err.rstrip("\n").split("\n")[-1]
    round_num = len(rows(tmp_path / "run"))  # rounds 0 .. t are there, t + 1 has failed
    assert last.startswith(f"error: round {round_num}: client ")
    assert "ArithmeticError: seven examples (broken_model.py:13)" in last
    assert "Traceback" not in ended.err
    assert record(tmp_path / "run")["status"] == "failed"
    assert not any(raises(row) for row in rows(tmp_path / "run", "clients.csv"))


def test_a_client_that_raises_can_be_left_out(fedprox, broken, tmp_path):
    assert fedprox(*broken, "num_rounds=30", "on_client_error=drop").status == 0
    clients = rows(tmp_path / "run", "clients.csv")
    assert {raises(row) for row in clients} == {True, False}
    for row in clients:
        assert row["counted"] == str(not raises(row))
        assert (row["num_steps"] == "0") == (row["train_loss"] == "") == raises(row)
    assert [int(row["round"]) for row in rows(tmp_path / "run")] == list(range(31))


def test_a_run_that_diverges_stops_and_keeps_what_was_measured(fedprox, tmp_path):
    ended = fedprox(*SMALL, "num_rounds=20", "learning_rate=1e38")
    assert ended.status == 1
    last = ended.err.rstrip("\n").split("\n")[-1]
    assert re.match(r"error: round 1: the updates of \d+ of \d+ clients \(.*\) are nan or infinite", last)
    assert record(tmp_path / "run")["status"] == "diverged"
    assert [row["round"] for row in rows(tmp_path / "run")] == ["0"]


def test_a_run_that_diverges_continues_if_the_settings_say_so(fedprox, tmp_path):
    assert fedprox(*SMALL, "num_rounds=3", "learning_rate=1e38", "on_divergence=continue").status == 0
    assert [math.isfinite(float(row["test_loss"])) for row in rows(tmp_path / "run")] == [True, False, False, False]
    assert fedprox(*SMALL, "num_rounds=3", "learning_rate=1e38", "on_divergence=drop").status == 0
    # Every update diverges, so no client counts and the model stays.
    assert len({row["test_loss"] for row in rows(tmp_path / "run")}) == 1
    assert {row["counted"] for row in rows(tmp_path / "run", "clients.csv")} == {"False"}


def test_a_global_loss_that_is_infinite_stops_the_run_after_its_row(fedprox, tmp_path):
    # FedAdam's steps have the size of eta, whatever the clients send: the updates are finite, the model is not.
    adam = ("strategy._target_=flwr.serverapp.strategy.FedAdam", "+strategy.eta=1e38", "num_rounds=40")
    ended = fedprox(*SMALL, *adam, "learning_rate=1e-6")
    assert ended.status == 1
    measured = rows(tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "diverged"
    last = ended.err.rstrip("\n").split("\n")[-1]
    assert f"round {measured[-1]['round']}: the global model's test loss" in last
    assert [math.isfinite(float(row["test_loss"])) for row in measured] == [True] * (len(measured) - 1) + [False]


def test_a_round_that_takes_too_long_stops_the_run_or_continues_without_late_clients(fedprox, tmp_path):
    ended = fedprox(*SMALL, "num_rounds=3", "round_timeout=1e-9")
    assert ended.status == 1
    assert re.search(r"error: round 1: \d+ of \d+ clients \(.*\) did not answer", ended.err)
    assert fedprox(*SMALL, "num_rounds=3", "round_timeout=1e-9", "on_timeout=drop").status == 0
    assert {row["num_clients_counted"] for row in rows(tmp_path / "run")} == {"0"}


def test_a_run_stops_early_after_its_patience_and_leaves_no_later_round(fedprox, tmp_path):
    settings = (*SMALL, "num_rounds=300", "evaluation.every=3", "learning_rate=0.1")
    assert fedprox(*settings, "hydra.run.dir=whole").status == 0
    early = ("early_stopping.metric=test_loss", "early_stopping.patience=3", "early_stopping.min_delta=0.01")
    assert fedprox(*settings, *early).status == 0
    whole, kept = rows(tmp_path / "whole"), rows(tmp_path / "run")
    best, waited, end = math.inf, 0, None
    for row in whole:
        loss = float(row["test_loss"])
        best, waited = (loss, 0) if best - loss > 0.01 else (best, waited + 1)
        if waited == 3:
            end = int(row["round"])
            break
    assert 0 < end < 300
    assert [row["test_loss"] for row in kept] == [row["test_loss"] for row in whole if int(row["round"]) <= end]
    assert max(int(row["round"]) for row in rows(tmp_path / "run", "clients.csv")) == end
    facts = record(tmp_path / "run")
    assert (facts["status"], facts["stopped_early"]) == ("finished", {"round": end, "metric": "test_loss"})
    assert "stopped_early" not in record(tmp_path / "whole")


# Ray, killed


ON_RAY = ("dataset=digits", "num_clients=50", "partition=iid")


@pytest.fixture
def begun(environment, tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a command in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fedprox.main", *ON_RAY, *arguments, "client_resources.num_cpus=1"]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for run in started:
        if run.poll() is None:
            run.send_signal(signal.SIGINT)  # it ends its Ray
            run.communicate(timeout=600)


def wait_for_rows(run: subprocess.Popen[str], run_dir: Path, number: int) -> None:
    metrics, until = run_dir / "metrics.csv", time.monotonic() + 600  # starting takes 10 s, on a busy machine minutes
    while not metrics.exists() or len(metrics.read_text().splitlines()) <= number:
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def processes(run: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    return [process for process in psutil.Process(run.pid).children(recursive=True) if name in process.name()]


def actors(run: subprocess.Popen[str]) -> list[int]:
    return [process.pid for process in psutil.Process(run.pid).children(recursive=True) if shots.is_actor(process.pid)]


def wait_until_actors_work(run: subprocess.Popen[str]) -> None:
    """Wait until the actors, idle before their first round, have used 2 s of a processor."""
    enough, until = cpu_s(actors(run)) + 2, time.monotonic() + 600
    while cpu_s(actors(run)) < enough:
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.1)


def cpu_s(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker that Ray did not need
            total += psutil.Process(pid).cpu_times().user
    return total


def test_a_run_whose_actors_and_cluster_are_killed_is_after_its_resumption_the_undisturbed_one(
    fedprox, begun, tmp_path
):
    settings = ("num_rounds=100", "num_epochs=1000")
    run, run_dir = begun(*settings, "hydra.run.dir=run"), tmp_path / "run"
    for how_many, from_row in ((2, 5), (1, 15)):
        wait_for_rows(run, run_dir, from_row)
        while len(victims := actors(run)[:how_many]) < how_many:  # one may still be starting
            assert run.poll() is None
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
    wait_for_rows(run, run_dir, 25)
    os.kill(processes(run, "gcs_server")[0].pid, signal.SIGKILL)
    _, err = run.communicate(timeout=600)
    assert run.returncode == 1
    assert "error: the Ray cluster is lost: " in err
    assert "resume=<run directory>" in err
    assert "Traceback" not in err
    assert record(run_dir)["status"] == "failed"
    assert len(rows(run_dir)) < 100
    assert fedprox("resume=run", "engine=local").status == 0
    assert fedprox(*ON_RAY, *settings, "engine=local", "hydra.run.dir=local").status == 0
    assert differences(run_dir, tmp_path / "local") == []


def test_a_sweep_whose_raylet_dies_starts_ray_again_which_sigterm_ends_with_the_sweep(begun, tmp_path):
    # It dies within a long round: Ray ends a process silently if an object is put meanwhile, and a round begins with
    # that. 100,000 epochs of the reference solver take 150 s or more.
    sweep = begun("--multirun", "mu=0,1", "num_epochs=100000", "solver=reference", "hydra.sweep.dir=sweep")
    wait_for_rows(sweep, tmp_path / "sweep" / "0", 1)
    wait_until_actors_work(sweep)
    os.kill(processes(sweep, "raylet")[0].pid, signal.SIGKILL)
    wait_for_rows(sweep, tmp_path / "sweep" / "1", 1)
    wait_until_actors_work(sweep)
    # Ray's agents outlive their raylet by a minute.
    own = {each for each in shots.started(sweep.pid) if not shots.is_agent(each[0])}
    sweep.send_signal(signal.SIGTERM)
    _, err = sweep.communicate(timeout=600)
    assert sweep.returncode == 143, err
    assert shots.outlived(own, shots.GRACE_S) == []
    assert "Traceback" not in err
    lost, interrupted = read_table(tmp_path / "sweep")
    assert (lost["status"], lost["rounds"], interrupted["status"]) == ("failed", "0", "interrupted")
    assert lost["error"].startswith("the Ray cluster is lost: nothing answers at ")
