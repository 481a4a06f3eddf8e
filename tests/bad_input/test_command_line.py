"""Mistakes in the command line itself, found before any setting is checked."""

import pytest

NO_DATA = ("dataset=mnist", "data_dir=nowhere", "engine=local", "num_rounds=1")


def test_an_unknown_config_name_is_refused(refused):
    refused("--config-name", "fedprocks", *NO_DATA, says=("config 'fedprocks'", "fedavg"))


OPTIONS = {
    "unknown": (["--nonsense"], ["--nonsense", "--help"]),
    "Hydra's that unpickles a file": (["--experimental-rerun", "config.pickle"], ["--experimental-rerun"]),
    "shortened to what two begin with": (["--config", "fedavg"], ["--config", "ambiguous"]),
    "with a value that it does not take": (["--multirun=3", "mu=1"], ["--multirun", "3"]),
    "unknown value": (["--cfg", "everything"], ["--cfg", "everything", "job"]),
    "a word": (["foo"], ["foo"]),
    "a group that does not exist": (["no/such=thing"], ["no/such"]),
    "a folder that does not exist": (["--config-dir", "nowhere"], ["nowhere"]),
}


@pytest.mark.parametrize(("arguments", "words"), OPTIONS.values(), ids=OPTIONS)
def test_a_mistake_in_the_options_is_refused_in_one_line(refused, arguments, words):
    refused(*arguments, says=words)


def test_an_option_between_overrides_is_accepted(fedprox):
    ended = fedprox("dataset=digits", "--config-name", "fedavg", "mu=-1")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "mu must be" in ended.err


SWEEPS = {
    "no value": ("+repeat_num=range(0)", ["+repeat_num=range(0) gives no value", "one or more"]),
    "no choice": ("mu=choice()", ["mu=choice()", "empty choice"]),
    "half a list": ("mu=,", ["mu=,"]),
    "no list for Hydra's sweeper": ("mu=interval(0,1)", ["mu=interval(0,1)", "choice", "hydra/sweeper=optuna"]),
}


@pytest.mark.parametrize(("override", "words"), SWEEPS.values(), ids=SWEEPS)
def test_an_impossible_sweep_is_refused_before_its_first_job(refused, override, words):
    refused("--multirun", *NO_DATA, "seed=0,1", override, says=words)


def test_values_in_the_sweepers_configuration_are_checked_like_the_commands(refused, tmp_path):
    file = tmp_path / "mine" / "experiment" / "swept.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\nhydra:\n  sweeper:\n    params:\n      mu: choice(0,-1)\n")
    refused("--multirun", *NO_DATA, "--config-dir", "mine", "experiment=swept", says=("mu must be", "got -1"))
