"""main.log and .hydra/, written only once a run begins, so that a refused command leaves an earlier run's alone."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


class _PassedOn(logging.Handler):
    """Gives records to the handlers of the root logger."""

    def emit(self, record: logging.LogRecord) -> None:
        """Give on a record."""
        logging.getLogger().callHandlers(record)


@contextmanager
def log_apart(file: Path, line_format: str) -> Iterator[RunLog]:
    """Let this package's log go to a file, and only what the process would have had of it also to its own log.

    Yields:
        What has the log until the run begins.
    """
    log, flower = logging.getLogger("fedprox"), logging.getLogger("flwr")
    earlier, level = (log.level, log.propagate, flower.level), log.getEffectiveLevel()
    own, passed_on = RunLog(str(file)), _PassedOn(level)
    own.setFormatter(logging.Formatter(line_format))
    log.setLevel(min(level, logging.INFO))
    log.propagate = False
    flower.setLevel(logging.ERROR)  # its lines per round repeat metrics.csv
    for handler in (own, passed_on):
        log.addHandler(handler)
    try:
        yield own
    finally:
        for handler in (own, passed_on):
            log.removeHandler(handler)
            handler.close()
        own_level, log.propagate, flower_level = earlier
        log.setLevel(own_level)
        flower.setLevel(flower_level)


def begin_log(run_dir: Path, config: Any, hydra_config: Any, logger: str | None = None) -> None:
    """Write .hydra/ as Hydra does, and begin the log files of a logger, by default of the root logger."""
    folder = run_dir / ".hydra"
    folder.mkdir(exist_ok=True)
    for name, content in zip(HYDRAS, (config, hydra_config, hydra_config.hydra.overrides.task), strict=True):
        (folder / name).write_text(OmegaConf.to_yaml(content), encoding="utf-8")
    for handler in logging.getLogger(logger).handlers:
        if isinstance(handler, RunLog):
            handler.begin()
