"""Effects that the literature reports of attacks, robust rules and compression, on small runs.

A range is the mean of five repetitions ± three standard deviations; docs/privacy-robustness-bytes.md has the tables.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from fedprox.config.compose import compose
from fedprox.experiment.run import run

LAST = 10  # rounds that an accuracy averages
ATTACKED = (  # digits, 100 clients, 20 a round
    *("experiment=digits", "partition=dirichlet", "partition.alpha=1", "num_epochs=2", "num_rounds=40", "mu=0"),
    *("stragglers_fraction=0", "protocol=paper"),
)
EVERYBODY = (  # digits, 20 clients, all of them in every round
    *("experiment=digits", "num_clients=20", "partition=dirichlet", "partition.alpha=0.3", "num_epochs=2"),
    *("num_rounds=60", "mu=0", "stragglers_fraction=0", "update=top_k", "update.fraction=0.01"),
)
SIGN_FLIP = ("attack=sign_flip", "attack.scale=4", "attack.fraction=0.2")
RULES = {
    "mean": ("strategy=fedprox",),
    "median": ("strategy=fed_median",),
    "multi_krum": ("strategy=multi_krum", "strategy.num_malicious=5", "strategy.num_selected=12"),
}


@pytest.fixture
def rounds(tmp_path) -> Callable[..., pd.DataFrame]:
    """Return a function that runs a configuration and returns its metrics.csv."""

    def call(*overrides: str) -> pd.DataFrame:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        run(compose(["engine=local", "checkpoint.every=null", *overrides]), folder)
        return pd.read_csv(folder / "metrics.csv")

    return call


def accuracy(table: pd.DataFrame) -> float:
    return float(table["test_accuracy"].tail(LAST).mean())


@pytest.mark.parametrize(
    ("rule", "attack", "low", "high"),
    [
        ("mean", (), 0.89, 0.94),
        ("mean", SIGN_FLIP, 0.0, 0.41),  # 4 of 20 that send -4 u cancel the other 16
        ("median", (), 0.76, 0.92),
        ("median", SIGN_FLIP, 0.72, 0.90),
        ("multi_krum", (), 0.86, 0.93),
        ("multi_krum", SIGN_FLIP, 0.87, 0.93),
    ],
)
def test_a_sign_flip_by_a_fifth_ruins_the_mean_and_no_robust_rule(rounds, rule, attack, low, high):
    assert low <= accuracy(rounds(*ATTACKED, *RULES[rule], *attack)) <= high


@pytest.mark.parametrize("update", ["update=top_k update.fraction=0.1", "update=quantise update.bits=4"])
def test_the_median_of_compressed_updates_stays_0_though_nobody_attacks(rounds, caplog, update):
    # Most values of each update are 0, and so is their median; uncompressed it is 0.76 at least.
    assert accuracy(rounds(*ATTACKED, *RULES["median"], *update.split())) < 0.25
    assert "the model hardly moves" in caplog.text


def test_feedback_repairs_sparse_updates_of_clients_that_always_take_part(rounds):
    without, fed_back = rounds(*EVERYBODY), rounds(*EVERYBODY, "update.error_feedback=true")
    assert 0.72 <= accuracy(without) <= 0.84
    assert 0.91 <= accuracy(fed_back) <= 0.95
    for table in (without, fed_back):  # 6 of 650 values, each with its position: 8 bytes
        assert np.diff(table["bytes_up"]).tolist() == [20 * 48] * 60


def test_feedback_is_idle_for_clients_that_are_seldom_asked(rounds, data_dir):
    # 400 draws of 1000 clients: hardly one is asked often enough to send what it lost.
    sparse = (f"data_dir={data_dir}", "num_rounds=40", "update=top_k", "update.fraction=0.01")
    assert accuracy(rounds(*sparse, "update.error_feedback=true")) == pytest.approx(accuracy(rounds(*sparse)), abs=0.03)


def test_8_bits_are_a_quarter_of_the_bytes_and_of_the_same_accuracy_in_every_round(rounds, data_dir):
    whole, coarse = (
        rounds(f"data_dir={data_dir}", "num_rounds=40", *update)
        for update in ((), ("update=quantise", "update.bits=8"))
    )
    assert set(np.diff(coarse["bytes_up"])) == {10 * 7854}  # 7,850 values and one scale, 31,400 bytes as float32
    difference = (whole["test_accuracy"] - coarse["test_accuracy"])[10:]
    assert difference.abs().max() < 0.01


def test_a_backdoor_enters_the_mean_and_neither_the_median_nor_clipped_updates(rounds, data_dir):
    iid = (f"data_dir={data_dir}", "partition=iid", "mu=0", "stragglers_fraction=0", "clients_per_round=20")
    backdoor = (*iid, "num_rounds=25", "attack=backdoor", "attack.scale=10", "attack.fraction=0.1")
    clipped = ("strategy=centred_clipping", "strategy.iterations=1", "strategy.radius=0.1")
    honest, mean, median, clipping = (
        rounds(*backdoor, *more) for more in (("attack.fraction=0",), (), ("strategy=fed_median",), clipped)
    )
    success = [float(table["attack_success"].tail(LAST).mean()) for table in (honest, mean, median, clipping)]
    assert success[1] > 0.9 > 0.3 > success[3]
    assert max(success[0], success[2]) < 0.05
    assert accuracy(honest) - accuracy(mean) < 0.02  # nobody sees the backdoor in the accuracy
