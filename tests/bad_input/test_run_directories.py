"""Run directories that are half written or damaged."""

import json

import pytest

from fedprox.report.__main__ import main as report
from fedprox.runs.reader import status_of

RUN_JSON = {
    "status": "finished",
    "algorithm": "FedAvg",
    "settings": {"mu": 0.0, "stragglers_fraction": 0.5},
    "seed": 0,
    "name": "digits",
}
HEADER = "round,test_loss,test_accuracy,train_loss_cohort,num_clients_counted,time_s\n"
METRICS = HEADER + "0,2.3,0.1,,0,0.1\n1,2.2,0.2,2.3,1,0.2\n"
WHOLE = json.dumps(RUN_JSON)


def having(**change: object) -> str:
    return json.dumps(RUN_JSON | change)


# id: (run.json, metrics.csv, words); None is no such file
DAMAGED = {
    "run.json empty": ("", METRICS, ["run.json cannot be used", "fix it or move this run away"]),
    "run.json a list": ("[]", METRICS, ["run.json cannot be used"]),
    "run.json nested without end": ("[" * 100_000, METRICS, ["run.json cannot be used"]),
    "settings empty": (having(settings={}), METRICS, ["settings lack stragglers_fraction"]),
    "mu a word": (having(settings={"mu": "big", "stragglers_fraction": 0}), METRICS, ["run.json cannot be used"]),
    "seed of too many digits": (WHOLE.replace('"seed": 0', '"seed": ' + "1" * 5000), METRICS, ["run.json cannot"]),
    "metrics.csv missing": (WHOLE, None, ["metrics.csv cannot be used"]),
    "metrics.csv empty": (WHOLE, "", ["metrics.csv cannot be used", "lacks the columns"]),
    "metrics.csv with a row too short": (WHOLE, METRICS + "2,1\n", ["line 4 has 2 values for 6 columns"]),
    "metrics.csv with an endless field": (WHOLE, METRICS + "1" * 200_000 + "\n", ["metrics.csv cannot be used"]),
}


def written(folder, run_json, metrics) -> None:
    folder.mkdir(parents=True)
    for name, content in (("run.json", run_json), ("metrics.csv", metrics)):
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(("run_json", "metrics", "words"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_run_is_reported_and_left_as_it_is(tmp_path, capfd, run_json, metrics, words):
    written(tmp_path / "runs" / "whole", WHOLE, METRICS)
    written(tmp_path / "runs" / "damaged", run_json, metrics)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status = report([str(tmp_path / "runs"), "--out", str(tmp_path / "figure.png")])
    line = capfd.readouterr().err
    assert (status, len(line.splitlines())) == (2, 1), line
    assert line.startswith("error: ")
    assert [word for word in ("damaged", *words) if word not in line] == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["run.json", "metrics.csv"])
def test_a_folder_in_place_of_a_file_is_reported(tmp_path, capfd, name):
    written(tmp_path / "run", WHOLE, METRICS)
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).mkdir()
    assert report([str(tmp_path / "run"), "--out", str(tmp_path / "figure.png")]) == 2
    assert capfd.readouterr().err.startswith(f"error: {tmp_path}/run/{name} cannot be used")


@pytest.mark.parametrize("content", ["", "[]", having(settings=[1])])
def test_a_damaged_record_counts_as_no_run(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert status_of(tmp_path, {"mu": 1.0}) is None
