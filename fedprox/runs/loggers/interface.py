"""What a logger is, and what all loggers need."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fedprox.errors import UserError
from fedprox.runs.reader import Row, flattened

RUN_ID = "_run_id"  # how files end that keep what a tool calls a run: <run>/mlflow_run_id
Scalar = bool | int | float | str


@runtime_checkable
class Logger(Protocol):
    """A tool that is told of a run as it goes.

    Making one checks its settings and is quick: no library is imported and nothing is written before `begin`. What it
    raises in `begin` ends the run before its first round; what it raises later is told in one line, and the run goes
    on without it: see `fedprox.runs.loggers.group`.
    """

    def begin(self, run_dir: Path, facts: Mapping[str, Any], first_round: int) -> None:
        """Set the tool up.

        Args:
            run_dir: Where the tool's files go, unless its settings say otherwise.
            facts: What run.json says before the first round: settings, seed, versions, ...
            first_round: The first round that will be computed, > 0 in a run that is resumed.
        """

    def log(self, row: Row) -> None:
        """Take a row of metrics.csv, with "round" as its step; None where there is nothing to tell.

        A resumed run's rows come from round 0 on once more, those before `first_round` first, because a tool may have
        lost some when the run was killed. What it still has must not stand there twice.
        """

    def end(self, status: str) -> None:
        """Close the tool; the status is "finished", "failed" or "interrupted", as in run.json."""


def require(library: str, extra: str) -> None:
    """Raise UserError unless a library is installed.

    A folder of the same name in the working directory, such as the runs of earlier programs, is none.
    """
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        raise UserError(f"logger={extra} needs the library {library}; install it with pip install 'fedprox[{extra}]'")


def measured(row: Row) -> tuple[int, dict[str, float | int]]:
    """Return a row's round and what was measured then: all other columns but those that are None."""
    values = {name: value for name, value in row.items() if value is not None}
    return int(values.pop("round")), values


def title(run_dir: Path, facts: Mapping[str, Any]) -> str:
    """Return what a run is called in a list of runs, such as "FedProx (mu = 1) on digits: 12-30-00"."""
    return f"{facts['algorithm']} on {facts['name']}: {run_dir.name}"


def hyperparameters(facts: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the settings and the other facts in one level: {"engine.num_threads": "null", "seed": 0, ...}.

    What is no number and no text is written as JSON. Names of classes are left out: services limit a value's length.
    """
    others = {name: value for name, value in facts.items() if name not in ("settings", "classes")}
    flat = flattened(others) | flattened(facts["settings"])
    return {name: value if isinstance(value, Scalar) else json.dumps(value) for name, value in flat.items()}
