"""The configuration: every option composes, the defaults are the earlier baseline's, every rule has its border."""

import copy
import functools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import MissingMandatoryValue, OmegaConf

import fedprox
from fedprox.config.checks import check
from fedprox.config.compose import plain, register
from fedprox.config.instantiate import check_target
from fedprox.config.schema import unknown
from fedprox.errors import UserError
from fedprox.experiment import data as data_assembly
from fedprox.experiment.run import algorithm

ROOT = Path(fedprox.__file__).parent
CONF = next(path for path in (ROOT / "conf", ROOT.parent / "conf") if path.is_dir())
OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def _hydra():
    register()
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        yield


def composed(*overrides: str, config_name: str = "config") -> dict:
    return plain(compose(config_name=config_name, overrides=list(overrides)))


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
    check(composed(*overrides, config_name=config_name))


def test_dataset_custom_asks_for_a_target():
    with pytest.raises(MissingMandatoryValue, match=r"dataset\._target_"):
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
    config = {"strategy": {"_target_": strategy}, "mu": mu, "adaptive_mu": {"enabled": adaptive}}
    assert algorithm(config) == name


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
    ("experiment", "expected"),
    [
        ("paper_mnist", {"num_clients": 1000, "num_rounds": 100, "learning_rate": 0.03}),
        ("paper_synthetic_0_0", {"num_clients": 30, "num_rounds": 200, "learning_rate": 0.01}),
        ("paper_synthetic_0.5_0.5", {"num_clients": 30, "num_rounds": 200, "learning_rate": 0.01}),
        ("paper_synthetic_1_1", {"num_clients": 30, "num_rounds": 200, "learning_rate": 0.01}),
        ("paper_synthetic_iid", {"num_clients": 30, "num_rounds": 200, "learning_rate": 0.01}),
    ],
)
@pytest.mark.parametrize(("config_name", "mu"), [("config", 1.0), ("fedavg", 0.0)])
def test_the_papers_experiments_have_the_papers_constants(experiment, expected, config_name, mu):
    # Li et al. 2020, sec. 5 and app. C.1-2: K = 10, B = 10, E = 20, SGD without decay or momentum, mu = 1.
    config = composed(f"experiment={experiment}", config_name=config_name)
    assert {name: config[name] for name in expected} == expected
    constants = ("clients_per_round", "batch_size", "num_epochs", "momentum", "weight_decay", "mu")
    assert [config[name] for name in constants] == [10, 10, 20, 0.0, 0.0, mu]
    assert config["protocol"] == {"_target_": "fedprox.plan.protocols.PaperProtocol"}


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
        data_assembly.divided_data(composed(*(each.replace("-0.0", value) for each in small)))
        for value in ("-0.0", "0.0")
    )
    assert np.array_equal(minus.train.indices, zero.train.indices)
    assert np.array_equal(minus.client_examples(3)[0], zero.client_examples(3)[0])


def test_minus_zero_is_zero_at_every_depth_of_the_configuration():
    config = composed("mu=-0.0", "schedule.final=-1e-400", "+dataset.noise=[-0.0,{a: -0.0}]", "learning_rate=-0.5")
    values = [
        config["mu"],
        config["schedule"]["final"],
        config["dataset"]["noise"][0],
        config["dataset"]["noise"][1]["a"],
    ]
    assert [(value, math.copysign(1, value)) for value in values] == [(0.0, 1.0)] * 4
    assert config["learning_rate"] == -0.5


NOT_FINITE = [math.nan, math.inf, -math.inf]
RULES = [
    ("num_clients", [1], [0, -1]),
    ("num_epochs", [1], [0, -1]),
    ("batch_size", [1], [0, -1]),
    ("last_batch", ["keep", "drop", "merge"], ["", "skip"]),
    ("num_rounds", [1], [0, -1]),
    ("clients_per_round", [1, 10], [0, -1, 11]),
    ("learning_rate", [1e-12, 100.0], [0.0, -1e-12, *NOT_FINITE]),
    ("mu", [0.0, 1e-12, 100.0], [-1e-12, *NOT_FINITE]),
    ("momentum", [0.0, 0.999999], [1.0, -1e-12, *NOT_FINITE]),
    ("weight_decay", [0.0, 100.0], [-1e-12, *NOT_FINITE]),
    ("stragglers_fraction", [0.0, 1.0], [-1e-12, 1.000001, *NOT_FINITE]),
    ("hold_out", [0.0, 0.999999], [1.0, -1e-12, *NOT_FINITE]),
    ("seed", [0, 2**32 - 1], [-1]),
    ("repeat_num", [0, 7], [-1, 1.5, "a", True, None]),
    ("server_device", ["cpu"], ["tpu", "meta", "cuda:-2", "", "CPU"]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, good, _ in RULES for value in good])
def test_a_value_on_the_border_is_accepted(name, value):
    assert check(base(**{name: value})) is None


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, _, bad in RULES for value in bad])
def test_a_value_beyond_the_border_is_refused_by_its_name_and_value(name, value):
    with pytest.raises(UserError, match=rf"^{name}\b") as told:
        check(base(**{name: value}))
    assert str(value) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "value"), [("num_cpus", value) for value in (0.0, -1.0, *NOT_FINITE)] + [("num_gpus", -0.1)]
)
def test_resources_beyond_the_border_are_refused(name, value):
    with pytest.raises(UserError, match=rf"^client_resources\.{name} must be finite"):
        check(base(**resources(**{name: value})))


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
    check(base(engine=on_ray(None), **resources(num_cpus=most)))
    check(base(engine=on_ray(None), **resources(num_cpus=0.5)))
    check(base(engine=on_ray("head:6379"), **too_many))  # a cluster may have more than this machine
    check(base(**too_many))  # engine=local takes none
    with pytest.raises(UserError, match=r"^client_resources\.num_cpus must be at most .*engine=local"):
        check(base(engine=on_ray(None), **too_many))
    with pytest.raises(UserError, match=r"^client_resources\.num_gpus must be at most"):
        check(base(engine=on_ray(None), **resources(num_gpus=torch.cuda.device_count() + 0.5)))


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match=f"^server_device={device} needs a GPU.*server_device=cpu"):
            check(base(server_device=device))


def test_a_gpu_number_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check(base(server_device="cuda:1"))
    with pytest.raises(UserError, match="torch finds 2 GPUs"):
        check(base(server_device="cuda:2"))


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
        check(base(**{name: 1}))
    assert remedy in str(told.value)


def test_repeat_num_without_a_plus_is_explained():
    assert "+repeat_num=range(5)" in str(unknown("repeat_num"))


def test_the_check_changes_nothing():
    config = base()
    before = copy.deepcopy(config)
    check(config)
    assert config == before


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
    assert check_target("model", node) is None


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({}, r"model\._target_ must name a function or class .*None"),
        ({"_target_": 3}, r"model\._target_ must name a function or class .*3"),
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
        check_target("model", node)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("group", ["dataset", "partition", "model", "strategy", "protocol", "engine"])
def test_every_group_is_checked(group):
    config = base()
    config[group] = {**config[group], "no_such_key": 1}
    with pytest.raises(UserError, match=rf"^{group}\.no_such_key is unknown"):
        check(config)


def test_a_seed_beyond_32_bits_is_refused():
    with pytest.raises(UserError, match=r"^seed"):
        check(base(seed=2**32))


def test_mixed_precision_needs_clients_on_a_gpu():
    with pytest.raises(UserError, match="mixed_precision=true needs clients on a GPU"):
        check(composed("mixed_precision=true", "engine=local"))
    with pytest.raises(UserError, match="mixed_precision=true needs clients on a GPU"):
        check(composed("mixed_precision=true", "engine=ray", "server_device=cpu", "client_resources.num_cpus=1"))


@pytest.mark.parametrize(
    ("override", "rule"),
    [("schedule.name=step", "constant or cosine"), ("schedule.final=1.1", "between 0 and 1")],
)
def test_a_schedule_out_of_its_rules_is_refused(override, rule):
    with pytest.raises(UserError, match=rule):
        check(composed(override, "engine=local"))


def test_a_package_that_a_targets_module_lacks_is_named_however_deep_the_module_is(tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "mine.py").write_text("import no_such_package.part\n\ndef model(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"the package no_such_package is not installed; .*pip install no_such_package"):
        check_target("model", {"_target_": "deep.er.mine.model"})
