"""TensorBoard logger: scalars by round in <run>/tensorboard, settings as hyperparameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedprox.runs.loggers.interface import hyperparameters, measured, require
from fedprox.runs.reader import Row


class TensorBoardLogger:
    """Writes event files; `tensorboard --logdir <folder>` shows all runs below a folder."""

    def __init__(self) -> None:
        """Check that TensorBoard is installed."""
        require("tensorboard", extra="tensorboard")

    def begin(self, run_dir: Path, facts: Mapping[str, Any], first_round: int) -> None:
        """Open a new event file that supersedes older ones in the folder: all rows are logged again."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=0)
        # Not add_hparams, which would write a second event file.
        metrics = {"test_loss": 0, "test_accuracy": 0}  # the scalars that TensorBoard lists beside them
        experiment, session, _ = hparams(hyperparameters(facts), metrics)  # type: ignore[no-untyped-call]
        for summary in (experiment, session):
            self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]

    def log(self, row: Row) -> None:
        """Log a row, which is on disk before the next round."""
        step, values = measured(row)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, status: str) -> None:
        """Close the file."""
        self._writer.add_text("status", status)
        self._writer.close()
