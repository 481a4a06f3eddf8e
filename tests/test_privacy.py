"""`python -m fedprox.privacy`: the epsilon of a plan."""

import pytest

from fedprox.privacy import main

PLAN = ("num_clients=1000", "clients_per_round=10", "num_rounds=100", "privacy.delta=1e-3")


def test_the_table_has_the_epsilon_of_a_plan_by_rounds(in_this_process):
    ended = in_this_process(main, [*PLAN, "privacy.noise_multiplier=1"])
    assert (ended.status, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()[2:]]
    assert [line[0] for line in lines] == ["1", "10", "50", "100"]
    assert [float(line[1]) for line in lines] == pytest.approx([0.0217, 0.1037, 0.2394, 0.3408], abs=1e-4)
    assert float(lines[-1][2]) == pytest.approx(0.6182, abs=1e-4)


def test_a_budget_gives_the_noise_and_the_rounds_within_it(in_this_process):
    ended = in_this_process(main, [*PLAN, "privacy.noise_multiplier=1", "privacy.max_epsilon=0.24"])
    assert ended.out.splitlines()[-1].endswith("of 100 rounds stay within epsilon 0.24")
    ended = in_this_process(main, [*PLAN, "privacy.epsilon=0.05"])
    assert ended.out.splitlines()[-1] == "100 of 100 rounds stay within epsilon 0.05"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["privacy.epsilon=1"], "privacy.delta must be given"),
        ([*PLAN, "privacy.epsilon=1", "num_clients=null"], "num_clients must be given"),
        ([*PLAN, "privacy.epsilon=0"], "privacy.epsilon must be finite and > 0, got 0"),
        ([*PLAN, "privacy.epsilon"], "privacy.epsilon"),
    ],
)
def test_wrong_settings_are_one_line(in_this_process, settings, line):
    ended = in_this_process(main, settings)
    assert ended.status == 2
    assert line in ended.err
    assert len(ended.err.splitlines()) == 1
