"""Mistakes in the command line itself, before any setting is looked at."""

NO_DATA = ("dataset=mnist", "data_dir=nowhere", "engine=local", "num_rounds=1")


def test_an_unknown_config_name_is_told(refused):
    refused("--config-name", "fedprocks", *NO_DATA, says=("config 'fedprocks'", "fedavg"))


def test_an_option_that_does_not_exist_is_named_in_the_last_line(fedprox):
    ended = fedprox("--nonsense")
    assert ended.status == 2
    assert "--nonsense" in ended.err.splitlines()[-1]


def test_an_option_between_overrides_is_taken(fedprox):
    ended = fedprox("dataset=digits", "--config-name", "fedavg", "mu=-1")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "mu must be" in ended.err
