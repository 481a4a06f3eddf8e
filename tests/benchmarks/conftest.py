"""The package of the benchmarks, which is not installed, and small run directories."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


@pytest.fixture
def run_directory(tmp_path) -> Callable[..., Path]:
    """Return a function that writes a run directory below tmp_path.

    `rounds` is a list of (time_s, accuracy) from round 0 on, `clients` of (round, num_examples, num_epochs).
    """

    def write(name: str, rounds: list, clients: list, status: str = "finished", **timings: float) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        facts = {"status": status, "timings": timings, "hardware": {"num_cpus": 2}, "settings": {}}
        (folder / "run.json").write_text(json.dumps(facts))
        with (folder / "metrics.csv").open("w", newline="") as file:
            lines = [(number, accuracy, time_s) for number, (time_s, accuracy) in enumerate(rounds)]
            csv.writer(file).writerows([("round", "test_accuracy", "time_s"), *lines])
        with (folder / "clients.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("round", "num_examples", "num_epochs"), *clients])
        return folder

    return write
