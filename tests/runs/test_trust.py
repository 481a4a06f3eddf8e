"""Settings of another run's record that a run takes over."""

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
        "fedprox.models.logistic.logistic",  # ours, but not a data set
        "flwr.serverapp.strategy.FedAdam",
        "",
        None,
        [OURS],
    ],
)
def test_a_target_that_conf_does_not_name_for_the_group_is_refused(name):
    assert is_refused("dataset._target_", name, CONF)
    assert not is_refused("dataset._target_", OURS, CONF)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset.hook._target_", OURS),
        ("dataset.hooks", [[{"deep": {"_target_": OURS}}]]),
        ("dataset._partial_", True),
        ("dataset._args_", ["a"]),
        ("dataset.x", [{"_convert_": "all"}]),
        ("dataset.a b", 1),
        ("dataset.x=1,hydra", 1),
        ("dataset.x", "${oc.env:HOME}"),
        ("dataset.x", r"\${oc.env:HOME}"),
        ("dataset.x", ["a", {"b": "${seed}"}]),
        ("schedule.name", "${oc.env:HOME}"),
    ],
)
def test_nested_targets_hydra_keywords_and_references_are_refused(name, value):
    assert is_refused(name, value, CONF)


def test_plain_values_are_accepted():
    for value in (None, True, 0, -1.5, "lognormal", "fedprox v1.2 - x", [1, [2]], ["a", {"b": 1}]):
        assert not is_refused("dataset.x", value, CONF)
        assert not is_place("dataset.x", value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset.path", "data"),
        ("dataset.cache_dir", None),
        ("model.init", "model.safetensors"),
        ("dataset.x", "/etc/passwd"),
        ("dataset.x", "http:8000"),
        ("dataset.x", [1, {"y": "a/b"}]),
        ("dataset.x", "a\nb"),
    ],
)
def test_a_file_folder_or_address_is_recognised_by_the_setting_or_the_value(name, value):
    assert is_place(name, value)


def test_model_init_is_a_file_unless_it_is_one_of_its_two_keywords():
    assert [is_place("model.init", word) for word in ("default", "zeros", "ones")] == [False, False, True]


def test_settings_are_flattened_without_those_of_placement():
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
        {"experiment": "../../x"},
        {"dataset": "../../stranger"},  # as an override it would load a file
        {"model": ["a"]},
        {"dataset": nested(100)},
        {"dataset": {f"x{at}": at for at in range(2000)}},
    ],
)
def test_settings_of_another_form_are_an_error(settings):
    with pytest.raises(ValueError, match="settings"):
        recorded_settings(settings)


def test_allowed_targets_are_those_in_the_files_of_the_group(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "b.yaml").write_text("x: 1\n_target_: one.two\nnested:\n  _target_: three.four # why\n")
    names = ("one.two", "three.four", OURS)
    assert [is_refused("model._target_", name, tmp_path) for name in names] == [False, False, True]


def test_a_recorded_value_is_shown_shortened_and_without_control_characters():
    assert shown("a\x1b[31m\u202e\n'é") == "a\\x1b[31m\\u202e\\n'é"
    assert len(shown("x" * 10_000)) == 300


@pytest.mark.parametrize("name", ["client.script", "client.output"])
def test_the_script_of_clients_and_where_it_prints_are_places(name):
    assert is_place(name, "train.py")


def test_plain_arguments_of_a_script_may_be_recorded_and_paths_among_them_may_not():
    assert not is_place("client.args", "--lr 0.1")
    assert is_place("client.args", "--out /tmp/x")
