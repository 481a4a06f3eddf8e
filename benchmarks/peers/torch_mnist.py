"""FedProx in plain torch on data that `python -m benchmarks export` wrote: `python torch_mnist.py FILE.npz`.

Logistic regression with its gradient in closed form, one thread, no framework: what a careful script does without
autograd, messages or records. Prints a line of JSON: seconds of the rounds with evaluation in each; accuracy after the
last round and over the last ten.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Data = dict[str, Tensor]


def local_model(data: Data, client: int, model: list[Tensor], order: np.random.Generator) -> list[Tensor]:
    """Return a client's W and b after its epochs of SGD on F_k(w) + (mu / 2) * ||w - w^t||^2, from w^t."""
    here = slice(int(data["offsets"][client]), int(data["offsets"][client + 1]))
    x, y = data["features"][here], functional.one_hot(data["labels"][here], len(model[1])).float()
    rate, mu, decay = (float(data[name]) for name in ("learning_rate", "mu", "weight_decay"))
    weight, bias = model
    w, b = weight.clone(), bias.clone()
    for _ in range(int(data["num_epochs"])):
        shuffled = torch.from_numpy(order.permutation(len(x)))
        for batch in torch.split(shuffled, int(data["batch_size"])):
            error = (functional.softmax(torch.addmm(b, x[batch], w.T), 1) - y[batch]) / len(batch)
            w -= rate * (error.T @ x[batch] + mu * (w - weight) + decay * w)
            b -= rate * (error.sum(0) + mu * (b - bias) + decay * b)
    return [w, b]


def train(data: Data) -> list[float]:
    """Return the test accuracy after each round."""
    model, sizes, order = [data["weight"], data["bias"]], data["offsets"].diff(), np.random.default_rng(0)
    accuracies = []
    for cohort in data["cohorts"]:
        locals_ = [local_model(data, int(client), model, order) for client in cohort]
        shares = sizes[cohort] / sizes[cohort].sum()
        model = [sum(s * part for s, part in zip(shares, parts, strict=True)) for parts in zip(*locals_, strict=True)]
        logits = torch.addmm(model[1], data["test_features"], model[0].T)
        accuracies.append(float((logits.argmax(1) == data["test_labels"]).float().mean()))
    return accuracies


def main() -> None:
    """Train on one thread, which is the fastest for so small a model."""
    torch.set_num_threads(1)
    with np.load(sys.argv[1]) as file:
        data = {name: torch.as_tensor(file[name]) for name in file.files}
    start = time.perf_counter()
    accuracies = train(data)
    rounds_s = time.perf_counter() - start
    print(
        json.dumps(
            {"rounds_s": rounds_s, "accuracy": accuracies[-1], "accuracy_last10": float(np.mean(accuracies[-10:]))}
        )
    )


if __name__ == "__main__":
    main()
