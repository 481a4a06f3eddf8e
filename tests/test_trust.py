"""Which functions the record of somebody else's run may call."""

from pathlib import Path

import pytest

from fedprox.main import CONF
from fedprox.trust import strangers, targets


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "fedprox.main.os.system",  # a module of ours has it as an attribute
        "fedprox.main.main",  # ours, and would take a command line
        "flwr.serverapp.strategy.fedavg.os.system",
        "flwr.serverapp.strategy.FedAvg.__init__",
        "my_data.rings",
        "",
    ],
)
def test_what_conf_does_not_name_is_a_stranger_however_it_is_nested(name):
    assert strangers({"dataset": {"_target_": name}}, CONF) == [name]
    assert strangers({"logger": {"x": {"hooks": [{"deep": {"_target_": name}}]}}}, CONF) == [name]
    assert strangers({"dataset": {"_target_": name}}, CONF, known=[name]) == []


@pytest.mark.parametrize("name", ["fedprox.data.digits.digits", "flwr.serverapp.strategy.FedAdam"])
def test_what_conf_names_and_flowers_strategies_are_none(name):
    assert strangers({"a": {"_target_": name}}, CONF) == []


def test_what_may_be_called_is_what_the_files_of_the_configuration_name(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.yaml").write_text("x: 1\n_target_: one.two\nnested:\n  _target_: three.four # why\n")
    settings = {"p": {"_target_": "one.two"}, "q": {"_target_": "three.four"}, "r": {"_target_": "fedprox.plan.Plan"}}
    assert strangers(settings, tmp_path) == ["fedprox.plan.Plan"]


def test_every_target_is_found():
    assert sorted(targets({"_target_": "a", "x": [{"_target_": "b"}, {"y": {"_target_": "c", "z": 1}}], "w": "d"})) == [
        *"abc"
    ]
