"""Strategies that are refused, and their settings without effect: one line each."""

import pytest
from flwr.serverapp import strategy as flowers

from fedprox.errors import UserError
from fedprox.federation.strategy_checks import check_settings, fit

FLOWERS = "flwr.serverapp.strategy"
PRIVATE = [name for name in flowers.__all__ if name.startswith("DifferentialPrivacy")]
assert len(PRIVATE) == 4
ARGUMENTS = {"noise_multiplier": 0.1, "num_sampled_clients": 10}


def private(name: str) -> flowers.Strategy:
    """Return a wrapper of Flower's around FedAvg."""
    norm = {"clipping_norm": 1.0} if "Fixed" in name else {}
    return getattr(flowers, name)(flowers.FedAvg(), **ARGUMENTS, **norm)


class Own(flowers.DifferentialPrivacyClientSideFixedClipping):
    """Fake: a user's class made from a wrapper."""


class Holds(flowers.FedAvg):
    """Fake: a strategy that has another one in an attribute."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.held = held


@pytest.mark.parametrize("path", [*(f"{FLOWERS}.{name}" for name in PRIVATE), f"{__name__}.Own"])
@pytest.mark.parametrize("nested", [False, True])
def test_flowers_differential_privacy_is_refused_by_its_name_in_the_settings(path, nested):
    node = {"_target_": path, **ARGUMENTS}
    named = "strategy.held" if nested else "strategy"
    with pytest.raises(
        UserError, match=rf"^{named}\._target_={path} is refused: .*no client clips.*not seeded"
    ) as refused:
        check_settings({"_target_": f"{__name__}.Holds", "held": node} if nested else node)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", PRIVATE)
def test_differential_privacy_inside_a_users_strategy_is_refused(name):
    made = private(name)
    for strategy in (made, Holds(made), Holds([made]), Holds({"a": (made,)}), Holds(Holds(made))):
        with pytest.raises(UserError, match=f"^{name} is refused"):
            fit(strategy, 0.0)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"fraction_train": 0.5}, r"strategy\.fraction_train=0.5 has no effect: clients_per_round"),
        ({"fraction_evaluate": 0.5}, r"strategy\.fraction_evaluate=0.5 has no effect: .*evaluation=clients"),
        ({"proximal_mu": 0.5}, r"strategy\.proximal_mu=0.5 has no effect: .*set mu=0.5"),
        ({"held": {"proximal_mu": 2}}, r"strategy\.held\.proximal_mu=2 has no effect: .*set mu=2"),
    ],
)
def test_a_setting_without_effect_is_refused_and_the_effective_one_named(settings, line):
    with pytest.raises(UserError, match=f"^{line}"):
        check_settings({"_target_": f"{FLOWERS}.FedAvg", **settings})


def test_settings_that_have_an_effect_pass():
    check_settings({"_target_": f"{FLOWERS}.FedAdam", "eta": 0.1, "held": {"_target_": f"{FLOWERS}.FedAvg"}, "a": [1]})
    check_settings({"_target_": f"{FLOWERS}.FedAvg", "held": {"_target_": "no.such"}})  # building it reports the error


@pytest.mark.parametrize(
    ("strategy", "mu", "line"),
    [
        (
            flowers.FedProx(proximal_mu=0.5),
            0.0,
            "FedProx has proximal_mu=0.5, but clients get the run's mu=0; set mu=0.5",
        ),
        (Holds(flowers.FedProx(proximal_mu=0.5)), 1.0, "FedProx has proximal_mu=0.5, .* mu=1; set mu=0.5"),
        (flowers.FedAvg(arrayrecord_key="w"), 0.0, "FedAvg has arrayrecord_key=w, .* must be arrays"),
        (
            flowers.FedAvg(weighted_by_key="n"),
            0.0,
            r"FedAvg has weighted_by_key=n, .*\+strategy.weighted_by_key to one of",
        ),
        (flowers.QFedAvg(0.1, train_loss_key="x"), 0.0, r"QFedAvg has train_loss_key=x, .* num-examples, train-loss"),
    ],
)
def test_a_strategy_that_does_not_work_with_the_clients_here_is_refused(strategy, mu, line):
    with pytest.raises(UserError, match=f"^{line}"):
        fit(strategy, mu)


def test_the_runs_mu_passes_and_qfedavg_reads_the_reported_loss():
    fit(flowers.FedProx(proximal_mu=0.5), 0.5)
    fit(flowers.FedProx(), 0.5)
    strategy = flowers.QFedAvg(client_learning_rate=0.1)
    fit(Holds(strategy), 0.0)
    assert strategy.train_loss_key == "train-loss"
    kept = flowers.QFedAvg(client_learning_rate=0.1, train_loss_key="drift")
    fit(kept, 0.0)
    assert kept.train_loss_key == "drift"
