"""Workloads: every command composes, and W2 is the documented one."""

import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from benchmarks.summary import UNITS
from benchmarks.workloads import WORKLOADS, against, changed, of_engine, shown_of
from fedprox.config.compose import compose, each_value_once
from fedprox.experiment.build import check_settings

ROOT = Path(__file__).parents[2]
CASES = [case for workload in WORKLOADS.values() for case in workload.cases]
COMMANDS = [pytest.param(command, id=case.name) for case in CASES for command in case.commands]


def overrides_of(command: tuple[str, ...]) -> list[str]:
    return [word for word in command if "=" in word and not word.startswith("hydra.")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_with_valid_settings(command, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    name = "fedavg" if "--config-name" in command else "config"
    for overrides in each_value_once(overrides_of(command)):
        check_settings(compose(overrides, name))


def test_w2_is_the_45_documented_runs():
    text = re.sub(r" *\\\n\s*", " ", (ROOT / "docs" / "results.md").read_text())
    documented = [shlex.split(line)[3:] for line in text.splitlines() if re.match(r"python -m .*levels/\w+$", line)]
    commands = WORKLOADS["W2"].cases[0].commands
    assert [set(command) for command in commands] == [set(command) for command in documented]
    sweeps = [OverridesParser.create().parse_overrides(overrides_of(command)) for command in commands]
    runs = [
        math.prod(len(list(override.sweep_string_iterator())) for override in sweep if override.is_sweep_override())
        for sweep in sweeps
    ]
    assert runs == [2 * 3 * 5, 3 * 5]


def test_every_goal_is_stricter_than_its_limit_and_every_number_has_a_unit():
    goals = [goal for owner in (*CASES, *all_ratios()) for goal in owner.goals]
    assert len(goals) == 3 + 1 + 1 + 1 + 1 + 2 + 2 + 1  # W1 local and ray, W2, W3, W4, W5, W5aug, W6
    assert all((goal.goal > goal.limit) == goal.more_is_better for goal in goals)
    assert {goal.number for goal in goals} | {number for case in CASES for number in shown_of(case)} <= set(UNITS)


def all_ratios():
    return [ratio for workload in WORKLOADS.values() for ratio in workload.ratios]


def test_names_are_unique_and_ratios_are_between_existing_cases():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {f"{ratio.workload} {label}" for ratio in all_ratios() for label in (ratio.of, ratio.to)} <= set(names)


def test_selecting_an_engine_removes_only_the_other_one():
    assert [case.label for case in of_engine(WORKLOADS["W1"], "ray").cases] == ["engine=ray"]
    local = of_engine(WORKLOADS["W5"], "local")
    assert [case.label for case in local.cases] == ["engine=local", "raw torch, one thread"]
    assert [ratio.of for ratio in local.ratios] == ["engine=local"]
    assert of_engine(WORKLOADS["W6"], "local") == WORKLOADS["W6"]
    assert of_engine(WORKLOADS["W6"], "ray").cases == WORKLOADS["W6"].cases


def test_a_changed_workload_has_no_goals_but_the_same_numbers():
    before, after = WORKLOADS["W1"], changed(WORKLOADS["W1"], ["num_rounds=2"])
    assert all(command[-1] == "num_rounds=2" for case in after.cases for command in case.commands)
    assert [shown_of(case) for case in after.cases] == [shown_of(case) for case in before.cases]
    assert not [goal for owner in (*after.cases, *after.ratios) for goal in owner.goals]


def test_an_opponent_is_our_case_with_other_settings_and_its_times_are_divided_by_ours():
    workload = against(WORKLOADS["W1"], "solver=reference", overrides=("solver=reference",))
    ours, opponent, ray = workload.cases
    assert opponent.commands == ((*ours.commands[0], "solver=reference"),)
    assert ray == WORKLOADS["W1"].cases[1]
    assert [(ratio.number, ratio.of, ratio.to) for ratio in workload.ratios] == [
        ("rounds_s", "solver=reference", "engine=local"),
        ("whole_s", "solver=reference", "engine=local"),
    ]
    assert {"accuracy", "accuracy_last10"} <= set(shown_of(ours)) & set(shown_of(opponent))
