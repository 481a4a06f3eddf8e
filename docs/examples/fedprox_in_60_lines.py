"""FedAvg against FedProx in 60 lines: data, plan, solver and the loop, without configuration files."""

import torch

from fedprox.data.federated import FederatedData, divide
from fedprox.data.partitioners.pathological import pathological
from fedprox.data.sources.digits import digits
from fedprox.models.logistic import logistic
from fedprox.plan.plan import Plan, epoch_orders
from fedprox.plan.protocols import PaperProtocol
from fedprox.seeds import Stream, generator
from fedprox.solvers.problem import LocalProblem, LocalWork, Params, SgdSettings
from fedprox.solvers.reference import ReferenceSolver

SEED, NUM_ROUNDS = 0, 30


def divided_digits(num_clients: int) -> FederatedData:
    """Divide 1,442 images of digits among clients, two of the ten classes each."""
    examples, rng = digits(), generator(SEED, Stream.PARTITION)
    return divide(examples, pathological(examples.labels, num_clients, rng, classes_per_client=2), rng)


def train(data: FederatedData, mu: float, drops_stragglers: bool) -> float:
    """Train logistic regression from zero weights and return its accuracy on the test set."""
    model = logistic(input_shape=(8, 8), num_classes=10)
    params = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}  # w^0
    solver = ReferenceSolver(model, SgdSettings(learning_rate=0.03, batch_size=10))
    plan = Plan(  # everything random, fixed beforehand: both algorithms see the same clients, stragglers and batches
        data.train.sizes,
        clients_per_round=10,
        num_epochs=10,
        batch_size=10,
        stragglers_fraction=0.9,
        protocol=PaperProtocol(),
        seed=SEED,
        drops_stragglers=drops_stragglers,
    )
    for round_num in range(1, NUM_ROUNDS + 1):
        updates: list[tuple[int, Params]] = []
        for task in plan.tasks(round_num):
            if task.is_dropped:
                continue
            features, labels = map(torch.from_numpy, data.client_examples(task.client))
            work = LocalWork(epoch_orders(task, len(labels)), task.num_steps, mu)
            solution = solver.solve(LocalProblem(params, features, labels, work))  # min F_k(w) + mu/2 ||w - w^t||^2
            updates.append((len(labels), solution.params))
        total = sum(size for size, _ in updates)
        params = {name: (sum(n * w[name].double() for n, w in updates) / total).float() for name in params}
    model.load_state_dict(params)
    features, labels = map(torch.from_numpy, data.test_examples())
    return float((model(features).argmax(dim=1) == labels).double().mean())


if __name__ == "__main__":
    torch.set_num_threads(1)  # the batches are too small for more
    clients = divided_digits(100)
    print(f"FedAvg, stragglers dropped: {train(clients, mu=0.0, drops_stragglers=True):.3f}")
    print(f"FedProx, mu = 0.1:          {train(clients, mu=0.1, drops_stragglers=False):.3f}")
