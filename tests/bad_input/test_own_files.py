"""Own tables and arrays that do not fit their settings: one line, exit status 2; and that those which fit run."""

import json

import numpy as np
import pytest

ROWS = [
    (age, age % 7, hospital, outcome) for age, hospital, outcome in zip(range(60), "nes" * 20, "ab" * 30, strict=True)
]
LOCAL = ("engine=local", "num_rounds=1")
PATIENTS = ("dataset=csv", "dataset.path=patients.csv", "dataset.client=hospital", "dataset.label=outcome")


@pytest.fixture(autouse=True)
def _files(tmp_path):
    lines = ["age,dose,hospital,outcome", *(",".join(map(str, row)) for row in ROWS)]
    (tmp_path / "patients.csv").write_text("\n".join(lines))
    x = np.array([row[:2] for row in ROWS], dtype=float)
    np.savez(tmp_path / "mine.npz", x=x, y=[row[3] for row in ROWS])


def record(tmp_path):
    return json.loads((tmp_path / "run" / "run.json").read_text())


def test_a_column_of_clients_divides_the_rows_without_another_setting(fedprox, tmp_path):
    ended = fedprox(*PATIENTS, *LOCAL)
    assert (ended.status, ended.err) == (0, "")
    assert "patients.csv: 2 features: age, dose" in ended.out
    made = record(tmp_path)
    assert (made["name"], made["classes"]) == ("csv:patients", ["a", "b"])
    assert made["data"].startswith("3 clients with 48 training examples")  # 0.8 of 20 each
    assert "12 held out" in made["data"]


def test_arrays_without_clients_are_divided_among_ten(fedprox, tmp_path):
    ended = fedprox("dataset=npz", "dataset.path=mine.npz", *LOCAL)
    assert (ended.status, ended.err) == (0, "")
    assert "npz:mine: no clients in the data: divided at random among 10" in ended.out
    assert record(tmp_path)["data"].startswith("10 clients")


def test_numbers_are_predicted_with_a_loss_of_theirs(fedprox, tmp_path):
    ended = fedprox(*PATIENTS[:3], "dataset.label=dose", "dataset.ignore=[outcome]", "loss=mse", *LOCAL)
    assert (ended.status, ended.err) == (0, "")
    assert record(tmp_path)["data"].startswith("3 clients")


WRONG = {
    "a partition of clients": (["partition=iid"], ["dataset=csv:patients comes divided into clients"]),
    "another number of clients": (["num_clients=4"], ["num_clients must be the data set's own 3, got 4"]),
    "no clients": (
        ["partition=natural", "num_clients=3", "dataset.client=null", "dataset.ignore=[hospital]"],
        ["partition=natural is for"],
    ),
    "a misspelt column": (["dataset.label=outcme"], ["patients.csv", "dataset.label=outcme", "did you mean outcome?"]),
    "text as a feature": (
        ["dataset.client=null"],
        ["patients.csv: hospital in row 1 must be a finite number", "leave the column out with dataset.ignore"],
    ),
    "classes for a loss of numbers": (["loss=mse"], ["patients.csv: outcome in row 1 must be a finite number"]),
    "numbers as classes": (["dataset.label=age", "dataset.ignore=[outcome]"], ["60 different values in 60 rows"]),
    "a type": (["dataset.features=age"], ["dataset.features must be of type list[str] | None, got 'age'"]),
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.values(), ids=WRONG)
def test_settings_that_do_not_fit_a_table_are_refused(refused, arguments, words):
    refused(*PATIENTS, *LOCAL, *arguments, says=words)
