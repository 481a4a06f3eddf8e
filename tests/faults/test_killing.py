"""One run that is killed and resumed; see `killing.py` and docs/reliability.md for many.

One on Ray is in tests/experiment/test_faulty_runs.py.
"""

import csv
import json
from pathlib import Path

import pytest

from tests.faults import killing
from tests.faults.compared import differences, faults_left, rounds_in, untimed


def test_a_run_that_is_killed_and_resumed_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    # It is shot after round 11 of 150, which takes a second or more longer.
    monkeypatch.setitem(killing.VARIANTS, "FedAdam", (*killing.VARIANTS["FedAdam"], "num_epochs=200"))
    out, one = tmp_path / "out", ("--runs", "1", "--variants", "FedAdam", "--most-shots", "1", "--seed", "136")
    assert killing.main(["--engine", "local", *one, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["identical"], summary["processes left for good"]) == (1, [])
    with (out / "shots.csv").open(newline="") as file:
        (shot,) = csv.DictReader(file)
    assert (shot["kind"], shot["phase"], shot["round_num"], shot["was_hit"]) == ("SIGKILL", "rounds", "11", "True")


# The comparison itself.


def run_dir(folder: Path, metrics: str = "round,time_s,loss\r\n0,0.5,2\r\n1,1.5,1\r\n") -> Path:
    folder.mkdir()
    (folder / "metrics.csv").write_text(metrics, newline="")
    (folder / "model.safetensors").write_bytes(b"model")
    result = {"final": {"time_s": 1.5, "loss": 1}, "best": {"time_s": 1.5, "loss": 1}}
    (folder / "run.json").write_text(json.dumps({"status": "finished", "settings": {"mu": 1}, "result": result}))
    return folder


def test_runs_that_differ_only_in_their_times_are_equal(tmp_path):
    one = run_dir(tmp_path / "one")
    other = run_dir(tmp_path / "other", "round,time_s,loss\r\n0,7,2\r\n1,8,1\r\n")
    assert untimed(one / "metrics.csv") == b"round,loss\r\n0,2\r\n1,1\r\n"
    assert differences(one, other) == []


@pytest.mark.parametrize(
    "rows",
    ["0,0.5,2\r\n", "0,0.5,2\r\n1,1.5,1\r\n1,1.5,1\r\n", "0,0.5,2\r\n1,1.5,1.0\r\n", "1,1.5,1\r\n0,0.5,2\r\n"],
    ids=["a row lost", "a row twice", "another number", "another order"],
)
def test_different_rows_are_found(tmp_path, rows):
    one, other = run_dir(tmp_path / "one"), run_dir(tmp_path / "other", "round,time_s,loss\r\n" + rows)
    assert differences(other, one) == ["metrics.csv"]


def test_another_model_and_another_status_are_found(tmp_path):
    one, other = run_dir(tmp_path / "one"), run_dir(tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"another")
    facts = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    assert differences(other, one) == ["model.safetensors", "run.json: status"]


def test_faults_in_what_a_killed_run_left_are_found(tmp_path):
    whole = run_dir(tmp_path / "whole")
    left = run_dir(tmp_path / "left", "round,time_s,loss\r\n0,0.5,2\r\n1,1")
    assert faults_left(left, whole, in_order=False) == []
    assert faults_left(left, whole, in_order=True) == ["metrics.csv ends with a part of a row"]
    (left / "metrics.csv").write_bytes(b"round,time_s,loss\r\n0,0.5,9\r\n")
    assert faults_left(left, whole, in_order=False) == ["metrics.csv does not begin as the reference does"]
    (left / "checkpoint").mkdir()
    (left / "checkpoint" / "round_000001.safetensors").write_bytes(b"half")
    assert "is truncated or corrupt" in faults_left(left, whole, in_order=False)[0]


def test_the_last_whole_row_says_the_round(tmp_path):
    table = tmp_path / "clients.csv"
    assert rounds_in(table) == -1
    for content, round_num in {b"round,client\r\n": -1, b"round,client\r\n1,5\r\n2,7\r\n3,": 2}.items():
        table.write_bytes(content)
        assert rounds_in(table) == round_num


def test_growth_is_measured_from_the_second_tenth_to_the_last():
    from tests.faults.soak import growth

    samples = [{"time_s": done, "done": done, "pss_mb": 100.0 if done < 10 else 200.0 + done} for done in range(100)]
    grown = growth(samples, 100)["pss_mb"]
    assert (grown["second_tenth"], grown["last_tenth"]) == (214.5, 294.5)  # the means of 210 .. 219 and 290 .. 299
    assert grown["growth"] == pytest.approx(294.5 / 214.5 - 1)
