"""Runs with secure aggregation: equal to fixed point without masks, resumed exactly, and what is refused."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedprox.errors import UserError
from fedprox.experiment.secure_sums import secure_sums
from fedprox.federation.channel import Layout
from fedprox.plan.plan import ClientTask
from tests.settings import config_of

SETTINGS = (
    *("dataset=digits", "engine=local", "num_clients=20", "partition=iid", "clients_per_round=5", "num_rounds=4"),
    *("num_epochs=1", "checkpoint.every=1", "secure_aggregation=masked"),
)

FACTS = SimpleNamespace(sizes=np.array([3, 50, 7, 900, 20, 11]), num_clients=6)


def content(folder: Path) -> tuple:
    rows = [list(csv.reader((folder / name).open(newline=""))) for name in ("metrics.csv", "clients.csv")]
    at = rows[0][0].index("time_s")
    return (folder / "model.safetensors").read_bytes(), [[*row[:at], *row[at + 1 :]] for row in rows[0]], rows[1]


def test_masks_change_no_byte_whoever_vanishes_and_a_resumed_run_is_the_same(fedprox, tmp_path):
    vanish = ("secure_aggregation.dropouts=0.3", "update=float32")
    for into, more in {"whole": (), "plain": ("secure_aggregation.masks=false",), "cut": ("num_rounds=2",)}.items():
        ended = fedprox(*SETTINGS, *vanish, *more, f"hydra.run.dir={into}")
        assert ended.status == 0, ended.err
    assert fedprox(f"resume={tmp_path / 'cut'}", "num_rounds=4").status == 0
    whole, plain, cut = (content(tmp_path / into) for into in ("whole", "plain", "cut"))
    assert whole == cut
    assert whole[0] == plain[0]
    counted = [row[whole[2][0].index("counted")] for row in whole[2][1:]]
    assert {"True", "False"} == set(counted)
    assert counted == [row[plain[2][0].index("counted")] for row in plain[2][1:]]


def test_without_masked_sums_the_tables_have_no_column_of_theirs(fedprox, tmp_path):
    assert fedprox(*SETTINGS, "secure_aggregation=none", "num_rounds=1").status == 0
    assert "num_clipped" not in (tmp_path / "run" / "clients.csv").read_text()


def test_a_run_that_is_older_than_the_setting_can_be_resumed(fedprox, tmp_path):
    assert fedprox(*SETTINGS[:-1], "num_rounds=1").status == 0
    record = tmp_path / "run" / "run.json"
    text = record.read_text()
    entry = '"secure_aggregation": {\n      "_target_": "fedprox.channel.masking.none"\n    },'
    assert entry in text
    record.write_text(text.replace(entry, ""))
    assert fedprox("resume=run", "num_rounds=2").status == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("strategy=krum",), "no single update, which strategy._target_=fedprox.strategies.robust.Krum as set needs"),
        (("strategy=feddane",), "use strategy=fedprox or fedavg"),
        (("strategy._target_=flwr.serverapp.strategy.FedAvg", "+strategy.weighted_by_key=drift"), "weighted by exam"),
        (("update=top_k",), "update=top_k sends others; use update=float32, partial or none"),
        (("update=quantise",), "update=quantise sends others"),
        (("on_divergence=continue",), "on_divergence=continue lets updates pass that are nan"),
        (("engine=deployment",), "with engine=SuperLinkGrid the server would still receive every update"),
        (("clients_per_round=1",), "threshold=2 clients have to deliver, but a round has only 1"),
        (("secure_aggregation.threshold=6",), "threshold=6 clients have to deliver, but a round has only 5"),
        (("secure_aggregation.bits=8",), "secure_aggregation.bits=8 is too few for sums over 322 examples"),
        (("secure_aggregation.bits=many",), "secure_aggregation.bits must be of type int"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(fedprox, tmp_path, arguments, line):
    ended = fedprox(*SETTINGS, *arguments)
    assert ended.status == 2
    assert line in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_statistics_of_batch_norm_are_refused():
    with pytest.raises(UserError, match=r"sums trained parameters only, but this model has bn.running_mean"):
        secure_sums(config_of(*SETTINGS), FACTS, Layout(["w"], ["bn.running_mean"]), lambda _: [])


def test_stragglers_that_will_be_dropped_exchange_keys_too():
    tasks = (ClientTask(3, 1, 1, True, (), is_dropped=True), ClientTask(1, 1, 1, False, (), draw=1))
    made = secure_sums(config_of(*SETTINGS), FACTS, Layout(["w"], []), lambda _: tasks)
    assert made
    assert made.cohort(1) == [(3, 0), (1, 1)]


def test_the_ring_holds_the_largest_cohort():
    def scale(config) -> float:
        made = secure_sums(config, FACTS, Layout(["w"], []), lambda _: [])
        assert made
        return made.ring.scale

    proportional = config_of(*SETTINGS, "secure_aggregation.clip=2", "sampling=proportional")
    assert scale(proportional) == 2.0**27  # each draw counts once: 5 * 2 * 2^27 < 2^31
    assert scale(config_of(*SETTINGS, "secure_aggregation.clip=2")) == 2.0**20  # 988 examples * 2 * 2^20 < 2^31
