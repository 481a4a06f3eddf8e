"""The MLflow logger, read with MLflow's own client."""

import math
import multiprocessing
from pathlib import Path

import pytest

from fedprox.runs.loggers.group import Attached
from fedprox.runs.loggers.mlflow import MAX_PARAMS, MlflowLogger


def runs(experiment="fedprox"):
    """Return all runs of the experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(Path("mlruns").absolute().as_uri())
    (found,) = [each for each in client.search_experiments() if each.name == experiment]
    return client.search_runs([found.experiment_id])


def test_a_run_has_every_row_the_settings_and_its_status(log, run_dir, read):
    log(MlflowLogger(experiment="mine"), range(3))
    assert read.mlflow(run_dir) == {"test_loss": [(0, 0.0), (1, 1.0), (2, 2.0)]}
    (run,) = runs("mine")
    params = run.data.params
    assert (params["mu"], params["engine._target_"], params["engine.num_threads"]) == ("1.0", "a.B", "null")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "FedProx (mu = 1) on digits: run")
    assert run.data.tags["run_dir"] == str(run_dir)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_a_run_that_did_not_finish_has_its_status(log, error, status):
    with pytest.raises(error):
        log(MlflowLogger(), [0], error=error())
    assert [run.info.status for run in runs()] == [status]


def test_a_resumed_run_has_every_round_once(log, read, run_dir):
    with pytest.raises(KeyboardInterrupt):
        log(MlflowLogger(), range(3), error=KeyboardInterrupt())
    log(MlflowLogger(), range(1, 4), first_round=1)
    assert read.mlflow(run_dir)["test_loss"] == [(t, float(t)) for t in range(4)]
    assert [run.info.status for run in runs()] == ["FINISHED"]


@pytest.mark.parametrize("first_round", [1, 2])
def test_a_lost_row_is_logged_again(log, read, run_dir, first_round):
    log(MlflowLogger(), [0, 1])
    (file,) = Path("mlruns").glob("*/*/metrics/test_loss")
    file.write_text(file.read_text().splitlines(keepends=True)[0])  # killed before it wrote round 1
    log(MlflowLogger(), range(first_round, 3), first_round=first_round)
    assert read.mlflow(run_dir)["test_loss"] == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_a_run_that_starts_again_is_a_new_one(log, read, run_dir):
    log(MlflowLogger(), [0])
    log(MlflowLogger(), [0])
    assert len(runs()) == 2
    assert read.mlflow(run_dir)["test_loss"] == [(0, 0.0)]


def test_nan_and_infinity_are_kept(log, read, run_dir):
    log(MlflowLogger(), range(2), value=lambda t: [math.nan, -math.inf][t])
    (_, first), (_, second) = read.mlflow(run_dir)["test_loss"]
    assert math.isnan(first)
    assert second == -math.inf


def test_settings_that_exceed_one_request_are_all_logged(log, facts):
    from mlflow.utils.validation import MAX_PARAMS_TAGS_PER_BATCH

    assert MAX_PARAMS <= MAX_PARAMS_TAGS_PER_BATCH  # enforced by a server, not by a folder
    facts["settings"] = {f"s{number}": number for number in range(250)}
    log(MlflowLogger(), [0])
    (run,) = runs()
    assert {name: value for name, value in run.data.params.items() if name[1:].isdigit()} == {
        f"s{number}": str(number) for number in range(250)
    }


def _process(barrier, folder, facts) -> None:
    barrier.wait(30)
    with Attached({"mlflow": MlflowLogger(tracking_uri="mlruns")}, folder, facts):
        pass


def test_parallel_jobs_share_one_experiment(tmp_path, facts):
    import mlflow  # noqa: F401  # once for all processes

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
