"""Server steps from w^t along more than the mean of the updates, and what such a step knows of the clients."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedprox.errors import UserError
from fedprox.solvers.problem import SgdSettings
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.fedprox import FedProx
from fedprox.strategies.updates import Arrays, arrays_of, flat, with_values

EXAMPLES = "num-examples"  # of a reply's metrics
Vector = NDArray[np.float64]
AnyArray = TypeVar("AnyArray", bound=NDArray[np.generic])


class ServerStep(FedProx):
    """w^{t+1} = w^t + step(delta), with delta = sum n_k w_k / sum n_k - w^t, on the parameters.

    Other arrays, such as batch norm's running statistics, are averaged. Steps are computed in float64 and rounded to
    the model's own types.

    Attributes:
        names: The parameters.
        sizes: n_k of all clients, shape (num_clients,).
        sgd: Settings of the clients' solver.
        before: w^t, the parameters as a vector, shape (d,).
        mu: Weight of the proximal term in this round.
        learning_rate_factor: Factor on the clients' learning rate in this round.
        server_rate_factor: Factor on the server's learning rate in this round.
    """

    def __init__(self, weighted_by_key: str = EXAMPLES) -> None:
        """Know nothing yet.

        Args:
            weighted_by_key: What clients report and the mean is weighted by: "num-examples", or "num-steps".
        """
        super().__init__(weighted_by_key=weighted_by_key)
        self.names: Sequence[str] = ()
        self.sizes: NDArray[np.int64] = np.zeros(0, np.int64)
        self.sgd: SgdSettings | None = None
        self.before: Vector = np.zeros(0)
        self.mu, self.learning_rate_factor, self.server_rate_factor = 0.0, 1.0, 1.0
        self._arrays: Arrays = {}

    def prepare(self, names: Sequence[str], sizes: NDArray[np.int64], sgd: SgdSettings) -> None:
        """Take note of the model and the clients before round 1; see the attributes."""
        self.names, self.sizes, self.sgd = names, sizes, sgd

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask all clients of the cohort."""
        self.begin(arrays, config)
        return super().configure_train(server_round, arrays, config, grid)

    def begin(self, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Take note of w^t and of the round's settings."""
        self._arrays = {name: to_numpy(array) for name, array in arrays.items()}
        self.before = flat(self._arrays, self.names)
        self.mu = float(config["proximal-mu"])  # type: ignore[arg-type]
        self.learning_rate_factor = float(config.get("learning-rate-factor", 1.0))  # type: ignore[arg-type]
        self.server_rate_factor = float(config.get("server-learning-rate-factor", 1.0))  # type: ignore[arg-type]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model after the step, and the metrics from `train_metrics_aggr_fn`."""
        replies = list(replies)
        average, metrics = super().aggregate_train(server_round, replies)
        if average is None:
            return None, metrics
        mean = {name: to_numpy(array) for name, array in average.items()}
        moved = self.before + self.step(flat(mean, self.names) - self.before, replies)
        return to_record(with_values(mean, self.names, moved)), metrics

    def step(self, delta: Vector, replies: Sequence[Message]) -> Vector:
        """Return w^{t+1} - w^t, shape (d,).

        Args:
            delta: The mean of the clients' updates, shape (d,).
            replies: The clients', each with w_k.
        """
        raise NotImplementedError

    def update_of(self, reply: Message) -> Vector:
        """Return a client's update w_k - w^t, shape (d,)."""
        return flat(arrays_of(reply), self.names) - self.before

    def state_dict(self) -> dict[str, Any]:
        """Return what later rounds need besides the model: nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""


def check_ranges(**values: tuple[float, bool, str]) -> None:
    """Raise UserError for the first setting of a strategy, name=(value, is_right, rule), that breaks its rule."""
    for name, (value, is_right, rule) in values.items():
        if not is_right:
            raise UserError(f"strategy.{name} must be {rule}, got {value:g}")


def read_only(vector: AnyArray) -> AnyArray:
    """Return an array that nobody may change, so that a checkpoint need not copy it."""
    vector.flags.writeable = False
    return vector
