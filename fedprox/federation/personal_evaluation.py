"""Evaluation of personal models: each client's own model on its own held-out examples, after the global model's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord

from fedprox.evaluation.metrics import Evaluation, PersonalAccuracy
from fedprox.evaluation.personal import HeldOut
from fedprox.federation.client_state import ClientState
from fedprox.federation.failures import FailurePolicy
from fedprox.federation.messages import Engine, TaskMessage, client_of
from fedprox.plan.fine_tuning import FineTuning
from fedprox.solvers.problem import Params
from fedprox.strategies.arrays import to_params, to_record
from fedprox.strategies.updates import arrays_of

Models = Callable[[int, ArrayRecord], Iterator[tuple[int, Params]]]


@dataclass(frozen=True)
class PersonalEvaluation:
    """Measures a global model, and then the clients' own.

    Attributes:
        evaluate: Measures the global model.
        held_out: The clients' held-out examples.
        models: Yields the clients that have trained, with their models, given the round and its global model.
        untrained: Returns the model of a client that has not trained yet, given the global one: this itself, in which
            the parameters that are not shared have their initial values, or an initial personal model.
    """

    evaluate: Callable[[int, ArrayRecord], Evaluation]
    held_out: HeldOut
    models: Models
    untrained: Callable[[Params], Params] = lambda shared: shared

    def __call__(self, round_num: int, arrays: ArrayRecord) -> Evaluation:
        """Return the evaluation of the model after a round, with the accuracy of personal models."""
        evaluation, shared, sizes = self.evaluate(round_num, arrays), to_params(arrays), self.held_out.sizes
        of_global, own = np.zeros_like(sizes), np.zeros_like(sizes)
        has_trained = np.zeros(len(sizes), dtype=np.bool_)
        for client in np.flatnonzero(sizes).tolist():
            of_global[client] = self.held_out.num_correct(shared, client)
        for client, params in self.models(round_num, arrays):
            if sizes[client]:
                own[client], has_trained[client] = self.held_out.num_correct(params, client), True
        untrained = self.untrained(shared)
        for client in np.flatnonzero((sizes > 0) & ~has_trained).tolist():
            is_global = untrained is shared
            own[client] = of_global[client] if is_global else self.held_out.num_correct(untrained, client)
        return replace(evaluation, personal=PersonalAccuracy(sizes, own, of_global, has_trained))


def kept_models(state: ClientState, model: Callable[[Params, Params], Params]) -> Models:
    """Return the function that yields models of what clients keep.

    Args:
        state: What they keep.
        model: Returns a client's model, given the global one and what the client keeps.
    """

    def models(round_num: int, arrays: ArrayRecord) -> Iterator[tuple[int, Params]]:
        shared = to_params(arrays)
        for client, own in state.state().items():
            yield client, model(shared, to_params(own))

    return models


@dataclass(frozen=True)
class FineTuned:
    """Lets all clients that count train the global model further, some at a time, on any engine.

    Attributes:
        grid: Where clients compute.
        failures: What to do about clients that fail, diverge or are late: they keep the global model.
        plan: The clients' work.
        config: Returns the settings of a round that every client receives.
        clients: Clients that count.
        at_once: How many train before their models are measured and forgotten.
    """

    grid: Engine
    failures: FailurePolicy
    plan: FineTuning
    config: Callable[[int], ConfigRecord]
    clients: list[int]
    at_once: int

    def __call__(self, round_num: int, arrays: ArrayRecord) -> Iterator[tuple[int, Params]]:
        """Yield each client with its model, trained from the global one without a proximal term."""
        config = ConfigRecord({**self.config(round_num), "proximal-mu": 0.0, "measure-gamma": False})
        for first in range(0, len(self.clients), self.at_once):
            clients = self.clients[first : first + self.at_once]
            tasks = [self.plan.task(round_num, client) for client in clients]
            messages = [TaskMessage({"arrays": arrays, "config": config}, task) for task in tasks]
            for reply in self.failures.filtering(self.grid, round_num).send_and_receive(messages):
                yield client_of(reply), to_params(to_record(arrays_of(reply)))
