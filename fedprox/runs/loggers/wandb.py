"""Weights & Biases logger: online, or offline in <run>/wandb until `wandb sync` uploads it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprox.errors import UserError
from fedprox.runs.loggers.interface import hyperparameters, measured, require, title
from fedprox.runs.reader import Row

MODES = ("online", "offline", "disabled")
QUIET: Mapping[str, Any] = {
    "silent": True,
    "console": "off",  # otherwise it captures standard output
    "disable_git": True,  # the config already has run.json's commit
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,  # its monitoring process would disturb timings
    "x_save_requirements": False,
    "finish_timeout": 60.0,  # seconds to wait for a lost network; the files remain for `wandb sync`
}


class WandbLogger:
    """Sends a run to Weights & Biases, or stores it for a later upload."""

    def __init__(self, project: str = "fedprox", entity: str | None = None, mode: str | None = None) -> None:
        """Check the settings, and that the library is installed.

        Args:
            project: The project that lists the run.
            entity: The project's owner; None for the user's default.
            mode: One of MODES; None for WANDB_MODE, or online if that is not set.
        """
        if mode not in (None, *MODES):
            raise UserError(f"logger.wandb.mode must be online, offline, disabled or null, got {mode}")
        require("wandb", extra="wandb")
        self._project = project
        self._entity = entity
        self._mode = mode

    def begin(self, run_dir: Path, facts: Mapping[str, Any], first_round: int) -> None:
        """Start a run or, with first_round > 0, continue the one whose id is in <run>/wandb_run_id.

        Online, it continues after the last round that the service has; a resumed run repeats its rounds bit for bit.
        Offline, a second folder with the same id holds the run from round 0 on, because a killed process loses what
        the library has not written yet.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        id_file = run_dir / "wandb_run_id"
        known = id_file.read_text().strip() if first_round and id_file.exists() else None
        mode: Any = self._mode or os.environ.get("WANDB_MODE")  # the library itself reads it only once per process
        self._run = wandb.init(
            project=self._project,
            entity=self._entity,
            mode=mode,
            id=known,
            resume="allow" if known and mode != "offline" else None,  # offline it would only warn
            name=title(run_dir, facts),
            config=hyperparameters(facts),
            dir=run_dir,
            reinit="create_new",  # a sweep has several runs in one process
            settings=wandb.Settings(**QUIET),
        )
        self._next_step = self._run.step  # 0, or the next step of a run that the service knows
        id_file.write_text(f"{self._run.id}\n")

    def log(self, row: Row) -> None:
        """Pass a row to the library's own process."""
        step, values = measured(row)
        if step >= self._next_step:
            self._run.log(values, step=step)

    def end(self, status: str) -> None:
        """Send the remaining rows."""
        self._run.finish(exit_code=0 if status == "finished" else 1)
