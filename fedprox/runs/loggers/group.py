"""All loggers of a run; one that fails is dropped, and the run continues."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from fedprox.errors import USER_CODE_ERRORS, UserError, one_line
from fedprox.runs.loggers.interface import RUN_ID, Logger
from fedprox.runs.reader import Row

_log = logging.getLogger("fedprox")


class Attached:
    """Passes a run's rows to all of its loggers, from the first round to the end."""

    def __init__(
        self,
        loggers: Mapping[str, Logger],
        run_dir: Path,
        facts: Mapping[str, Any],
        first_round: int = 0,
        earlier: Sequence[Row] = (),
    ) -> None:
        """Take the loggers by name, the arguments of `Logger.begin`, and the rows before first_round."""
        self._waiting = dict(loggers)
        self._earlier = earlier
        self._facts = (run_dir, facts, first_round)
        self._loggers: dict[str, Logger] = {}

    def __enter__(self) -> Self:
        """Begin all loggers.

        Raises:
            UserError: If one cannot begin; the others are closed again.
        """
        run_dir = self._facts[0]
        ids = {file: file.read_bytes() for file in run_dir.glob(f"*{RUN_ID}")}  # an earlier run's, restored below
        for name, logger in self._waiting.items():
            try:
                logger.begin(*self._facts)
                for row in self._earlier:
                    logger.log(row)
            except USER_CODE_ERRORS as error:  # a library and a network may fail in any way
                self._end("failed")
                for file in run_dir.glob(f"*{RUN_ID}"):
                    file.write_bytes(ids[file]) if file in ids else file.unlink()
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"logger={name} cannot start: {one_line(error)}; fix that or remove the logger"
                ) from error
            self._loggers[name] = logger
        return self

    def log(self, row: Row | None) -> None:
        """Log a row of metrics.csv; None, for a round that was not evaluated, is ignored."""
        if row is None:
            return
        for name, logger in list(self._loggers.items()):
            try:
                logger.log(row)
            except USER_CODE_ERRORS as error:
                del self._loggers[name]
                _log.warning(
                    "logger=%s failed in round %s, the run continues without it: %s",
                    name,
                    row["round"],
                    one_line(error),
                )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the loggers that have not failed."""
        if kind is None:
            self._end("finished")
        else:
            self._end("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")

    def _end(self, status: str) -> None:
        for name, logger in self._loggers.items():
            try:
                logger.end(status)
            except USER_CODE_ERRORS as error:
                _log.warning("logger=%s could not be closed: %s", name, one_line(error))
