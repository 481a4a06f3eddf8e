"""Flower strategies: exact weighted averaging, with and without stragglers, on a planned cohort.

Every Flower strategy runs here with the same cohort: `Planned` lets it see the clients of the round
only, and puts its messages into the order of the plan.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedprox.arrays import to_numpy, to_record
from fedprox.averaging import in_type, weighted_average, weighted_metrics
from fedprox.batch_statistics import LocalStatistics
from fedprox.errors import UserError
from fedprox.messages import group_id, node_id, only, task_record
from fedprox.plan import ClientTask, CohortPlan, numbered
from fedprox.strategy_state import StrategyState, layers

_FLOWERS_METRICS = FedAvg().train_metrics_aggr_fn


class FedProx(FedAvg):
    """w^{t+1} = sum n_k w_k / sum n_k over all clients of the cohort, partial work included (Li et al., alg. 2).

    The same server step as FedAvg's; mu reaches the clients in each round's config as "proximal-mu".
    Sums are taken in float64 in the order of the plan, so that the result does not depend on who was first.
    """

    drops_stragglers = False
    weighting = "examples"  # or "equal": a simple mean over the draws, each of client k with probability n_k / n

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the average of the models, and the metrics averaged by numbers of examples."""
        is_first = server_round == 1  # clients answer in the same form in every round
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=is_first)
        if not valid:
            return None, None
        contents = [reply.content for reply in valid]
        is_flowers = self.train_metrics_aggr_fn is _FLOWERS_METRICS
        metrics = (weighted_metrics if is_flowers else self.train_metrics_aggr_fn)(contents, self.weighted_by_key)
        return weighted_average(contents, self.weighted_by_key if self.weighting == "examples" else None), metrics


class FedAvgWithStragglerDrop(FedProx):
    """FedAvg as the paper compares with it: stragglers are dropped, so their work is not even computed."""

    drops_stragglers = True


class FedDane(FedProx):
    """FedDANE (Li et al. 2019; fig. 4 of the paper): local gradients are corrected towards the global one.

    Each round first asks a second cohort for its full gradients at w^t. With their n_k-weighted mean g_t, client k
    steps along grad F_k(w; B) + (g_t - grad F_k(w^t)) + mu (w - w^t).
    """

    corrects_gradients = True


def _integers(replies: Iterable[Message]) -> dict[str, str]:
    """Return the types of the arrays that hold integers in the clients' models, by name."""
    sent = next((only(ArrayRecord, reply.content) for reply in replies if reply.has_content()), ArrayRecord())
    return {name: array.dtype for name, array in sent.items() if np.dtype(array.dtype).kind != "f"}


class Planned(Strategy):
    """Any Flower strategy, restricted to the plan's cohort, with one task per draw of a client.

    The strategy is offered each client of a round once; one that was drawn again gets its message again, with the
    task of that draw.

    A strategy whose attribute `drops_stragglers` is true is offered the other clients only. Where nobody
    is left, it is not asked at all and the model stays. One whose `corrects_gradients` is true gets FedDANE's
    first phase.
    """

    def __init__(self, strategy: Strategy, plan: CohortPlan, statistics: LocalStatistics | None = None) -> None:
        """Wrap a strategy; its own sampling is switched off, because the plan has sampled already.

        Args:
            strategy: Any.
            plan: Who takes part in which round, and with how much work.
            statistics: Each client's own batch statistics; None where they are averaged like weights.

        Raises:
            UserError: If the strategy and the plan do not go together.
        """
        self.strategy = strategy
        self._statistics = statistics
        self.plan = replace(plan, drops_stragglers=self._has("drops_stragglers"))  # type: ignore[type-var]
        for layer in layers(strategy):
            for name, value in _TAKE_ALL.items():
                if hasattr(layer, name):
                    setattr(layer, name, value)
        if plan.sampling == "proportional":
            if not isinstance(strategy, FedProx):
                raise UserError(
                    "sampling=proportional goes with a simple mean, which only strategy=fedprox, fedavg and feddane "
                    f"can take, got {type(strategy).__name__}; use sampling=uniform"
                )
            strategy.weighting = "equal"
        if self._has("corrects_gradients") and not hasattr(plan, "gradient_clients"):
            raise UserError("strategy=feddane samples two cohorts a round; use protocol=paper or flower")
        self._state = StrategyState(strategy)
        self._cohort: tuple[int, tuple[ClientTask, ...]] = (0, ())

    def state(self) -> dict[str, Any]:
        """Return what later rounds depend on besides the model."""
        return {"layers": self._state.take(), "statistics": self._statistics.state() if self._statistics else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; batch statistics are taken over where this run and the earlier one keep them."""
        if state["layers"]:  # not those of another strategy
            self._state.restore(state["layers"])
        if self._statistics and state["statistics"]:
            self._statistics.restore(state["statistics"])

    def cohort(self, round_num: int) -> tuple[ClientTask, ...]:
        """Return the round's tasks, those that are dropped included; a round is drawn once."""
        if self._cohort[0] != round_num:
            self._cohort = (round_num, self.plan.tasks(round_num))
        return self._cohort[1]

    def tasks(self, round_num: int) -> tuple[ClientTask, ...]:
        """Return the tasks of the clients that will be asked to train in this round."""
        return tuple(task for task in self.cohort(round_num) if not task.is_dropped)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the round's messages in the order of the plan, each with its client's task."""
        tasks = self.tasks(server_round)
        if not tasks:
            return []
        cohort = _Cohort(list(dict.fromkeys(node_id(task.client) for task in tasks)))
        messages = self.strategy.configure_train(server_round, arrays, config, cast(Grid, cohort))
        by_node = {message.metadata.dst_node_id: message for message in messages}
        planned = [
            (_of_draw(by_node[node_id(task.client)], task.draw), task)
            for task in tasks
            if node_id(task.client) in by_node
        ]
        correction: dict[str, ArrayRecord] = {}
        if self._has("corrects_gradients"):
            gradient = self._mean_gradient(server_round, arrays, grid)
            if gradient is None:
                return []
            correction = {"gradient": gradient}
        for message, task in planned:
            message.content = RecordDict({**message.content, **correction, **self._with_task(task)})
        return [message for message, _ in planned]

    def _mean_gradient(self, round_num: int, arrays: ArrayRecord, grid: Grid) -> ArrayRecord | None:
        """Return g_t: the mean of a second cohort's full gradients at w^t, weighted as the models are.

        None if the grid gives no reply, as where all of these clients failed.
        """
        messages = [
            Message(
                RecordDict({"arrays": arrays, **self._with_task(ClientTask(client, 1, 0, False, batch_key=()))}),
                dst_node_id=node_id(client),
                message_type="query.gradient",
                group_id=group_id(draw),
            )
            for client, draw in numbered(self.plan.gradient_clients(round_num))  # type: ignore[attr-defined]
        ]
        weighted_by = "num-examples" if self.plan.sampling == "uniform" else None
        replies = [reply.content for reply in grid.send_and_receive(messages)]
        return weighted_average(replies, weighted_by) if replies else None

    def _with_task(self, task: ClientTask) -> dict[str, ArrayRecord | ConfigRecord]:
        """Return what a message carries beside the round's: the task, and the client's own batch statistics."""
        own = {"statistics": self._statistics.of(task.client)} if self._statistics else {}
        return {"task": task_record(task), **own}

    def _has(self, fact: str) -> bool:
        return any(getattr(layer, fact, False) for layer in layers(self.strategy))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate as the wrapped strategy does, integers to integers; without replies the model stays."""
        replies = list(replies)
        if self._statistics:
            self._statistics.keep(replies)
        if not replies:
            return None, None
        integers = _integers(replies)  # now: FedMedian takes the arrays out of the replies
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if arrays is not None and integers:  # of which Flower's strategies make float64
            nearest = {name: in_type(to_numpy(arrays[name]), dtype) for name, dtype in integers.items()}
            arrays = ArrayRecord({**arrays, **to_record(nearest)})
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client to evaluate: the server does that on the test set."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return None: there is nothing to aggregate."""
        return None

    def summary(self) -> None:
        """Log the wrapped strategy's settings."""
        self.strategy.summary()


def _of_draw(message: Message, draw: int) -> Message:
    """Return the message to a client for one of its draws: the first is the strategy's own, later ones are copies."""
    metadata = message.metadata
    if draw:
        return Message(message.content, metadata.dst_node_id, metadata.message_type, group_id=group_id(draw))
    metadata.group_id = group_id(draw)
    return message


_TAKE_ALL = {"fraction_train": 1.0, "fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}


class _Cohort:
    """The part of a Grid that a strategy samples from: the nodes of this round's clients."""

    def __init__(self, node_ids: Sequence[int]) -> None:
        self._node_ids = node_ids

    def get_node_ids(self) -> Iterable[int]:
        return self._node_ids
