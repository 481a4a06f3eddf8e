"""The configuration: every option composes, the defaults are the earlier baseline's, every rule has its border."""

import copy
import functools
import math
import os
import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fedprox.config.checks import check_machine, check_targets
from fedprox.config.compose import CONF, compose
from fedprox.config.instantiate import check_target
from fedprox.config.schema import TARGETS, Config, Target
from fedprox.errors import UserError
from fedprox.experiment import data as data_assembly
from fedprox.experiment.run import algorithm

OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml"))


def composed(*overrides: str, config_name: str = "config") -> dict:
    return compose(overrides, config_name).plain()


# Composition


def test_there_are_options_in_every_group():
    groups = {option.partition("=")[0] for option in OPTIONS}
    assert groups == {
        "augmentation",
        "dataset",
        "engine",
        "evaluation",
        "experiment",
        "feature_skew",
        "logger",
        "model",
        "partition",
        "protocol",
        "strategy",
    }


TEXT = {"shakespeare": ["dataset.path=there"], "sent140": ["dataset.path=there", "dataset.glove=there"]}
MANDATORY = {
    "partition=custom": ["partition._target_=fedprox.data.partitioners.shards.shards"],
    "dataset=custom": ["dataset._target_=fedprox.data.sources.digits.digits"],
    "dataset=leaf": ["dataset.path=there"],
    "dataset=image_folder": ["dataset.path=there"],
    "model=lstm_sent140": ["dataset=sent140", *TEXT["sent140"]],
    **{f"dataset={name}": given for name, given in TEXT.items()},
    **{f"experiment=paper_{name}": given for name, given in TEXT.items()},
}


@pytest.mark.parametrize("config_name", ["config", "fedavg"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_passes_the_check(option, config_name):
    overrides = [option, "client_resources.num_cpus=1"]
    overrides += MANDATORY.get(option, [])
    check_targets(compose(overrides, config_name))


def test_dataset_custom_asks_for_a_target():
    with pytest.raises(UserError, match=r"dataset\._target_"):
        composed("dataset=custom")


BASELINE = {
    "num_clients": 1000,
    "num_epochs": 10,
    "batch_size": 10,
    "num_rounds": 100,
    "clients_per_round": 10,
    "stragglers_fraction": 0.9,
    "learning_rate": 0.03,
    "server_device": "cpu",
    "client_resources": {"num_cpus": 2.0, "num_gpus": 0.0},
}


@pytest.mark.parametrize(
    ("config_name", "mu", "strategy"),
    [
        ("config", 1.0, "fedprox.strategies.fedprox.FedProx"),
        ("fedavg", 0.0, "fedprox.strategies.fedprox.FedAvgWithStragglerDrop"),
    ],
)
def test_defaults_are_the_earlier_baselines(config_name, mu, strategy):
    config = composed(config_name=config_name)
    assert {name: config[name] for name in BASELINE} == BASELINE
    assert config["mu"] == mu
    assert config["strategy"] == {"_target_": strategy}
    assert config["dataset"]["_target_"] == "fedprox.data.sources.mnist.mnist"
    assert config["model"] == {"_target_": "fedprox.models.logistic.logistic", "init": "default"}
    assert config["partition"]["_target_"] == "fedprox.data.partitioners.power_law.power_law"
    assert config["protocol"] == {"_target_": "fedprox.plan.protocols.FlowerProtocol"}
    assert config["weight_decay"] == 0.001  # of protocol=flower
    assert config["engine"] == {
        "_target_": "fedprox.engines.ray.RayGrid",
        "num_cpus": 2.0,
        "num_gpus": 0.0,
        "max_actors": 10,
        "address": None,
    }


def test_fedavg_differs_from_fedprox_in_strategy_and_mu_alone():
    one, other = composed(), composed(config_name="fedavg")
    assert {name for name in one | other if one.get(name) != other.get(name)} == {"strategy", "mu"}
    assert composed("strategy=fedavg") == other


ADAM = "strategy._target_=flwr.serverapp.strategy.FedAdam"


@pytest.mark.parametrize(
    ("overrides", "mu"),
    [
        ([], 1.0),
        (["strategy=feddane"], 1.0),
        (["strategy=fedavg"], 0.0),
        ([ADAM], 0.0),
        (["strategy._target_=flwr.serverapp.strategy.FedProx"], 0.0),
        (["strategy._target_=my.FedProx"], 0.0),
        # The command has the last word with any strategy.
        (["mu=0.5"], 0.5),
        ([ADAM, "mu=1"], 1.0),
        (["mu=1", "strategy=fedavg"], 1.0),
        # What a data set or a preset recommends is for FedProx, whatever the order.
        (["dataset=sent140"], 0.01),
        (["dataset=shakespeare"], 0.001),
        (["dataset=sent140", ADAM], 0.0),
        (["strategy=fedavg", "dataset=sent140"], 0.0),
        (["experiment=flare_cifar10"], 1e-5),
        (["experiment=flare_cifar10", "strategy=feddane"], 1e-5),
        (["experiment=flare_cifar10", ADAM], 0.0),
        (["experiment=flare_cifar10", "strategy=fedavg"], 0.0),
        (["experiment=flare_cifar10", ADAM, "mu=0.3"], 0.3),
    ],
)
def test_mu_is_that_of_fedprox_with_fedprox_and_feddane_and_0_with_any_other_strategy_unless_given(overrides, mu):
    config = composed(*overrides)
    assert config["mu"] == mu
    assert type(config["mu"]) is float


@pytest.mark.parametrize("more", [[], ["dataset=sent140"], ["experiment=flare_cifar10"]])
def test_the_configuration_of_fedavg_has_mu_0_whatever_a_data_set_or_preset_recommends(more):
    assert composed(*more, config_name="fedavg")["mu"] == 0


def test_weight_decay_is_the_earlier_baselines_with_its_protocol_and_0_with_any_other_unless_given():
    found = [composed(f"protocol={protocol}")["weight_decay"] for protocol in ("flower", "paper", "authors")]
    assert found == [0.001, 0.0, 0.0]
    assert composed("protocol._target_=my.Protocol")["weight_decay"] == 0.0
    assert composed("protocol=paper", "weight_decay=0.25")["weight_decay"] == 0.25


def test_mu_is_a_number_for_whoever_refers_to_it():
    assert composed("learning_rate=${mu}")["learning_rate"] == 1
    assert composed(ADAM, "adaptive_mu.initial=${mu}")["adaptive_mu"]["initial"] == 0


@pytest.mark.parametrize(
    ("strategy", "mu", "adaptive", "name"),
    [
        ("fedprox.strategies.fedprox.FedProx", 1.0, False, "FedProx (mu = 1)"),
        ("fedprox.strategies.fedprox.FedProx", 0.0, False, "FedProx (mu = 0)"),
        ("fedprox.strategies.fedprox.FedDane", 0.0, False, "FedDane (mu = 0)"),
        ("fedprox.strategies.fedprox.FedAvgWithStragglerDrop", 0.0, False, "FedAvg"),
        ("fedprox.strategies.fedprox.FedAvgWithStragglerDrop", 0.5, False, "FedAvg (mu = 0.5)"),
        ("flwr.serverapp.strategy.FedProx", 1.0, False, "FedProx (mu = 1)"),
        ("flwr.serverapp.strategy.FedAdam", 0.0, False, "FedAdam"),
        ("flwr.serverapp.strategy.FedAdam", 1e-5, False, "FedAdam (mu = 1e-05)"),
        ("flwr.serverapp.strategy.FedAdam", 0.0, True, "FedAdam (mu = 0)"),
        # It keeps stragglers' work, so it must not be averaged with ours, which drops them.
        ("flwr.serverapp.strategy.FedAvg", 0.0, False, "FedAvg (flwr)"),
        ("flwr.serverapp.strategy.FedAvg", 1.0, False, "FedAvg (flwr, mu = 1)"),
        ("my_strategy.FedAvg", 0.0, False, "FedAvg (my_strategy)"),
    ],
)
def test_a_run_is_called_by_its_strategy_and_by_mu_if_that_has_a_part_in_it(strategy, mu, adaptive, name):
    settings = [f"strategy._target_={strategy}", f"mu={mu}", f"adaptive_mu.enabled={adaptive}", "evaluation=clients"]
    assert algorithm(compose(settings)) == name


PAPER = {
    "clients_per_round": 10,
    "batch_size": 10,
    "num_epochs": 20,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "mu": 1.0,
    "protocol._target_": "fedprox.plan.protocols.PaperProtocol",
}
SYNTHETIC = PAPER | {"num_clients": 30, "num_rounds": 200, "learning_rate": 0.01}
FLARE = {  # "NVIDIA FLARE's comparison: 8 clients that all take part, ... FedProx with mu=1e-5"
    "num_clients": 8,
    "clients_per_round": 8,
    "stragglers_fraction": 0.0,
    "mu": 1e-5,
    "dataset._target_": "fedprox.data.sources.cifar10.cifar10",
    "partition._target_": "fedprox.data.partitioners.dirichlet.dirichlet",
    "schedule.name": "cosine",
    "augmentation._target_": "fedprox.data.augmentation.PadCropFlip",
    "hold_out": 0.0,
}
CROSS = {  # "100 clients of unequal size, 10 of them in a round"
    "num_clients": 100,
    "clients_per_round": 10,
    "dataset._target_": "fedprox.data.sources.cifar10.cifar10",
    "partition._target_": "fedprox.data.partitioners.dirichlet.dirichlet",
    "partition.sizes": "drawn",
    "model._target_": "fedprox.models.cnn.cnn_tutorial",
}
PROMISED = {  # what the name and the comment of each preset say
    "digits": {"dataset._target_": "fedprox.data.sources.digits.digits", "num_rounds": 50},
    "paper_mnist": PAPER | {"num_clients": 1000, "num_rounds": 100, "learning_rate": 0.03},
    "paper_femnist": PAPER
    | {"num_clients": 200, "num_rounds": 200, "learning_rate": 0.003, "dataset.classes_per_client": 5}
    | {"model._target_": "fedprox.models.logistic.logistic"},
    "paper_shakespeare": PAPER
    | {"mu": 0.001, "num_clients": None, "num_rounds": 40, "learning_rate": 0.8}
    | {"model._target_": "fedprox.models.lstm.lstm_shakespeare"},
    "paper_sent140": PAPER
    | {"mu": 0.01, "num_clients": None, "num_rounds": 800, "learning_rate": 0.3}
    | {"model._target_": "fedprox.models.lstm.lstm_sent140"},
    "paper_synthetic_iid": SYNTHETIC | {"dataset.iid": True},
    "paper_synthetic_0_0": SYNTHETIC | {"dataset.alpha": 0.0, "dataset.beta": 0.0},
    "paper_synthetic_0.5_0.5": SYNTHETIC | {"dataset.alpha": 0.5, "dataset.beta": 0.5},
    "paper_synthetic_1_1": SYNTHETIC | {"dataset.alpha": 1.0, "dataset.beta": 1.0},
    "flare_cifar10": FLARE | {"num_rounds": 50, "num_epochs": 4, "model._target_": "fedprox.models.cnn.moderate_cnn"},
    "flare_cifar10_small": FLARE
    | {"num_rounds": 12, "num_epochs": 2, "model._target_": "fedprox.models.cnn.cnn_tutorial"},
    "cifar10_cross_device": CROSS | {"num_rounds": 500},
    "cifar10_cross_device_small": CROSS | {"num_rounds": 50},
}


@pytest.mark.parametrize("experiment", [option.partition("=")[2] for option in OPTIONS if "experiment=" in option])
def test_every_preset_sets_what_its_name_and_comment_promise(experiment):
    option = f"experiment={experiment}"
    config = OmegaConf.create(composed(option, *MANDATORY.get(option, [])))
    promised = PROMISED[experiment]
    assert {name: OmegaConf.select(config, name) for name in promised} == promised


@pytest.mark.parametrize(
    ("option", "alpha", "beta"), [("synthetic_0_0", 0.0, 0.0), ("synthetic_0.5_0.5", 0.5, 0.5), ("synthetic_1_1", 1, 1)]
)
def test_names_of_synthetic_data_say_alpha_and_beta(option, alpha, beta):
    node = composed(f"dataset={option}", "seed=7")["dataset"]
    assert (node["alpha"], node["beta"], node["num_clients"], node["seed"]) == (alpha, beta, 30, 7)


def test_the_command_line_has_the_last_word_over_every_group():
    config = composed("experiment=paper_synthetic_1_1", "strategy=fedavg", "mu=0.5", "weight_decay=0.25")
    assert (config["mu"], config["weight_decay"]) == (0.5, 0.25)
    config = composed("dataset=digits", "num_clients=50", "protocol=paper", "num_epochs=3")
    assert (config["num_clients"], config["num_epochs"], config["weight_decay"]) == (50, 3, 0.0)


def test_the_engine_follows_the_resources_and_the_cohort():
    engine = composed("client_resources.num_cpus=1", "client_resources.num_gpus=0.5", "clients_per_round=3")["engine"]
    assert (engine["num_cpus"], engine["num_gpus"], engine["max_actors"]) == (1.0, 0.5, 3)


# Rules


@functools.cache
def _small() -> dict:
    return composed("dataset=digits", "engine=local", "clients_per_round=1", "num_clients=10")


def base(**changes) -> dict:
    return copy.deepcopy(_small()) | changes


def resources(**changes) -> dict:
    return {"client_resources": {"num_cpus": 1.0, "num_gpus": 0.0} | changes}


# NumPy takes -0.0 for a negative scale; a check for >= 0 lets it pass.
MINUS_ZERO = {
    "sigma": ["partition.sigma=-0.0"],
    "sizes": ["partition=iid", "partition.sizes=lognormal", "partition.sigma=-0.0"],
    "exponent": ["partition=iid", "partition.sizes=zipf", "partition.exponent=-0.0"],
    "dirichlet": ["partition=dirichlet", "partition.sizes=lognormal", "partition.sigma=-0.0"],
    "pathological": ["partition=pathological", "partition.sizes=lognormal", "partition.sigma=-0.0"],
    "noise": ["feature_skew=noise", "feature_skew.strength=-0.0"],
    "brightness": ["feature_skew=brightness", "feature_skew.strength=-0.0"],
    "rotation": ["feature_skew=rotation", "feature_skew.strength=-0.0"],
    "alpha": ["dataset=synthetic_1_1", "dataset.alpha=-0.0"],
    "beta": ["dataset=synthetic_1_1", "dataset.beta=-0.0"],
}


@pytest.mark.parametrize("overrides", MINUS_ZERO.values(), ids=MINUS_ZERO)
def test_minus_zero_is_zero_in_every_setting_of_the_data(overrides):
    small = ["dataset=digits", "num_clients=10", *overrides]
    minus, zero = (
        data_assembly.divided_data(compose([each.replace("-0.0", value) for each in small]))
        for value in ("-0.0", "0.0")
    )
    assert np.array_equal(minus.train.indices, zero.train.indices)
    assert np.array_equal(minus.client_examples(3)[0], zero.client_examples(3)[0])


def test_minus_zero_is_zero_at_every_depth_of_the_configuration():
    config = composed("mu=-0.0", "schedule.final=-1e-400", "+dataset.noise=[-0.0,{a: -0.0},-0.5]")
    values = [
        config["mu"],
        config["schedule"]["final"],
        config["dataset"]["noise"][0],
        config["dataset"]["noise"][1]["a"],
    ]
    assert [(value, math.copysign(1, value)) for value in values] == [(0.0, 1.0)] * 4
    assert config["dataset"]["noise"][2] == -0.5


NOT_NUMBERS = [math.nan, math.inf, -math.inf, True, "a", "", [1], {"a": 1}]
NOT_INTEGERS = [*NOT_NUMBERS, 1.5, 1.0, 2**32, 10**30]
NOT_FLAGS = [1, 0, "yes", None]
# setting -> its rule as it is told, values on its border, values beyond or of another kind.
RULES = {
    "num_clients": ("an integer >= 1", [1, None], [0, -1, *NOT_INTEGERS]),
    "num_epochs": ("an integer >= 1 and at most 100,000", [1, 100_000], [0, 100_001, None, *NOT_INTEGERS]),
    "batch_size": ("an integer >= 1", [1, 2**32 - 1], [0, -1, None, *NOT_INTEGERS]),
    "last_batch": ("keep, drop or merge", ["keep", "drop", "merge"], ["", "skip", None]),
    "num_rounds": ("an integer >= 1", [1], [0, -1, None, *NOT_INTEGERS]),
    "clients_per_round": ("an integer >= 1", [1, 10], [0, -1, None, *NOT_INTEGERS]),
    "stragglers_fraction": ("finite and between 0 and 1", [0.0, 1.0], [-1e-12, 1.000001, None, *NOT_NUMBERS]),
    "learning_rate": ("finite and > 0", [1e-12, 100.0], [0.0, -1e-12, None, *NOT_NUMBERS]),
    "mu": ("finite and >= 0", [0.0, 1e-12, 100.0], [-1e-12, None, *NOT_NUMBERS]),
    "adaptive_mu.enabled": ("true or false", [False], NOT_FLAGS),
    "adaptive_mu.initial": ("finite and >= 0", [None, 0.0], [-1, *NOT_NUMBERS]),
    "adaptive_mu.step": ("finite and > 0", [1e-12], [0, None, *NOT_NUMBERS]),
    "adaptive_mu.patience": ("an integer >= 1", [1], [0, None, *NOT_INTEGERS]),
    "sampling": ("uniform or proportional", ["uniform", "proportional"], ["nope", 1, None]),
    "schedule.name": ("constant or cosine", ["constant", "cosine"], ["step", None]),
    "schedule.final": ("finite and between 0 and 1", [0.0, 1.0], [-0.1, 1.1, None, *NOT_NUMBERS]),
    "momentum": ("finite, at least 0 and below 1", [0.0, 0.999999], [1.0, -1e-12, None, *NOT_NUMBERS]),
    "weight_decay": ("finite and >= 0", [0.0, 100.0], [-1e-12, None, *NOT_NUMBERS]),
    "mixed_precision": ("true or false", [False], NOT_FLAGS),
    "server_device": ("cpu, cuda or cuda:<number>", ["cpu", "cuda:1"], ["tpu", "meta", "cuda:-2", "", "CPU", "cpu:x"]),
    "client_resources.num_cpus": ("finite and > 0", [0.5], [0.0, -1.0, None, *NOT_NUMBERS]),
    "client_resources.num_gpus": ("finite and >= 0", [0.0], [-0.1, None, *NOT_NUMBERS]),
    "solver": ("auto, reference or cohort", ["auto", "reference", "cohort"], ["nope", "", None]),
    "batch_statistics": ("averaged or local", ["averaged", "local"], ["own", 1, None]),
    "on_client_error": ("stop or drop", ["stop", "drop"], ["continue", None]),
    "on_divergence": ("stop, drop or continue", ["stop", "drop", "continue"], ["ignore", None]),
    "round_timeout": ("finite and > 0", [None, 0.1], [0, -1, *NOT_NUMBERS]),
    "on_timeout": ("stop or drop", ["stop", "drop"], ["continue", None]),
    "early_stopping.metric": ("text", [None, "test_loss"], [True, [1]]),
    "early_stopping.patience": ("an integer >= 1", [1], [0, None, *NOT_INTEGERS]),
    "early_stopping.min_delta": ("finite and >= 0", [0.0], [-1, None, *NOT_NUMBERS]),
    "seed": ("an integer >= 0 and below 2^32", [0, 2**32 - 1], [-1, None, *NOT_INTEGERS]),
    "repeat_num": ("an integer >= 0 and below 2^32", [0, 7], [-1, None, *NOT_INTEGERS]),
    "data_dir": ("text", ["data"], [None, ["a"], True]),
    "hold_out": ("finite, at least 0 and below 1", [0.0, 0.999999], [1.0, -1e-12, None, *NOT_NUMBERS]),
    "evaluation.name": ("server or clients", ["server", "clients"], ["nope", 1, None]),
    "evaluation.every": ("an integer >= 1", [1], [0, None, *NOT_INTEGERS]),
    "evaluation.per_class": ("true or false", [True, False], NOT_FLAGS),
    "evaluation.per_client": ("true or false", [True, False], NOT_FLAGS),
    "checkpoint.every": ("an integer >= 1", [1, None], [0, *NOT_INTEGERS]),
    "checkpoint.keep": ("an integer >= 1", [1, None], [0, *NOT_INTEGERS]),
    "resume": ("text", [None, "runs/1"], [True, ["a"]]),
    "branch_from": ("text", [None], [True, ["a"]]),
    "branch_round": ("an integer >= 1", [None], [0, *NOT_INTEGERS]),
}


def with_value(name: str, value: object) -> dict:
    config, (*above, key) = base(), name.split(".")
    node = config[above[0]] if above else config
    node[key] = value
    return config


def test_no_setting_is_forgotten():
    flat = {
        f"{name}.{key}" if key else name
        for name, value in Config.of(base(repeat_num=0)).plain().items()
        for key in (value if name not in TARGETS and isinstance(value, dict) else [""])
    }
    assert flat - {*TARGETS} == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_a_value_on_the_border_is_accepted(name):
    for value in RULES[name][1]:
        config = Config.of(with_value(name, value)).plain()
        assert functools.reduce(lambda node, key: node[key], name.split("."), config) == value


@pytest.mark.parametrize("name", RULES)
def test_a_value_beyond_the_border_or_of_another_kind_is_refused_by_name_rule_and_value(name):
    rule, _, bad = RULES[name]
    for value in bad:
        with pytest.raises(UserError, match=rf"^{re.escape(f'{name} must be {rule}')}.*, got ") as told:
            Config.of(with_value(name, value))
        assert str(value) in str(told.value)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", [*TARGETS, "logger", "checkpoint", "evaluation"])
def test_a_group_is_no_single_value(name):
    for value in (3, "a", None, [1]):
        with pytest.raises(UserError, match=rf"^{name} must be a group of settings, got "):
            Config.of(base(**{name: value}))


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**32, [1, {"a": -(2**32)}]])
def test_a_number_of_a_group_that_no_array_or_record_could_hold_is_refused(value):
    with pytest.raises(UserError, match=r"^partition\.x\b.* must be (finite|between -2\^32 and 2\^32), got "):
        Config.of(base(partition={"_target_": "a.b", "x": value}))


def on_ray(address: str | None) -> dict:
    return {
        "_target_": "fedprox.engines.ray.RayGrid",
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "max_actors": 1,
        "address": address,
    }


def test_resources_are_compared_with_this_machine_where_ray_runs_on_it_and_only_there():
    most = float(os.cpu_count())
    too_many = resources(num_cpus=most + 1)
    check_machine(Config.of(base(engine=on_ray(None), **resources(num_cpus=most))))
    check_machine(Config.of(base(engine=on_ray(None), **resources(num_cpus=0.5))))
    check_machine(Config.of(base(engine=on_ray("head:6379"), **too_many)))  # a cluster may have more than this machine
    check_machine(Config.of(base(**too_many)))  # engine=local takes none
    with pytest.raises(UserError, match=r"^client_resources\.num_cpus must be at most .*engine=local"):
        check_machine(Config.of(base(engine=on_ray(None), **too_many)))
    with pytest.raises(UserError, match=r"^client_resources\.num_gpus must be at most"):
        check_machine(Config.of(base(engine=on_ray(None), **resources(num_gpus=torch.cuda.device_count() + 0.5))))


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match=f"^server_device={device} needs a GPU.*server_device=cpu"):
            check_machine(Config.of(base(server_device=device)))


def test_a_gpu_number_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_machine(Config.of(base(server_device="cuda:1")))
    with pytest.raises(UserError, match="torch finds 2 GPUs"):
        check_machine(Config.of(base(server_device="cuda:2")))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("momentun", "did you mean momentum?"),
        ("num_client", "did you mean num_clients?"),
        ("zzzzzz", "see --help"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_one(name, remedy):
    with pytest.raises(UserError, match=rf"^{name} is no setting; ") as told:
        Config.of(base(**{name: 1}))
    assert remedy in str(told.value)


def test_a_setting_that_is_missing_is_named():
    config = base()
    del config["mu"]
    with pytest.raises(UserError, match=r"^mu is missing; give it a value$"):
        Config.of(config)
    with pytest.raises(UserError, match=r"^settings of a/run\.json: mu is missing"):  # a record of another version
        Config.of(config, "settings of a/run.json")


def test_plain_settings_come_out_as_they_went_in_and_repeat_num_only_if_it_was_given():
    assert Config.of(base()).plain() == base()
    assert Config.of(base(repeat_num=0)).plain() == base(repeat_num=0)


def test_the_text_of_a_variable_is_the_number_that_it_looks_like(monkeypatch):
    monkeypatch.setenv("TASK_ID", "7")
    monkeypatch.setenv("RATE", "1e-3")
    config = compose(["seed=${oc.env:TASK_ID}", "learning_rate=${oc.env:RATE}"])
    assert (config.seed, config.learning_rate) == (7, 0.001)


def test_targets_are_the_same_if_they_are_written_alike():
    one, same, other = (Target.model_validate({"_target_": "a.b", "x": x}) for x in (1, 1, True))
    assert (one == same, hash(one) == hash(same), one == other) == (True, True, False)


# Targets: a callable's signature is the schema of its group


def takes(count: int, ratio: float = 0.5, name: str = "a", flag: bool = False, limit: int | None = None, other=None):
    """Fake option of a group."""


def takes_anything(**settings: int):
    """Fake option without named parameters."""


class TakesInInit:
    """Fake option that is a class."""

    def __init__(self, count: int) -> None:
        self.count = count


HERE = __name__


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": f"{HERE}.takes", "count": 3},
        {"_target_": f"{HERE}.takes", "count": 3, "ratio": 1, "name": "b", "flag": True, "limit": 4},
        {"_target_": f"{HERE}.takes", "limit": None, "other": [1, 2]},  # no annotation, no rule
        {"_target_": f"{HERE}.takes_anything", "whatever": 1},
        {"_target_": f"{HERE}.TakesInInit", "count": 1},
        {"_target_": "fedprox.data.partitioners.power_law.power_law", "sigma": 2, "classes_per_client": 2},
        {"_target_": "flwr.serverapp.strategy.FedAdam", "eta": 0.1},
    ],
)
def test_a_node_that_fits_the_signature_is_accepted(node):
    assert check_target("model", Target.model_validate(node)) is None


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"_target_": "nowhere.to.be.found"}, r"model\._target_=nowhere\.to\.be\.found cannot be loaded"),
        ({"_target_": "fedprox.models.cnn.lstm"}, r"model\._target_=fedprox\.models\.cnn\.lstm cannot be loaded"),
        ({"_target_": "fedprox.data.lstm.lstm"}, r"fedprox\.data\.lstm\.lstm cannot be loaded: .*'lstm'"),
        ({"_target_": f"{HERE}.HERE"}, r"cannot be loaded"),  # not callable
        ({"_target_": ""}, r"cannot be loaded"),
        ({"_target_": f"{HERE}.takes", "cuont": 3}, r"model\.cuont is unknown: .*takes takes count, ratio"),
        ({"_target_": f"{HERE}.takes", "count": 3.0}, r"model\.count must be of type int, got 3\.0"),
        ({"_target_": f"{HERE}.takes", "count": True}, r"model\.count must be of type int, got True"),
        ({"_target_": f"{HERE}.takes", "count": "3"}, r"model\.count must be of type int, got '3'"),
        ({"_target_": f"{HERE}.takes", "count": None}, r"model\.count must be of type int, got None"),
        ({"_target_": f"{HERE}.takes", "ratio": "x"}, r"model\.ratio must be of type float, got 'x'"),
        ({"_target_": f"{HERE}.takes", "ratio": True}, r"model\.ratio must be of type float"),
        ({"_target_": f"{HERE}.takes", "name": 5}, r"model\.name must be of type str, got 5"),
        ({"_target_": f"{HERE}.takes", "flag": 1}, r"model\.flag must be of type bool, got 1"),
        ({"_target_": f"{HERE}.takes", "limit": "x"}, r"model\.limit must be of type .*None, got 'x'"),
        ({"_target_": f"{HERE}.TakesInInit", "size": 1}, r"model\.size is unknown"),
        (
            {"_target_": "fedprox.data.partitioners.power_law.power_law", "sgima": 2},
            r"model\.sgima is unknown: .*sigma",
        ),
    ],
)
def test_a_node_that_does_not_fit_is_refused_in_one_line(node, told):
    with pytest.raises(UserError, match=told) as error:
        check_target("model", Target.model_validate(node))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("group", ["dataset", "partition", "model", "strategy", "protocol", "engine"])
def test_every_group_is_checked(group):
    config = base()
    config[group] = {**config[group], "no_such_key": 1}
    with pytest.raises(UserError, match=rf"^{group}\.no_such_key is unknown"):
        check_targets(Config.of(config))


def test_mixed_precision_needs_clients_on_a_gpu():
    with pytest.raises(UserError, match="mixed_precision=true needs clients on a GPU"):
        compose(["mixed_precision=true", "engine=local"])
    with pytest.raises(UserError, match="mixed_precision=true needs clients on a GPU"):
        compose(["mixed_precision=true", "engine=ray", "server_device=cpu"])


def test_a_package_that_a_targets_module_lacks_is_named_however_deep_the_module_is(tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "mine.py").write_text("import no_such_package.part\n\ndef model(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"the package no_such_package is not installed; .*pip install no_such_package"):
        check_target("model", Target.model_validate({"_target_": "deep.er.mine.model"}))
