"""Run directories as a tidy table, and its summary."""

import json
import math

import pytest

from fedprox.config.schema import DEFAULTS
from fedprox.errors import UserError
from fedprox.report.summary import (
    BYTES,
    VIRTUAL,
    WALL,
    algorithm_order,
    find_runs,
    mean_by_round,
    read_runs,
    readable,
    summarise,
)


def test_runs_are_found_among_and_below_the_paths_each_once(tmp_path, write_run):
    deep = write_run(tmp_path / "sweep" / "a" / "0", [0.1])
    flat = write_run(tmp_path / "one", [0.1])
    (tmp_path / "sweep" / "a" / "0" / ".hydra").mkdir()
    assert find_runs([tmp_path / "sweep", flat]) == sorted([deep, flat])
    assert find_runs([tmp_path, deep, str(flat)]) == sorted([deep, flat])


def test_no_run_is_an_error_that_names_the_paths(tmp_path):
    with pytest.raises(UserError, match=f"no run.json in {tmp_path} or below; give the output folder"):
        find_runs([tmp_path])
    with pytest.raises(UserError, match="missing is not a directory"):
        find_runs([tmp_path / "missing"])


def test_the_table_has_a_row_per_run_and_round_with_the_identity_of_the_run(tmp_path, write_run):
    run = write_run(
        tmp_path / "FedAvg-decoy-name",
        [0.1, 0.6],
        [2.3, 0.9],
        algorithm="FedProx (mu = 2)",
        mu=2.0,
        stragglers_fraction=0.5,
        seed=7,
        repetition=3,
        status="running",
    )
    frame = read_runs([run])
    assert frame.iloc[1].to_dict() == {
        "run": str(run),
        "status": "running",
        "algorithm": "FedProx (mu = 2)",
        "mu": 2.0,
        "stragglers_fraction": 0.5,
        "seed": 7,
        "repetition": 3,
        "dataset": "mnist",
        "begins": 0,
        "round": 1,
        "test_loss": 0.9,
        "test_accuracy": 0.6,
        "train_loss_cohort": 1.0,
        "num_clients_counted": 10,
        "time_s": 0.5,
    }
    assert frame["round"].tolist() == [0, 1]
    assert math.isnan(frame["train_loss_cohort"][0])  # no client had trained


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2,0.5,0.9", "line 4 has 3 values for 6 columns"),
        ("2,0.5,high,0.6,10,1", "could not convert string to float: 'high'"),
        ("1,0.5,0.9,0.6,10,1", "the rounds do not increase"),
        (",0.5,0.9,0.6,10,1", "the rounds do not increase"),
    ],
)
def test_a_broken_row_is_an_error_that_names_the_file(tmp_path, write_run, line, reason):
    file = write_run(tmp_path / "run", [0.1, 0.2]) / "metrics.csv"
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match=f"{file} cannot be used: {reason}"):
        read_runs([tmp_path])


def test_a_missing_column_is_an_error_that_names_it(tmp_path, write_run):
    file = write_run(tmp_path / "run", [0.1]) / "metrics.csv"
    file.write_text("round,test_loss,test_accuracy\n0,2.3,0.1\n")
    with pytest.raises(UserError, match="lacks the columns train_loss_cohort, num_clients_counted, time_s"):
        read_runs([tmp_path])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda record: "{", "Expecting"),
        (lambda record: "[]", "it lacks status"),
        (lambda record: json.dumps({k: v for k, v in record.items() if k != "name"}), "it lacks name"),
        (lambda record: json.dumps(record | {"settings": {"mu": 0.0}}), "settings lack stragglers_fraction"),
        (lambda record: json.dumps(record | {"seed": "x"}), "invalid literal"),
    ],
)
def test_a_broken_record_is_an_error_that_names_the_file(tmp_path, write_run, change, reason):
    file = write_run(tmp_path / "run", [0.1]) / "run.json"
    file.write_text(change(json.loads(file.read_text())))
    with pytest.raises(UserError, match=rf"{file} cannot be used: .*{reason}"):
        read_runs([tmp_path])


def test_only_an_unfinished_run_may_lack_its_metrics(tmp_path, write_run):
    write_run(tmp_path / "done", [0.1], repetition=0)
    begun = write_run(tmp_path / "begun", [0.1], repetition=1, status="running")
    (begun / "metrics.csv").unlink()
    assert set(read_runs([tmp_path])["run"]) == {str(tmp_path / "done")}
    (tmp_path / "done" / "metrics.csv").unlink()
    with pytest.raises(UserError, match=r"done/metrics.csv cannot be used"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match=r"no evaluated round yet in .*begun"):
        read_runs([begun])


def test_runs_without_an_evaluated_round_are_an_error(tmp_path, write_run):
    file = write_run(tmp_path / "run", []) / "metrics.csv"
    file.write_text(file.read_text() + "0,,,,0,0.0\n")
    with pytest.raises(UserError, match="no evaluated round yet in"):
        read_runs([tmp_path])


def test_unfinished_runs_are_counted_on_stderr(tmp_path, write_run, capsys):
    for repetition, status in enumerate(["finished", "interrupted", "failed", "failed"]):
        write_run(tmp_path / str(repetition), [0.1], status=status, repetition=repetition)
    read_runs([tmp_path])
    assert capsys.readouterr().err.startswith("warning: 3 of 4 runs are not finished (2 failed, 1 interrupted);")


def test_a_warning_names_runs_that_are_not_repetitions(tmp_path, write_run, capsys):
    write_run(tmp_path / "0", [0.1], seed=0, model={"width": 1}, repeat_num=0, engine={"name": "local"})
    write_run(tmp_path / "1", [0.1], seed=1, model={"width": 1}, repeat_num=1, engine={"name": "ray"})
    read_runs([tmp_path])
    assert capsys.readouterr().err == ""  # another seed or engine is a repetition
    write_run(tmp_path / "2", [0.1], seed=1, model={"width": 1})
    read_runs([tmp_path])
    assert "1 of 3 runs of FedAvg on mnist at 90% stragglers have another run's seed" in capsys.readouterr().err
    write_run(tmp_path / "3", [0.1], seed=2, model={"width": 2})
    read_runs([tmp_path])
    assert "FedAvg on mnist at 90% stragglers differ in model.width" in capsys.readouterr().err


def test_runs_of_earlier_versions_had_the_defaults_of_settings_that_they_lack(tmp_path, write_run, capsys):
    write_run(tmp_path / "0", [0.1], seed=0, solver="cohort")  # the name alone, and no loss
    solver = {"_target_": "fedprox.solvers.choice.choose", "name": "cohort"}
    write_run(tmp_path / "1", [0.1], seed=1, solver=solver, loss=DEFAULTS["loss"], max_grad_norm=None)
    read_runs([tmp_path])
    assert capsys.readouterr().err == ""
    write_run(tmp_path / "2", [0.1], seed=2, solver=solver, max_grad_norm=1.0)
    read_runs([tmp_path])
    assert "FedAvg on mnist at 90% stragglers differ in max_grad_norm" in capsys.readouterr().err


def test_the_summary_has_mean_and_sample_standard_deviation_over_runs(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1, 0.9, 0.4, 0.6], [2.0, 1.0, 0.8, 0.6], repetition=0)
    write_run(tmp_path / "1", [0.1, 0.5, 0.6, 0.8], [2.0, 1.0, 0.4, 0.2], repetition=1)
    (row,) = summarise(read_runs([tmp_path]), last=2).to_dict("records")
    # Two values a, b have the mean (a + b) / 2 and the sample standard deviation |a - b| / sqrt(2).
    expected = {
        "test_accuracy": (0.5, 0.7),  # means of the last two rounds
        "test_loss": (0.7, 0.3),
        "final_accuracy": (0.6, 0.8),
        "best_accuracy": (0.9, 0.8),
    }
    for name, (a, b) in expected.items():
        assert row[f"{name}_mean"] == pytest.approx((a + b) / 2), name
        assert row[f"{name}_std"] == pytest.approx(abs(a - b) / math.sqrt(2)), name
    assert (row["runs"], row["used"], row["unfinished"]) == (2, "finished", 0)


def test_the_summary_uses_finished_runs_and_counts_the_others(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1, 0.8], repetition=0)
    write_run(tmp_path / "1", [0.1], repetition=1, status="failed")
    summary = summarise(read_runs([tmp_path]), last=1)
    assert summary[["runs", "used", "unfinished", "test_accuracy_mean"]].values.tolist() == [[1, "finished", 1, 0.8]]
    assert math.isnan(summary["test_accuracy_std"][0])  # undefined for one run
    assert readable(summary, last=1).iloc[0].to_dict() == {
        "data set": "mnist",
        "stragglers": "90%",
        "algorithm": "FedAvg",
        "runs": "1 (+ 1 unfinished)",
        "accuracy (last 1)": "0.800",
        "loss (last 1)": "0.200",
        "final accuracy": "0.800",
        "best accuracy": "0.800",
        "volatility": "-",  # a single change
    }


def test_without_a_finished_run_the_summary_uses_the_others_with_a_warning(tmp_path, write_run, capsys):
    write_run(tmp_path / "0", [0.1, 0.4], status="running")
    write_run(tmp_path / "1", [0.1, 0.6], status="failed", repetition=1)
    write_run(tmp_path / "2", [0.1, 0.7], algorithm="FedProx (mu = 0)")
    frame = read_runs([tmp_path])
    capsys.readouterr()
    summary = summarise(frame, last=1)
    assert summary["test_accuracy_mean"].tolist() == [pytest.approx(0.5), 0.7]
    assert readable(summary)["runs"].tolist() == ["2 unfinished", "1"]
    expected = "warning: FedAvg on mnist at 90% stragglers has no finished run; using its unfinished ones\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_run_is_not_left_out_of_the_mean_loss(tmp_path, write_run, loss):
    write_run(tmp_path / "0", [0.1, 0.8], [2.3, 0.5], repetition=0)
    write_run(tmp_path / "1", [0.1, 0.1], [2.3, loss], repetition=1)
    frame = read_runs([tmp_path])
    table = readable(summarise(frame, last=2), last=2)  # round 0 is finite
    assert table["loss (last 2)"].tolist() == ["diverged"]
    assert table["final accuracy"].tolist() == ["0.450 ± 0.495"]  # 0.7 / sqrt(2) = 0.495
    assert not math.isfinite(mean_by_round(frame)["test_loss_mean"].iloc[1])


def test_the_mean_by_round_counts_its_runs(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1, 0.4, 0.9], repetition=0)
    write_run(tmp_path / "1", [0.1, 0.8], repetition=1, status="interrupted")
    means = mean_by_round(read_runs([tmp_path]))
    assert means["n"].tolist() == [2, 2, 1]
    assert means["test_accuracy_mean"].tolist() == pytest.approx([0.1, 0.6, 0.9])
    deviations = means["test_accuracy_std"].tolist()
    assert deviations[:2] == pytest.approx([0.0, 0.4 / math.sqrt(2)])
    assert math.isnan(deviations[2])


def test_rounds_without_evaluation_do_not_count(tmp_path, write_run):
    file = write_run(tmp_path / "0", [0.1, 0.4, 0.9]) / "metrics.csv"
    file.write_text(file.read_text() + "3,,,0.5,10,2.0\n")
    frame = read_runs([tmp_path])
    assert len(frame) == 4
    assert mean_by_round(frame)["round"].tolist() == [0, 1, 2]
    summary = summarise(frame, last=1)
    assert summary[["test_accuracy_mean", "final_accuracy_mean"]].values.tolist() == [[0.9, 0.9]]


def test_algorithms_are_ordered_fedavg_then_fedprox_by_mu_then_others(tmp_path, write_run):
    expected = [
        ("FedAvg", 0.0),
        ("FedProx (mu = 0)", 0.0),
        ("FedProx (mu = 2)", 2.0),
        ("FedProx (mu = 10)", 10.0),  # before "mu = 2" in the alphabet
        ("FedAdam (mu = 0.1)", 0.1),
        ("Krum", None),
    ]
    for fraction in (0.9, 0.0):
        for index, (algorithm, mu) in enumerate(reversed(expected)):
            directory = tmp_path / f"{fraction}-{index}"
            write_run(directory, [0.1], algorithm=algorithm, mu=mu, stragglers_fraction=fraction)
    frame = read_runs([tmp_path])
    names = [algorithm for algorithm, _ in expected]
    assert algorithm_order(frame) == names
    summary = summarise(frame)
    assert summary["algorithm"].tolist() == names * 2
    assert summary["stragglers_fraction"].tolist() == [0.0] * 6 + [0.9] * 6


def test_rounds_to_a_level_are_a_mean_over_the_runs_that_reach_it(tmp_path, write_run):
    for index, accuracies in enumerate(([0.1, 0.6, 0.7], [0.1, 0.2, 0.65], [0.1, 0.2, 0.3])):
        for algorithm, count in (("FedAvg", 3), ("FedProx (mu = 1)", 2)):
            if index < count:
                write_run(tmp_path / f"{algorithm}{index}", accuracies, algorithm=algorithm, repetition=index)
    write_run(tmp_path / "never", [0.1, 0.2, 0.3], algorithm="Krum")
    summary = summarise(read_runs([tmp_path]), level=0.6)
    assert summary["reached"].tolist() == [2, 2, 0]
    assert summary["rounds_to_level_mean"].tolist()[:2] == [1.5, 1.5]  # rounds 1 and 2
    expected = ["1.5 ± 0.7 (2 of 3 runs)", "1.5 ± 0.7", "not reached"]  # 1 / sqrt(2)
    assert readable(summary)["rounds to 0.6"].tolist() == expected


@pytest.mark.parametrize(
    ("axis", "name", "heading", "expected"),
    [
        (VIRTUAL, "virtual_seconds", "virtual seconds to 0.6", "35.0 ± 7.1"),  # 30 and 40
        (WALL, "seconds", "seconds to 0.6", "0.8 ± 0.4"),  # half a second a round: 0.5 and 1
        (BYTES, "bytes", "MB to 0.6", "3.5 ± 0.707"),
    ],
)
def test_time_and_bytes_to_a_level_are_counted_like_rounds(tmp_path, write_run, axis, name, heading, expected):
    for index, accuracies in enumerate(([0.1, 0.6, 0.7], [0.1, 0.2, 0.65])):
        more = {"virtual_time_s": [0.0, 30.0 - 10 * index, 40.0], "bytes_up": [0, 3e6 - 1e6 * index, 4e6]}
        write_run(tmp_path / f"{index}", accuracies, repetition=index, more=more)
    frame = read_runs([tmp_path])
    summary = summarise(frame, 1, 0.6, axis)
    assert f"{name}_to_level_mean" in summary
    assert readable(summary)[heading].tolist() == [expected]
    assert mean_by_round(frame)["virtual_time_s"].tolist() == [0.0, 25.0, 40.0]


def test_time_and_bytes_that_a_run_has_not_recorded_are_refused(tmp_path, write_run):
    write_run(tmp_path / "with", [0.1, 0.6], more={"virtual_time_s": [0.0, 1.0]})
    write_run(tmp_path / "without", [0.1, 0.6], repetition=1)
    frame = read_runs([tmp_path])
    for axis, option in ((VIRTUAL, "--by-time virtual needs runs with a virtual clock"), (BYTES, "--by-bytes needs")):
        with pytest.raises(UserError, match=option):
            summarise(frame, 1, 0.6, axis)


def test_a_recorded_metric_has_a_mean_only_if_all_runs_have_it(tmp_path, write_run):
    for index, drift in enumerate((1.0, 3.0)):
        write_run(tmp_path / f"a{index}", [0.1, 0.5], repetition=index, more={"drift": [None, drift]})
        more = {"drift": [None, drift]} if index else {}
        write_run(tmp_path / f"b{index}", [0.1, 0.5], repetition=index, algorithm="Krum", more=more)
    table = readable(summarise(read_runs([tmp_path]), last=1), last=1)
    assert table["drift (last 1)"].tolist() == ["2.000 ± 1.414", "-"]
    assert not [heading for heading in table if "clients" in heading]


def test_the_spread_over_clients_has_three_columns(tmp_path, write_run):
    spread = {"client_accuracy_std": [0.4, 0.3], "client_accuracy_worst": [0.0, 0.2], "client_accuracy_best": [0.9, 1]}
    run = write_run(tmp_path / "0", [0.1, 0.5], more=spread)
    row = readable(summarise(read_runs([run]), last=2), last=2).iloc[0]
    headings = ("std over clients (last 2)", "worst clients (last 2)", "best clients (last 2)")
    assert [row[heading] for heading in headings] == ["0.350", "0.100", "0.950"]


@pytest.mark.parametrize("level", [0.0, 1.01, math.nan])
def test_a_level_that_is_not_a_share_is_an_error(tmp_path, write_run, level):
    frame = read_runs([write_run(tmp_path / "0", [0.1])])
    with pytest.raises(UserError, match=r"level must be above 0 and at most 1, got .*; for 60% give 0.6"):
        summarise(frame, level=level)


def test_runs_with_different_values_of_a_setting_given_with_by_are_separate(tmp_path, write_run, capsys):
    for index, alpha in enumerate((0.1, 0.1, 1.0)):
        settings = {"repetition": index % 2, "partition": {"alpha": alpha}}
        write_run(tmp_path / str(index), [0.1, alpha / 2], **settings)
    table = summarise(read_runs([tmp_path], by=["partition.alpha"]), last=1)
    assert table["dataset"].tolist() == ["mnist, alpha = 0.1", "mnist, alpha = 1.0"]
    assert table["runs"].tolist() == [2, 1]
    assert table["final_accuracy_mean"].tolist() == [0.05, 0.5]
    assert capsys.readouterr().err == ""
    read_runs([tmp_path])
    assert "differ in partition.alpha" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["partition.beta", "alpha", "mu.alpha"])
def test_a_setting_that_a_run_lacks_is_an_error(tmp_path, write_run, name):
    run = write_run(tmp_path / "0", [0.1], partition={"alpha": 1.0})
    with pytest.raises(UserError, match=rf"0 has no setting {name}; its settings are in "):
        read_runs([run], by=[name])
