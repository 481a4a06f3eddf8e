"""Schedules over the rounds for mu and for the clients' learning rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedprox.config import schema
from fedprox.evaluation.metrics import Evaluation


class MuSchedule(Protocol):
    """Weight of the proximal term, round by round."""

    @property
    def value(self) -> float:
        """The next round's mu, >= 0."""

    def observe(self, evaluation: Evaluation | None) -> None:
        """Take note of the model's evaluation after a round, or before the first; None if it was not evaluated."""

    def state(self) -> Mapping[str, Any] | None:
        """Return the state that later values need besides the settings."""

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continue from a state; None starts afresh."""


@dataclass(frozen=True)
class ConstantMu:
    """The same mu in every round."""

    value: float

    def observe(self, evaluation: Evaluation | None) -> None:
        """Do nothing."""

    def state(self) -> None:
        """Return None."""

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Ignore the state of another schedule."""


@dataclass
class AdaptiveMu:
    """A mu that follows the global training loss (Li et al. 2020, sec. 5.3.2 and app. C.3.3; figures 3 and 11).

    It increases by `step` after a round in which the loss rose, and decreases by `step` after `patience` consecutive
    falls. Rounds without a training loss change nothing.

    Attributes:
        value: The current mu, >= 0.
        step: The amount by which mu changes; mu never goes below 0.
        patience: Consecutive falls before mu decreases; then the count restarts.

    Examples:
        The loss falls once, which is not enough, and then rises.

        >>> from types import SimpleNamespace as Record
        >>> mu = AdaptiveMu(0.5, step=0.1, patience=5)
        >>> for loss in (2.0, 1.5, 1.8):
        ...     mu.observe(Record(federation=Record(train_loss=loss)))
        >>> mu.value
        0.6
    """

    value: float
    step: float = 0.1
    patience: int = 5
    _last_loss: float | None = field(default=None, init=False, repr=False)
    _falls: int = field(default=0, init=False, repr=False)

    def state(self) -> Mapping[str, Any]:
        """Return mu, the last loss and the number of consecutive falls."""
        return {"mu": self.value, "last_loss": self._last_loss, "falls": self._falls}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Continue from a state."""
        if state:
            self.value, self._last_loss, self._falls = state["mu"], state["last_loss"], state["falls"]

    def observe(self, evaluation: Evaluation | None) -> None:
        """Compare the training loss with the last one, and change mu if it rose or fell often enough."""
        if evaluation is None or evaluation.federation is None:
            return
        loss = evaluation.federation.train_loss
        if self._last_loss is not None:
            self._falls = self._falls + 1 if loss < self._last_loss else 0
            if loss > self._last_loss:
                self._change(self.step)
            elif self._falls == self.patience:
                self._change(-self.step)
                self._falls = 0
        self._last_loss = loss

    def _change(self, by: float) -> None:
        self.value = round(max(0.0, self.value + by), 10)  # 0.3, where 0.1 + 0.1 + 0.1 is more


def mu_schedule(mu: float, adaptive: schema.AdaptiveMu) -> MuSchedule:
    """Return the schedule that the settings `mu` and `adaptive_mu` describe."""
    if not adaptive.enabled:
        return ConstantMu(mu)
    return AdaptiveMu(mu if adaptive.initial is None else adaptive.initial, adaptive.step, adaptive.patience)


def learning_rate_factor(name: str, round_num: int, num_rounds: int, final: float) -> float:
    """Return the factor on the learning rate in a round.

    "cosine" falls from 1 in round 1 along half a cosine (Loshchilov & Hutter 2017, eq. 5, without restarts); round
    num_rounds + 1 would have `final`. "constant" is always 1.

    Args:
        name: "constant" or "cosine".
        round_num: 1 .. num_rounds.
        num_rounds: T.
        final: 0 .. 1.

    Examples:
        >>> [round(learning_rate_factor("cosine", round_num, 4, final=0.0), 3) for round_num in (1, 2, 3, 4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    if name == "constant":
        return 1.0
    return final + (1 - final) * (1 + math.cos(math.pi * (round_num - 1) / num_rounds)) / 2


def epoch_factors(round_num: int, num_rounds: int, num_epochs: int, final: float) -> list[float]:
    """Return the factors on the learning rate in the epochs of a round, for a cosine that falls before every epoch.

    This is `learning_rate_factor` with epochs in place of rounds, as in torch's CosineAnnealingLR with T_max = T E and
    one step after every epoch. It depends on round and epoch alone, so a resumed run continues with it, and a straggler
    takes the first of a round's factors.

    Args:
        round_num: 1 .. num_rounds.
        num_rounds: T.
        num_epochs: E.
        final: 0 .. 1.

    Examples:
        >>> [round(factor, 3) for factor in epoch_factors(2, 2, num_epochs=2, final=0.0)]
        [0.5, 0.146]
    """
    first = (round_num - 1) * num_epochs + 1
    epochs = range(first, first + num_epochs)
    return [learning_rate_factor("cosine", epoch, num_rounds * num_epochs, final) for epoch in epochs]
