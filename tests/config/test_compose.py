"""Composition: every option composes, defaults and presets keep their promises, a sweep's values are listed."""

import math

import pytest
from omegaconf import OmegaConf

from fedprox.config.checks import check_targets
from fedprox.config.compose import CONF, compose, each_value_once
from fedprox.errors import UserError

OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml"))


def composed(*overrides: str, config_name: str = "config") -> dict:
    return compose(overrides, config_name).plain()


TEXT = {"shakespeare": ["dataset.path=there"], "sent140": ["dataset.path=there", "dataset.glove=there"]}
MANDATORY = {
    "partition=custom": ["partition._target_=fedprox.data.partitioners.shards.shards"],
    "dataset=custom": ["dataset._target_=fedprox.data.sources.digits.digits"],
    "loss=custom": ["loss._target_=torch.nn.HuberLoss"],
    "optimizer=custom": ["optimizer._target_=torch.optim.RMSprop"],
    "solver=custom": ["solver._target_=fedprox.solvers.reference.ReferenceSolver"],
    "partition=flower": ["partition.partitioner=IidPartitioner"],
    **{f"dataset={name}": ["dataset.path=there"] for name in ("csv", "npz", "parquet", "hugging_face", "leaf")},
    "dataset=image_folder": ["dataset.path=there"],
    "client=script": ["client.script=train.py"],
    "update=partial": ["update.names=[fc*]"],
    "privacy=client": ["privacy.epsilon=1", "privacy.delta=1e-3"],
    "devices=file": ["devices.path=there"],
    "arrival=deadline": ["arrival.seconds=30"],
    "model=lstm_sent140": ["dataset=sent140", *TEXT["sent140"]],
    **{f"dataset={name}": given for name, given in TEXT.items()},
    **{f"experiment=paper_{name}": given for name, given in TEXT.items()},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_passes_the_check(option):
    check_targets(compose([option, *MANDATORY.get(option, [])]))


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


def test_fedavg_differs_from_fedprox_only_in_strategy_and_mu():
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
        (["strategy._target_=my.FedProx"], 0.0),
        # The command overrides the default, with any strategy.
        (["mu=0.5"], 0.5),
        ([ADAM, "mu=1"], 1.0),
        # A data set's or a preset's own default is for FedProx.
        (["dataset=sent140"], 0.01),
        (["dataset=sent140", ADAM], 0.0),
        (["experiment=flare_cifar10"], 1e-5),
        (["experiment=flare_cifar10", "strategy=fedavg"], 0.0),
        (["experiment=flare_cifar10", ADAM, "mu=0.3"], 0.3),
    ],
)
def test_the_default_of_mu_is_0_except_with_fedprox_and_feddane(overrides, mu):
    config = composed(*overrides)
    assert config["mu"] == mu
    assert type(config["mu"]) is float


def test_the_configuration_fedavg_has_mu_0_with_any_preset():
    assert composed("experiment=flare_cifar10", config_name="fedavg")["mu"] == 0


def test_the_default_of_weight_decay_is_0_except_with_the_earlier_baselines_protocol():
    found = [composed(f"protocol={protocol}")["weight_decay"] for protocol in ("flower", "paper", "authors")]
    assert found == [0.001, 0.0, 0.0]
    assert composed("protocol._target_=my.Protocol")["weight_decay"] == 0.0
    assert composed("protocol=paper", "weight_decay=0.25")["weight_decay"] == 0.25


def test_a_reference_to_mu_is_a_number():
    assert composed("learning_rate=${mu}")["learning_rate"] == 1
    assert composed(ADAM, "adaptive_mu.initial=${mu}")["adaptive_mu"]["initial"] == 0


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
PROMISED = {  # by the names and comments of the presets
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
}


@pytest.mark.parametrize("experiment", PROMISED)
def test_every_preset_of_the_paper_sets_what_its_name_and_comment_promise(experiment):
    option = f"experiment={experiment}"
    config = OmegaConf.create(composed(option, *MANDATORY.get(option, [])))
    promised = PROMISED[experiment]
    assert {name: OmegaConf.select(config, name) for name in promised} == promised


def test_the_command_line_overrides_every_group():
    config = composed("experiment=paper_synthetic_1_1", "strategy=fedavg", "mu=0.5", "weight_decay=0.25")
    assert (config["mu"], config["weight_decay"]) == (0.5, 0.25)
    config = composed("dataset=digits", "num_clients=50", "protocol=paper", "num_epochs=3")
    assert (config["num_clients"], config["num_epochs"], config["weight_decay"]) == (50, 3, 0.0)


def test_the_engine_follows_the_resources_and_the_cohort():
    engine = composed("client_resources.num_cpus=1", "client_resources.num_gpus=0.5", "clients_per_round=3")["engine"]
    assert (engine["num_cpus"], engine["num_gpus"], engine["max_actors"]) == (1.0, 0.5, 3)


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


# The values of a sweep.


def test_without_a_sweep_there_is_one_configuration_with_the_given_overrides():
    given = ["mu=0.5", "dataset=digits", "data_dir='a, b'", "+repeat_num=3", "~experiment"]
    assert list(each_value_once(given)) == [given]
    assert list(each_value_once([])) == [[]]


def test_every_swept_value_occurs_once_beside_the_first_values_of_other_settings():
    # 1 + (2 - 1) + (3 - 1) = 4 configurations, where the sweep has 6 jobs.
    assert list(each_value_once(["mu=0,1", "dataset=digits", "seed=1,2,3"])) == [
        ["mu=0", "dataset=digits", "seed=1"],
        ["mu=1", "dataset=digits", "seed=1"],
        ["mu=0", "dataset=digits", "seed=2"],
        ["mu=0", "dataset=digits", "seed=3"],
    ]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("+repeat_num=range(3)", ["+repeat_num=0", "+repeat_num=1", "+repeat_num=2"]),
        ("repeat_num=range(1,6,2)", ["repeat_num=1", "repeat_num=3", "repeat_num=5"]),
        ("++mu=0,1", ["++mu=0", "++mu=1"]),
        ("mu=choice(0.5,2)", ["mu=0.5", "mu=2"]),
        ("data_dir='a b','c=d'", ["data_dir='a b'", "data_dir='c=d'"]),
        ("dataset=digits,synthetic_0.5_0.5", ["dataset=digits", "dataset=synthetic_0.5_0.5"]),
    ],
)
def test_every_form_of_a_sweep_is_expanded(override, values):
    assert list(each_value_once([override])) == [[value] for value in values]


@pytest.mark.parametrize("override", ["x=[1,2]", "x={a:1,b:2}", "data_dir='a,b'", "mu=1"])
def test_lists_and_quoted_commas_are_not_sweeps(override):
    assert list(each_value_once([override])) == [[override]]


def test_values_that_cannot_be_listed_are_left_to_the_sweeper():
    assert list(each_value_once(["mu=interval(0,1)", "seed=1,2", "dataset=digits"])) == [
        ["seed=1", "dataset=digits"],
        ["seed=2", "dataset=digits"],
    ]


@pytest.mark.parametrize("override", ["+repeat_num=range(0)", "mu=range(0,1,-1)", "model=glob(nothing*)"])
def test_a_sweep_without_a_value_is_refused_by_name(override):
    with pytest.raises(UserError) as error:
        list(each_value_once(["seed=1,2", override]))
    assert str(error.value).startswith(f"{override} gives no value")


def test_a_glob_over_a_group_is_a_sweep_too():
    assert list(each_value_once(["protocol=glob(*)"])) == [
        ["protocol=authors"],
        ["protocol=flower"],
        ["protocol=paper"],
    ]
