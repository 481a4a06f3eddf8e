"""Adapting mu to the training loss (Li et al. 2020, sec. 5.3.2 and app. C.3.3; figures 3 and 11)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class AdaptiveMu:
    """mu grows by `step` after a round in which the loss rose, and shrinks by it after `patience` falls in a row.

    Attributes:
        mu: The present value, >= 0.
        step: What is added or taken away; mu never goes below 0.
        patience: Falls in a row, after which the count begins anew.
    """

    mu: float
    step: float = 0.1
    patience: int = 5
    _last_loss: float | None = field(default=None, init=False, repr=False)
    _falls: int = field(default=0, init=False, repr=False)

    def state(self) -> dict[str, float | int | None]:
        """Return what later values depend on besides step and patience."""
        return {"mu": self.mu, "last_loss": self._last_loss, "falls": self._falls}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.mu, self._last_loss, self._falls = state["mu"], state["last_loss"], state["falls"]

    def observe(self, loss: float) -> None:
        """Take note of the global training loss after a round, or of the initial model."""
        if self._last_loss is not None:
            self._falls = self._falls + 1 if loss < self._last_loss else 0
            if loss > self._last_loss:
                self._change(self.step)
            elif self._falls == self.patience:
                self._change(-self.step)
                self._falls = 0
        self._last_loss = loss

    def _change(self, by: float) -> None:
        self.mu = round(max(0.0, self.mu + by), 10)  # 0.3, where 0.1 + 0.1 + 0.1 is more


def learning_rate_factor(name: str, round_num: int, num_rounds: int, final: float) -> float:
    """Return what the learning rate is multiplied by in a round.

    "cosine" falls from 1 in round 1 along half a cosine (Loshchilov & Hutter 2017, eq. 5, without restarts), so that
    a round after the last one would have `final`; "constant" is always 1.

    Args:
        name: "constant" or "cosine".
        round_num: 1 .. num_rounds.
        num_rounds: T.
        final: 0 .. 1.
    """
    if name == "constant":
        return 1.0
    return final + (1 - final) * (1 + math.cos(math.pi * (round_num - 1) / num_rounds)) / 2
