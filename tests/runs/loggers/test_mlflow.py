"""What MLflow's own client finds in a folder."""

import math
import multiprocessing
import shutil
from pathlib import Path

import pytest

from fedprox.errors import UserError
from fedprox.runs.loggers.group import Attached
from fedprox.runs.loggers.mlflow import MAX_PARAMS, MlflowLogger

pytestmark = pytest.mark.usefixtures("mlflow")


def runs(experiment="fedprox"):
    """Return all runs of the one experiment of that name."""
    from mlflow import MlflowClient

    client = MlflowClient(Path("mlruns").absolute().as_uri())
    (found,) = [each for each in client.search_experiments() if each.name == experiment]
    return client.search_runs([found.experiment_id])


def test_a_run_holds_every_row_the_settings_and_how_it_ended(log, run_dir, read):
    log(MlflowLogger(), range(3))
    assert read.mlflow(run_dir) == {"test_loss": [(0, 0.0), (1, 1.0), (2, 2.0)]}
    (run,) = runs()
    params = run.data.params
    assert (params["mu"], params["engine._target_"], params["engine.num_threads"]) == ("1.0", "a.B", "null")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "FedProx (mu = 1) on digits: run")
    assert run.data.tags["run_dir"] == str(run_dir)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_a_run_that_did_not_finish_is_marked_so(log, error, status):
    with pytest.raises(error):
        log(MlflowLogger(), [0], error=error())
    assert [run.info.status for run in runs()] == [status]


def test_no_round_of_a_resumed_run_stands_twice(log, read, run_dir):
    with pytest.raises(KeyboardInterrupt):
        log(MlflowLogger(), range(3), error=KeyboardInterrupt())
    log(MlflowLogger(), range(1, 4), first_round=1)
    assert read.mlflow(run_dir)["test_loss"] == [(t, float(t)) for t in range(4)]
    assert [run.info.status for run in runs()] == ["FINISHED"]


@pytest.mark.parametrize("first_round", [1, 2])
def test_a_row_that_was_lost_is_told_again(log, read, run_dir, first_round):
    log(MlflowLogger(), [0, 1])
    (file,) = Path("mlruns").glob("*/*/metrics/test_loss")
    file.write_text(file.read_text().splitlines(keepends=True)[0])  # killed before it wrote round 1
    log(MlflowLogger(), range(first_round, 3), first_round=first_round)
    assert read.mlflow(run_dir)["test_loss"] == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_a_run_that_begins_anew_is_another_one(log, read, run_dir):
    log(MlflowLogger(), [0])
    log(MlflowLogger(), [0])
    assert len(runs()) == 2
    assert read.mlflow(run_dir)["test_loss"] == [(0, 0.0)]


def test_nan_and_infinity_are_kept(log, read, run_dir):
    log(MlflowLogger(), range(2), value=lambda t: [math.nan, -math.inf][t])
    (_, first), (_, second) = read.mlflow(run_dir)["test_loss"]
    assert math.isnan(first)
    assert second == -math.inf


def test_more_settings_than_one_request_takes_are_all_there(log, facts):
    from mlflow.utils.validation import MAX_PARAMS_TAGS_PER_BATCH

    assert MAX_PARAMS <= MAX_PARAMS_TAGS_PER_BATCH  # which a server enforces, a folder does not
    facts["settings"] = {f"s{number}": number for number in range(250)}
    log(MlflowLogger(), [0])
    (run,) = runs()
    assert {name: value for name, value in run.data.params.items() if name[1:].isdigit()} == {
        f"s{number}": str(number) for number in range(250)
    }


def test_the_folder_may_vanish_and_the_run_goes_on(run_dir, facts, caplog):
    with Attached({"mlflow": MlflowLogger()}, run_dir, facts) as attached:
        attached.log({"round": 0, "test_loss": 1.0})
        shutil.rmtree("mlruns")
        attached.log({"round": 1, "test_loss": 1.0})
        attached.log({"round": 2, "test_loss": 1.0})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "fedprox"]
    assert line.startswith("logger=mlflow failed in round 1, the run goes on without: ")
    assert "\n" not in line


def test_a_run_that_is_not_there_any_more_cannot_be_gone_on_with(log):
    log(MlflowLogger(), [0])
    shutil.rmtree("mlruns")
    with pytest.raises(UserError, match=r"^logger=tool cannot be set up: ") as told:
        log(MlflowLogger(), [1], first_round=1)
    assert "\n" not in str(told.value)


def _process(barrier, folder, facts) -> None:
    barrier.wait(30)
    with Attached({"mlflow": MlflowLogger(tracking_uri="mlruns")}, folder, facts):
        pass


def test_jobs_side_by_side_share_one_experiment(tmp_path, facts):
    import mlflow  # noqa: F401  # once, for all of them

    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    folders = [tmp_path / str(number) for number in range(4)]
    processes = [context.Process(target=_process, args=(barrier, folder, facts)) for folder in folders]
    for folder, process in zip(folders, processes, strict=True):
        folder.mkdir()
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(runs()) == 4


def test_a_run_has_in_mlflow_what_metrics_csv_says(fedprox, tmp_path, read):
    ended = fedprox("dataset=digits", "engine=local", "num_rounds=3", "logger=mlflow", "logger.mlflow.experiment=mine")
    assert (ended.status, ended.err) == (0, "")
    assert read.mlflow(tmp_path / "run") == read.metrics_csv(tmp_path / "run")
    assert len(runs("mine")) == 1
