"""Branches and the runs that they leave: drawn as one tree, never averaged together."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedprox.errors import UserError
from fedprox.report.figures import comparison
from fedprox.report.lineage import Step, steps, suffix
from fedprox.report.summary import algorithm_order, read_runs, summarise

TRUNK = [0.1, 0.2, 0.3, 0.4, 0.5]


def left(run: Path, trunk: Path, round_num: int, *changed: str, before: object = None) -> dict:
    """Record that a run left another one, and return that entry."""
    step = {"run": str(trunk.resolve()), "round": round_num, "changed": list(changed), "before": before}
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "branched_from": step}))
    return step


@pytest.fixture
def tree(tmp_path, write_run):
    """Return a folder with three trunks, a branch of each from round 2, and a branch of each branch from round 3."""
    for seed in range(3):
        trunk = [accuracy + 0.01 * seed for accuracy in TRUNK]
        first = [*trunk[:3], 0.6 + 0.01 * seed, 0.7 + 0.01 * seed]
        second = [*first[:4], 0.9 + 0.01 * seed]
        names = [tmp_path / f"{name}{seed}" for name in ("trunk", "first", "second")]
        for name, accuracies, mu in zip(names, (trunk, first, second), (0.0, 1.0, 1.0), strict=True):
            algorithm = f"FedProx (mu = {mu:g})"
            write_run(name, accuracies, algorithm=algorithm, mu=mu, repetition=seed, branch_from=str(seed))
        step = left(names[1], names[0], 2, "mu=1.0 (was 0.0)")
        left(names[2], names[1], 3, "num_epochs=5 (was 10)", before=step)
    return tmp_path


NAMES = ["FedProx (mu = 0)", "FedProx (mu = 1) from round 2", "FedProx (mu = 1) from round 2, then 3, num_epochs=5"]


def test_a_branch_is_averaged_only_with_branches(tree, capsys):
    frame = read_runs([tree])
    assert algorithm_order(frame) == NAMES
    summary = summarise(frame, last=1)
    assert summary["runs"].tolist() == [3, 3, 3]
    np.testing.assert_allclose(summary["final_accuracy_mean"], [0.51, 0.71, 0.91])
    assert capsys.readouterr().err == ""


def test_the_line_of_a_branch_begins_at_a_dot_on_the_line_it_leaves(tree):
    axes = comparison(read_runs([tree])).axes[1]
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert list(lines) == NAMES
    assert [line[0, 0] for line in lines.values()] == [0, 2, 3]
    dots = [line.get_xydata().tolist() for line in axes.get_lines() if line.get_marker() == "o"]
    # the means of three repetitions, 0.01 apart
    assert dots == [[[2, pytest.approx(0.31)]], [[3, pytest.approx(0.61)]]]
    trunk, first, _ = lines.values()
    assert trunk[2].tolist() == dots[0][0]
    assert first[1].tolist() == dots[1][0]


def test_only_a_figure_with_branches_explains_the_dots(tree, tmp_path):
    assert comparison(read_runs([tree])).legends[0].get_title().get_text().endswith("; ● a branch begins")
    alone = comparison(read_runs([tmp_path / "trunk0"]))
    assert "●" not in alone.legends[0].get_title().get_text()


def test_a_branch_without_its_trunk_is_drawn_from_round_0(tree):
    frame = read_runs([tree / "first0"])
    assert frame["begins"].tolist() == [0] * 5
    (line,) = comparison(frame).axes[1].get_lines()
    assert line.get_xdata()[0] == 0
    assert line.get_label() == NAMES[1]


def test_a_branch_between_two_evaluated_rounds_begins_at_the_earlier_one(tmp_path, write_run):
    trunk = write_run(tmp_path / "trunk", [0.1, 0.2, 0.3])
    branch = write_run(tmp_path / "branch", [0.1, 0.2, 0.6], algorithm="FedProx (mu = 1)")
    for run in (trunk, branch):  # evaluated every third round
        text = (run / "metrics.csv").read_text()
        (run / "metrics.csv").write_text(text.replace("\n1,", "\n3,").replace("\n2,", "\n6,"))
    left(branch, trunk, 5, "mu=1.0 (was 0.0)")
    axes = comparison(read_runs([tmp_path])).axes[1]
    (dot,) = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert dot.get_xydata().tolist() == [[3, 0.2]]


def test_branches_of_different_runs_are_not_repetitions(tmp_path, write_run, capsys):
    for number, mu in enumerate((0.0, 2.0)):
        trunk = write_run(tmp_path / f"trunk{number}", TRUNK, algorithm=f"FedProx (mu = {mu:g})", mu=mu)
        branch = write_run(tmp_path / f"branch{number}", TRUNK, algorithm="FedProx (mu = 1)", repetition=number)
        left(branch, trunk, 2, f"mu=1.0 (was {mu})")
    read_runs([tmp_path])
    warning = "the runs of FedProx (mu = 1) from round 2 on mnist at 90% stragglers differ in branched_from"
    assert warning in capsys.readouterr().err


def test_branches_of_one_run_with_other_seeds_are_repetitions(tmp_path, write_run, capsys):
    trunk = write_run(tmp_path / "trunk", TRUNK)
    for number in range(1, 3):
        branch = write_run(tmp_path / str(number), TRUNK, repetition=number)
        left(branch, trunk, 2, f"repeat_num={number} (was left out)")
    frame = read_runs([tmp_path])
    assert algorithm_order(frame) == ["FedAvg", "FedAvg from round 2"]
    assert capsys.readouterr().err == ""


def test_the_suffix_has_only_changes_that_are_not_shown_elsewhere():
    changed = ("mu=0.1 (was 1.0)", "strategy.eta=0.5 (was 0.1)", "seed=3 (was 0)", "learning_rate=0.01 (was 0.03)")
    assert suffix([Step("trunk", 40, changed)]) == " from round 40, learning_rate=0.01"
    assert suffix([]) == ""


@pytest.mark.parametrize("entry", [3, "x", {}, {"run": "x", "round": "y", "changed": []}, {"run": "x", "round": 1}])
def test_an_invalid_lineage_is_an_error_that_names_the_file(tmp_path, entry):
    with pytest.raises(UserError, match="cannot be used: branched_from"):
        steps(tmp_path, {"branched_from": entry})


def test_a_real_branch_records_its_lineage(fedprox, tmp_path):
    digits = ("dataset=digits", "engine=local", "clients_per_round=2", "num_epochs=2")
    assert fedprox(*digits, "mu=0", "num_rounds=2", "hydra.run.dir=old").status == 0
    assert fedprox("branch_from=old", "branch_round=2", "mu=1", "num_rounds=4", "hydra.run.dir=new").status == 0
    assert fedprox("branch_from=new", "branch_round=4", "mu=2", "num_rounds=5", "hydra.run.dir=newer").status == 0
    frame = read_runs([tmp_path])
    assert algorithm_order(frame) == ["FedProx (mu = 0)", NAMES[1], "FedProx (mu = 2) from round 2, then 4"]
    begins = frame.groupby("algorithm", sort=False)["begins"].first().to_dict()
    assert sorted(begins.values()) == [0, 2, 4]
