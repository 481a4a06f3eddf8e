"""Synthetic(alpha, beta) and its IID version (Li et al. 2020, sec. 5.1), with the draws of the authors' generators."""

import math
import random

import numpy as np
from numpy.typing import NDArray

from fedprox.data.checks import check_between
from fedprox.data.federated import FederatedData, Floats, Integers, LabelledData, authors_ids, split
from fedprox.errors import UserError

NUM_FEATURES = 60
NUM_CLASSES = 10
HOLD_OUT = 0.1
MAX_CLIENTS = 100_000  # their examples take 11 GB, and as much again while they are joined
INPUT_DEVIATIONS = np.sqrt(np.arange(1, NUM_FEATURES + 1) ** -1.2)  # sqrt of the diagonal of Sigma

Doubles = NDArray[np.float64]


def synthetic(num_clients: int, seed: int, alpha: float = 1.0, beta: float = 1.0, iid: bool = False) -> FederatedData:
    """Generate Synthetic(alpha, beta): each client has its own model and its own distribution of inputs.

    Client k has n_k = int(LogNormal(4, 2)) + 50 examples y = argmax(x W_k + b_k) with x ~ N(v_k, Sigma),
    Sigma = diag(j^-1.2); W_k and b_k ~ N(u_k, 1), u_k ~ N(0, alpha); v_k ~ N(B_k, 1), B_k ~ N(0, beta).
    IID: v_k = 0 and one W, b ~ N(0, 1) for all. Each client's examples are shuffled; it trains on the first
    int(0.9 n_k) and tests on the others. There is no global test set.

    The draws are those that the authors' generators (litian96/FedProx, data/synthetic_*/generate_*.py) would make with
    this seed. They set none, so the published files are another draw, which no known seed gives; `dataset=leaf` reads
    them.

    Args:
        num_clients: Number of clients, 1 .. 100,000; the paper has 30.
        seed: Seeds a NumPy legacy generator, which draws the data, and a Python generator, which shuffles; the global
            ones are not used. Between 0 and 2^32 - 1.
        alpha: Standard deviation of u_k, >= 0. It is meant to control how much the clients' models differ, but changes
            no example: u_k adds the same number, u_k * (sum(x) + 1), to all ten logits, so the largest stays the
            largest. The models differ by the N(., 1) around u_k, whatever alpha is.
        beta: Standard deviation of B_k, >= 0: how much the clients' inputs differ. Both are standard deviations in the
            authors' program and variances in the paper. No effect if `iid`.
        iid: Give all clients one model and one distribution of inputs.

    Raises:
        UserError: If a setting is out of its range.
    """
    _check(num_clients, seed, alpha, beta)
    rng = np.random.RandomState(seed)
    sizes = rng.lognormal(4, 2, num_clients).astype(np.int64) + 50
    clients = _iid_clients(rng, sizes) if iid else _different_clients(rng, sizes, alpha, beta)
    features, labels = zip(*clients, strict=True)
    data = LabelledData.without_test_set(np.concatenate(features), np.concatenate(labels), NUM_CLASSES)
    train, held_out = split(_shuffle_each(sizes, random.Random(seed)), HOLD_OUT)
    return FederatedData(data, train, held_out, authors_ids(num_clients))


def _different_clients(
    rng: np.random.RandomState, sizes: Integers, alpha: float, beta: float
) -> list[tuple[Floats, Integers]]:
    """Return each client's features (n_k, 60) and labels (n_k,); the draw order is the authors'."""
    model_means = rng.normal(0, alpha, len(sizes))
    offsets = rng.normal(0, beta, len(sizes))
    input_means = rng.normal(offsets[:, None], 1, (len(sizes), NUM_FEATURES))
    clients = []
    for size, model_mean, input_mean in zip(sizes.tolist(), model_means, input_means, strict=True):
        weights, bias = _draw_model(rng, model_mean)
        clients.append(_draw_examples(rng, size, input_mean, weights, bias))
    return clients


def _iid_clients(rng: np.random.RandomState, sizes: Integers) -> list[tuple[Floats, Integers]]:
    """Return the same for clients that share one model and one distribution of inputs."""
    weights, bias = _draw_model(rng, 0.0)
    return [_draw_examples(rng, size, np.zeros(NUM_FEATURES), weights, bias) for size in sizes.tolist()]


def _draw_model(rng: np.random.RandomState, mean: float) -> tuple[Doubles, Doubles]:
    """Return W ~ N(mean, 1), shape (60, 10), and b ~ N(mean, 1), shape (10,)."""
    return rng.normal(mean, 1, (NUM_FEATURES, NUM_CLASSES)), rng.normal(mean, 1, NUM_CLASSES)


def _draw_examples(
    rng: np.random.RandomState, size: int, mean: Doubles, weights: Doubles, bias: Doubles
) -> tuple[Floats, Integers]:
    """Return x ~ N(mean, Sigma), shape (size, 60), and argmax(x W + b), shape (size,).

    Sigma is diagonal, so scaled normals equal the authors' multivariate_normal to the bit.
    """
    features = mean + rng.standard_normal((size, NUM_FEATURES)) * INPUT_DEVIATIONS
    labels = np.argmax(features @ weights + bias, axis=1)
    return features.astype(np.float32), labels.astype(np.int64)


def _shuffle_each(sizes: Integers, shuffler: random.Random) -> list[Integers]:
    """Return the clients' positions 0 .. n_0 - 1, n_0 .. n_0 + n_1 - 1, ..., shuffled within each client."""
    parts, first = [], 0
    for size in sizes.tolist():
        positions = list(range(first, first + size))
        shuffler.shuffle(positions)
        parts.append(np.array(positions, dtype=np.int64))
        first += size
    return parts


def _check(num_clients: int, seed: int, alpha: float, beta: float) -> None:
    """Raise UserError for the first setting that is out of its range."""
    check_between("num_clients", num_clients, 1, MAX_CLIENTS, "each has 450 examples on average; the paper has 30")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be between 0 and 2^32 - 1 for a synthetic data set, got {seed}; take 0")
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} must be finite and >= 0, got {value}; the paper has 0, 0.5 and 1")
