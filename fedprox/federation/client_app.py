"""Clients: a message becomes a local problem, and its solution a reply."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from fedprox.data.augmentation import PadCropFlip
from fedprox.data.federated import FederatedData
from fedprox.evaluation.evaluators import TestEvaluator, evaluator
from fedprox.federation.messages import record_of, task_of
from fedprox.plan.plan import ClientTask, epoch_orders, epoch_shifts
from fedprox.solvers.alternating import AlternatingSolver
from fedprox.solvers.batches import ImageInput
from fedprox.solvers.choice import Choice, choose
from fedprox.solvers.generators import seeded
from fedprox.solvers.gradients import drift, full_gradients, gamma
from fedprox.solvers.personal import PersonalMethod
from fedprox.solvers.problem import BatchedSolver, LocalProblem, LocalSolution, LocalWork, Params, SgdSettings, Solver
from fedprox.solvers.variates import FULL_GRADIENT, mean_gradient
from fedprox.solvers.workspace import Workspace
from fedprox.strategies.arrays import on_device, to_params, to_record
from fedprox.strategies.updates import TrainReply

_NO_ARRAYS = ArrayRecord()
_PIECE = 10_000  # examples converted to model input at once


@dataclass(frozen=True)
class ClientSpec:
    """Everything a process needs to play any client; it is sent to every worker.

    Attributes:
        data: All clients' examples.
        model: The architecture; its weights are not used.
        sgd: Settings of the local solver.
        device: Device on which clients compute, such as "cpu" or "cuda".
        solver: "auto", "reference" or "cohort", or what makes another; see `fedprox.solvers.choice.choose`.
        augmentation: Changes to training images; None for none.
        clients_per_round: K, the size of a cohort, for which the fastest solver is chosen.
        personal: How a client trains the personal model that its message carries; None for none.
        head: Names of the parameters that are trained before all others (FedRep); empty for all together.
        body_epochs: Epochs of these others.
    """

    data: FederatedData
    model: nn.Module
    sgd: SgdSettings
    device: str = "cpu"
    solver: str | Callable[..., Solver] = "auto"
    augmentation: PadCropFlip | None = None
    clients_per_round: int = 1
    personal: PersonalMethod | None = None
    head: tuple[str, ...] = ()
    body_epochs: int = 1

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return self.data.num_clients

    def choose_solver(self) -> Choice:
        """Return a new solver for the process that plays clients."""
        shared = self.data.examples
        examples = torch.from_numpy(shared.model_input(shared.features[:3]))  # to try the model on
        labels = torch.from_numpy(shared.labels[:3])
        images = None
        if shared.features.dtype == np.uint8 and shared.features.ndim in (3, 4):
            images = ImageInput(shared.mean, shared.std, self.augmentation)

        def chosen(model: nn.Module) -> Choice:
            offered: dict[str, Any] = {
                "model": model,
                "sgd": self.sgd,
                "device": self.device,
                "examples": examples,
                "image_input": images,
                "clients_per_round": self.clients_per_round,
                "labels": labels,
            }
            if isinstance(self.solver, str):
                return choose(self.solver, **offered)
            made = self.solver(**offered)
            return Choice(made, type(made).__name__)

        if not self.head:
            return chosen(self.model)
        alternating = AlternatingSolver(
            lambda model: chosen(model).solver, self.model, self.head, self.sgd, self.body_epochs
        )
        return Choice(alternating, "alternating")


class Clients:
    """Plays the clients that messages name, in any thread."""

    def __init__(self, spec: ClientSpec, solver: Solver) -> None:
        """Prepare to play any client with this solver."""
        self._spec = spec
        self._solver = solver
        self._workspace = Workspace(spec.model, spec.device)
        self._evaluators: dict[int, TestEvaluator] = {}
        self._objective = spec.sgd.loss, spec.data.examples.task
        self._parameters = [name for name, own in spec.model.named_parameters() if own.is_floating_point()]
        self._decode, self._decode_gradient = _Decoder(spec.device), _Decoder(spec.device)

    def work(self, message: Message) -> LocalWork:
        """Return the work that a train message asks for."""
        task, config, augmentation = task_of(message), _config(message), self._spec.augmentation
        num_examples = int(self._spec.data.train.sizes[task.client])
        return LocalWork(
            orders=epoch_orders(task, num_examples),
            num_steps=task.num_steps,
            mu=float(config["proximal-mu"]),  # type: ignore[arg-type]
            seed=_seed(task),
            learning_rate_factor=float(config.get("learning-rate-factor", 1.0)),  # type: ignore[arg-type]
            epoch_factors=tuple(config.get("epoch-factors", ())),  # type: ignore[arg-type]
            shifts=epoch_shifts(task, num_examples, augmentation) if augmentation else None,
        )

    def solve(self, message: Message, work: LocalWork) -> LocalSolution:
        """Return the solution of a message's problem, with its drift, and with gamma if the message asks for it."""
        with self._seeded(work.seed):
            problem = self._problem(message, work)
            solution = self._measured(problem, self._solver.solve(problem))
        if not self._spec.personal:
            return solution
        with self._seeded(work.seed):  # as if it were alone
            return self._with_personal([message], [problem], [solution], self._solve_each)[0]

    def solve_together(self, messages: Sequence[Message], solver: BatchedSolver) -> list[LocalSolution]:
        """Return the solutions of several messages' problems, solved in one call."""
        problems = [self._problem(message, self.work(message)) for message in messages]
        solutions = list(map(self._measured, problems, solver.solve_all(problems)))
        if not self._spec.personal:
            return solutions
        return self._with_personal(messages, problems, solutions, solver.solve_all)

    def reply(self, message: Message, solution: LocalSolution) -> Message:
        """Return the reply to a train message."""
        metrics = {
            "num-examples": int(self._spec.data.train.sizes[task_of(message).client]),
            "train-loss": solution.train_loss,
            "num-steps": solution.num_steps,
        }
        measured = {"drift": solution.drift, "gamma": solution.gamma}
        metrics |= {name: value for name, value in measured.items() if value is not None}
        kept = solution.personal if solution.velocity is None else solution.velocity
        return TrainReply(message, solution.params, metrics, kept, solution.variate)

    def gradient(self, message: Message) -> Message:
        """Return the reply to a query for the client's full gradient at the global model."""
        params = self._params(message)
        features, labels = self._examples(task_of(message).client)
        with self._seeded(_seed(task_of(message))):
            gradient = full_gradients(self._workspace.model, [params], features, labels, self._spec.sgd.loss)[0]
        arrays = to_record({name: value.cpu() for name, value in gradient.items()})
        metrics = MetricRecord({"num-examples": len(labels)})
        return Message(RecordDict({"gradient": arrays, "metrics": metrics}), reply_to=message)

    def evaluation(self, message: Message) -> Message:
        """Return the reply to an evaluate message: loss and accuracy of its model on the client's held-out examples."""
        client, data = task_of(message).client, self._spec.data
        if client not in self._evaluators:
            held_out = data.client_held_out(client)
            self._evaluators[client] = evaluator(self._spec.model, *held_out, self._spec.device, *self._objective)
        measured = self._evaluators[client](self._params(message))
        num_examples = int(data.held_out.sizes[client])
        metrics = {"num-examples": num_examples, "loss": measured.loss, "accuracy": measured.accuracy}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)  # type: ignore[arg-type]

    def _problem(self, message: Message, work: LocalWork) -> LocalProblem:
        """Return the local problem of a train message."""
        params = self._params(message)
        client, asks_gamma = task_of(message).client, bool(_config(message).get("measure-gamma"))
        if self._pool:
            positions = self._spec.data.train[client]
            problem = LocalProblem(params, *self._pool, work, asks_gamma, positions)
        else:
            problem = LocalProblem(params, *self._examples(client, self._solver.takes_images), work, asks_gamma)
        if gradient := _arrays(message, "gradient"):  # FedDANE: g_t - grad F_k(w^t)
            global_gradient = self._decode_gradient(gradient)
            features, labels = self._input(problem)
            local_gradient = full_gradients(self._workspace.model, [params], features, labels, self._spec.sgd.loss)[0]
            correction = {name: global_gradient[name] - local_gradient[name] for name in local_gradient}
            problem = replace(problem, work=replace(work, correction=correction))
        elif own := _arrays(message, "correction"):  # SCAFFOLD's c - c_k, FedDyn's -h_k
            correction = on_device(own, self._spec.device)
            option = int(_config(message).get("variate-option", 0))  # type: ignore[arg-type]
            corrects_steps = bool(_config(message).get("corrects-steps"))
            work = replace(work, correction=correction, corrects_steps=corrects_steps)
            problem = replace(problem, work=work, variate_option=option)
        if velocity := _arrays(message, "velocity"):
            problem = replace(problem, velocity=on_device(velocity, self._spec.device))
        return problem

    def _solve_each(self, problems: Sequence[LocalProblem]) -> list[LocalSolution]:
        return list(map(self._solver.solve, problems))

    def _with_personal(
        self,
        messages: Sequence[Message],
        problems: Sequence[LocalProblem],
        solutions: Sequence[LocalSolution],
        solve_all: Callable[[Sequence[LocalProblem]], list[LocalSolution]],
    ) -> list[LocalSolution]:
        """Return solutions with what each client keeps of its own problem's, which is solved beside the shared one."""
        method = cast(PersonalMethod, self._spec.personal)
        own = [on_device(_arrays(message, "personal"), self._spec.device) for message in messages]
        solved = solve_all(list(map(method.problem, problems, own)))
        kept = [method.kept(problem, each.params) for problem, each in zip(problems, solved, strict=True)]
        return [replace(solution, personal=each) for solution, each in zip(solutions, kept, strict=True)]

    def _measured(self, problem: LocalProblem, solution: LocalSolution) -> LocalSolution:
        """Return a solution with its drift, and with gamma and a control variate if the problem asks for them."""
        if solution.drift is None:
            solution = replace(solution, drift=drift(solution.params, problem.global_params, self._parameters))
        if problem.variate_option:
            solution = replace(solution, variate=self._variate(problem, solution))
        if not problem.asks_gamma:
            return solution
        points, examples, loss = (solution.params, problem.global_params), self._input(problem), self._spec.sgd.loss
        return replace(solution, gamma=gamma(self._workspace.model, *points, *examples, problem.work.mu, loss))

    def _variate(self, problem: LocalProblem, solution: LocalSolution) -> Params | None:
        """Return the client's next control variate; None if it stays."""
        if problem.variate_option != FULL_GRADIENT:
            return mean_gradient(problem, solution, self._spec.sgd)
        start, correction = problem.global_params, problem.work.correction or {}
        gradient = full_gradients(self._workspace.model, [start], *self._input(problem), self._spec.sgd.loss)[0]
        # Frozen parameters have no gradient, and of tied ones only the first.
        return {name: gradient[name] if name in gradient else torch.zeros_like(own) for name, own in correction.items()}

    def _seeded(self, seed: int | tuple[int, ...]) -> AbstractContextManager[object]:
        """Seed the global generators for a client, unless the solver is concurrent: its model draws nothing."""
        return nullcontext() if self._solver.is_concurrent else seeded(seed, torch.device(self._spec.device))

    def _params(self, message: Message) -> Params:
        """Return the global model, with the client's own arrays in their places if the message has any."""
        params = self._decode(_arrays(message, "arrays"))
        if own := _arrays(message, "local"):
            params = params | {name: value.to(self._spec.device) for name, value in to_params(own).items()}
        return params

    @cached_property
    def _pool(self) -> tuple[Tensor, Tensor] | None:
        """Features and labels of all clients, which stay on a GPU from round to round; None if they do not fit."""
        examples, device = self._spec.data.examples, self._spec.device
        stored = examples.features
        as_stored = self._solver.takes_images or stored.dtype == np.int64
        if not has_room(device, stored.nbytes if as_stored else stored.size * 4):
            return None
        labels = torch.from_numpy(examples.labels.copy()).to(device)
        if as_stored:
            return torch.from_numpy(stored if stored.flags.writeable else stored.copy()).to(device), labels
        pieces = (stored[start : start + _PIECE] for start in range(0, len(stored), _PIECE))
        return torch.cat([torch.from_numpy(examples.model_input(piece)).to(device) for piece in pieces]), labels

    def _examples(self, client: int, as_stored: bool = False) -> tuple[Tensor, Tensor]:
        data = self._spec.data
        x, y = (data.stored_examples if as_stored else data.client_examples)(client)
        return torch.from_numpy(x).to(self._spec.device), torch.from_numpy(y).to(self._spec.device)

    def _input(self, problem: LocalProblem) -> tuple[Tensor, Tensor]:
        """Return the features of a problem's client as model input, and the labels."""
        alone = problem.alone()
        if not self._solver.takes_images:
            return alone.features, alone.labels
        model_input = self._spec.data.examples.model_input(alone.features.cpu().numpy())
        return torch.from_numpy(model_input).to(self._spec.device), alone.labels


def has_room(device: str, size_bytes: int) -> bool:
    """Return whether a device is a GPU with enough free memory to keep all examples there: at most a quarter of it."""
    return torch.device(device).type == "cuda" and size_bytes <= torch.cuda.mem_get_info(device)[0] // 4


def _seed(task: ClientTask) -> tuple[int, ...]:
    """Return the entropy for a client's random numbers in a round."""
    return task.batch_key or (task.client, task.epochs_before)


def _arrays(message: Message, name: str) -> ArrayRecord:
    """Return the arrays of a message under a name; empty if missing."""
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
            params = on_device(record, self._device)
            self._decoded = (record, params)  # one assignment: clients may be computed in several threads
        return params
