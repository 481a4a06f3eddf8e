"""Server optimisers: the mean update as a gradient (FedAvgM, FedAdagrad, FedAdam, FedYogi).

Reddi et al. (2021, algorithm 2) without bias correction and with v_{-1} = tau^2. Flower's classes of these names
correct Adam's bias, begin with v = 0, treat running statistics like weights, and make float64 models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Message

from fedprox.strategies.server_step import EXAMPLES, ServerStep, Vector, check_ranges, read_only


class ServerOptimiser(ServerStep):
    """w^{t+1} = w^t + eta s_t direction(delta), with the server's learning rate eta and its schedule s_t."""

    def __init__(self, server_learning_rate: float, weighted_by_key: str) -> None:
        """Set eta.

        Args:
            server_learning_rate: eta, > 0.
            weighted_by_key: See `ServerStep`.

        Raises:
            UserError: If it is out of its range.
        """
        super().__init__(weighted_by_key)
        rate = server_learning_rate
        check_ranges(server_learning_rate=(rate, rate > 0, "> 0"))
        self._server_learning_rate = rate

    def direction(self, delta: Vector) -> Vector:
        """Return the direction of the step, shape (d,), from the mean update."""
        raise NotImplementedError

    def step(self, delta: Vector, replies: Sequence[Message]) -> Vector:
        """Return w^{t+1} - w^t."""
        return self._server_learning_rate * self.server_rate_factor * self.direction(delta)


class FedAvgM(ServerOptimiser):
    """v <- beta v + delta, w <- w + eta v (Hsu et al. 2019); beta = 0 and eta = 1 give FedAvg."""

    def __init__(
        self, server_learning_rate: float = 1.0, server_momentum: float = 0.9, weighted_by_key: str = EXAMPLES
    ) -> None:
        """Set eta and beta.

        Args:
            server_learning_rate: eta, > 0.
            server_momentum: beta, at least 0 and below 1.
            weighted_by_key: See `ServerStep`.

        Raises:
            UserError: If one is out of its range.
        """
        super().__init__(server_learning_rate, weighted_by_key)
        check_ranges(server_momentum=(server_momentum, 0 <= server_momentum < 1, "at least 0 and below 1"))
        self._momentum = server_momentum
        self._velocity: Vector | None = None

    def direction(self, delta: Vector) -> Vector:
        """Return v, after its change."""
        self._velocity = delta if self._velocity is None else self._momentum * self._velocity + delta
        return self._velocity

    def state_dict(self) -> dict[str, Any]:
        """Return v."""
        return {} if self._velocity is None else {"velocity": read_only(self._velocity)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with v."""
        self._velocity = state.get("velocity")


class _Adaptive(ServerOptimiser):
    """m <- beta_1 m + (1 - beta_1) delta, w <- w + eta m / (sqrt(v) + tau), with a v of each method's own."""

    def __init__(self, server_learning_rate: float, beta_1: float, tau: float, weighted_by_key: str) -> None:
        super().__init__(server_learning_rate, weighted_by_key)
        check_ranges(beta_1=(beta_1, 0 <= beta_1 < 1, "at least 0 and below 1"), tau=(tau, tau > 0, "> 0"))
        self._beta_1, self._tau = beta_1, tau
        self._m: Vector | None = None
        self._v: Vector | None = None

    def _next_v(self, v: Vector, square: Vector) -> Vector:
        """Return the next v, given delta^2."""
        raise NotImplementedError

    def direction(self, delta: Vector) -> Vector:
        """Return m / (sqrt(v) + tau), after their changes."""
        m, v = self._m, self._v
        if m is None or v is None:
            m, v = np.zeros_like(delta), np.full_like(delta, self._tau**2)
        self._m = self._beta_1 * m + (1 - self._beta_1) * delta
        self._v = self._next_v(v, np.square(delta))
        return np.asarray(self._m / (np.sqrt(self._v) + self._tau))

    def state_dict(self) -> dict[str, Any]:
        """Return m and v."""
        return {} if self._m is None or self._v is None else {"m": read_only(self._m), "v": read_only(self._v)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with m and v."""
        self._m, self._v = state.get("m"), state.get("v")


class FedAdagrad(_Adaptive):
    """v <- v + delta^2."""

    def __init__(
        self,
        server_learning_rate: float = 0.1,
        beta_1: float = 0.0,
        tau: float = 1e-3,
        weighted_by_key: str = EXAMPLES,
    ) -> None:
        """Set the numbers.

        Args:
            server_learning_rate: eta, > 0.
            beta_1: Momentum, at least 0 and below 1.
            tau: Degree of adaptivity, > 0; small values make all parameters move alike.
            weighted_by_key: See `ServerStep`.

        Raises:
            UserError: If one is out of its range.
        """
        super().__init__(server_learning_rate, beta_1, tau, weighted_by_key)

    def _next_v(self, v: Vector, square: Vector) -> Vector:
        return v + square


class _Decaying(_Adaptive):
    """A v that forgets, at the rate beta_2."""

    def __init__(
        self,
        server_learning_rate: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        weighted_by_key: str = EXAMPLES,
    ) -> None:
        """Set the numbers.

        Args:
            server_learning_rate: eta, > 0.
            beta_1: Momentum, at least 0 and below 1.
            beta_2: Memory of v, at least 0 and below 1.
            tau: Degree of adaptivity, > 0; small values make all parameters move alike.
            weighted_by_key: See `ServerStep`.

        Raises:
            UserError: If one is out of its range.
        """
        super().__init__(server_learning_rate, beta_1, tau, weighted_by_key)
        check_ranges(beta_2=(beta_2, 0 <= beta_2 < 1, "at least 0 and below 1"))
        self._beta_2 = beta_2


class FedAdam(_Decaying):
    """v <- beta_2 v + (1 - beta_2) delta^2."""

    def _next_v(self, v: Vector, square: Vector) -> Vector:
        return self._beta_2 * v + (1 - self._beta_2) * square


class FedYogi(_Decaying):
    """v <- v - (1 - beta_2) delta^2 sign(v - delta^2)."""

    def _next_v(self, v: Vector, square: Vector) -> Vector:
        return np.asarray(v - (1 - self._beta_2) * square * np.sign(v - square))
