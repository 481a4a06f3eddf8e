"""The rows that a branch begins with; tests/cli/test_resumed_runs.py has whole resumed runs and branches."""

import json
from pathlib import Path

import pytest

from fedprox.errors import UserError
from fedprox.experiment.beginning import adopted_rows
from fedprox.runs.writer import CLIENTS, METRICS, RunRecord
from tests.settings import config_of

HEADER = ",".join(METRICS) + "\r\n"


def trunk(folder: Path, metrics: str, clients: str = "") -> Path:
    """Write a run directory with mu = 1, and return it."""
    folder.mkdir()
    record = {
        "status": "running",
        "algorithm": "FedProx",
        "settings": config_of(mu=1.0).plain(),
        "seed": 0,
        "name": "digits",
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.csv").write_text(HEADER + metrics, newline="")
    (folder / "clients.csv").write_text(",".join(CLIENTS) + "\r\n" + clients, newline="")
    return folder


ROWS = "0,2.5,0.125,,0,0.0,\r\n1,2.0,0.5,1.5,4,1.25,0.5\r\n2,1.0,0.75,nan,4,2.5,inf\r\n"


def adopted(trunk: Path, folder: Path, columns=METRICS) -> RunRecord:
    folder.mkdir()
    with RunRecord(folder, {"settings": {}}, columns) as record:
        record.adopt(adopted_rows(trunk, 2))
    return record


@pytest.mark.parametrize("later", ["", "3,0.5,0.9,1.0,4,3.0,0.1\r\n", "3,0.5,0.9,1.0,4,3.0,0.1\r\n4,0."])
def test_a_branch_begins_with_the_rows_up_to_its_round_to_the_byte(tmp_path, later):
    adopted(trunk(tmp_path / "trunk", ROWS + later), tmp_path / "branch")
    assert (tmp_path / "branch" / "metrics.csv").read_bytes() == (HEADER + ROWS).encode()


def test_the_result_includes_the_adopted_rows(tmp_path):
    record = adopted(trunk(tmp_path / "trunk", ROWS), tmp_path / "branch")
    assert (record.final["round"], record.final["test_accuracy"]) == (2, 0.75)
    assert record.state["best"]["round"] == 2


def test_columns_missing_from_the_trunk_stay_empty_and_its_other_columns_are_dropped(tmp_path):
    adopted(trunk(tmp_path / "trunk", ROWS), tmp_path / "branch", ("round", "mu", "test_loss", "test_accuracy"))
    assert (tmp_path / "branch" / "metrics.csv").read_text().split() == [
        "round,mu,test_loss,test_accuracy",
        "0,,2.5,0.125",
        "1,,2.0,0.5",
        "2,,1.0,0.75",
    ]


def test_rows_without_a_round_are_an_error_that_names_the_file(tmp_path):
    folder = trunk(tmp_path / "trunk", "x" + ROWS)
    with pytest.raises(UserError, match=r"trunk/metrics\.csv cannot be used: .*fix it"):
        adopted(folder, tmp_path / "branch")
