"""Attacks of hostile clients on the updates that they send.

An attack is a pure function of the attacker's own honest update u_k = w_k - w^t, of what it knows about the honest
updates of the round, and of a random stream. Attackers know all honest updates: the usual worst case.
"""

from dataclasses import dataclass
from math import inf
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from fedprox.data.checks import check_between
from fedprox.data.federated import FederatedData
from fedprox.errors import UserError

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Cohort:
    """What attackers know of a round.

    Attributes:
        num_clients: n, all whose updates arrive.
        num_malicious: f, those among them that attack.
        mean: Mean of the honest updates, shape (d,); of the attackers' own if there are no honest ones.
        std: Their standard deviation, ddof = 1; 0 for a single one.
    """

    num_clients: int
    num_malicious: int
    mean: Vector
    std: Vector


@dataclass(frozen=True)
class Attack:
    """An attack that does nothing yet.

    Attributes:
        fraction: Share of all clients that attack, 0 .. 1.
    """

    fraction: float

    title = "nothing"  # in tables and figures
    changes_updates = False  # whether `forge` does anything
    watches_others = False  # whether `forge` reads the mean and the standard deviation of the cohort
    changes_data = False  # whether `poison` does anything

    def __post_init__(self) -> None:
        """Raise UserError if a setting is out of its range."""
        check_between("attack.fraction", self.fraction, 0, 1, "it is the share of all clients that attack")

    def poison(self, data: FederatedData, is_malicious: Mask) -> FederatedData:
        """Return the data with the attackers' training examples changed; held-out and test examples stay."""
        return data

    def forge(self, own: Vector, cohort: Cohort, rng: np.random.Generator) -> Vector:
        """Return the update that an attacker sends instead of its own, shape (d,)."""
        return own


def none() -> None:
    """Return None: nobody attacks."""
    return


@dataclass(frozen=True)
class SignFlip(Attack):
    """Send -s u_k.

    Attributes:
        scale: s, > 0.
    """

    scale: float = 1.0
    title, changes_updates = "sign flip", True

    def __post_init__(self) -> None:
        """Raise UserError if a setting is out of its range."""
        super().__post_init__()
        check_positive("scale", self.scale)

    def forge(self, own: Vector, cohort: Cohort, rng: np.random.Generator) -> Vector:
        """Return -s u_k."""
        return -self.scale * own


@dataclass(frozen=True)
class Gaussian(Attack):
    """Send noise N(0, sigma^2) in every coordinate.

    Attributes:
        sigma: Its standard deviation, > 0.
    """

    sigma: float = 1.0
    title, changes_updates = "Gaussian", True

    def __post_init__(self) -> None:
        """Raise UserError if a setting is out of its range."""
        super().__post_init__()
        check_positive("sigma", self.sigma)

    def forge(self, own: Vector, cohort: Cohort, rng: np.random.Generator) -> Vector:
        """Return the noise."""
        return rng.normal(0.0, self.sigma, own.shape)


@dataclass(frozen=True)
class InnerProduct(Attack):
    """Inner product manipulation (Xie et al. 2020): send -epsilon times the mean of the honest updates.

    The mean of all updates turns its sign if epsilon f > n - f; a small epsilon hides among the honest.

    Attributes:
        epsilon: > 0.
    """

    epsilon: float = 1.5
    title, changes_updates, watches_others = "IPM", True, True

    def __post_init__(self) -> None:
        """Raise UserError if a setting is out of its range."""
        super().__post_init__()
        check_positive("epsilon", self.epsilon)

    def forge(self, own: Vector, cohort: Cohort, rng: np.random.Generator) -> Vector:
        """Return -epsilon mu."""
        return -self.epsilon * cohort.mean


@dataclass(frozen=True)
class LittleIsEnough(Attack):
    """A little is enough (Baruch et al. 2019): send mu - z sigma, by coordinate, of the honest updates.

    Attributes:
        z: Standard deviations; None for the largest z that a majority of the cohort still exceeds, see `largest_z`.
    """

    z: float | None = None
    title, changes_updates, watches_others = "ALIE", True, True

    def forge(self, own: Vector, cohort: Cohort, rng: np.random.Generator) -> Vector:
        """Return mu - z sigma."""
        z = largest_z(cohort.num_clients, cohort.num_malicious) if self.z is None else self.z
        return cohort.mean - z * cohort.std


def largest_z(num_clients: int, num_malicious: int) -> float:
    """Return z with Phi(z) = (n - f - s) / (n - f), where s = floor(n / 2 + 1) - f honest supporters make a majority.

    0 at least; if the attackers are a majority themselves, s = 1.

    Examples:
        >>> [round(largest_z(n, f), 4) for n, f in ((50, 24), (20, 4), (50, 10), (10, 2))]
        [1.4261, 0.1573, 0.2533, 0.0]
    """
    num_honest = num_clients - num_malicious
    supporters = max(1, num_clients // 2 + 1 - num_malicious)
    if num_honest <= supporters:
        return 0.0
    return max(0.0, NormalDist().inv_cdf((num_honest - supporters) / num_honest))


def check_positive(name: str, value: float) -> None:
    """Raise UserError unless a setting of an attack is finite and > 0."""
    if not 0 < value < inf:
        raise UserError(f"attack.{name} must be finite and > 0, got {value:g}")
