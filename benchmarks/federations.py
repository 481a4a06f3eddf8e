"""Random data sets with the shapes and sizes of real ones."""

from dataclasses import replace

import numpy as np

from fedprox.data.federated import ClientIndex, FederatedData, Integers, LabelledData

SIDE, CLASSES = 28, 10


def cifar_shaped(num_examples: int = 50_000, num_test: int = 100) -> LabelledData:
    """Return random colour images, shape (n, 3, 32, 32), in memory with channels last like CIFAR-10, of 10 classes.

    There are so few test images that evaluation takes almost no time.
    """
    data = _random_images((32, 32, 3), num_examples, num_test)
    images, test_images = (pixels.transpose(0, 3, 1, 2) for pixels in (data.features, data.test_features))
    return replace(data, features=images, test_features=test_images)


def mnist_shaped(num_clients: int = 1_000, clients_hold: int = 62) -> FederatedData:
    """Return clients with `clients_hold` black 28 x 28 images each, and 100 random test images.

    The operating system allocates no memory for pages of zeros that are only read, so 100,000 clients do not need
    5 GB, and a growth of the memory with the number of clients is the program's own.
    """
    test, num_examples = _random_images((SIDE, SIDE), 1, 100), num_clients * clients_hold
    black = np.zeros((num_examples, SIDE, SIDE), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, CLASSES, num_examples)
    offsets = np.arange(num_clients + 1, dtype=np.int64) * clients_hold
    train, held_out = ClientIndex(np.arange(num_examples), offsets), ClientIndex.from_lists([[]] * num_clients)
    return FederatedData(replace(test, features=black, labels=labels), train, held_out)


def _random_images(shape: tuple[int, ...], num_examples: int, num_test: int) -> LabelledData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_examples + num_test, *shape), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, num_examples + num_test)
    train, test = slice(num_test, None), slice(0, num_test)
    mean, std = np.full(1, 127.5, np.float32), np.full(1, 73.9, np.float32)
    return LabelledData(images[train], labels[train], images[test], labels[test], CLASSES, mean, std)


def dirichlet(labels: Integers, num_clients: int, rng: np.random.Generator, *, alpha: float = 0.3) -> list[Integers]:
    """Divide each class among the clients in shares drawn from a Dirichlet distribution (Hsu et al. 2019)."""
    parts: list[list[Integers]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(num_clients, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]
