"""Ending a run when it no longer gets better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedprox.errors import UserError

_NO_MEASURES = ("round", "time_s", "num_clients_counted", "mu")


@dataclass
class EarlyStopping:
    """Watches a column of metrics.csv: a run is over after `patience` evaluated rounds that did not improve it.

    Accuracies improve upwards, everything else (losses, drift, variances, and accuracies' deviation) downwards. Round
    0, the initial model, is the first to compare with. A value that is nan or missing is no improvement. A run that is
    resumed is shown its earlier rows again.

    Attributes:
        metric: Name of the column; None never stops.
        patience: Evaluated rounds without an improvement, >= 1.
        min_delta: An improvement is more than this, >= 0, over the best value so far.
    """

    metric: str | None = None
    patience: int = 10
    min_delta: float = 0.0
    _best: float | None = field(default=None, init=False, repr=False)
    _waited: int = field(default=0, init=False, repr=False)

    def check(self, columns: Sequence[str]) -> None:
        """Raise UserError if a run has no such column, or one that says nothing of how good a model is."""
        known = [column for column in columns if column not in _NO_MEASURES]
        if self.metric is not None and self.metric not in known:
            raise UserError(
                f"early_stopping.metric must be a column of this run's metrics.csv that measures the model, got "
                f"{self.metric}; there are {', '.join(known)}, and more with evaluation=clients"
            )

    @property
    def is_over(self) -> bool:
        """Whether the run has had its patience."""
        return self.metric is not None and self._waited >= self.patience

    def observe(self, row: Mapping[str, Any] | None) -> bool:
        """Take note of a row of metrics.csv, None for a round that was not evaluated, and return whether it is over."""
        if self.metric is None or row is None:
            return False
        value = row.get(self.metric)  # the run that a branch left may not have had it
        if value is not None and self._improves(float(value)):
            self._best, self._waited = float(value), 0
        elif self._best is not None:
            self._waited += 1
        return self.is_over

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return value == value  # nan is nothing to compare with
        gain = value - self._best if _improves_upwards(str(self.metric)) else self._best - value
        return gain > self.min_delta


def _improves_upwards(metric: str) -> bool:
    return "accuracy" in metric and not metric.endswith("_std")
