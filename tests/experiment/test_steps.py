"""Velocities that clients keep, and rates by epoch, in whole runs; and what they do not go with."""

import logging

import pytest
import torch
from torch.nn import functional

from fedprox.config.compose import compose
from fedprox.experiment import build
from fedprox.experiment.data import divided_data
from fedprox.plan.plan import epoch_orders
from fedprox.runs.reader import differences
from fedprox.strategies.arrays import to_params

LR, ROUNDS = 0.02, 4
SETTINGS = (
    *("dataset=digits", "engine=local", "protocol=paper", "partition=iid", "model=mlp", "solver=reference", "mu=0"),
    *("stragglers_fraction=0", f"num_rounds={ROUNDS}", f"learning_rate={LR}", "batch_size=64", "momentum=0.9"),
)
KEPT, BY_EPOCH = ("momentum_buffer=kept",), ("schedule.name=cosine", "schedule.step=epoch", "schedule.final=0.01")


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR, "flwr")


def final_model(*arguments: str) -> dict[str, torch.Tensor]:
    *_, last = build.Experiment.of(compose((*SETTINGS, *arguments))).rounds()
    return to_params(last.arrays)


def one_long_run(*arguments: str) -> dict[str, torch.Tensor]:
    """Return what torch makes of the only client's batches: one optimiser, and one schedule, for all rounds."""
    config = compose((*SETTINGS, *arguments))
    experiment, data = build.Experiment.of(config), divided_data(config)
    model = build.initial_model(config, experiment.facts)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    epochs = ROUNDS * config.num_epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=0.01 * LR)
    x, y = map(torch.from_numpy, data.client_examples(0))
    for round_num in range(1, ROUNDS + 1):
        (task,) = experiment.strategy.plan.tasks(round_num)
        for order in epoch_orders(task, len(y)):
            for batch in torch.from_numpy(order).split(config.batch_size):
                optimizer.zero_grad()
                functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
            schedule.step()
    return model.state_dict()


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_with_one_client_a_run_is_one_long_run_of_sgd_with_momentum_and_a_cosine_by_epoch(num_epochs):
    alone = ("num_clients=1", "clients_per_round=1", f"num_epochs={num_epochs}", *KEPT, *BY_EPOCH)
    found, expected = final_model(*alone), one_long_run(*alone)
    for name, value in expected.items():  # float32, 4 x 2 x 20 steps in another order of operations
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    reset = final_model(*(each for each in alone if each not in KEPT))
    assert not torch.allclose(reset["1.weight"], found["1.weight"], rtol=1e-2, atol=1e-3)


def test_with_one_epoch_in_a_round_a_schedule_by_epoch_is_the_one_by_round():
    small = ("num_clients=4", "clients_per_round=2", "num_epochs=1")
    by_round = final_model(*small, *(each for each in BY_EPOCH if each != "schedule.step=epoch"))
    by_epoch = final_model(*small, *BY_EPOCH)
    for name, value in by_round.items():
        assert torch.equal(value, by_epoch[name])


def test_a_client_that_rests_keeps_its_velocity_and_one_that_never_trained_begins_at_zero():
    experiment = build.Experiment.of(compose((*SETTINGS, *KEPT, "num_clients=6", "clients_per_round=2")))
    had: dict[int, object] = {}
    for result in experiment.rounds():
        has = result.carried["strategy"]["statistics"]
        trained = {each.task.client for each in result.clients}
        assert has.keys() == had.keys() | trained
        assert all((has[client] is had[client]) == (client not in trained) for client in had)
        had = has
    assert 2 < len(had) <= 6


SCRIPT = ("client=script", "client.script=train.py", "num_clients=10", "dataset=of_clients", "model=of_clients")
REFUSED = {
    "no momentum": (("momentum=0", *KEPT), ("momentum_buffer=kept needs momentum", "set momentum=0.9")),
    "another optimiser": (("optimizer=adam", "momentum=0", *KEPT), ("is for optimizer=sgd", "torch.optim.Adam")),
    "personal models": (("personalisation=ditto", *KEPT), ("does not go with personalisation=ditto",)),
    "fine-tuning": (("personalisation=fine_tuning", *KEPT), ("does not go with personalisation=fine_tuning",)),
    "local statistics": (("batch_statistics=local", *KEPT), ("does not go with batch_statistics=local",)),
    "clients drawn twice": (("sampling=proportional", *KEPT), ("does not go with sampling=proportional", "twice")),
    "a federation": (("engine=deployment", *KEPT), ("does not go with engine=deployment",)),
    "SCAFFOLD": (("strategy=scaffold", *KEPT), ("strategy=scaffold", "strategy.correct=steps")),
    "FedNova by epoch": (("strategy=fednova", *BY_EPOCH), ("strategy=fednova", "use schedule.step=round")),
    "fine-tuning by epoch": (
        ("personalisation=fine_tuning", *BY_EPOCH),
        ("schedule.step=epoch does not go with personalisation=fine_tuning", "use schedule.step=round"),
    ),
    "a constant schedule": (("schedule.step=epoch",), ("schedule.step=epoch changes nothing", "schedule.name=cosine")),
    "a script": (
        (*SCRIPT, "momentum=0", *BY_EPOCH),
        ("schedule.step=epoch does not go with client=script",),
    ),
    "a simple mean": (
        ("sampling=proportional", "+strategy.weighted_by_key=num-steps"),
        ("strategy.weighted_by_key=num-steps has no effect with sampling=proportional", "leave it out"),
    ),
    "privacy": (
        *(
            (
                *("privacy=client", "sampling=poisson", "privacy.clip=1", "privacy.delta=0.001"),
                *("privacy.noise_multiplier=1", "+strategy.weighted_by_key=num-steps"),
            ),
            ("strategy.weighted_by_key=num-steps has no effect with privacy=client",),
        ),
    ),
    "a weight that no client reports": (
        ("strategy=fedavgm", "+strategy.weighted_by_key=num-epochs"),
        ("weighted_by_key=num-epochs, which no client reports", "num-steps"),
    ),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused_in_one_line_before_data_are_read(fedprox, tmp_path, arguments, words):
    (tmp_path / "train.py").write_text("")
    ended = fedprox("dataset=mnist", "data_dir=nowhere", "engine=local", "momentum=0.9", "num_rounds=1", *arguments)
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert [word for word in words if word not in ended.err] == [], ended.err


def test_velocities_that_need_too_much_memory_are_refused(fedprox):
    ended = fedprox(*SETTINGS, *KEPT, "num_clients=6", "clients_per_round=3", "personalisation.max_bytes=1000")
    says = "momentum_buffer=kept would keep"
    assert (ended.status, says in ended.err) == (2, True), ended.err


def test_a_run_of_an_earlier_version_had_rates_by_round_and_began_with_no_velocity():
    present = compose(SETTINGS).plain()
    earlier = {name: value for name, value in present.items() if name != "momentum_buffer"}
    earlier["schedule"] = {name: value for name, value in present["schedule"].items() if name != "step"}
    assert differences(earlier, present) == []
    assert differences(earlier, compose((*SETTINGS, *KEPT, *BY_EPOCH[:2])).plain()) == [
        'momentum_buffer="kept" (was "reset")',
        'schedule.name="cosine" (was "constant")',
        'schedule.step="epoch" (was "round")',
    ]
