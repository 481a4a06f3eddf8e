"""Table of a search's trials, the best one first: `trials.csv` in the search's directory."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedprox.errors import printable
from fedprox.storage import write_atomic

TABLE = "trials.csv"
FINISHED, PRUNED, FAILED = "finished", "pruned", "failed"


@dataclass(frozen=True)
class Trial:
    """A trial of a search.

    Attributes:
        number: From 0 on; its run directory in that of the search has this name.
        params: Setting -> the value that it had.
        status: FINISHED, PRUNED or FAILED.
        value: Of the objective; None if it failed.
    """

    number: int
    params: Mapping[str, str]
    status: str
    value: float | None


def ranked(trials: Iterable[Trial], direction: str) -> list[Trial]:
    """Return the trials, the best first: finished ones by value, then pruned ones by value, then failed ones."""
    sign = -1.0 if direction == "maximize" else 1.0
    order = (FINISHED, PRUNED, FAILED)
    return sorted(trials, key=lambda trial: (order.index(trial.status), sign * (trial.value or 0.0), trial.number))


def write_trials(folder: Path, trials: Iterable[Trial], direction: str, objective: str) -> None:
    """Write the table: trial, status, the objective, and a column for each setting that is searched."""
    rows = ranked(trials, direction)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("trial", "status", objective, *(rows[0].params if rows else ())))
    for trial in rows:
        value = "" if trial.value is None else repr(trial.value)
        writer.writerow((trial.number, trial.status, value, *trial.params.values()))
    write_atomic(folder / TABLE, text.getvalue().encode())


def trials_table(folder: Path) -> str:
    """Return the table as text; "" before the first trial has ended."""
    from tabulate import tabulate  # type: ignore[import-untyped]  # here: a single run does not need it

    if not (folder / TABLE).exists():
        return ""
    with (folder / TABLE).open(newline="", encoding="utf-8") as opened:
        header, *rows = csv.reader(opened)
    shown = [[row[0], row[1], *(_digits(cell) for cell in row[2:])] for row in rows]
    return str(tabulate([list(map(printable, row)) for row in shown], headers=header, disable_numparse=True))


def _digits(cell: str) -> str:
    """Return a number with four significant digits; anything else as it is."""
    try:
        return f"{float(cell):.4g}" if "." in cell or "e" in cell else cell
    except ValueError:
        return cell
