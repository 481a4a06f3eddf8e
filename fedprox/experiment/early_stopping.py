"""Early end of a run that no longer improves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedprox.errors import UserError

_NOT_MEASURES = ("round", "time_s", "num_clients_counted", "mu", "personal_coverage")


@dataclass
class EarlyStopping:
    """Ends a run after `patience` evaluated rounds that did not improve a column of metrics.csv.

    Accuracies improve upwards, everything else (losses, drift, variances, the accuracies' standard deviation)
    downwards. Round 0, the initial model, is the first to compare with. A value that is nan or missing is not an
    improvement. When a run is resumed, its earlier rows are observed again.

    Attributes:
        metric: Name of the column; None: the run never ends early.
        patience: Evaluated rounds without an improvement, >= 1.
        min_delta: A value must be better than the best so far by more than this, >= 0.
    """

    metric: str | None = None
    patience: int = 10
    min_delta: float = 0.0
    _best: float | None = field(default=None, init=False, repr=False)
    _waited: int = field(default=0, init=False, repr=False)

    def check(self, columns: Sequence[str]) -> None:
        """Raise UserError unless the metric is one of a run's columns, and measures the model."""
        known = [column for column in columns if column not in _NOT_MEASURES]
        if self.metric is not None and self.metric not in known:
            raise UserError(
                f"early_stopping.metric must be a column of this run's metrics.csv that measures the model, got "
                f"{self.metric}; choose from {', '.join(known)}, and more with evaluation=clients"
            )

    @property
    def is_over(self) -> bool:
        """Whether `patience` evaluations passed without improvement."""
        return self.metric is not None and self._waited >= self.patience

    def observe(self, row: Mapping[str, Any] | None) -> bool:
        """Note a row of metrics.csv, None for a round that was not evaluated, and return whether the run is over."""
        if self.metric is None or row is None:
            return False
        value = row.get(self.metric)  # a branch's earlier rows may lack the column
        if value is not None and self._improves(float(value)):
            self._best, self._waited = float(value), 0
        elif self._best is not None:
            self._waited += 1
        return self.is_over

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return value == value  # False for nan
        gain = value - self._best if _improves_upwards(str(self.metric)) else self._best - value
        return gain > self.min_delta


def _improves_upwards(metric: str) -> bool:
    return "accuracy" in metric and not metric.endswith("_std")
