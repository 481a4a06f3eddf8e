"""The example programs of the documentation give what the commands and the reference solver give."""

import csv
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "fedprox_in_60_lines.py"
SAME = (
    *("dataset=digits", "partition=pathological", "protocol=paper", "model.init=zeros", "num_rounds=30"),
    *("solver=reference", "engine=local", "engine.num_threads=1"),
)


def final_accuracy(run: Path) -> float:
    with (run / "metrics.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["test_accuracy"])


def test_the_example_has_60_lines_and_the_accuracies_of_the_command(fedprox, capfd, tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    assert fedprox(*SAME, "strategy=fedavg", "hydra.run.dir=fedavg").status == 0
    assert fedprox(*SAME, "mu=0.1", "hydra.run.dir=fedprox").status == 0
    num_threads = torch.get_num_threads()
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    torch.set_num_threads(num_threads)
    printed = [float(line.rpartition(" ")[2]) for line in capfd.readouterr().out.splitlines()]
    exact = [final_accuracy(tmp_path / name) for name in ("fedavg", "fedprox")]
    assert printed == pytest.approx(exact, abs=0.0005)  # three digits are printed
    assert exact[0] < exact[1]


def test_the_example_of_a_solver_agrees_with_the_reference_with_and_without_the_proximal_term():
    largest_difference = runpy.run_path(str(EXAMPLE.with_name("own_solver.py")))["largest_difference"]
    # Another order of the same operations differs in the last digits; leaving the proximal term out makes 0.005.
    assert max(largest_difference(0.0), largest_difference(1.0)) < 1e-6
