"""Which settings of somebody else's record a run takes over."""

from pathlib import Path

import pytest

from fedprox.config.compose import CONF
from fedprox.runs.trust import is_place, is_refused, recorded_settings, shown

OURS = "fedprox.data.sources.digits.digits"


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "fedprox.main.os.system",  # a module of ours has it as an attribute
        "fedprox.main.main",  # ours, and would take a command line
        "fedprox.models.logistic.logistic",  # ours, and no data set
        "fedprox.runs.loggers.mlflow.MlflowLogger",
        "flwr.serverapp.strategy.FedAdam",
        "flwr.serverapp.strategy.fedavg.os.system",
        "my_data.rings",
        "",
        None,
        [OURS],
    ],
)
def test_a_target_that_conf_does_not_name_for_its_group_is_refused(name):
    assert is_refused("dataset._target_", name, CONF)
    assert not is_refused("dataset._target_", OURS, CONF)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset.hook._target_", OURS),
        ("dataset.hooks", [{"_target_": OURS}]),
        ("dataset.hooks", [[{"deep": {"_target_": OURS}}]]),
        ("dataset._partial_", True),
        ("dataset._args_", ["a"]),
        ("dataset.x", [{"_convert_": "all"}]),
        ("dataset.a b", 1),
        ("dataset.x=1,hydra", 1),
        ("dataset.3", 1),
        ("dataset.x", "${oc.env:HOME}"),
        ("dataset.x", r"\${oc.env:HOME}"),
        ("dataset.x", ["a", {"b": "${seed}"}]),
        ("schedule.name", "${oc.env:HOME}"),
    ],
)
def test_nested_targets_words_of_hydras_and_references_are_refused(name, value):
    assert is_refused(name, value, CONF)


def test_plain_values_are_taken_over():
    for value in (None, True, 0, -1.5, "lognormal", "fedprox v1.2 - x", [1, [2]], ["a", {"b": 1}]):
        assert not is_refused("dataset.x", value, CONF)
        assert not is_place("dataset.x", value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset.path", "data"),
        ("dataset.cache_dir", None),
        ("dataset.data_dir", "data"),
        ("model.glove", "words"),
        ("model.init", "model.safetensors"),
        ("dataset.x", "/etc/passwd"),
        ("dataset.x", "~root"),
        ("dataset.x", "http:8000"),
        ("dataset.x", "a\\b"),
        ("dataset.x", [1, {"y": "a/b"}]),
        ("dataset.x", "a\nb"),
    ],
)
def test_what_names_a_file_a_folder_or_an_address_is_known_by_its_name_or_its_value(name, value):
    assert is_place(name, value)


def test_init_is_a_file_unless_it_is_one_of_its_two_words():
    assert [is_place("model.init", word) for word in ("default", "zeros", "ones")] == [False, False, True]


def test_settings_are_taken_apart_and_those_of_the_place_left_out():
    settings = {
        **{"mu": 1.0, "dataset": {"_target_": OURS, "x": {"y": [1]}}, "repeat_num": 2},
        **{"engine": {"address": "a:1"}, "logger": {"x": 1}, "data_dir": "d", "client_resources": {}, "resume": "r"},
    }
    expected = {"mu": 1.0, "dataset._target_": OURS, "dataset.x.y": [1], "repeat_num": 2}
    assert recorded_settings(settings) == expected


def nested(depth: int) -> dict:
    return {"x": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    "settings",
    [
        {"hydra": {"callbacks": {}}},
        {"+hydra": 1},
        {"mu=1,hydra.x": 1},
        {"experiment": "../../x"},
        {"dataset": "../../stranger"},  # as an override it would load a file
        {"model": ["a"]},
        {"dataset": nested(100)},
        {"dataset": {f"x{at}": at for at in range(2000)}},
    ],
)
def test_what_is_not_made_as_settings_are_is_an_error(settings):
    with pytest.raises(ValueError, match="settings"):
        recorded_settings(settings)


def test_what_may_be_called_is_what_the_files_of_a_group_name(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "b.yaml").write_text("x: 1\n_target_: one.two\nnested:\n  _target_: three.four # why\n")
    names = ("one.two", "three.four", OURS)
    assert [is_refused("model._target_", name, tmp_path) for name in names] == [False, False, True]


def test_what_is_shown_of_a_record_is_short_and_has_no_characters_that_a_terminal_obeys():
    assert shown("a\x1b[31m\u202e\n'é") == "a\\x1b[31m\\u202e\\n'é"
    assert len(shown("x" * 10_000)) == 300
