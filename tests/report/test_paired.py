"""Paired differences and their confidence intervals."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from fedprox.report.paired import choose_baseline, differences
from fedprox.report.summary import read_runs


def write_pairs(folder, write_run, ours, theirs, **identity):
    for repetition, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        proximal = {"algorithm": "FedProx (mu = 1)", "mu": 1.0}
        write_run(folder / f"ours{repetition}", [0.1, mine], repetition=repetition, **proximal, **identity)
        write_run(folder / f"theirs{repetition}", [0.1, other], repetition=repetition, **identity)


def test_a_difference_is_the_mean_over_pairs_with_the_interval_of_students_t(tmp_path, write_run):
    write_pairs(tmp_path, write_run, [0.8, 0.6, 0.5], [0.7, 0.6, 0.3])
    (row,) = differences(read_runs([tmp_path]), "FedAvg", last=1).to_dict("records")
    # 0.1, 0 and 0.2: mean 0.1, standard deviation 0.1; t(0.975, 2) = 4.302653 from a table
    assert row["algorithm"] == "FedProx (mu = 1)"
    assert (row["pairs"], row["difference_mean"], row["difference_std"]) == pytest.approx((3, 0.1, 0.1))
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((0.1 - half, 0.1 + half))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_the_interval_excludes_0_exactly_if_the_paired_t_test_rejects(pairs):
    ours, theirs = map(list, zip(*pairs, strict=True))
    rounds = [
        {"run": f"{algorithm}{repetition}", "algorithm": algorithm, "repetition": repetition, "test_accuracy": accuracy}
        for algorithm, accuracies in (("Mine", ours), ("FedAvg", theirs))
        for repetition, accuracy in enumerate(accuracies)
    ]
    same = {"status": "finished", "mu": 0.0, "stragglers_fraction": 0.0, "seed": 0, "dataset": "mnist"}
    frame = pd.DataFrame(rounds).assign(**same, round=0, test_loss=0.0)
    (row,) = differences(frame, "FedAvg", last=1).to_dict("records")
    if np.ptp(np.subtract(ours, theirs)) > 1e-6:
        p = ttest_rel(ours, theirs).pvalue
        excludes = row["difference_low"] > 0 or row["difference_high"] < 0
        assert excludes == (p < 0.05) or p == pytest.approx(0.05, abs=1e-6)


def test_repetitions_are_paired_by_seed_and_number_and_those_of_one_algorithm_alone_are_left_out(tmp_path, write_run):
    write_pairs(tmp_path / "a", write_run, [0.8, 0.7], [0.5, 0.6], seed=1)
    write_pairs(tmp_path / "b", write_run, [0.9], [0.6], seed=2)
    write_run(tmp_path / "alone", [0.1, 0.0], repetition=7, seed=1)
    write_run(tmp_path / "unfinished", [0.1, 0.0], repetition=0, seed=3, status="running")
    (row,) = differences(read_runs([tmp_path]), "FedAvg", last=1).to_dict("records")
    assert (row["pairs"], row["difference_mean"]) == pytest.approx((3, (0.3 + 0.1 + 0.3) / 3))


def test_one_pair_has_no_interval_and_data_sets_and_levels_are_kept_apart(tmp_path, write_run):
    write_pairs(tmp_path / "a", write_run, [0.8], [0.5], dataset="femnist")
    write_pairs(tmp_path / "b", write_run, [0.8], [0.6], stragglers_fraction=0.0)
    write_run(tmp_path / "c", [0.1, 0.5], stragglers_fraction=0.5)  # nothing to be compared with
    table = differences(read_runs([tmp_path]), "FedAvg", last=1)
    assert table["difference_mean"].tolist() == pytest.approx([0.3, 0.2])
    assert table[["difference_std", "difference_low", "difference_high"]].isna().all(axis=None)


def test_the_baseline_is_fedavg_if_there_is_one_and_several_algorithms(tmp_path, write_run):
    write_run(tmp_path / "0", [0.1], algorithm="FedProx (mu = 0)")
    assert choose_baseline(read_runs([tmp_path])) is None
    write_run(tmp_path / "1", [0.1], algorithm="FedProx (mu = 1)", mu=1)
    assert choose_baseline(read_runs([tmp_path])) == "FedProx (mu = 0)"
    write_run(tmp_path / "2", [0.1])
    assert choose_baseline(read_runs([tmp_path])) == "FedAvg"
    assert choose_baseline(read_runs([tmp_path]), "FedProx (mu = 1)") == "FedProx (mu = 1)"
