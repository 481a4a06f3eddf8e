"""main.log and .hydra/, written only once a run begins, so that a refused command leaves an earlier run's alone."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedprox.storage import HYDRAS


class RunLog(logging.Handler):
    """Buffers log records until the run begins, then writes them and all later ones to a file."""

    def __init__(self, filename: str | None = None) -> None:
        """Prepare; the file is not touched yet. Without a filename nothing is written."""
        super().__init__()
        self._filename = filename
        self._waiting: list[logging.LogRecord] = []
        self._file: logging.FileHandler | None = None

    def begin(self) -> None:
        """Open the file, append to what it has, and write the buffered records."""
        if self._filename is None or self._file:
            return
        self._file = logging.FileHandler(self._filename, encoding="utf-8")
        self._file.setFormatter(self.formatter)
        for record in self._waiting:
            self._file.emit(record)
        self._waiting.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Write or buffer a record."""
        if self._file:
            self._file.emit(record)
        else:
            self._waiting.append(record)

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
        super().close()


def begin_log(run_dir: Path, config: Any, hydra_config: Any) -> None:
    """Write .hydra/ as Hydra does, and begin main.log."""
    folder = run_dir / ".hydra"
    folder.mkdir(exist_ok=True)
    for name, content in zip(HYDRAS, (config, hydra_config, hydra_config.hydra.overrides.task), strict=True):
        (folder / name).write_text(OmegaConf.to_yaml(content), encoding="utf-8")
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RunLog):
            handler.begin()
