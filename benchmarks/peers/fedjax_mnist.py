"""FedProx in FedJAX on the data of `python -m benchmarks export`: `python fedjax_mnist.py FILE.npz`.

It runs in an environment with FedJAX (see README.md here) and prints a line of JSON: seconds of the rounds with
evaluation in each, without compilation; accuracy after the last round and over the last ten.
"""

import json
import sys
import time

import fedjax
import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, jax.Array]


def logits(params: Params, x: jax.Array) -> jax.Array:
    """Return x W^T + b."""
    return x @ params["weight"].T + params["bias"]


def algorithm(data: dict[str, np.ndarray]) -> fedjax.FederatedAlgorithm:
    """Return FedJAX's FedProx with our settings; weight decay is part of the loss."""

    def loss(params: Params, batch: dict[str, jax.Array], rng: jax.Array) -> jax.Array:
        log_chances = jax.nn.log_softmax(logits(params, batch["x"]))
        squares = sum(jnp.sum(value**2) for value in params.values())
        at_label = jnp.take_along_axis(log_chances, batch["y"][:, None], axis=1)[:, 0]
        return 0.5 * data["weight_decay"] * squares - at_label

    return fedjax.algorithms.fed_prox.fed_prox(
        loss,
        fedjax.optimizers.sgd(float(data["learning_rate"])),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(int(data["batch_size"]), num_epochs=int(data["num_epochs"]), seed=0),
        float(data["mu"]),
    )


def train(data: dict[str, np.ndarray], cohorts: np.ndarray, fed_prox: fedjax.FederatedAlgorithm) -> list[float]:
    """Return the test accuracy after each round."""
    ends = data["offsets"][1:]
    clients = [
        fedjax.ClientDataset({"x": x, "y": y})
        for x, y in zip(np.split(data["features"], ends[:-1]), np.split(data["labels"], ends[:-1]), strict=True)
    ]
    test_x, test_y = jnp.asarray(data["test_features"]), jnp.asarray(data["test_labels"])
    state = fed_prox.init({"weight": jnp.asarray(data["weight"]), "bias": jnp.asarray(data["bias"])})
    accuracies = []
    for round_num, cohort in enumerate(cohorts):
        keys = jax.random.split(jax.random.PRNGKey(round_num), len(cohort))
        state, _ = fed_prox.apply(state, [(int(k), clients[k], key) for k, key in zip(cohort, keys, strict=True)])
        accuracies.append(float(accuracy(state.params, test_x, test_y)))
    return accuracies


@jax.jit
def accuracy(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the share of examples whose largest logit is the label's."""
    return jnp.mean(jnp.argmax(logits(params, x), axis=1) == y)


def main() -> None:
    """Train for one round to compile, then measure all rounds."""
    with np.load(sys.argv[1]) as file:
        data = dict(file)
    fed_prox = algorithm(data)
    train(data, data["cohorts"][:1], fed_prox)
    start = time.perf_counter()
    accuracies = train(data, data["cohorts"], fed_prox)
    rounds_s = time.perf_counter() - start
    print(
        json.dumps(
            {"rounds_s": rounds_s, "accuracy": accuracies[-1], "accuracy_last10": float(np.mean(accuracies[-10:]))}
        )
    )


if __name__ == "__main__":
    main()
