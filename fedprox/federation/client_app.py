"""Flower clients: a message becomes a local problem, its solution a reply."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from fedprox.data.augmentation import PadCropFlip
from fedprox.data.federated import FederatedData
from fedprox.federation.messages import record_of, task_of
from fedprox.plan.plan import ClientTask, epoch_orders, epoch_shifts
from fedprox.solvers.batches import PictureInput
from fedprox.solvers.choice import choose
from fedprox.solvers.generators import seeded
from fedprox.solvers.gradients import drift, full_gradients, gamma
from fedprox.solvers.problem import BatchedSolver, LocalProblem, LocalSolution, LocalWork, Params, SgdSettings, Solver
from fedprox.solvers.workspace import Workspace
from fedprox.strategies.arrays import to_params, to_record
from fedprox.strategies.updates import TrainReply


@dataclass(frozen=True)
class ClientSpec:
    """Everything a process needs to play any client; what is sent to a worker.

    Attributes:
        data: All clients' examples.
        model: The architecture; its weights are not used.
        sgd: Settings of the local solver.
        device: Where clients compute, such as "cpu" or "cuda".
        solver: "auto", "reference" or "cohort"; see `fedprox.solvers.choice`.
        augmentation: What is done to images in training; None for nothing.
    """

    data: FederatedData
    model: nn.Module
    sgd: SgdSettings
    device: str = "cpu"
    solver: str = "auto"
    augmentation: PadCropFlip | None = None

    def make_solver(self) -> Solver:
        """Return a solver of its own for the process that plays clients."""
        shared = self.data.examples
        examples = torch.from_numpy(shared.model_input(shared.features[:3]))  # what a model is tried on
        pictures = None
        if shared.features.dtype == np.uint8 and shared.features.ndim in (3, 4):
            pictures = PictureInput(shared.mean, shared.std, self.augmentation)
        return choose(self.solver, self.model, self.sgd, self.device, examples, pictures)


class Clients:
    """Plays the clients that messages name, in any thread: a message becomes a local problem, a solution a reply."""

    def __init__(self, spec: ClientSpec, solver: Solver) -> None:
        """Prepare to play any client with this solver."""
        self._spec = spec
        self._solver = solver
        self._workspace = Workspace(spec.model, spec.device)
        self._parameters = [name for name, own in spec.model.named_parameters() if own.is_floating_point()]
        self._decode, self._decode_gradient = _Decoder(spec.device), _Decoder(spec.device)

    def train(self, message: Message) -> Message:
        """Return the reply to a train message."""
        return self.reply(message, self.solve(message, self.work(message)))

    def work(self, message: Message) -> LocalWork:
        """Return how much a train message asks for, in which order, and mu."""
        task, config, augmentation = task_of(message), _config(message), self._spec.augmentation
        num_examples = int(self._spec.data.train.sizes[task.client])
        return LocalWork(
            orders=epoch_orders(task, num_examples),
            num_steps=task.num_steps,
            mu=float(config["proximal-mu"]),  # type: ignore[arg-type]
            seed=_seed(task),
            learning_rate_factor=float(config.get("learning-rate-factor", 1.0)),  # type: ignore[arg-type]
            shifts=epoch_shifts(task, num_examples, augmentation) if augmentation else None,
        )

    def _problem(self, message: Message, work: LocalWork) -> LocalProblem:
        """Return the problem that a train message poses."""
        params = self._params(message)
        features, labels = self._examples(task_of(message).client, as_stored=self._solver.takes_pictures)
        if gradient := _arrays(message, "gradient"):  # FedDANE: g_t - grad F_k(w^t)
            global_gradient = self._decode_gradient(gradient)
            local_gradient = full_gradients(self._workspace.model, [params], self._input(features), labels)[0]
            correction = {name: global_gradient[name] - local_gradient[name] for name in local_gradient}
            work = replace(work, correction=correction)
        return LocalProblem(params, features, labels, work, bool(_config(message).get("measure-gamma")))

    def solve(self, message: Message, work: LocalWork) -> LocalSolution:
        """Return the solution of the problem that a message poses, with its drift, and gamma where that is asked."""
        with self._seeded(work.seed):
            problem = self._problem(message, work)
            return self._measured(problem, self._solver.solve(problem))

    def solve_together(self, messages: Sequence[Message], solver: BatchedSolver) -> list[LocalSolution]:
        """Return the same for problems that are solved in one call."""
        problems = [self._problem(message, self.work(message)) for message in messages]
        return list(map(self._measured, problems, solver.solve_all(problems)))

    def _measured(self, problem: LocalProblem, solution: LocalSolution) -> LocalSolution:
        if solution.drift is None:
            solution = replace(solution, drift=drift(solution.params, problem.global_params, self._parameters))
        if not problem.asks_gamma:
            return solution
        examples = (self._input(problem.features), problem.labels)
        points = (solution.params, problem.global_params)
        return replace(solution, gamma=gamma(self._workspace.model, *points, *examples, problem.work.mu))

    def reply(self, message: Message, solution: LocalSolution) -> Message:
        """Return the reply to a train message."""
        metrics = {
            "num-examples": int(self._spec.data.train.sizes[task_of(message).client]),
            "train-loss": solution.train_loss,
            "num-steps": solution.num_steps,
        }
        measured = {"drift": solution.drift, "gamma": solution.gamma}
        metrics |= {name: value for name, value in measured.items() if value is not None}
        return TrainReply(message, {name: value.cpu().numpy() for name, value in solution.params.items()}, metrics)

    def gradient(self, message: Message) -> Message:
        """Return the reply to a question for the client's full gradient at the global model."""
        params = self._params(message)
        features, labels = self._examples(task_of(message).client)
        with self._seeded(_seed(task_of(message))):
            gradient = full_gradients(self._workspace.model, [params], features, labels)[0]
        arrays = to_record({name: value.cpu() for name, value in gradient.items()})
        metrics = MetricRecord({"num-examples": len(labels)})
        return Message(RecordDict({"gradient": arrays, "metrics": metrics}), reply_to=message)

    def _seeded(self, seed: int | tuple[int, ...]) -> AbstractContextManager[object]:
        """Return a context in which a model that draws random numbers draws its client's own; nothing for others."""
        return nullcontext() if self._solver.is_concurrent else seeded(seed, torch.device(self._spec.device))

    def _params(self, message: Message) -> Params:
        """Return the global model, with the client's own batch statistics where it has any."""
        params = self._decode(_arrays(message, "arrays"))
        if own := _arrays(message, "statistics"):
            params = params | {name: value.to(self._spec.device) for name, value in to_params(own).items()}
        return params

    def _examples(self, client: int, *, as_stored: bool = False) -> tuple[Tensor, Tensor]:
        data = self._spec.data
        x, y = (data.stored_examples if as_stored else data.client_examples)(client)
        return torch.from_numpy(x).to(self._spec.device), torch.from_numpy(y).to(self._spec.device)

    def _input(self, features: Tensor) -> Tensor:
        """Return examples as model input, those that are so already as they are."""
        if not self._solver.takes_pictures:
            return features
        model_input = self._spec.data.examples.model_input(features.cpu().numpy())
        return torch.from_numpy(model_input).to(self._spec.device)


def make_client_app(clients: Clients) -> ClientApp:
    """Return the client app; it plays the client that each message's task names."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return clients.train(message)

    @app.query("gradient")
    def query_gradient(message: Message, context: Context) -> Message:
        return clients.gradient(message)

    return app


_NO_ARRAYS = ArrayRecord()


def _seed(task: ClientTask) -> tuple[int, ...]:
    """Return the entropy for a client's random numbers in a round."""
    return task.batch_key or (task.client, task.epochs_before)


def _arrays(message: Message, name: str) -> ArrayRecord:
    """Return the arrays of a message under a name; none if there are none."""
    return cast(ArrayRecord, record_of(message, name) or _NO_ARRAYS)


def _config(message: Message) -> ConfigRecord:
    return cast(ConfigRecord, record_of(message, "config"))


class _Decoder:
    """Turns the global model into tensors once per round: all messages of a round carry the same record."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._decoded: tuple[ArrayRecord | None, Params] = (None, {})

    def __call__(self, record: ArrayRecord) -> Params:
        of_record, params = self._decoded
        if record is not of_record:
            params = {name: tensor.to(self._device) for name, tensor in to_params(record).items()}
            self._decoded = (record, params)  # both at once: clients may be computed in several threads
        return params
