"""SCAFFOLD and FedDyn: each client's gradients are corrected by what it knows from its earlier rounds.

A real client keeps its vector between rounds. Simulated clients keep nothing, so the server holds all vectors, sends
each client its correction, and has them in its checkpoints; a federation's clients are served in the same way.

The objective is sum p_k F_k with p_k = n_k / n, so means over clients are weighted by p_k. The papers have p_k = 1 / N,
as with `weighting="equal"`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedprox.errors import UserError
from fedprox.solvers.variates import FULL_GRADIENT, MEAN_GRADIENT
from fedprox.strategies.arrays import to_record
from fedprox.strategies.averaging import weights_of
from fedprox.strategies.server_step import EXAMPLES, ServerStep, Vector, check_ranges, read_only
from fedprox.strategies.updates import Arrays, flat, take_variate, with_values

WEIGHTINGS = ("examples", "equal")
CORRECTS = ("gradients", "steps")
Kept = NDArray[np.generic]  # in the model's own type, as a client would keep it


class Corrected(ServerStep):
    """A strategy whose clients add a vector of their own to every gradient."""

    def __init__(self, weighting: str = "examples", weighted_by_key: str = EXAMPLES) -> None:
        """Begin with zeros everywhere.

        Args:
            weighting: "examples": p_k = n_k / n; "equal": p_k = 1 / N, as in the papers.
            weighted_by_key: See `ServerStep`.

        Raises:
            UserError: If `weighting` is neither, or "equal" although there is another weight.
        """
        super().__init__(weighted_by_key)
        if weighting == "equal" and weighted_by_key != EXAMPLES:
            raise UserError(
                f"strategy.weighted_by_key={weighted_by_key} has no effect with strategy.weighting=equal; leave out one"
            )
        if weighting not in WEIGHTINGS:
            raise UserError(f"strategy.weighting must be {' or '.join(WEIGHTINGS)}, got {weighting}")
        self.weighting = weighting
        self._of_server: Vector = np.zeros(0)
        self._of_clients: dict[int, Kept] = {}  # by Flower's node id, of those that have trained

    def correction(self, node: int) -> Vector:
        """Return what a client adds to its gradients, shape (d,)."""
        raise NotImplementedError

    def own(self, node: int) -> Vector:
        """Return the vector that a client keeps, shape (d,); zeros before it has trained."""
        kept = self._of_clients.get(node)
        return np.zeros_like(self.before) if kept is None else kept.astype(np.float64)

    def settings(self, config: ConfigRecord) -> ConfigRecord:
        """Return the settings that clients receive, given the round's."""
        return config

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for each client of the cohort, with its correction."""
        self.begin(arrays, config)
        if not len(self._of_server):
            self._of_server = np.zeros_like(self.before)
        settings = self.settings(config)
        model = {name: self._arrays[name] for name in self.names}

        def content(node: int) -> RecordDict:
            own = to_record(with_values(model, self.names, self.correction(node)))
            return RecordDict({"arrays": arrays, "config": settings, "correction": own})

        return [Message(content(node), node, MessageType.TRAIN) for node in grid.get_node_ids()]

    def shares(self, replies: Sequence[Message]) -> list[float]:
        """Return p_k of each client that has replied, of all clients' 1.

        Of other weights than examples only the cohort's are known; it has its share of clients of the 1.
        """
        is_equal = self.weighting == "equal"
        weights = weights_of(replies, None if is_equal else self.weighted_by_key)
        total: float = len(self.sizes) if is_equal else int(self.sizes.sum())
        if self.weighted_by_key != EXAMPLES:
            total = sum(weights) * len(self.sizes) / len(replies)
        return [weight / total for weight in weights]

    def state_dict(self) -> dict[str, Any]:
        """Return the server's vector and the clients'."""
        return {"server": self._of_server, "clients": dict(self._of_clients)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with these vectors."""
        self._of_server, self._of_clients = state["server"], dict(state["clients"])

    def _keep(self, node: int, vector: Vector) -> None:
        dtype = np.result_type(*(self._arrays[name].dtype for name in self.names))
        self._of_clients[node] = read_only(vector.astype(dtype))


class Scaffold(Corrected):
    """SCAFFOLD (Karimireddy et al. 2020, algorithm 1): control variates take the clients' drift out of their steps.

        client:  y <- y - eta_l (grad F_k(y; B) - c_k + c),  then c_k <- grad F_k(w^t)             (option I)
                                                             or   c_k - c + (w^t - y) / (K eta_l)  (option II)
        server:  w <- w + eta_g delta,  c <- c + sum p_k (change of c_k), over the cohort

    So c stays sum p_k c_k over all clients, if the weights p_k stay. With all variates at zero a round is FedAvg's.
    Each way two vectors travel: w and c down, y - w and the change of c_k up.

    The paper has no momentum. With `correct="gradients"` the correction passes through the clients' momentum like a
    gradient, and option II divides by what momentum makes of the steps. With "steps" each step is corrected after
    momentum, y <- y - eta_l (v - c_k + c), and option II divides by K eta_l, so that c_k is a mean of steps v, as in
    NIID-Bench (Li et al. 2022) and NVIDIA FLARE. Without momentum both are the same.
    """

    def __init__(
        self,
        option: int = 2,
        server_learning_rate: float = 1.0,
        weighting: str = "examples",
        correct: str = "gradients",
        weighted_by_key: str = EXAMPLES,
    ) -> None:
        """Prepare the strategy.

        Args:
            option: 1: a client's variate is its full gradient at w^t, which costs a pass over its examples; 2: the mean
                of the gradients of its steps.
            server_learning_rate: eta_g, > 0.
            weighting: See `Corrected`.
            correct: "gradients", or "steps" after momentum.
            weighted_by_key: See `ServerStep`.

        Raises:
            UserError: If one is out of its range.
        """
        super().__init__(weighting, weighted_by_key)
        if correct not in CORRECTS:
            raise UserError(f"strategy.correct must be {' or '.join(CORRECTS)}, got {correct}")
        self.corrects_steps = correct == "steps"
        rate, options = server_learning_rate, (FULL_GRADIENT, MEAN_GRADIENT)
        check_ranges(option=(option, option in options, "1 or 2"), server_learning_rate=(rate, rate > 0, "> 0"))
        if self.corrects_steps and option == FULL_GRADIENT:
            raise UserError(
                "strategy.correct=steps needs variates that are means of steps, got strategy.option=1, which makes "
                "gradients of them; use strategy.option=2"
            )
        self._option, self._server_learning_rate = option, rate
        self._variates: list[Arrays | None] = []  # of the round's replies

    def correction(self, node: int) -> Vector:
        """Return c - c_k."""
        return self._of_server - self.own(node)

    def settings(self, config: ConfigRecord) -> ConfigRecord:
        """Return the round's settings, with the option."""
        own: dict[str, int | bool] = {"variate-option": self._option}
        if self.corrects_steps:
            own["corrects-steps"] = True
        return ConfigRecord({**config, **own})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the variates out of the replies, which then hold one model each, and aggregate."""
        replies = list(replies)
        self._variates = [take_variate(reply) for reply in replies]
        return super().aggregate_train(server_round, replies)

    def step(self, delta: Vector, replies: Sequence[Message]) -> Vector:
        """Return eta_g delta, and change the variates."""
        change = np.zeros_like(delta)
        for reply, variate, share in zip(replies, self._variates, self.shares(replies), strict=True):
            if variate is None:  # not a single step
                continue
            node, new = reply.metadata.src_node_id, flat(variate, self.names)
            change += share * (new - self.own(node))
            self._keep(node, new)
        self._of_server = read_only(self._of_server + change)
        return self._server_learning_rate * self.server_rate_factor * delta


class FedDyn(Corrected):
    """FedDyn (Acar et al. 2021, algorithm 1): each client's problem has the global one's stationary points.

        client:  w_k ~ argmin F_k(w) - <h_k, w> + (mu / 2) ||w - w^t||^2,  then h_k <- h_k - mu (w_k - w^t)
        server:  h <- h - mu sum p_k (w_k - w^t) over the cohort,  w^{t+1} = mean of the w_k - h / mu

    The paper's alpha is the weight of the proximal term, so it is the setting `mu`. h stays sum p_k h_k over all
    clients. A client sends w_k alone, of which the server, which holds h_k here, makes h_k as the client would.
    """

    def correction(self, node: int) -> Vector:
        """Return -h_k."""
        return -self.own(node)

    def step(self, delta: Vector, replies: Sequence[Message]) -> Vector:
        """Return delta - h / mu, after the change of h and h_k."""
        change = np.zeros_like(delta)
        for reply, share in zip(replies, self.shares(replies), strict=True):
            node, pull = reply.metadata.src_node_id, self.mu * self.update_of(reply)
            change += share * pull
            self._keep(node, self.own(node) - pull)
        self._of_server = read_only(self._of_server - change)
        return delta - self._of_server / self.mu
