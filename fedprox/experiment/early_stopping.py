"""Early end of a run that no longer improves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedprox.errors import UserError

_NOT_MEASURES = ("round", "time_s", "num_clients_counted", "mu", "personal_coverage")


@dataclass
class EarlyStopping:
    """Ends a run after `patience` evaluated rounds that did not improve a column of metrics.csv.

    Accuracies improve upwards, losses, drift, variances and the accuracies' standard deviation downwards; see
    `improves_upwards`. Round 0, the initial model, is the first to compare with. A value that is nan or missing is not
    an improvement. When a run is resumed, its earlier rows are observed again.

    A search prunes a run in the same way: it must have reached given values in given rounds.

    Attributes:
        metric: Name of the column; None: the run never ends early.
        patience: Evaluated rounds without an improvement, >= 1.
        min_delta: A value must be better than the best so far by more than this, >= 0.
        upwards: Whether larger values are better.
        bar: Rounds, each with the value that the best so far must have reached in it, or the run is over.
    """

    metric: str | None = None
    patience: int = 10
    min_delta: float = 0.0
    upwards: bool = False
    bar: Sequence[tuple[int, float]] = ()
    missed: float | None = field(default=None, init=False)
    _best: float | None = field(default=None, init=False, repr=False)
    _reached: float = field(default=math.nan, init=False, repr=False)
    _waited: int = field(default=0, init=False, repr=False)

    def check(self, columns: Sequence[str]) -> None:
        """Raise UserError unless the metric is one of a run's columns, and measures the model."""
        if self.bar and self.metric is None:
            raise UserError(
                "pruning_bar needs early_stopping.metric, the column that it is about; give both or neither"
            )
        known = measures(columns)
        if self.metric is not None and self.metric not in known:
            raise UserError(
                f"early_stopping.metric must be a column of this run's metrics.csv that measures the model, got "
                f"{self.metric}; choose from {', '.join(known)}, and more with evaluation=clients"
            )

    @property
    def is_over(self) -> bool:
        """Whether `patience` evaluations passed without improvement, or a value of the bar was missed."""
        return self.metric is not None and (self._waited >= self.patience or self.missed is not None)

    def observe(self, row: Mapping[str, Any] | None) -> bool:
        """Note a row of metrics.csv, None for a round that was not evaluated, and return whether the run is over."""
        if self.metric is None or row is None:
            return False
        value = row.get(self.metric)  # a branch's earlier rows may lack the column
        if self.bar:
            self._compare(row["round"], math.nan if value is None else float(value))
        if value is not None and self._improves(float(value)):
            self._best, self._waited = float(value), 0
        elif self._best is not None:
            self._waited += 1
        return self.is_over

    def _compare(self, round_num: int, value: float) -> None:
        """Note the value of the bar in a round if the best so far is worse."""
        sign = 1 if self.upwards else -1
        if value == value and not sign * self._reached >= sign * value:
            self._reached = value
        for at, needed in self.bar:
            if at == round_num and not sign * self._reached >= sign * needed:  # nan has reached nothing
                self.missed = needed

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return value == value  # False for nan
        gain = value - self._best if self.upwards else self._best - value
        return gain > self.min_delta


def measures(columns: Sequence[str]) -> list[str]:
    """Return those columns of metrics.csv that measure the model."""
    return [column for column in columns if column not in _NOT_MEASURES]


def improves_upwards(column: str, own: Mapping[str, str]) -> bool:
    """Return whether larger values of a column of metrics.csv are better.

    Names decide: larger accuracies are better, and so are own metrics whose function is a score, as scikit-learn calls
    them; of all other columns smaller values are better.

    Args:
        column: Its name.
        own: Metric -> its function, of the setting `metrics`.

    Raises:
        UserError: If the name of the function of an own metric does not say.
    """
    function = own.get(column.removeprefix("test_"))
    if function is None:
        return "accuracy" in column and not column.endswith("_std")
    if function.endswith(("_score", "accuracy")):
        return True
    if function.endswith(("_loss", "_error")):
        return False
    raise UserError(
        f"whether larger values of {column} are better is not known: the name of {function} must end in _score or "
        "accuracy if they are, and in _loss or _error if not; give it such a name, or choose another column"
    )
