"""A fake run that takes no time."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedprox.config.schema import Config
from fedprox.runs.writer import FEDERATION, METRICS

COLUMNS = METRICS + FEDERATION


class FakeRun:
    """Writes the files of a run with random values, and remembers its folders.

    Attributes:
        folders: The run directories in the order of the calls.
    """

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def __call__(self, config: Config, folder: Path) -> None:
        self.folders.append(folder)
        record = {"status": "finished", "algorithm": "x", "settings": config.plain(), "seed": config.seed, "name": "x"}
        (folder / "run.json").write_text(json.dumps(record))
        rng = np.random.default_rng(len(self.folders))
        adaptive = config.adaptive_mu.enabled
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, "mu"] if adaptive else COLUMNS)
            for round_num in range(config.num_rounds + 1):
                row = [round_num, *(rng.uniform(0.2, 0.9) / (1 + 0.05 * round_num) for _ in COLUMNS[1:])]
                writer.writerow([*row, 0.1 * round_num] if adaptive else row)


@pytest.fixture
def fake_run() -> FakeRun:
    return FakeRun()


@pytest.fixture
def reproduce(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Return a function that calls the command line in tmp_path and returns status, standard output and error."""
    from fedprox.reproduce.__main__ import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return call
