"""The Flower client: it receives the global model and a task, and runs the local solver on its examples."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from fedprox.data.federated import FederatedData
from fedprox.messages import task_of
from fedprox.plan import ClientTask, epoch_orders
from fedprox.solvers.choice import choose
from fedprox.solvers.gradients import full_gradients, gamma
from fedprox.solvers.problem import LocalWork, Params, SgdSettings, Solver


@dataclass(frozen=True)
class ClientSide:
    """Everything a process needs to play any client; what is sent to a worker.

    Attributes:
        data: All clients' examples.
        model: The architecture; its weights are not used.
        sgd: Settings of the local solver.
        device: Where clients compute, such as "cpu" or "cuda".
        solver: "auto" or "reference"; see `fedprox.solvers.choice`.
    """

    data: FederatedData
    model: nn.Module
    sgd: SgdSettings
    device: str = "cpu"
    solver: str = "auto"

    def make_solver(self) -> Solver:
        """Return a solver of its own for the process that plays clients."""
        return choose(self.solver, self.model, self.sgd, self.device)


def make_client_app(side: ClientSide, solver: Solver) -> ClientApp:
    """Return the client app; it plays the client that each message's task names."""
    app = ClientApp()
    model = copy.deepcopy(side.model).to(side.device)
    decode, decode_gradient = _Decoder(side.device), _Decoder(side.device)

    def examples(task: ClientTask) -> tuple[Tensor, Tensor]:
        x, y = side.data.client_examples(task.client)
        return torch.from_numpy(x).to(side.device), torch.from_numpy(y).to(side.device)

    def gradient(params: Params, task: ClientTask) -> Params:
        return full_gradients(model, [params], *examples(task))[0]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task, params = task_of(message), decode(message.content.array_records["arrays"])
        config = message.content.config_records["config"]
        features, labels = examples(task)
        correction = None
        if "gradient" in message.content:  # FedDANE
            global_gradient = decode_gradient(message.content.array_records["gradient"])
            local_gradient = gradient(params, task)
            correction = {name: global_gradient[name] - local_gradient[name] for name in local_gradient}
        mu = float(config["proximal-mu"])  # type: ignore[arg-type]
        seed = np.random.SeedSequence(task.batch_key or (task.client, task.epochs_before)).generate_state(1)[0]
        work = LocalWork(epoch_orders(task, len(labels)), task.num_steps, mu, int(seed), correction)
        solution = solver.solve(params, features, labels, work)
        metrics: dict[str, int | float | list[int] | list[float]] = {
            "num-examples": len(labels),
            "train-loss": solution.train_loss,
            "num-steps": solution.num_steps,
        }
        if config.get("measure-gamma"):
            metrics["gamma"] = gamma(model, solution.params, params, features, labels, mu)
        reply = RecordDict({"arrays": ArrayRecord(solution.params), "metrics": MetricRecord(metrics)})
        return Message(reply, reply_to=message)

    @app.query("gradient")
    def query_gradient(message: Message, context: Context) -> Message:
        task = task_of(message)
        answer = gradient(decode(message.content.array_records["arrays"]), task)
        metrics = MetricRecord({"num-examples": int(side.data.train.sizes[task.client])})
        return Message(RecordDict({"gradient": ArrayRecord(answer), "metrics": metrics}), reply_to=message)

    return app


class _Decoder:
    """Turns the global model into tensors once per round: all messages of a round carry the same record."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._decoded: tuple[ArrayRecord | None, Params] = (None, {})

    def __call__(self, record: ArrayRecord) -> Params:
        of_record, params = self._decoded
        if record is not of_record:
            params = {name: tensor.to(self._device) for name, tensor in record.to_torch_state_dict().items()}
            self._decoded = (record, params)  # both at once: clients may be computed in several threads
        return params
