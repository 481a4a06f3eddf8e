"""The channel that a configuration describes."""

import numpy as np
import pytest

from fedprox.channel.attacks import SignFlip
from fedprox.errors import UserError
from fedprox.experiment.channel import channel
from fedprox.federation.channel import Channel, Layout
from fedprox.strategies.arrays import to_record
from tests.settings import config_of

ARRAYS = to_record({"a.weight": np.zeros((4, 5)), "a.bias": np.zeros(4), "mean": np.zeros(4)})
LAYOUT = Layout(["a.weight", "a.bias"], ["mean"])
DIGITS = ("dataset=digits", "engine=local", "num_clients=10")


def made(*overrides: str) -> Channel:
    return channel(config_of(*DIGITS, *overrides), 10, ARRAYS, LAYOUT)


def test_nothing_happens_to_updates_by_default():
    assert made() == Channel()


def test_an_attack_alone_compresses_nothing():
    found = made("attack=sign_flip", "attack.fraction=0.3", "seed=4")
    assert found.attack == SignFlip(0.3)
    assert found.is_malicious.sum() == 3
    assert (found.codec, found.names, found.seed) == (None, LAYOUT.trained, 4)


def test_named_parameters_travel_and_the_others_are_kept():
    found = made("update=partial", "update.names=['*.bias','none']")
    assert (found.names, found.kept, found.buffers) == (["a.bias"], ["a.weight"], ["mean"])


def test_settings_that_send_nothing_are_refused():
    with pytest.raises(UserError, match=r"of 24 parameters is less than one; raise it to 0.042"):
        made("update=top_k", "update.fraction=0.04")
    with pytest.raises(UserError, match=r"names no trained parameter; the model has a.weight, a.bias"):
        made("update=partial", "update.names=[mean]")


def test_bytes_are_not_counted_where_gradients_travel_too():
    with pytest.raises(UserError, match="with strategy=feddane gradients travel, too"):
        made("strategy=feddane", "update=quantise")
    assert made("strategy=feddane") == Channel()


@pytest.mark.parametrize(
    ("overrides", "is_warned"),
    [
        (("update=top_k", "update.fraction=0.1"), True),
        (("update=top_k", "update.fraction=0.6"), False),
        (("update=quantise", "update.bits=4"), True),
        (("update=quantise", "update.bits=4", "update.quantise.scale=max"), False),
        (("update=quantise", "update.bits=8"), False),
        (("update=float32",), False),
    ],
)
@pytest.mark.parametrize("strategy", ["fed_median", "multi_krum"])
def test_a_median_behind_sparse_updates_is_warned_of(overrides, is_warned, strategy, caplog):
    made(*overrides, f"strategy={strategy}")
    assert ("the model hardly moves" in caplog.text) == (is_warned and strategy == "fed_median")
