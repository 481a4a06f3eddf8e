"""The example programs of the documentation give what the commands, the reference solver and one another give."""

import csv
import difflib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


# Training scripts, as anyone has them and as clients.


def changed_lines(before: Path, after: Path) -> int:
    """Return the lines that `diff -w` shows as added, changed or removed; a changed line counts once."""
    texts = [re.sub(r"[ \t]+", "", path.read_text()).splitlines() for path in (before, after)]
    edits = difflib.SequenceMatcher(None, *texts, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in edits if kind != "equal")


@pytest.mark.parametrize("name", ["train", "lightning"])
def test_a_script_becomes_a_client_by_at_most_six_lines(name):
    federated = EXAMPLE.with_name("train.py" if name == "train" else "lightning_train.py")
    assert 0 < changed_lines(EXAMPLE.with_name(f"{name}_alone.py"), federated) <= 6


def test_the_documentation_shows_the_script_as_it_is():
    assert EXAMPLE.with_name("train.py").read_text() in EXAMPLE.parents[1].joinpath("federated-scripts.md").read_text()


def test_a_script_with_these_lines_gives_on_its_own_what_it_gave_before(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[2]), "OMP_NUM_THREADS": "1"}
    scripts = [EXAMPLE.with_name(name) for name in ("train_alone.py", "train.py")]
    code = "import runpy, sys, torch; torch.manual_seed(3); runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    commands = [[sys.executable, "-c", code, str(script), "--lr", "0.1"] for script in scripts]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    together = [subprocess.Popen(each, env=environment, cwd=tmp_path, **pipes) for each in commands]
    printed = [process.communicate(timeout=300) for process in together]
    assert [process.returncode for process in together] == [0, 0]
    assert printed[0] == printed[1]
    assert b"accuracy" in printed[0][0]
    assert printed[0][1] == b""


def test_the_examples_as_clients_give_the_same_with_and_without_lightning(fedprox, tmp_path):
    pytest.importorskip("lightning")
    common = ("client=script", "client.args='--lr 0.1'", "num_clients=4", "num_rounds=2", "mu=0.1", "engine=local")
    for name in ("train", "lightning_train"):
        script = EXAMPLE.with_name(f"{name}.py")
        ended = fedprox(*common, f"client.script={script}", f"hydra.run.dir={name}")
        assert ended.status == 0, ended.err
    assert final_accuracy(tmp_path / "train") > 0.5  # 0.1 before training
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("train", "lightning_train")]
    assert all(torch.equal(models[1][f"layers.{name}"], value) for name, value in models[0].items())
