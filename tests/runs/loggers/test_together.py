"""Loggers in real runs: several at once, in a sweep, custom ones, and missing libraries."""

import sys

import pytest

RUN = ("dataset=digits", "engine=local", "num_rounds=2")

MINE = """
from pathlib import Path


class Mine:
    def begin(self, run_dir, facts, first_round):
        self.file = run_dir / "mine.txt"

    def log(self, row):
        if row["round"] == 1:
            raise OSError("no space left")
        self.file.write_text(str(row["round"]))

    def end(self, status):
        self.file.write_text(status)


def none():
    return 3
"""


def untimed(history: dict) -> dict:
    return {name: values for name, values in history.items() if name != "time_s"}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Provide a custom logger."""
    (tmp_path / "my_logger.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_all_three_in_a_sweep_have_the_values_of_metrics_csv_and_change_no_number(fedprox, tmp_path, read):
    assert fedprox(*RUN).status == 0
    ended = fedprox("--multirun", *RUN, "logger=[tensorboard,wandb,mlflow]", "mu=1,0.5")
    assert (ended.status, ended.err) == (0, "")
    jobs = [tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"]
    for job in jobs:
        written = read.metrics_csv(job)
        assert read.wandb(job) == read.mlflow(job) == written
        assert {name: len(values) for name, values in read.tensorboard(job).items()} == {
            name: len(values) for name, values in written.items()
        }
    first, second = (untimed(read.metrics_csv(job)) for job in jobs)
    assert first == untimed(read.metrics_csv(tmp_path / "run"))
    assert first != second
    assert (jobs[0] / "mlflow_run_id").read_text() != (jobs[1] / "mlflow_run_id").read_text()


def test_loggers_can_be_swept(fedprox, tmp_path, mine):
    ended = fedprox("--multirun", *RUN, "+logger.mine._target_=my_logger.Mine", "logger=none,[]")
    assert ended.status == 0, ended.err
    assert len(list(tmp_path.glob("sweep/*/mine.txt"))) == 2


def test_a_custom_logger_that_fails_does_not_affect_the_run(fedprox, tmp_path, mine, read):
    ended = fedprox(*RUN, "+logger.mine._target_=my_logger.Mine")
    assert ended.status == 0
    lines = [line for line in (ended.out + ended.err).splitlines() if "logger" in line]
    assert len(lines) == 1
    assert lines[0].endswith("logger=mine failed in round 1, the run continues without it: no space left")
    assert [step for step, _ in read.metrics_csv(tmp_path / "run")["test_loss"]] == [0, 1, 2]
    assert (tmp_path / "run" / "mine.txt").read_text() == "0"


def test_an_object_that_is_not_a_logger_is_refused(fedprox, mine):
    ended = fedprox(*RUN, "+logger.mine._target_=my_logger.none")
    assert (ended.status, ended.err) == (
        2,
        "error: logger.mine._target_=my_logger.none must return Logger, got int; see docs/extending.md\n",
    )


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_library_is_reported_before_the_first_job_of_a_sweep(fedprox, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # makes its import fail
    ended = fedprox("--multirun", "dataset=mnist", "data_dir=nowhere", "engine=local", f"logger=none,{name}")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert f"needs the library {name}; install it with pip install 'fedprox[{name}]'" in ended.err
    assert list(tmp_path.glob("sweep/*/.hydra")) == []
