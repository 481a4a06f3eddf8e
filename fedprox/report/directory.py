"""One run directory -> who the run is (run.json) and what it measured (metrics.csv)."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.config.earlier import completed
from fedprox.errors import UserError
from fedprox.report.lineage import steps, suffix
from fedprox.runs.reader import broken

METRICS = ("round", "test_loss", "test_accuracy", "train_loss_cohort", "num_clients_counted", "time_s")

LAST_ROUND = 2**32  # num_rounds is below


def identify(run: Path, record: dict[str, Any], by: Sequence[str] = ()) -> dict[str, Any]:
    """Return the columns that tell a run from others: run, status, algorithm, mu, ..., dataset.

    Args:
        run: The run directory.
        record: Its run.json.
        by: Settings whose values join the data set's name, as in "cifar10, alpha = 0.1".

    Raises:
        UserError: If mu, stragglers_fraction, seed or repetition is not a number or is missing, or a setting is.
    """
    values = [f", {name.rpartition('.')[2]} = {_setting(run, record, name)}" for name in by]
    try:
        mu = record["settings"].get("mu")
        return {
            "run": str(run),
            "status": str(record["status"]),
            "algorithm": str(record["algorithm"]) + suffix(steps(run, record)),
            "mu": float("nan") if mu is None else float(mu),
            "stragglers_fraction": float(record["settings"]["stragglers_fraction"]),
            "seed": int(record["seed"]),
            "repetition": int(record.get("repetition") or 0),
            "dataset": str(record["name"]) + "".join(values),
        }
    except KeyError as error:
        raise broken(run / "run.json", f"settings lack {error.args[0]}") from error
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise broken(run / "run.json", error) from error


def _setting(run: Path, record: dict[str, Any], name: str) -> Any:
    value: Any = completed(record["settings"])
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise UserError(f"{run} has no setting {name}; .hydra/config.yaml there shows those it has")
        value = value[key]
    return value


def read_metrics(file: Path, finished: bool) -> dict[str, NDArray[np.float64]]:
    """Return the columns of metrics.csv's complete rows; text after the last line end was still being written.

    Args:
        file: The metrics.csv of a run.
        finished: Whether the run is; only a finished one must have the file and its header.

    Returns:
        Name -> one value per row, NaN where there is none.

    Raises:
        UserError: If a column is missing, a row has too few or too many values, a value is not a number, or
            the rounds do not increase.
    """
    try:
        text = file.read_text(encoding="utf-8") if finished or file.exists() else ""
        header, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[]]
        if not header and not finished:
            header = list(METRICS)
        _check_table(header, rows)
        numbers = [[float(value or "nan") for value in row] for row in rows]  # "nan" and "inf" are numbers too
        columns = dict(zip(header, np.array(numbers).reshape(-1, len(header)).T, strict=True))
        if not (np.all(np.diff(columns["round"], prepend=-1.0) > 0) and np.all(columns["round"] < LAST_ROUND)):
            raise ValueError("the rounds do not increase from 0 on")
        return columns
    except (OSError, ValueError, csv.Error) as error:
        raise broken(file, error) from error


def _check_table(header: list[str], rows: list[list[str]]) -> None:
    lacking = [column for column in METRICS if column not in header]
    if lacking:
        raise ValueError(f"it lacks the columns {', '.join(lacking)}")
    if len(set(header)) < len(header):
        raise ValueError(f"its header {header} has a column twice")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"line {line} has {len(row)} values for {len(header)} columns")
