"""Protocols of the paper and of Flower's baseline: the choice of stragglers and of their work."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedprox.plan.epoch_batches import KEEP
from fedprox.plan.plan import CohortPlan, Plan

_log = logging.getLogger("fedprox")


@runtime_checkable
class ExperimentProtocol(Protocol):
    """Choice of a round's clients and of their work; the setting `protocol`."""

    def check(
        self, num_epochs: int, stragglers_fraction: float, sampling: str = "uniform", last_batch: str = KEEP
    ) -> None:
        """Raise UserError if the protocol does not support these settings."""

    def plan(self, *, client_ids: Sequence[str] = (), **settings: Any) -> CohortPlan:
        """Return the plan of a run; settings are the attributes of `Plan`."""


class PaperProtocol:
    """The paper's text (section 5.2): an exact share of the cohort, 1 .. E epochs for each of them."""

    def check(self, *settings: object) -> None:
        """Accept all settings."""

    def plan(self, *, client_ids: Sequence[str] = (), **settings: Any) -> Plan:
        """Return the plan of a run."""
        return Plan(protocol=self, **settings)

    def stragglers(self, rng: np.random.Generator, size: int, fraction: float) -> NDArray[np.bool_]:
        """Mark exactly round(size * fraction) of the cohort, chosen uniformly."""
        return rng.permutation(size) < round(size * fraction)

    def straggler_epochs(self, rng: np.random.Generator, num_epochs: int) -> int:
        """Draw uniformly from 1 .. E."""
        return int(rng.integers(1, num_epochs, endpoint=True))


class FlowerProtocol:
    """The earlier Flower baseline: each client of a cohort is a straggler independently, with 1 .. E - 1 epochs."""

    def check(self, *settings: object) -> None:
        """Accept all settings."""

    def plan(self, *, client_ids: Sequence[str] = (), **settings: Any) -> Plan:
        """Return the plan of a run, and log its departure from the baseline, which had no stragglers with E = 1."""
        plan = Plan(protocol=self, **settings)
        if plan.num_epochs == 1 and plan.stragglers_fraction > 0:
            _log.info("num_epochs=1: a straggler does part of the epoch, from 1 to all of its batches, as in the paper")
        return plan

    def stragglers(self, rng: np.random.Generator, size: int, fraction: float) -> NDArray[np.bool_]:
        """Mark each client with probability `fraction`; fewer stragglers are always a subset of more."""
        return rng.random(size) < fraction

    def straggler_epochs(self, rng: np.random.Generator, num_epochs: int) -> int:
        """Draw uniformly from 1 .. E - 1, as in the baseline."""
        return int(rng.integers(1, num_epochs))
