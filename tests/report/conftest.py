"""Small run directories in the format of real ones."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedprox.report.runs import REQUIRED


def write(
    directory: Path,
    accuracies: Sequence[float],
    losses: Sequence[float] | None = None,
    *,
    algorithm: str = "FedAvg",
    mu: float | None = 0.0,
    stragglers_fraction: float = 0.9,
    seed: int = 0,
    repetition: int = 0,
    status: str = "finished",
    dataset: str = "mnist",
    more: dict[str, Sequence[float | None]] | None = None,
    **settings: Any,
) -> Path:
    """Write run.json and metrics.csv with a row per accuracy from round 0 on; losses default to 1 - accuracy.

    `more` has further columns by name, with None for empty cells.
    """
    directory.mkdir(parents=True)
    losses = [1 - accuracy for accuracy in accuracies] if losses is None else losses
    more = more or {}
    lines = [",".join([*REQUIRED, *more])]
    for round_num, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        train = "" if round_num == 0 else (loss if math.isnan(loss) else loss + 0.1)
        counted = 0 if round_num == 0 else 10
        further = [values[round_num] for values in more.values()]
        row = (round_num, loss, accuracy, train, counted, 0.5 * round_num, *further)
        lines.append(",".join("" if value is None else str(value) for value in row))
    (directory / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = {
        "status": status,
        "algorithm": algorithm,
        "settings": {"mu": mu, "stragglers_fraction": stragglers_fraction, "seed": seed, **settings},
        "seed": seed,
        "repetition": repetition,
        "name": dataset,
    }
    (directory / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return directory


@pytest.fixture
def write_run() -> Callable[..., Path]:
    """Return `write`."""
    return write
