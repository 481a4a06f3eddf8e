"""Any Flower strategy on the cohorts of a plan.

The strategy sees only the clients of the round; its messages get the plan's order and each client's task.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from fedprox.errors import RunStopped, UserError
from fedprox.federation.arrivals import Arrivals
from fedprox.federation.client_state import ClientState
from fedprox.federation.messages import Record, TaskMessage, node_id
from fedprox.federation.strategy_checks import REPORTED, annotated, checked_messages, checked_result
from fedprox.federation.strategy_state import StrategyState, layers
from fedprox.plan.arrivals import BufferedPlan, TimedPlan
from fedprox.plan.plan import ClientTask, CohortPlan, numbered
from fedprox.process import only_new_garbage
from fedprox.seeds import Stream, generator
from fedprox.solvers.generators import seeded
from fedprox.strategies.arrays import to_numpy, to_record
from fedprox.strategies.averaging import no_metrics, weighted_average
from fedprox.strategies.fedprox import FedProx
from fedprox.strategies.updates import in_type, integers_of

_log = logging.getLogger("fedprox")
_OURS, _FLOWERS = "fedprox.strategies.", "flwr."
_METHODS = ("configure_train", "aggregate_train")  # their positions are part of the random streams
_METRICS = "train_metrics_aggr_fn"
_AVERAGED = FedAvg().train_metrics_aggr_fn  # Flower's default
_TAKE_ALL = {"fraction_train": 1.0, "fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}


class PlannedStrategy:
    """Any Flower strategy, restricted to the plan's cohort, with one task per draw of a client.

    The strategy is offered each client of a round once; a client that was drawn again gets its message again, with
    the task of that draw.

    A strategy with a true attribute `drops_stragglers` is offered only the other clients; if none is left, it is not
    called and the model stays. A strategy with a true `corrects_gradients` gets FedDANE's first phase. One with a true
    `acts_alone` is called in rounds without clients, too.

    Attributes:
        strategy: The wrapped strategy.
        plan: The plan, which drops stragglers if the strategy does.
        has_sizes: Whether the plan knows the clients' numbers of examples.
        cohort: Returns a round's tasks, dropped ones included; a round is drawn once.
        client_state: What each client keeps from round to round; None for nothing.
        name: Class name of the strategy.
        weighs_equally: Whether the strategy takes a simple mean, instead of one weighted by examples.
        arrivals: The virtual clock, and models that late clients train; None if the plan has no devices.
        is_ours: Whether that class is one of `fedprox.strategies`; a class that inherits from one is not.
    """

    def __init__(
        self,
        strategy: Strategy,
        plan: CohortPlan,
        client_state: ClientState | None = None,
        *,
        has_sizes: bool = True,
        trained: Sequence[str] = (),
        seed: int = 0,
        repetition: int = 0,
    ) -> None:
        """Wrap a strategy and switch off its own sampling, because the plan has sampled already.

        Args:
            strategy: Any Flower strategy.
            plan: Which clients take part in a round, and with how much work.
            client_state: What each client keeps from round to round; None for nothing.
            has_sizes: Whether the plan's sizes are the clients'; False if only replies tell them.
            trained: Names of the trained parameters, which a plan with late clients needs.
            seed: Determines what the strategy draws from the global generators.
            repetition: See `fedprox.seeds.generator`.

        Raises:
            UserError: If the strategy does not work with the plan.
        """
        self.strategy = strategy
        self.name, self.is_ours = type(strategy).__name__, _is_of(strategy, _OURS)
        self.has_sizes = has_sizes
        self._layers = layers(strategy)
        self.client_state = client_state
        self._seed, self._repetition = seed, repetition
        self.plan = replace(plan, drops_stragglers=self._has("drops_stragglers"))  # type: ignore[type-var]
        self.cohort = lru_cache(maxsize=1)(self.plan.tasks)
        self.arrivals = Arrivals(self.plan, trained) if isinstance(self.plan, TimedPlan) else None
        for layer in self._layers:
            _take_cohort_as_it_is(layer)
        if plan.sampling == "proportional" or isinstance(plan, BufferedPlan):
            if not isinstance(strategy, FedProx):
                setting, remedy = "sampling=proportional", "sampling=uniform"
                if plan.sampling != "proportional":
                    setting, remedy = "arrival=buffered", "arrival=synchronous"
                raise UserError(
                    f"{setting} goes with a simple mean, which only strategy=fedprox, fedavg and feddane "
                    f"can take, got {type(strategy).__name__}; use {remedy}"
                )
            strategy.weighting = "equal"
        self.weighs_equally = getattr(strategy, "weighting", "examples") == "equal"
        if self._has("corrects_gradients") and not hasattr(plan, "gradient_clients"):
            raise UserError("strategy=feddane samples two cohorts a round; use protocol=paper or flower")
        self._state = StrategyState(strategy)
        self._sent = ArrayRecord()  # w^t
        self._shapes: Mapping[str, tuple[int, ...]] | None = None  # of its arrays
        self._warned: set[str] = set()

    def state(self) -> dict[str, Any]:
        """Return the state that later rounds need besides the model."""
        with annotated(f"{self.name}'s state"):
            drained = self._state.take()
        late = {"arrivals": self.arrivals.state()} if self.arrivals else {}
        return {"layers": drained, "statistics": self.client_state.state() if self.client_state else None, **late}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; what clients keep is restored if both this run and the earlier one keep it."""
        if state["layers"]:  # a state of another strategy has been emptied
            with annotated(f"{self.name}'s earlier state"):
                self._state.restore(state["layers"])
        if self.client_state and state["statistics"]:
            self.client_state.restore(state["statistics"])
        if self.arrivals:
            self.arrivals.restore(state.get("arrivals", {}))

    @property
    def virtual_time_s(self) -> float | None:
        """Virtual seconds that all rounds so far have taken; None if the plan has no devices."""
        return self.arrivals.time_s if self.arrivals else None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the round's messages in the order of the plan, each with its client's task."""
        tasks = [task for task in self.cohort(server_round) if not task.is_dropped]
        if not tasks and not self._has("acts_alone"):
            return []
        nodes = CohortGrid(list(dict.fromkeys(node_id(task.client) for task in tasks)))
        settings = dict(config)  # a copy: the strategy may change the record
        with self._call("configure_train", server_round) as call:
            messages = self.strategy.configure_train(server_round, arrays, config, cast(Grid, nodes))
            messages = checked_messages(messages, call)
        self._sent, self._shapes = arrays, {name: array.shape for name, array in arrays.items()}
        by_node = {message.metadata.dst_node_id: message.content for message in messages}
        asked = [task for task in tasks if node_id(task.client) in by_node]
        if tasks and not asked:
            raise RunStopped(f"{call} returned no message for any of the {len(tasks)} clients that are to train")
        # Most strategies give all messages the same content, which is then completed only once.
        contents = {id(content): content for content in by_node.values()}
        records = {key: self._with_run_settings(content, settings) for key, content in contents.items()}
        if self._has("corrects_gradients"):
            gradient = self._mean_gradient(server_round, arrays, grid)
            if gradient is None:
                return []
            records = {key: {**each, "gradient": gradient} for key, each in records.items()}
        made = [self._message(records[id(by_node[node_id(task.client)])], task) for task in asked]
        if self.arrivals:
            self.arrivals.begin(server_round, arrays, settings, made)
        return list[Message](made)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate as the wrapped strategy does, integers to integers; without replies the model stays.

        The metrics are those that the strategy adds to the clients' own, which metrics.csv has already.
        """
        replies = list(replies)
        if self.arrivals:
            self.arrivals.end(server_round, self.cohort(server_round), replies)
        if not replies and not self._has("acts_alone"):
            return None, None
        if self.client_state:
            self.client_state.keep(server_round, replies, self._sent)
        # Read them before the strategy runs: FedMedian takes the arrays out of the replies.
        integers = integers_of(replies[0]) if replies else {}
        with self._call("aggregate_train", server_round) as call:
            result = self.strategy.aggregate_train(server_round, replies)
            arrays, metrics = checked_result(result, self._shapes, call)
        if arrays is None:
            self._warn("model", f"{call} returned no model from {len(replies)} replies: the model stays as it is")
        elif integers:  # Flower's strategies turn them into float64
            nearest = {name: in_type(to_numpy(arrays[name]), dtype) for name, dtype in integers.items()}
            arrays = ArrayRecord({**arrays, **to_record(nearest)})
        if arrays and self.client_state and self.client_state.unshared:  # a mean of equal numbers may round to others
            arrays = ArrayRecord({**arrays, **{name: self._sent[name] for name in self.client_state.unshared}})
        if all(getattr(layer, _METRICS, _AVERAGED) in (_AVERAGED, no_metrics) for layer in self._layers):
            metrics = {name: value for name, value in metrics.items() if name not in (*REPORTED, "gamma")}
        return arrays, MetricRecord({**metrics}) if metrics else None

    def _message(self, records: Mapping[str, Record], task: ClientTask, kind: str = MessageType.TRAIN) -> TaskMessage:
        """Return a client's message, with what it keeps."""
        own = {self.client_state.record: self.client_state.of(task.client)} if self.client_state else {}
        return TaskMessage({**records, **own}, task, kind)

    def _with_run_settings(self, content: RecordDict, settings: Mapping[str, Any]) -> dict[str, Record]:
        """Return the records of a strategy's message; the run's settings, such as mu, replace the strategy's."""
        config = content.get("config")
        own = config if isinstance(config, ConfigRecord) else ConfigRecord()
        mu = own.get("proximal-mu")
        if mu and mu != settings.get("proximal-mu"):
            line = f"{self.name} sets proximal-mu={mu!r}, but clients get the run's mu={settings.get('proximal-mu')}"
            self._warn("mu", f"{line}; set mu={mu!r} if that is meant")
        return {**content, "config": ConfigRecord({**own, **settings})}

    def _mean_gradient(self, round_num: int, arrays: ArrayRecord, grid: Grid) -> ArrayRecord | None:
        """Return FedDANE's g_t: the mean of a second cohort's full gradients at w^t, weighted as the models are.

        None if no client of that cohort replies.
        """
        messages = [
            self._message({"arrays": arrays}, ClientTask(client, 1, 0, False, (), draw=draw), "query.gradient")
            for client, draw in numbered(self.plan.gradient_clients(round_num))  # type: ignore[attr-defined]
        ]
        replies = list(grid.send_and_receive(messages))
        weighted_by = "num-examples" if self.plan.sampling == "uniform" else None
        return weighted_average(replies, weighted_by) if replies else None

    @contextmanager
    def _call(self, method: str, round_num: int) -> Iterator[str]:
        """Call a method of the strategy in this context: its draws are seeded, and an error is one line with the call.

        Yields:
            The call, such as "round 3: FedAdam.aggregate_train".
        """
        call = f"round {round_num}: {self.name}.{method}"
        if self.is_ours:  # ours draw nothing
            with annotated(call):
                yield call
        else:  # Flower's Bulyan and QFedAvg collect garbage once per reply
            ids = (round_num, _METHODS.index(method))
            rng = generator(self._seed, Stream.STRATEGY, *ids, repetition=self._repetition)
            with annotated(call), seeded(int(rng.integers(2**32))), only_new_garbage():
                yield call

    def is_clipped(self, client: int) -> bool | None:
        """Return whether the update of a client was shortened in the last round; None if it sent none."""
        clipped: Mapping[int, bool] = getattr(self.strategy, "is_clipped", {})
        return clipped.get(node_id(client))

    def _has(self, fact: str) -> bool:
        return any(getattr(layer, fact, False) for layer in self._layers)

    def _warn(self, topic: str, line: str) -> None:
        """Log a warning about a topic once in a run."""
        if topic not in self._warned:
            self._warned.add(topic)
            _log.warning("%s", line)


def _is_of(strategy: Any, *packages: str) -> bool:
    """Return whether a strategy's class is defined in one of these packages."""
    return type(strategy).__module__.startswith(packages)


def _take_cohort_as_it_is(layer: Any) -> None:
    """Let a strategy, or one that it wraps, ask all clients of the cohort.

    Averages of the clients' metrics, which metrics.csv has already, are not computed unless the user's code can read
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
