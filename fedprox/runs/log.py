"""main.log and .hydra/, written only once a run begins, so that a refused command leaves an earlier run's alone."""

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedprox.storage import HYDRAS


class RunLog(MemoryHandler):
    """Buffers log records until the run begins, then writes them and all later ones to a file."""

    def __init__(self, filename: str | None = None) -> None:
        """Prepare; the file is not touched yet. Without a filename nothing is written."""
        super().__init__(capacity=sys.maxsize, flushLevel=sys.maxsize)
        self._filename = filename

    def begin(self) -> None:
        """Open the file, append to what it has, and write the buffered records."""
        if self._filename is None or self.target:
            return
        file = logging.FileHandler(self._filename, encoding="utf-8")
        file.setFormatter(self.formatter)
        self.setTarget(file)
        self.flush()
        self.capacity = 1  # from now on every record is written at once

    def close(self) -> None:
        """Close the file."""
        file = self.target
        super().close()
        if file:
            file.close()


def begin_log(run_dir: Path, config: Any, hydra_config: Any) -> None:
    """Write .hydra/ as Hydra does, and begin main.log."""
    folder = run_dir / ".hydra"
    folder.mkdir(exist_ok=True)
    for name, content in zip(HYDRAS, (config, hydra_config, hydra_config.hydra.overrides.task), strict=True):
        (folder / name).write_text(OmegaConf.to_yaml(content), encoding="utf-8")
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RunLog):
            handler.begin()
