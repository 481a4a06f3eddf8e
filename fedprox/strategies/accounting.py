"""Accounting of differential privacy: what the rounds of a private run have cost, and the noise that a budget asks for.

A round in which every client takes part independently with probability q, each update has a norm of at most C, and
noise of standard deviation z C is added to their sum is a Poisson-subsampled Gaussian mechanism. Epsilon follows from
composing the rounds' privacy loss distributions (PLD; Koskela et al. 2020, Doroshenko et al. 2022) by dp-accounting,
for data sets that differ by one client with all its examples.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from fedprox.errors import UserError

MOST_NOISE = 2.0**20
_TOLERANCE = 1e-3  # of a calibrated noise multiplier, relative

Spending = tuple[float, float, int]  # noise multiplier z, sampling probability q, rounds


class Ledger:
    """What private rounds have spent.

    Attributes:
        spendings: Rounds with the same noise multiplier and sampling probability, in their order.
    """

    def __init__(self, spendings: Iterable[Spending] = ()) -> None:
        """Begin with earlier rounds."""
        self.spendings = list(spendings)

    def spend(self, noise_multiplier: float, probability: float, rounds: int = 1) -> None:
        """Note rounds."""
        before = 0
        if self.spendings and self.spendings[-1][:2] == (noise_multiplier, probability):
            before = self.spendings.pop()[2]
        self.spendings.append((noise_multiplier, probability, before + rounds))

    def epsilon(self, delta: float) -> float:
        """Return the epsilon of all rounds at a delta, an upper bound; infinite without noise.

        Examples:
            One round in which everybody takes part is the Gaussian mechanism, whose epsilon has a closed form.

            >>> round(Ledger([(1.0, 1.0, 1)]).epsilon(1e-5), 3)
            4.377
        """
        return _epsilon(tuple(self.spendings), delta)

    def rounds_within(self, budget: float, delta: float, spending: Spending) -> int:
        """Return how many of further rounds keep epsilon within a budget."""
        noise_multiplier, probability, most = spending
        least = 0
        while least < most:
            middle = (least + most + 1) // 2
            more = Ledger(self.spendings)
            more.spend(noise_multiplier, probability, middle)
            least, most = (middle, most) if more.epsilon(delta) <= budget else (least, middle - 1)
        return least


def calibrated(epsilon: float, delta: float, probability: float, rounds: int) -> float:
    """Return the least noise multiplier, to 0.1% of it, with which rounds cost at most epsilon.

    Raises:
        UserError: If no noise is enough, because epsilon is below what accounting resolves.
    """

    def is_enough(noise_multiplier: float) -> bool:
        return Ledger([(noise_multiplier, probability, rounds)]).epsilon(delta) <= epsilon

    low = high = 1.0
    while not is_enough(high):
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise UserError(f"privacy.epsilon must be larger, got {epsilon:g} for {rounds} rounds: no noise is enough")
    while low == high or is_enough(low):
        if low < 0.1:  # less noise would mean nothing
            return low
        low, high = low / 2, low
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def epsilon_by_moments(delta: float, spending: Spending) -> float:
    """Return the epsilon of rounds by Renyi differential privacy (Mironov 2017), an older and looser bound."""
    noise_multiplier, probability, rounds = spending
    events = library()
    one = events.GaussianDpEvent(noise_multiplier)
    sampled = events.PoissonSampledDpEvent(probability, one) if probability < 1 else one
    from dp_accounting.rdp import RdpAccountant

    return float(RdpAccountant().compose(events.SelfComposedDpEvent(sampled, rounds)).get_epsilon(delta))


def library() -> Any:
    """Return dp-accounting.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import dp_accounting
    except ImportError:
        raise UserError(
            "privacy=client needs the package dp-accounting, which is not installed; install it with "
            "pip install 'fedprox[privacy]'"
        ) from None
    return dp_accounting


@lru_cache(maxsize=4096)  # the runs of a sweep spend the same
def _epsilon(spendings: tuple[Spending, ...], delta: float) -> float:
    if not spendings:
        return 0.0
    if not all(noise_multiplier for noise_multiplier, _, _ in spendings):
        return math.inf
    interval = min(_interval(noise_multiplier) for noise_multiplier, _, _ in spendings)
    composed, *others = (_loss(z, q, interval).self_compose(rounds) for z, q, rounds in spendings)
    for other in others:
        composed = composed.compose(other)
    return float(composed.get_epsilon_for_delta(delta))


def _interval(noise_multiplier: float) -> float:
    """Return the step of the grid on which privacy losses are computed, finer for the small losses of much noise."""
    return 2.5e-4 / min(max(noise_multiplier, 0.1), 2.5)


@lru_cache
def _loss(noise_multiplier: float, probability: float, interval: float) -> Any:
    """Return the distribution of the privacy loss of one round."""
    library()
    from dp_accounting.pld import privacy_loss_distribution

    make: Callable[..., Any] = privacy_loss_distribution.from_gaussian_mechanism
    return make(noise_multiplier, sampling_prob=probability, value_discretization_interval=interval)
