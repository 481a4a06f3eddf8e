"""Command line of the benchmarks, from the arguments to the table and the JSON file, with tiny runs."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import _parser, main
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
TINY = ["--rounds", "2", "--override", "dataset=digits", "--override", "num_clients=50"]


@pytest.fixture
def peer(tmp_path):
    """Return a fake interpreter of a peer that counts the bytes of its data."""
    file = tmp_path / "peer"
    file.write_text(
        '#!/bin/sh\necho "peer: some words"\n'
        'echo "{\\"rounds_s\\": 3.5, \\"accuracy\\": 0.5, \\"data_bytes\\": $(wc -c < "$2")}"\n'
    )
    file.chmod(0o755)
    return file


def test_a_tiny_w1_is_run_in_turn_with_a_peer(tmp_path, peer, capfd):
    arguments = ["W1", *TINY, "--runs", "2", "--only-engine", "local", "--json", str(tmp_path / "w1.json")]
    assert main([*arguments, "--against", "fedjax", "--peer-python", f"fedjax={peer}"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    turns = re.findall(r"^(W1 .*), run (\d) of 2: rounds_s ", out, re.MULTILINE)
    names = ["W1 engine=local", "W1 fedjax"]
    assert turns == [(name, number) for number in "12" for name in names]

    found = json.loads((tmp_path / "w1.json").read_text())
    assert [len(found["runs"][name]) for name in names] == [2, 2]
    ours, fedjax = (found["runs"][name][0] for name in names)
    assert 0 < ours["rounds_s"] < ours["total_s"] < ours["whole_s"]
    assert ours["memory_gb"] > 0.1  # an interpreter with torch
    assert (fedjax["rounds_s"], fedjax["accuracy"]) == (3.5, 0.5)
    assert fedjax["data_bytes"] > 1000 * 64 * 4  # a thousand digits of 64 pixels
    assert found["ours"]["versions"]["torch"]
    (ratio,) = [row for row in found["table"] if row["name"] == "W1 fedjax / engine=local, rounds"]
    each = sorted(3.5 / run["rounds_s"] for run in found["runs"][names[0]])
    assert (ratio["spread"]["lowest"], ratio["spread"]["highest"]) == pytest.approx(each)
    assert {row["verdict"] for row in found["table"]} == {""}  # a tiny W1 has no goals
    assert "| W1 fedjax / engine=local, rounds " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a workload: W1, W2"),
        (["W9"], "unknown workload W9; choose from W1"),
        (["W1", "--runs", "0"], "--runs: must be an integer >= 1, got 0"),
        (["W1", "--against", "fedjax"], "--against fedjax needs the interpreter of its environment, got none"),
        (["W1", "--against", "pfl", "--peer-python", "pfl=/no/python"], "got /no/python"),
        (
            ["W2", "--against", "pfl", "--peer-python", f"pfl={sys.executable}"],
            "--against pfl supports W1 and W3, not W2",
        ),
        (["W1", "--peer-python", "nobody=x"], "--peer-python must be NAME=FILE with NAME one of fedjax, pfl, torch"),
        (["W1", "--json", "nowhere/x.json"], "the folder nowhere does not exist"),
        (["W1", "--wrong"], "unrecognized arguments: --wrong"),
        (["export", "W2", "x.npz"], "export needs W1 or W3, a file"),
        (["export", "W1", "nowhere/x.npz", "dataset=digits", "num_clients=50"], "nowhere/x.npz: No such file"),
        (["export", "W1", "x.npz", "batch_size=0"], "batch_size must be an integer >= 1"),
    ],
)
def test_a_mistake_is_one_line_with_status_2(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEER_PYTHON_FEDJAX", raising=False)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert message in err


def test_a_failing_command_is_one_line_and_measurements_so_far_are_kept(tmp_path, capfd):
    arguments = ["W1", "--runs", "1", "--only-engine", "local", "--json", str(tmp_path / "w1.json")]
    assert main([*arguments, "--override", "num_rounds=0"]) == 2
    _, err = capfd.readouterr()
    assert err.startswith(
        "error: W1 engine=local ended with status 2: num_rounds must be an integer >= 1 and below 2^32, got 0; the "
    )
    assert err.count("\n") == 1
    assert json.loads((tmp_path / "w1.json").read_text())["runs"] == {}


def test_a_failing_peer_is_named_and_measurements_so_far_are_kept(tmp_path, capfd):
    arguments = ["W1", *TINY, "--runs", "1", "--only-engine", "local", "--json", str(tmp_path / "w1.json")]
    against = ["--against", "reference", "--against", "pfl", "--peer-python", f"pfl={sys.executable}"]
    assert main([*arguments, *against]) == 2  # pfl is not in this environment
    assert "error: W1 pfl ended with status 1: ModuleNotFoundError: No module named 'pfl'" in capfd.readouterr().err
    found = json.loads((tmp_path / "w1.json").read_text())["runs"]
    (ours,), (reference,) = (found[name] for name in ("W1 engine=local", "W1 solver=reference"))
    assert ours["accuracy"] == reference["accuracy"] > 0  # both solvers agree


def test_it_runs_as_a_module_without_torch_and_numpy():
    code = "import sys, benchmarks.__main__; print('torch' in sys.modules, 'numpy' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
    help_text = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert all(name in help_text for name in WORKLOADS)


DOCUMENTS = [ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "peers" / "README.md"]
DOCUMENTED = [
    line.removeprefix("python -m benchmarks ")
    for document in DOCUMENTS
    for line in re.sub(r" *\\\n\s*", " ", document.read_text()).splitlines()
    if line.startswith("python -m benchmarks ")
]


@pytest.mark.parametrize("line", DOCUMENTED)
def test_documented_commands_are_valid(line):
    words = shlex.split(line, comments=True)
    if words[0] == "export":
        assert (words[1] in WORKLOADS, len(words)) == (True, 3)
        return
    arguments = _parser().parse_args(words)
    assert arguments.profile or arguments.workloads
    assert set(arguments.workloads) <= set(WORKLOADS)
