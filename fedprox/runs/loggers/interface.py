"""The logger interface, and functions that all loggers share."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fedprox.errors import UserError
from fedprox.runs.reader import Row, flattened

RUN_ID = "_run_id"  # ending of the files that keep a tracker's own id of a run, such as <run>/mlflow_run_id
Scalar = bool | int | float | str


@runtime_checkable
class Logger(Protocol):
    """An experiment tracker that receives a run's rows while it runs.

    The constructor checks the settings and is quick: before `begin` no library is imported and nothing is written. An
    error in `begin` ends the run before its first round; after a later error, which is logged in one line, the run
    continues without this logger: see `fedprox.runs.loggers.group`.
    """

    def begin(self, run_dir: Path, facts: Mapping[str, Any], first_round: int) -> None:
        """Start logging.

        Args:
            run_dir: Where the logger's files go, unless its settings say otherwise.
            facts: The content of run.json before the first round: settings, seed, versions, ...
            first_round: The first round that will be computed, > 0 in a resumed run.
        """

    def log(self, row: Row) -> None:
        """Log a row of metrics.csv, with "round" as its step; a value is None if it was not measured.

        A resumed run logs the rows before `first_round` once more, because the tracker may have lost some when the run
        was killed. Rows that it still has must not appear twice.
        """

    def end(self, status: str) -> None:
        """Stop logging; the status is "finished", "failed" or "interrupted", as in run.json."""


def require(library: str, extra: str) -> None:
    """Raise UserError unless a library is installed; a folder of that name, such as ./wandb, does not count."""
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        raise UserError(f"logger={extra} needs the library {library}; install it with pip install 'fedprox[{extra}]'")


def measured(row: Row) -> tuple[int, dict[str, float | int]]:
    """Return a row's round and its other values, without those that were not measured."""
    values = {name: value for name, value in row.items() if value is not None}
    return int(values.pop("round")), values


def title(run_dir: Path, facts: Mapping[str, Any]) -> str:
    """Return a run's name in a list of runs, such as "FedProx (mu = 1) on digits: 12-30-00"."""
    return f"{facts['algorithm']} on {facts['name']}: {run_dir.name}"


def hyperparameters(facts: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the settings and the other facts in one level: {"engine.num_threads": "null", "seed": 0, ...}.

    Values that are neither numbers nor text become JSON. Class names are left out, because services limit the length.
    """
    others = {name: value for name, value in facts.items() if name not in ("settings", "classes")}
    flat = flattened(others) | flattened(facts["settings"])
    return {name: value if isinstance(value, Scalar) else json.dumps(value) for name, value in flat.items()}
