"""What the paper's program and Flower's baseline draw in a round, from our own streams of random numbers."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedprox.plan.epoch_batches import KEEP
from fedprox.plan.plan import CohortPlan, Plan, _log, part_of_epoch


@runtime_checkable
class ExperimentProtocol(Protocol):
    """Who takes part in a round, and with how much work; the setting `protocol`."""

    def check(
        self, num_epochs: int, stragglers_fraction: float, sampling: str = "uniform", last_batch: str = KEEP
    ) -> None:
        """Raise UserError if the protocol has no meaning for these settings."""

    def plan(self, **settings: Any) -> CohortPlan:
        """Return the plan of a run; the settings are those of `Plan`, and client_ids."""


class PaperProtocol:
    """The paper's text (section 5.2): an exact share of the cohort, 1 .. E epochs for each of them."""

    def check(
        self, num_epochs: int, stragglers_fraction: float, sampling: str = "uniform", last_batch: str = KEEP
    ) -> None:
        """Accept every setting; E = 1 gives partial epochs."""

    def plan(self, *, client_ids: Sequence[str] = (), **settings: Any) -> "Plan":
        """Return the plan of a run."""
        return Plan(protocol=self, **settings)

    def stragglers(self, rng: np.random.Generator, size: int, fraction: float) -> NDArray[np.bool_]:
        """Mark exactly round(size * fraction) of the cohort, chosen uniformly."""
        return rng.permutation(size) < round(size * fraction)

    def straggler_steps(self, rng: np.random.Generator, num_epochs: int, num_batches: int) -> int:
        """Draw whole epochs uniformly from 1 .. E; with E = 1, single steps from 1 .. num_batches."""
        if num_epochs == 1:
            return part_of_epoch(rng, num_batches)
        return int(rng.integers(1, num_epochs, endpoint=True)) * num_batches


class FlowerProtocol:
    """The earlier Flower baseline: each client of a cohort is a straggler independently, with 1 .. E - 1 epochs."""

    def check(
        self, num_epochs: int, stragglers_fraction: float, sampling: str = "uniform", last_batch: str = KEEP
    ) -> None:
        """Accept every setting; E = 1 gives partial epochs, as in the paper."""

    def plan(self, *, client_ids: Sequence[str] = (), **settings: Any) -> "Plan":
        """Return the plan of a run, and log where it departs from the baseline, which had no stragglers with E = 1."""
        plan = Plan(protocol=self, **settings)
        if plan.num_epochs == 1 and plan.stragglers_fraction > 0:
            _log.info("num_epochs=1: a straggler does a part of the epoch, 1 to all of its batches, as in the paper")
        return plan

    def stragglers(self, rng: np.random.Generator, size: int, fraction: float) -> NDArray[np.bool_]:
        """Mark each client with probability `fraction`; fewer stragglers are always a subset of more."""
        return rng.random(size) < fraction

    def straggler_steps(self, rng: np.random.Generator, num_epochs: int, num_batches: int) -> int:
        """Draw whole epochs uniformly from 1 .. E - 1, as in the baseline; with E = 1, single steps as in the paper."""
        if num_epochs == 1:
            return part_of_epoch(rng, num_batches)
        return int(rng.integers(1, num_epochs)) * num_batches
