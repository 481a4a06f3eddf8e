"""Tables of test accuracies, whose cells are repeated runs: a row and a column are settings that differ."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fedprox.report.summary import rounds_of
from fedprox.reproduce.runs import folder_of
from fedprox.reproduce.specs import Job
from fedprox.reproduce.tables import LAST

NUM_SEEDS = 5
Choices = Mapping[str, Sequence[str]]  # a name in a table -> Hydra overrides


@dataclass(frozen=True)
class Factor:
    """Something that differs between the runs of a table.

    Attributes:
        name: What differs.
        choices: Its values.
    """

    name: str
    choices: Choices


@dataclass(frozen=True)
class Table:
    """A table: a row for each combination of some factors, a column for each choice of another one.

    Attributes:
        name: In the CSV file.
        dataset: A key of `fedprox.reproduce.datasets`.
        overrides: Hydra overrides of all its runs.
        rows: The factors of the rows.
        columns: The factor of the columns.
    """

    name: str
    dataset: str
    overrides: Sequence[str]
    rows: Sequence[Factor]
    columns: Factor


Key = tuple[str, str, str]  # a table's name, the choices of a row in one text, the choice of a column


@dataclass(frozen=True)
class Cell:
    """What the runs of a cell have in common.

    Attributes:
        mean: Mean over runs of the mean test accuracy of a run's last ten rounds.
        std: Sample standard deviation over runs; NaN for one.
        runs: Their number.
        epsilon: Privacy that a run costs; NaN without any.
    """

    mean: float
    std: float
    runs: int
    epsilon: float = float("nan")


Cells = Mapping[Key, Cell]


def rows_of(table: Table) -> dict[str, tuple[str, ...]]:
    """Return the overrides of a table's rows by name, such as "top 10%, median"."""
    return {
        ", ".join(choice for choice, _ in row): tuple(word for _, words in row for word in words)
        for row in itertools.product(*(factor.choices.items() for factor in table.rows))
    }


def jobs_of(
    tables: Iterable[Table], datasets: Sequence[str], num_seeds: int, num_rounds: int | None = None
) -> dict[Key, list[Job]]:
    """Return the runs of each cell of the tables on some data sets.

    Args:
        tables: The tables.
        datasets: Data sets of some of them.
        num_seeds: Repetitions on the clients of seed 0.
        num_rounds: None for the tables' numbers.
    """
    rounds = () if num_rounds is None else (f"num_rounds={num_rounds}",)
    return {
        (table.name, row, column): [
            Job(
                table.dataset,
                0.0,
                f"{row}, {column}",
                repetition,
                (*table.overrides, *of_row, *of_column, *rounds),
            )
            for repetition in range(num_seeds)
        ]
        for table in tables
        if table.dataset in datasets
        for row, of_row in rows_of(table).items()
        for column, of_column in table.columns.choices.items()
    }


def read_cells(jobs: Mapping[Key, Sequence[Job]], out: Path) -> dict[Key, Cell]:
    """Return the cells of finished runs."""
    return {key: _cell([rounds_of(folder_of(job, out), finished=True) for job in runs]) for key, runs in jobs.items()}


def _cell(runs: Sequence[pd.DataFrame]) -> Cell:
    accuracies = pd.Series([rounds["test_accuracy"].tail(LAST).mean() for rounds in runs])
    epsilon = float(runs[0]["epsilon"].iloc[-1]) if "epsilon" in runs[0] else np.nan
    return Cell(float(accuracies.mean()), float(accuracies.std()), len(runs), epsilon)


def to_frame(cells: Cells) -> pd.DataFrame:
    """Return cells as a data frame: table, row, column, and the attributes of `Cell`."""
    columns = ["table", "row", "column", "mean", "std", "runs", "epsilon"]
    rows = [(*key, cell.mean, cell.std, cell.runs, cell.epsilon) for key, cell in cells.items()]
    return pd.DataFrame(rows, columns=columns)


def of_frame(frame: pd.DataFrame) -> dict[Key, Cell]:
    """Return the cells of `to_frame`'s data frame."""
    return {
        (row["table"], row["row"], row["column"]): Cell(row["mean"], row["std"], int(row["runs"]), row["epsilon"])
        for row in frame.to_dict("records")
    }


def shown(tables: Iterable[Table], cells: Cells) -> list[Table]:
    """Return those tables that have cells."""
    there = {name for name, _, _ in cells}
    return [table for table in tables if table.name in there]
