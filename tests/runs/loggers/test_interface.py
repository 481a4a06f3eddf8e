"""Functions of all loggers: flat settings, rows without empty cells, and the check for a library."""

import math
import sys
from pathlib import Path

import pytest

from fedprox.errors import UserError
from fedprox.runs.loggers.interface import hyperparameters, measured, require, title


def test_class_names_are_not_hyperparameters():
    assert hyperparameters({"seed": 0, "classes": ["a"] * 10_000, "settings": {}}) == {"seed": 0}


def test_settings_and_other_facts_are_in_one_level(facts):
    assert hyperparameters(facts) == {
        "algorithm": "FedProx (mu = 1)",
        "name": "digits",
        "seed": 3,
        "mu": 1.0,
        "engine.num_threads": "null",
        "engine._target_": "a.B",
        "flags": "[1, 2]",
    }


def test_a_row_is_its_round_and_its_measured_values():
    step, values = measured({"round": 4, "test_loss": math.inf, "drift": None, "num_clients_counted": 0})
    assert (step, values) == (4, {"test_loss": math.inf, "num_clients_counted": 0})


def test_a_title_has_algorithm_data_set_and_folder(facts):
    assert title(Path("/x/12-30-00"), facts) == "FedProx (mu = 1) on digits: 12-30-00"


def test_a_missing_library_is_an_error_with_the_extra_to_install():
    require("json", extra="none")
    with pytest.raises(UserError, match=r"logger=some needs the library no_such_library; .* 'fedprox\[some\]'$"):
        require("no_such_library", extra="some")


def test_a_folder_with_the_librarys_name_is_not_the_library(tmp_path, monkeypatch):
    # Weights & Biases writes into ./wandb, and python -m searches the working directory first.
    (tmp_path / "runs_of_a_tool").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(UserError, match="needs the library runs_of_a_tool"):
        require("runs_of_a_tool", extra="some")
