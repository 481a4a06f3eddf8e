"""Several loggers at once, in a sweep, of one's own, and those that cannot be had."""

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
    """Let the programs of a test find a logger of the user's own."""
    (tmp_path / "my_logger.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("tensorboard", "wandb", "mlflow")
def test_all_three_at_once_in_a_sweep_change_no_number_and_keep_its_jobs_apart(fedprox, tmp_path, read):
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


def test_loggers_themselves_can_be_swept(fedprox, tmp_path, mine):
    ended = fedprox("--multirun", *RUN, "+logger.mine._target_=my_logger.Mine", "logger=none,[]")
    assert ended.status == 0, ended.err
    assert len(list(tmp_path.glob("sweep/*/mine.txt"))) == 2


def test_a_logger_of_ones_own_that_fails_leaves_the_run_whole(fedprox, tmp_path, mine, read):
    ended = fedprox(*RUN, "+logger.mine._target_=my_logger.Mine")
    assert ended.status == 0
    lines = [line for line in (ended.out + ended.err).splitlines() if "logger" in line]
    assert len(lines) == 1
    assert lines[0].endswith("logger=mine failed in round 1, the run goes on without: no space left")
    assert [step for step, _ in read.metrics_csv(tmp_path / "run")["test_loss"]] == [0, 1, 2]
    assert (tmp_path / "run" / "mine.txt").read_text() == "0"


def test_what_is_no_logger_is_refused(fedprox, mine):
    ended = fedprox(*RUN, "+logger.mine._target_=my_logger.none")
    assert (ended.status, ended.err) == (
        2,
        "error: logger.mine._target_=my_logger.none must make a Logger, but made a int; the README shows what is "
        "expected\n",
    )


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_library_that_is_missing_is_told_before_a_sweeps_first_job(fedprox, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # what importing takes for: there is none
    ended = fedprox("--multirun", "dataset=mnist", "data_dir=nowhere", "engine=local", f"logger=none,{name}")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert f"needs the library {name}; install it with pip install 'fedprox[{name}]'" in ended.err
    assert list(tmp_path.glob("sweep/*/.hydra")) == []
