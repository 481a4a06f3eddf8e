"""Parallel jobs of a sweep: `hydra/launcher=joblib`."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor

from fedprox.cli.jobs import read_table
from tests.faults.compared import differences

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")

DIGITS = ("dataset=digits", "engine=local")
JOBLIB = ("--multirun", "hydra/launcher=joblib", "hydra.sweep.dir=joblib")
# 141 clients are too many for the power law on these data, which is known only once they are loaded.
ONE_FAILS = (*DIGITS, "num_rounds=2", "num_clients=50,141,60", "+repeat_num=0")

BREAKS = """
from fedprox.federation.planned_strategy import FedProx

class Breaks(FedProx):
    def configure_train(self, server_round, arrays, config, grid):
        raise RuntimeError("broken")
"""


@pytest.fixture
def swept(fedprox, monkeypatch):
    """Return a function that runs a sweep with workers, which the next sweep of this test finds started."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which would set the threads of a worker
    yield lambda *arguments: fedprox(*JOBLIB, *arguments)
    get_reusable_executor().shutdown(kill_workers=True)


def finished(sweep: Path) -> list[str]:
    return sorted(file.parent.name for file in sweep.glob("*/model.safetensors"))


def test_parallel_jobs_give_the_files_status_and_table_of_sequential_jobs_and_are_not_repeated(
    tmp_path, swept, fedprox
):
    parallel = swept(*ONE_FAILS)
    alone = fedprox("--multirun", *ONE_FAILS, "hydra.sweep.dir=basic")
    assert parallel.status == alone.status == 2
    assert parallel.err == alone.err
    assert parallel.err.startswith("error: num_clients must be at most 140")
    assert finished(tmp_path / "joblib") == finished(tmp_path / "basic") == ["0", "2"]
    for job in ("0", "2"):
        ours, theirs = tmp_path / "joblib" / job, tmp_path / "basic" / job
        assert differences(ours, theirs) == []
        # There are as many jobs at once as CPUs, so one thread each; the record has the user's command.
        facts = json.loads((ours / "run.json").read_text())
        assert facts["settings"]["engine"]["num_threads"] is None
        assert facts["hardware"]["num_threads"] == 1
        assert set(JOBLIB) < set(facts["command"])

    rows = read_table(tmp_path / "joblib")
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    assert [row["overrides"] for row in rows] == ["num_clients=50", "num_clients=141", "num_clients=60"]
    assert parallel.err == f"error: {rows[1]['error']}\n"
    assert parallel.out.splitlines()[-2].endswith(rows[1]["error"])
    before = {record: record.read_bytes() for record in (tmp_path / "joblib").glob("*/run.json")}
    again = swept(*ONE_FAILS)
    assert (again.status, again.err) == (2, parallel.err)
    assert {record: record.read_bytes() for record in (tmp_path / "joblib").glob("*/run.json")} == before
    assert read_table(tmp_path / "joblib") == rows


def test_an_error_in_the_code_of_a_worker_is_a_traceback_and_status_1(tmp_path, swept, monkeypatch):
    (tmp_path / "breaks.py").write_text(BREAKS)
    monkeypatch.syspath_prepend(tmp_path)
    ended = swept(*DIGITS, "mu=0,1", "strategy._target_=breaks.Breaks")
    assert ended.status == 1
    assert ended.err.count("RuntimeError: broken") == 2


def test_a_ray_in_each_of_several_processes_is_refused(fedprox, tmp_path):
    ended = fedprox(*JOBLIB, "dataset=digits", "engine=local,ray")
    assert ended.status == 2
    assert ended.err.startswith("error: hydra/launcher=joblib needs engine=local")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "joblib").exists()


def test_an_interrupt_ends_the_workers_with_130_and_one_line_and_keeps_the_rows(tmp_path, environment):
    command = [sys.executable, "-m", "fedprox.main", *JOBLIB, *DIGITS, "num_rounds=1000000", "mu=0,1,2"]
    process = subprocess.Popen(
        [*command, "hydra.launcher.n_jobs=2"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    files, deadline = [tmp_path / "joblib" / job / "metrics.csv" for job in "01"], time.monotonic() + 600
    try:
        while not all(file.exists() and file.read_text().count("\n") > 5 for file in files):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=250)  # returns when the workers, which share this pipe, have ended too
    finally:
        process.kill()
    assert process.returncode == 130
    (line,) = err.splitlines()
    assert line.startswith("interrupted; what was measured is in the run directory; continue with resume=")
    assert all(file.read_text().count("\n") > 5 for file in files)
    assert not (tmp_path / "joblib" / "2").exists()
