"""Flower strategies: exact weighted averaging, with and without stragglers, on a planned cohort.

Every Flower strategy runs here with the same cohort: `PlannedStrategy` lets it see the clients of the round
only, and puts its messages into the order of the plan.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedprox.errors import RunStopped, UserError
from fedprox.federation.client_state import LocalStatistics
from fedprox.federation.messages import Record, TaskMessage, node_id
from fedprox.federation.strategy_calls import annotated, checked_messages, checked_result, repeatable
from fedprox.federation.strategy_checks import REPORTED
from fedprox.federation.strategy_state import StrategyState, layers
from fedprox.plan.plan import ClientTask, CohortPlan, numbered
from fedprox.process import only_new_garbage
from fedprox.seeds import Stream, generator
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.averaging import in_type, no_metrics, weighted_average
from fedprox.strategies.fedprox import FedProx
from fedprox.strategies.updates import arrays_of

_log = logging.getLogger("fedprox")
_AVERAGED = FedAvg().train_metrics_aggr_fn  # Flower's default


class PlannedStrategy:
    """Any Flower strategy, restricted to the plan's cohort, with one task per draw of a client.

    The strategy is offered each client of a round once; one that was drawn again gets its message again, with the
    task of that draw.

    A strategy whose attribute `drops_stragglers` is true is offered the other clients only. Where nobody
    is left, it is not asked at all and the model stays. One whose `corrects_gradients` is true gets FedDANE's
    first phase.

    Attributes:
        name: What the strategy's class is called.
        is_ours: Whether that is one of `fedprox.strategies`, and not one that is made from them.
    """

    def __init__(
        self,
        strategy: Strategy,
        plan: CohortPlan,
        statistics: LocalStatistics | None = None,
        *,
        seed: int = 0,
        repetition: int = 0,
    ) -> None:
        """Wrap a strategy; its own sampling is switched off, because the plan has sampled already.

        Args:
            strategy: Any.
            plan: Who takes part in which round, and with how much work.
            statistics: Each client's own batch statistics; None where they are averaged like weights.
            seed: What a strategy draws from the global generators follows from it.
            repetition: See `fedprox.seeds.generator`.

        Raises:
            UserError: If the strategy and the plan do not go together.
        """
        self.strategy = strategy
        self.name, self.is_ours = type(strategy).__name__, _is_of(strategy, _OURS)
        self._layers = layers(strategy)
        self._statistics = statistics
        self._seed, self._repetition = seed, repetition
        self.plan = replace(plan, drops_stragglers=self._has("drops_stragglers"))  # type: ignore[type-var]
        for layer in self._layers:
            _fit(layer)
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
        self._shapes: Mapping[str, tuple[int, ...]] | None = None  # of the model's arrays
        self._warned: set[str] = set()
        self._cohort: tuple[int, tuple[ClientTask, ...]] = (0, ())

    def state(self) -> dict[str, Any]:
        """Return what later rounds depend on besides the model."""
        with annotated(f"{self.name}'s state"):
            taken = self._state.take()
        return {"layers": taken, "statistics": self._statistics.state() if self._statistics else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; batch statistics are taken over where this run and the earlier one keep them."""
        if state["layers"]:  # not those of another strategy
            with annotated(f"{self.name}'s earlier state"):
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
        cohort = CohortGrid(list(dict.fromkeys(node_id(task.client) for task in tasks)))
        settings = dict(config)  # before the strategy changes any
        with self._call("configure_train", server_round) as call:
            messages = self.strategy.configure_train(server_round, arrays, config, cast(Grid, cohort))
            messages = checked_messages(messages, call)
        self._shapes = {name: array.shape for name, array in arrays.items()}
        by_node = {message.metadata.dst_node_id: message.content for message in messages}
        asked = [task for task in tasks if node_id(task.client) in by_node]
        if not asked:
            raise RunStopped(f"{call} returned no message for any of the {len(tasks)} clients that are to train")
        contents = {id(content): content for content in by_node.values()}  # one, unless a strategy sends each its own
        records = {key: self._settled(content, settings) for key, content in contents.items()}
        if self._has("corrects_gradients"):
            gradient = self._mean_gradient(server_round, arrays, grid)
            if gradient is None:
                return []
            records = {key: {**each, "gradient": gradient} for key, each in records.items()}
        return [self._message(records[id(by_node[node_id(task.client)])], task) for task in asked]

    def _message(self, records: Mapping[str, Record], task: ClientTask, kind: str = MessageType.TRAIN) -> Message:
        """Return a client's message, with its own batch statistics if it has any."""
        own = {"statistics": self._statistics.of(task.client)} if self._statistics else {}
        return TaskMessage({**records, **own}, task, kind)

    def _settled(self, content: RecordDict, settings: Mapping[str, Any]) -> dict[str, Record]:
        """Return what a strategy sends, with what the run decides, such as mu, over what it has put there."""
        config = content.get("config")
        own = config if isinstance(config, ConfigRecord) else ConfigRecord()
        mu = own.get("proximal-mu")
        if mu and mu != settings.get("proximal-mu"):
            line = f"{self.name} sets proximal-mu={mu!r}, but clients get the run's mu={settings.get('proximal-mu')}"
            self._warn("mu", f"{line}; set mu={mu!r} if that is meant")
        return {**content, "config": ConfigRecord({**own, **settings})}

    def _warn(self, of: str, line: str) -> None:
        """Say something of a kind once in a run."""
        if of not in self._warned:
            self._warned.add(of)
            _log.warning("%s", line)

    @contextmanager
    def _call(self, method: str, round_num: int) -> Iterator[str]:
        """Call the strategy meanwhile: its draws repeat, and what it raises is one line that begins so."""
        call = f"round {round_num}: {self.name}.{method}"
        if self.is_ours:
            with annotated(call):
                yield call
        else:  # Flower's Bulyan and QFedAvg ask for a garbage collection once per reply
            with annotated(call), repeatable(self._rng(method, round_num)), only_new_garbage():
                yield call

    def _rng(self, method: str, round_num: int) -> np.random.Generator:
        ids = (round_num, _METHODS.index(method))
        return generator(self._seed, Stream.STRATEGY, *ids, repetition=self._repetition)

    def _mean_gradient(self, round_num: int, arrays: ArrayRecord, grid: Grid) -> ArrayRecord | None:
        """Return g_t: the mean of a second cohort's full gradients at w^t, weighted as the models are.

        None if the grid gives no reply, as where all of these clients failed.
        """
        messages = [
            self._message({"arrays": arrays}, ClientTask(client, 1, 0, False, (), draw=draw), "query.gradient")
            for client, draw in numbered(self.plan.gradient_clients(round_num))  # type: ignore[attr-defined]
        ]
        replies = list(grid.send_and_receive(messages))
        weighted_by = "num-examples" if self.plan.sampling == "uniform" else None
        return weighted_average(replies, weighted_by) if replies else None

    def _has(self, fact: str) -> bool:
        return any(getattr(layer, fact, False) for layer in self._layers)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate as the wrapped strategy does, integers to integers; without replies the model stays.

        Metrics are those that the strategy adds to what clients report, which metrics.csv has already.
        """
        replies = list(replies)
        if self._statistics:
            self._statistics.keep(replies)
        if not replies:
            return None, None
        # Now: FedMedian takes the arrays out of the replies.
        integers = {name: array.dtype for name, array in arrays_of(replies[0]).items() if array.dtype.kind != "f"}
        with self._call("aggregate_train", server_round) as call:
            result = self.strategy.aggregate_train(server_round, replies)
            arrays, metrics = checked_result(result, self._shapes, call)
        if arrays is None:
            self._warn("model", f"{call} made no model of {len(replies)} replies: the model stays as it is")
        if arrays is not None and integers:  # of which Flower's strategies make float64
            nearest = {name: in_type(to_numpy(arrays[name]), dtype) for name, dtype in integers.items()}
            arrays = ArrayRecord({**arrays, **to_record(nearest)})
        if all(getattr(layer, _METRICS, _AVERAGED) in (_AVERAGED, no_metrics) for layer in self._layers):
            metrics = {name: value for name, value in metrics.items() if name not in (*REPORTED, "gamma")}
        return arrays, MetricRecord({**metrics}) if metrics else None


_OURS, _FLOWERS = "fedprox.strategies.", "flwr."
_METHODS = ("configure_train", "aggregate_train")
_METRICS = "train_metrics_aggr_fn"
_TAKE_ALL = {"fraction_train": 1.0, "fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}


def _is_of(strategy: Any, *packages: str) -> bool:
    """Return whether a strategy's class is defined in one of these packages."""
    return type(strategy).__module__.startswith(packages)


def _fit(layer: Any) -> None:
    """Let a strategy, or one that it wraps, take the planned cohort as it is.

    Averages of these metrics, which metrics.csv has already, are not computed where no code of the user's can read
    them.
    """
    for name, value in _TAKE_ALL.items():
        if hasattr(layer, name):
            setattr(layer, name, value)
    if _is_of(layer, _OURS, _FLOWERS) and getattr(layer, _METRICS, None) is _AVERAGED:
        setattr(layer, _METRICS, no_metrics)


class CohortGrid:
    """The part of a Grid that a strategy samples from: the nodes of this round's clients."""

    def __init__(self, node_ids: Sequence[int]) -> None:
        """Offer these nodes."""
        self._node_ids = node_ids

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes."""
        return self._node_ids
