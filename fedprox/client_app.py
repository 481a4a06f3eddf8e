"""The Flower client: it receives the global model and a task, and runs the local solver on its examples."""

from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from fedprox.data.federated import FederatedData
from fedprox.messages import task_of
from fedprox.plan import epoch_orders
from fedprox.solvers.reference import LocalWork, Params, ReferenceSolver, SgdSettings


@dataclass(frozen=True)
class ClientSide:
    """Everything a process needs to play any client; what is sent to a worker.

    Attributes:
        data: All clients' examples.
        model: The architecture; its weights are not used.
        sgd: Settings of the local solver.
        device: Where clients compute, such as "cpu" or "cuda".
    """

    data: FederatedData
    model: nn.Module
    sgd: SgdSettings
    device: str = "cpu"


def make_client_app(side: ClientSide) -> ClientApp:
    """Return the client app; it plays the client that each message's task names."""
    app = ClientApp()
    solver = ReferenceSolver(side.model, side.sgd, side.device)
    decode = _Decoder(side.device)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task = task_of(message)
        x, y = side.data.client_examples(task.client)
        features, labels = torch.from_numpy(x).to(side.device), torch.from_numpy(y).to(side.device)
        work = LocalWork(
            orders=epoch_orders(task.batch_key, len(y), task.num_epochs),
            num_steps=task.num_steps,
            mu=float(message.content.config_records["config"]["proximal-mu"]),  # type: ignore[arg-type]
            seed=int(np.random.SeedSequence(task.batch_key).generate_state(1)[0]),
        )
        solution = solver.solve(decode(message.content.array_records["arrays"]), features, labels, work)
        metrics = MetricRecord(
            {
                "num-examples": len(y),
                "train-loss": solution.train_loss,
                "num-steps": solution.num_steps,
            }
        )
        reply = RecordDict({"arrays": ArrayRecord(solution.params), "metrics": metrics})
        return Message(reply, reply_to=message)

    return app


class _Decoder:
    """Turns the global model into tensors once per round: all messages of a round carry the same record."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._record: ArrayRecord | None = None
        self._params: Params = {}

    def __call__(self, record: ArrayRecord) -> dict[str, Tensor]:
        if record is not self._record:
            self._record = record
            self._params = {name: t.to(self._device) for name, t in record.to_torch_state_dict().items()}
        return self._params
