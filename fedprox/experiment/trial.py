"""Value of a run as a trial of a search: the last or the best value of a column of metrics.csv."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from fedprox.errors import UserError
from fedprox.experiment.early_stopping import improves_upwards, measures
from fedprox.runs.reader import read_metrics

_BEST, _TEST = "best_", "test_"


@dataclass(frozen=True)
class Objective:
    """What a search optimises.

    Attributes:
        column: Of metrics.csv.
        is_best: Whether the best evaluated round counts, instead of the last one.
        upwards: Whether larger values are better.
    """

    column: str
    is_best: bool
    upwards: bool

    @classmethod
    def of(cls, name: str, columns: Sequence[str], own: Mapping[str, str]) -> Self:
        """Return the objective of a name: a column, such as test_loss, or best_ and a column; test_ may be left out.

        Args:
            name: Such as "accuracy", "test_loss" or "best_accuracy".
            columns: Those of a run's metrics.csv.
            own: Metric -> its function, of the setting `metrics`.

        Raises:
            UserError: If there is no such column, it does not measure the model, or its better values are not known.
        """
        known = measures(columns)
        bare = name.removeprefix(_BEST)
        for column in (bare, f"{_TEST}{bare}"):
            if column in known:
                return cls(column, bare != name, improves_upwards(column, own))
        names = [column.removeprefix(_TEST) for column in known]
        close = difflib.get_close_matches(name, [*names, *known, *(_BEST + each for each in names)], n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}, or the best, such as "
        raise UserError(
            f"objective must be a column of this run's metrics.csv that measures the model, or best_ and a column, got "
            f"{name}; {hint if close else f'{hint}best_{names[0]}'}"
        )

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Return "maximize" or "minimize"."""
        return "maximize" if self.upwards else "minimize"

    def value(self, rows: Sequence[Mapping[str, Any]]) -> float | None:
        """Return the value of a run with these rows of metrics.csv; None if its last one is missing or not finite."""
        values = [float("nan") if row.get(self.column) is None else float(row[self.column]) for row in rows]
        if not values or not math.isfinite(values[-1]):
            return None
        finite = [value for value in values if math.isfinite(value)]
        return (max if self.upwards else min)(finite) if self.is_best else values[-1]

    def value_of(self, run_dir: Path) -> float | None:
        """Return the value of the run in a directory; None if it has none."""
        file = run_dir / "metrics.csv"
        return self.value(read_metrics(file)) if file.exists() else None
