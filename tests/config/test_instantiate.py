"""Targets: a callable's signature is the schema of its group."""

import os
from pathlib import Path

import pytest
import torch

from fedprox.config.instantiate import build, check_target
from fedprox.config.schema import Target
from fedprox.errors import UserError


def takes(count: int, ratio: float = 0.5, name: str = "a", flag: bool = False, limit: int | None = None, other=None):
    """Fake option of a group."""


def takes_anything(**settings: int):
    """Fake option without named parameters."""


class TakesInInit:
    """Fake option that is a class."""

    def __init__(self, count: int) -> None:
        self.count = count


HERE = __name__


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": f"{HERE}.takes", "count": 3},
        {"_target_": f"{HERE}.takes", "count": 3, "ratio": 1, "name": "b", "flag": True, "limit": 4},
        {"_target_": f"{HERE}.takes", "limit": None, "other": [1, 2]},  # no annotation, no rule
        {"_target_": f"{HERE}.takes_anything", "whatever": 1},
        {"_target_": f"{HERE}.TakesInInit", "count": 1},
        {"_target_": "flwr.serverapp.strategy.FedAdam", "eta": 0.1},
    ],
)
def test_a_node_that_fits_the_signature_is_accepted(node):
    assert check_target("model", Target.model_validate(node)) is None


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "nowhere.to.be.found"}, r"model\._target_=nowhere\.to\.be\.found cannot be loaded"),
        ({"_target_": "fedprox.data.lstm.lstm"}, r"fedprox\.data\.lstm\.lstm cannot be loaded: .*'lstm'"),
        ({"_target_": f"{HERE}.HERE"}, r"cannot be loaded"),  # not callable
        ({"_target_": ""}, r"cannot be loaded"),
        ({"_target_": f"{HERE}.takes", "cuont": 3}, r"model\.cuont is unknown: .*takes takes count, ratio"),
        ({"_target_": f"{HERE}.takes", "count": 3.0}, r"model\.count must be of type int, got 3\.0"),
        ({"_target_": f"{HERE}.takes", "count": True}, r"model\.count must be of type int, got True"),
        ({"_target_": f"{HERE}.takes", "ratio": "x"}, r"model\.ratio must be of type float, got 'x'"),
        ({"_target_": f"{HERE}.takes", "name": 5}, r"model\.name must be of type str, got 5"),
        ({"_target_": f"{HERE}.takes", "flag": 1}, r"model\.flag must be of type bool, got 1"),
        ({"_target_": f"{HERE}.takes", "limit": "x"}, r"model\.limit must be of type .*None, got 'x'"),
        ({"_target_": f"{HERE}.TakesInInit", "size": 1}, r"model\.size is unknown"),
    ],
)
def test_a_node_that_does_not_fit_is_refused_in_one_line(node, message):
    with pytest.raises(UserError, match=message) as error:
        check_target("model", Target.model_validate(node))
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_however_deep_the_targets_module_is(tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "mine.py").write_text("import no_such_package.part\n\ndef model(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"the package no_such_package is not installed; .*pip install no_such_package"):
        check_target("model", Target.model_validate({"_target_": "deep.er.mine.model"}))


def adds_text_to_a_number():
    """Fake option with a mistake of its own."""
    return 1 + "1"


def passes_on(**settings: int):
    """Fake option that refuses arguments only inside."""
    return takes(**settings)


def sets_the_process() -> int:
    """Fake option that changes what the whole process has one of."""
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    return 3


def raises_after_that() -> None:
    """Fake option that does the same and fails."""
    sets_the_process()
    raise KeyError


def test_what_a_target_changes_for_the_whole_process_is_undone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build("model", Target.model_validate({"_target_": f"{HERE}.sets_the_process"}), int) == 3
    with pytest.raises(UserError):
        build("model", Target.model_validate({"_target_": f"{HERE}.raises_after_that"}), int)
    assert Path.cwd() == tmp_path
    assert torch.is_grad_enabled()
    assert (torch.zeros(1).dtype, torch.zeros(1).device.type) == (torch.float32, "cpu")


def test_a_type_error_in_a_function_is_no_complaint_about_its_arguments():
    with pytest.raises(UserError, match=r"adds_text_to_a_number failed with TypeError: .*\(test_instantiate\.py:\d+\)"):
        build("dataset", Target.model_validate({"_target_": f"{HERE}.adds_text_to_a_number"}), object)
    with pytest.raises(UserError, match=r"passes_on must accept .*unexpected keyword argument 'size'"):
        build("dataset", Target.model_validate({"_target_": f"{HERE}.passes_on", "size": 3}), object)
