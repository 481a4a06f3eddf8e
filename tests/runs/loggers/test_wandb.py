"""The Weights & Biases logger, read from the files of offline runs."""

import math

import pytest

from fedprox.errors import UserError
from fedprox.runs.loggers.wandb import WandbLogger


def ids(run_dir) -> list[str]:
    """Return the name of each offline folder's file, which is run-<id>.wandb."""
    return [file.name for file in run_dir.glob("wandb/offline-run-*/*.wandb")]


def test_an_offline_run_has_every_row_and_the_settings(log, run_dir, read, wandb_config, wandb_exits):
    log(WandbLogger(), range(3))
    assert read.wandb(run_dir) == {"test_loss": [(0, 0.0), (1, 1.0), (2, 2.0)]}
    (config,) = wandb_config(run_dir)
    assert (config["mu"], config["engine._target_"], config["seed"]) == (1.0, "a.B", 3)
    assert wandb_exits(run_dir) == [0]


def test_a_failed_run_has_an_exit_code(log, run_dir, wandb_exits):
    with pytest.raises(ValueError, match="broken"):
        log(WandbLogger(), [0], error=ValueError("broken"))
    assert wandb_exits(run_dir) == [1]


def test_a_resumed_run_is_complete_in_a_second_folder_with_the_same_id(log, run_dir, read, capfd):
    log(WandbLogger(), range(3))
    log(WandbLogger(), range(2, 5), first_round=2, value=lambda t: t + 0.5)
    assert (len(ids(run_dir)), len(set(ids(run_dir)))) == (2, 1)
    former, whole = [(0, 0), (1, 1), (2, 2)], [(0, 0), (1, 1), (2, 2.5), (3, 3.5), (4, 4.5)]
    assert read.wandb(run_dir)["test_loss"] == former + whole
    assert capfd.readouterr() == ("", "")


def test_rounds_that_the_service_has_are_not_logged_again(run_dir):
    class Run:
        """An online run of which the service has rounds 0 to 2."""

        def __init__(self):
            self.steps = []

        def log(self, values, step):
            self.steps.append(step)

    logger = WandbLogger()
    logger._run, logger._next_step = Run(), 3
    for round_num in range(5):
        logger.log({"round": round_num, "test_loss": 1.0})
    assert logger._run.steps == [3, 4]


def test_a_run_that_starts_again_is_a_new_one(log, run_dir):
    log(WandbLogger(), [0])
    log(WandbLogger(), [0])
    assert len(set(ids(run_dir))) == 2


def test_nan_and_infinity_are_kept(log, run_dir, read):
    log(WandbLogger(), range(2), value=lambda t: [math.nan, -math.inf][t])
    (_, first), (_, second) = read.wandb(run_dir)["test_loss"]
    assert math.isnan(first)
    assert second == -math.inf


def test_a_disabled_logger_writes_nothing(log, run_dir):
    log(WandbLogger(mode="disabled"), range(2))
    assert list(run_dir.glob("wandb/*")) == []


def test_online_without_a_key_is_refused_before_the_first_round(log, run_dir, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(run_dir))  # where a key could be kept
    with pytest.raises(UserError, match=r"^logger=tool cannot start: .*wandb login") as error:
        log(WandbLogger(mode="online"), range(2))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert not (run_dir / "metrics.csv").exists()


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match=r"^logger\.wandb\.mode must be online, offline, disabled or null, got often$"):
        WandbLogger(mode="often")
