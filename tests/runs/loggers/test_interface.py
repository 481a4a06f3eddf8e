"""What all loggers need: flat settings, rows without holes, and the library that is or is not there."""

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprox.errors import UserError
from fedprox.runs.loggers.interface import hyperparameters, measured, require, title


def test_names_of_classes_are_no_hyperparameters():
    assert hyperparameters({"seed": 0, "classes": ["a"] * 10_000, "settings": {}}) == {"seed": 0}


def test_settings_stand_in_one_level_beside_the_other_facts(facts):
    assert hyperparameters(facts) == {
        "algorithm": "FedProx (mu = 1)",
        "name": "digits",
        "seed": 3,
        "mu": 1.0,
        "engine.num_threads": "null",
        "engine._target_": "a.B",
        "flags": "[1, 2]",
    }


NAMES = st.sampled_from(["a", "b", "_target_"])
NESTED = st.recursive(
    st.sampled_from([0, -1.5, True, "", "text", None, [], [1, None]]),
    lambda inside: st.dictionaries(NAMES, inside, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, NESTED, max_size=3))
def test_every_value_of_any_settings_is_found_under_its_path(settings):
    def paths(node, prefix=()):
        for key, value in node.items():
            taken_apart = isinstance(value, dict) and (value or not prefix)
            yield from paths(value, (*prefix, key)) if taken_apart else [".".join((*prefix, key))]

    flat = hyperparameters({"settings": settings})
    assert sorted(flat) == sorted(paths(settings))
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())


def test_a_row_is_its_round_and_what_was_measured_in_it():
    step, values = measured({"round": 4, "test_loss": math.inf, "drift": None, "num_clients_counted": 0})
    assert (step, values) == (4, {"test_loss": math.inf, "num_clients_counted": 0})


def test_a_run_is_called_by_what_it_does_and_where_it_is(facts):
    assert title(Path("/x/12-30-00"), facts) == "FedProx (mu = 1) on digits: 12-30-00"


def test_a_library_that_is_not_installed_is_told_with_the_extra_that_brings_it():
    require("json", extra="none")
    with pytest.raises(UserError, match=r"logger=some needs the library no_such_library; .* 'fedprox\[some\]'$"):
        require("no_such_library", extra="some")


def test_a_folder_of_the_librarys_name_is_not_taken_for_the_library(tmp_path, monkeypatch):
    # Weights & Biases writes into ./wandb, and python -m puts the working directory in front of the libraries.
    (tmp_path / "runs_of_a_tool").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(UserError, match="needs the library runs_of_a_tool"):
        require("runs_of_a_tool", extra="some")
