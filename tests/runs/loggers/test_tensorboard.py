"""The TensorBoard logger, read with TensorBoard's own reader."""

import math

import numpy as np

from fedprox.runs.loggers.tensorboard import TensorBoardLogger


def test_a_row_is_on_disk_before_the_next_round(run_dir, facts, read):
    logger = TensorBoardLogger()
    logger.begin(run_dir, facts, 0)
    for round_num in range(3):
        logger.log({"round": round_num, "test_loss": round_num / 4, "drift": None})
        assert read.tensorboard(run_dir) == {"test_loss": [(t, t / 4) for t in range(round_num + 1)]}


def test_a_resumed_run_has_every_round_once(log, run_dir, read):
    log(TensorBoardLogger(), range(6))  # killed after round 5, with a checkpoint of round 3
    log(TensorBoardLogger(), range(4, 8), first_round=4, value=lambda t: t + 0.5)
    assert read.tensorboard(run_dir)["test_loss"] == [(t, t + 0.5 * (t >= 4)) for t in range(8)]


def test_a_run_that_starts_again_in_the_same_folder_replaces_the_old_one(log, run_dir, read):
    log(TensorBoardLogger(), range(3))
    log(TensorBoardLogger(), [0], value=lambda t: 9.0)
    assert read.tensorboard(run_dir)["test_loss"] == [(0, 9.0)]


def test_nan_and_infinity_are_kept(log, run_dir, read):
    log(TensorBoardLogger(), [0, 1], value=lambda t: [math.nan, -math.inf][t])
    (_, first), (_, second) = read.tensorboard(run_dir)["test_loss"]
    assert math.isnan(first)
    assert second == -math.inf


def test_event_files_have_the_values_of_metrics_csv_and_the_settings(
    fedprox, tmp_path, read, tensorboard_hyperparameters
):
    ended = fedprox("dataset=digits", "engine=local", "num_rounds=3", "logger=tensorboard", "mu=0.25")
    assert (ended.status, ended.err) == (0, "")
    written, logged = read.metrics_csv(tmp_path / "run"), read.tensorboard(tmp_path / "run")
    assert written.keys() == logged.keys()
    for name, values in written.items():
        assert logged[name] == [(step, float(np.float32(value))) for step, value in values]
    assert tensorboard_hyperparameters(tmp_path / "run")["mu"] == 0.25
