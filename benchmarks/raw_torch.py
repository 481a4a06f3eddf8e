"""Training speed of W5's model in plain torch on one thread, printed as a line of JSON."""

import json
import time

import torch
from torch.nn import functional

from fedprox.models.cnn import cnn_tutorial

BATCH_SIZE, LEARNING_RATE = 32, 0.03


def images_per_s(memory_format: torch.memory_format, num_steps: int = 1000) -> float:
    """Return the speed of SGD on batches that are ready in memory, after a hundred steps of warm-up."""
    torch.manual_seed(0)
    model = cnn_tutorial((3, 32, 32), 10)
    model.to(memory_format=memory_format)  # type: ignore[call-overload]  # known to torch, not to its stubs
    features = torch.randn(64 * BATCH_SIZE, 3, 32, 32).to(memory_format=memory_format)
    labels = torch.randint(0, 10, (len(features),))
    batches = list(zip(torch.split(features, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True))
    sgd = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    start = 0.0
    for step in range(100 + num_steps):
        if step == 100:
            start = time.perf_counter()
        x, y = batches[step % len(batches)]
        sgd.zero_grad()
        functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        sgd.step()
    return num_steps * BATCH_SIZE / (time.perf_counter() - start)


def main() -> None:
    """Print the speed of the faster of two memory layouts."""
    torch.set_num_threads(1)
    print(json.dumps({"images_per_s": max(map(images_per_s, (torch.contiguous_format, torch.channels_last)))}))


if __name__ == "__main__":
    main()
