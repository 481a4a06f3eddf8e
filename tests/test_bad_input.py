"""A mistake in the settings or the files: one line that says what to do, exit status 2, nothing computed."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SMALL = ("dataset=digits", "engine=local", "num_rounds=1")
# A data set that is not there: had anything been loaded before the setting was checked, the line would say MNIST.
NO_DATA = ("dataset=mnist", "data_dir=nowhere", "engine=local", "num_rounds=1")


@pytest.fixture
def refused(fedprox, tmp_path, no_network):
    """Return a function that runs a command and returns its error line, after checking what holds for all."""

    def run(*arguments: str) -> str:
        ended = fedprox(*arguments)
        return the_line(ended, tmp_path)

    return run


@pytest.fixture
def no_network(monkeypatch):
    """Point torchvision's mirrors at a port of this machine where nothing listens."""
    from torchvision.datasets.mnist import MNIST

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


def the_line(ended, folder: Path) -> str:
    """Return the error line of a refused command; there is one line, status 2, and no run."""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    assert ended.status == 2
    assert [path for path in folder.rglob("*") if path.name in ("metrics.csv", "run.json")] == []
    return ended.err.removeprefix("error: ").rstrip("\n")


def assert_says(line: str, words: tuple[str, ...]) -> None:
    assert [word for word in words if word not in line] == []


def cases(rows: dict[str, tuple]) -> list:
    """Return a table's rows as parameters with their names as test ids."""
    return [pytest.param(*row, id=name) for name, row in rows.items()]


# id: (arguments, the words that matter: setting, rule, value, remedy)
SETTINGS = {
    "misspelt": (["lerning_rate=1"], ["lerning_rate is no setting", "did you mean learning_rate?"]),
    "misspelt with a plus": (["+num_round=1"], ["num_round is no setting", "did you mean num_rounds?"]),
    "unknown": (["unknown=1"], ["unknown is no setting", "--help"]),
    "unknown with a plus": (["+unknown=1"], ["unknown is no setting", "--help"]),
    "unknown with two": (["++unknown=1"], ["unknown is no setting", "--help"]),
    "unknown in a group": (["client_resources.cpus=1"], ["client_resources.cpus"]),
    "unknown for a target": (["+strategy.eta=1"], ["strategy.eta is unknown", "takes fraction_train"]),
    "mu of letters": (["mu=large"], ["mu=large", "'large'", "Float"]),
    "mu empty": (["mu="], ["mu=", "''", "Float"]),
    "mu null": (["mu=null"], ["mu=null", "not Optional"]),
    "mu below 0": (["mu=-1"], ["mu must be finite and >= 0", "got -1", "--config-name fedavg"]),
    "mu nan": (["mu=nan"], ["mu must be finite and >= 0", "got nan", "--config-name fedavg"]),
    "mu infinite": (["mu=inf"], ["mu must be finite and >= 0", "got inf", "--config-name fedavg"]),
    "mu minus infinite": (["mu=-inf"], ["mu must be finite and >= 0", "got -inf"]),
    "fraction below 0": (["stragglers_fraction=-0.1"], ["stragglers_fraction must be", "between 0 and 1", "-0.1"]),
    "fraction above 1": (["stragglers_fraction=1.1"], ["stragglers_fraction must be", "between 0 and 1", "1.1"]),
    "fraction nan": (["stragglers_fraction=nan"], ["stragglers_fraction must be", "between 0 and 1", "nan"]),
    "cohort above clients": (
        ["num_clients=20", "clients_per_round=21"],
        ["clients_per_round must be at most num_clients=20", "got 21", "lower it or raise num_clients"],
    ),
    "cohort of 0": (["clients_per_round=0"], ["clients_per_round must be an integer >= 1", "got 0"]),
    "clients 0": (["num_clients=0"], ["num_clients must be an integer >= 1", "got 0"]),
    "rounds 0": (["num_rounds=0"], ["num_rounds must be an integer >= 1", "got 0"]),
    "rounds below 0": (["num_rounds=-3"], ["num_rounds must be an integer >= 1", "got -3"]),
    "rounds a fraction": (["num_rounds=1.5"], ["num_rounds=1.5", "'1.5'", "Integer"]),
    "epochs 0": (["num_epochs=0"], ["num_epochs must be an integer >= 1", "got 0"]),
    "epochs below 0": (["num_epochs=-3"], ["num_epochs must be an integer >= 1", "got -3"]),
    "batch 0": (["batch_size=0"], ["batch_size must be an integer >= 1", "got 0"]),
    "batch below 0": (["batch_size=-3"], ["batch_size must be an integer >= 1", "got -3"]),
    "learning rate 0": (["learning_rate=0"], ["learning_rate must be finite and > 0", "got 0"]),
    "learning rate below 0": (["learning_rate=-0.1"], ["learning_rate must be finite and > 0", "got -0.1"]),
    "learning rate infinite": (["learning_rate=inf"], ["learning_rate must be finite and > 0", "got inf"]),
    "momentum 1": (["momentum=1"], ["momentum must be finite", "below 1", "got 1"]),
    "weight decay below 0": (["weight_decay=-1"], ["weight_decay must be finite and >= 0", "got -1"]),
    "hold out 1": (["hold_out=1"], ["hold_out must be finite", "below 1", "got 1"]),
    "seed below 0": (["seed=-1"], ["seed must be an integer >= 0", "got -1"]),
    "seed a fraction": (["seed=1.5"], ["seed=1.5", "Integer"]),
    "repetition below 0": (["+repeat_num=-1"], ["repeat_num must be an integer >= 0", "got -1"]),
    "repetition of letters": (["+repeat_num=often"], ["repeat_num must be an integer >= 0", "got often"]),
    "repetition without plus": (["repeat_num=1"], ["repeat_num is added with a plus", "+repeat_num=3"]),
    "device unknown": (["server_device=tpu"], ["server_device must be cpu, cuda", "got 'tpu'"]),
    "epoch 1 with flower": (
        ["num_epochs=1", "protocol=flower"],
        ["protocol=flower needs num_epochs >= 2", "got num_epochs=1", "protocol=paper", "stragglers_fraction=0"],
    ),
    "CPUs beyond the machine": (
        ["engine=ray", "client_resources.num_cpus=100000"],
        [
            "client_resources.num_cpus must be at most",
            f" {os.cpu_count()}, ",
            "got 100000",
            "lower it",
            "use engine=local",
        ],
    ),
    "GPUs beyond the machine": (
        ["engine=ray", "client_resources.num_gpus=999"],
        ["client_resources.num_gpus must be at most", f" {torch.cuda.device_count()}, ", "got 999", "lower it"],
    ),
    "CPUs 0": (["client_resources.num_cpus=0"], ["client_resources.num_cpus must be finite and > 0", "got 0"]),
    "CPUs of letters": (["client_resources.num_cpus=all"], ["client_resources.num_cpus=all", "Float"]),
    "GPUs below 0": (["client_resources.num_gpus=-1"], ["client_resources.num_gpus must be", ">= 0", "got -1"]),
    "target not there": (
        ["strategy._target_=flwr.serverapp.strategy.FedAdm"],
        ["strategy._target_=flwr.serverapp.strategy.FedAdm", "cannot be loaded", "no attribute 'FedAdm'"],
    ),
    "target's module not there": (
        ["strategy._target_=no_such_package.Mine"],
        ["strategy._target_=no_such_package.Mine", "cannot be loaded", "No module named 'no_such_package'"],
    ),
    "target a number": (["strategy._target_=5"], ["strategy._target_ must name a function or class", "got 5"]),
    "target's argument of a wrong type": (
        ["partition.sigma=large"],
        ["partition.sigma must be of type float", "'large'"],
    ),
    "strength of letters": (
        ["feature_skew=noise", "feature_skew.strength=much"],
        ["feature_skew.strength must be of type float", "'much'"],
    ),
    "strength of no skew": (["+feature_skew.strength=1"], ["feature_skew.strength is unknown"]),
    "sizes a number": (["partition=iid", "partition.sizes=3"], ["partition.sizes must be of type str", "got 3"]),
    "sweep without --multirun": (["mu=0,1"], ["mu=0,1", "--multirun"]),
    "word without a value": (["mu"], ["'mu'", "EQUAL"]),
    "bracket not closed": (["mu=[1"], ["mu=[1"]),
    "range not closed": (["--multirun", "mu=range(3"], ["mu=range(3"]),
    "setting taken away": (["~mu"], ["mu"]),
    "reference to nothing": (["mu=${nothing}"], ["mu", "nothing"]),
    "reference to a variable that is not set": (["mu=${oc.env:NOT_SET_ANYWHERE}"], ["mu", "NOT_SET_ANYWHERE"]),
    "reference of a wrong type": (["num_rounds=${mu}"], ["num_rounds", "Integer"]),
    "two values of one group": (["+experiment=digits"], ["experiment"]),
    "sampling unknown": (["sampling=nope"], ["sampling must be uniform or proportional", "got nope"]),
    "batch statistics unknown": (
        ["batch_statistics=own"],
        ["batch_statistics must be averaged or local", "got own"],
    ),
    "solver unknown": (["solver=nope"], ["solver must be auto, reference or cohort", "got nope"]),
    "evaluated every 0 rounds": (["evaluation.every=0"], ["evaluation.every must be an integer >= 1", "got 0"]),
    "evaluated every half": (["evaluation.every=0.5"], ["evaluation.every must be an integer >= 1", "got 0.5"]),
    "evaluation a word": (["evaluation.every=often"], ["evaluation.every must be an integer >= 1", "got often"]),
    "evaluation's name": (["evaluation.name=nope"], ["evaluation.name must be server or clients", "got nope"]),
    "unknown in evaluation": (
        ["+evaluation.often=1"],
        ["evaluation.often is unknown", "name, every, per_class and per_client"],
    ),
    "per class a number": (["evaluation.per_class=1"], ["evaluation.per_class must be true or false", "got 1"]),
    "per client null": (["evaluation.per_client=null"], ["evaluation.per_client must be true or false", "got None"]),
    "adaptive mu without the loss": (
        ["adaptive_mu.enabled=true"],
        ["adaptive_mu.enabled=true", "training loss of all clients", "evaluation=server", "use evaluation=clients"],
    ),
    "adaptive mu with gaps": (
        ["adaptive_mu.enabled=true", "evaluation=clients", "evaluation.every=2"],
        ["adaptive_mu.enabled=true", "after every round", "evaluation.every=2", "use evaluation=clients"],
    ),
    "adaptive mu's step 0": (["adaptive_mu.step=0"], ["adaptive_mu.step must be finite and > 0", "got 0"]),
    "adaptive mu's step nan": (["adaptive_mu.step=nan"], ["adaptive_mu.step must be finite and > 0", "got nan"]),
    "adaptive mu from below 0": (["adaptive_mu.initial=-1"], ["adaptive_mu.initial must be", ">= 0", "got -1"]),
    "adaptive mu's patience 0": (["adaptive_mu.patience=0"], ["adaptive_mu.patience must be an integer >= 1", "got 0"]),
    "unknown in adaptive mu": (["adaptive_mu.rate=1"], ["adaptive_mu.rate"]),
    "authors sample uniformly": (
        ["protocol=authors", "sampling=proportional"],
        ["sampling=proportional has no counterpart in the authors' program", "use it with protocol=paper"],
    ),
    "authors' epoch 1": (
        ["protocol=authors", "num_epochs=1"],
        ["protocol=authors needs num_epochs >= 2", "got num_epochs=1", "protocol=paper", "stragglers_fraction=0"],
    ),
    "threads of letters": (["engine.num_threads=all"], ["engine.num_threads must be of type int", "'all'"]),
    "logger with a wrong mode": (
        ["logger=wandb", "logger.wandb.mode=often"],
        ["logger.wandb.mode must be online, offline, disabled or null", "got often"],
    ),
    "logger's setting of a wrong type": (
        ["logger=mlflow", "logger.mlflow.experiment=5"],
        ["logger.mlflow.experiment must be of type str", "got 5"],
    ),
    "unknown for a logger": (["logger=tensorboard", "+logger.tensorboard.flush=1"], ["logger.tensorboard.flush is"]),
    "logger's setting without the logger": (["logger.wandb.mode=offline"], ["logger.wandb"]),
    "logger a number": (["+logger.mine=3"], ["logger.mine must be the settings of a logger", "got 3"]),
    "logger not there": (["+logger.mine._target_=no_such.Logger"], ["logger.mine._target_=no_such.Logger", "loaded"]),
    "evaluation.every taken away": (["~evaluation.every"], ["evaluation.every"]),
}


@pytest.mark.parametrize(("arguments", "words"), cases(SETTINGS))
def test_a_wrong_setting_is_told_in_one_line_before_anything_is_loaded(refused, arguments, words):
    base = [setting for setting in NO_DATA if setting.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    assert_says(refused(*arguments, *base), words)


@pytest.mark.parametrize(
    ("group", "one_of_them"),
    [
        ("dataset", "synthetic_1_1"),
        ("model", "logistic"),
        ("engine", "local"),
        ("strategy", "fedavg"),
        ("partition", "power_law"),
        ("feature_skew", "rotation"),
        ("protocol", "paper"),
        ("experiment", "paper_mnist"),
        ("evaluation", "clients"),
        ("logger", "tensorboard"),
    ],
)
def test_an_unknown_choice_is_told_with_all_there_are(refused, group, one_of_them):
    line = refused(f"{group}=no_such_thing", *(setting for setting in NO_DATA if not setting.startswith(group)))
    assert_says(line, (f"{group}/no_such_thing", f"Available options in '{group}'", one_of_them))


def test_an_unknown_config_name_is_told(refused):
    assert_says(refused("--config-name", "fedprocks", *NO_DATA), ("config 'fedprocks'", "fedavg"))


def test_an_option_that_does_not_exist_is_named_in_the_last_line(fedprox):
    ended = fedprox("--nonsense")
    assert ended.status == 2
    assert "--nonsense" in ended.err.splitlines()[-1]


def test_an_option_between_overrides_is_taken(fedprox):
    ended = fedprox("dataset=digits", "--config-name", "fedavg", "mu=-1")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "mu must be" in ended.err


BAD_FIRST_OR_LAST = {
    "last of three": (["mu=0,1,-1"], ["mu must be finite and >= 0", "got -1"]),
    "first of three": (["mu=-1,0,1"], ["mu must be finite and >= 0", "got -1"]),
    "second setting": (["mu=0,1", "stragglers_fraction=0.1,7"], ["stragglers_fraction", "between 0 and 1", "7"]),
    "wrong type": (["mu=0,large"], ["mu=large", "Float"]),
    "unknown choice": (["model=logistic,no_such_model"], ["model/no_such_model", "logistic"]),
    "outside the sweep": (["mu=0,1", "learning_rate=0"], ["learning_rate must be finite and > 0", "got 0"]),
    "misspelt and swept": (["learn_rate=0.1,1"], ["learn_rate is no setting", "did you mean learning_rate?"]),
    "range of repetitions below 0": (["+repeat_num=range(-1,2)"], ["repeat_num must be an integer >= 0", "got -1"]),
    "target not there": (["strategy._target_=flwr.serverapp.strategy.FedAdam,no.such"], ["strategy._target_=no.such"]),
}


@pytest.mark.parametrize(("arguments", "words"), cases(BAD_FIRST_OR_LAST))
def test_one_bad_value_in_a_sweep_stops_it_before_its_first_job(refused, tmp_path, arguments, words):
    assert_says(refused("--multirun", *arguments, *SMALL), words)
    assert list(tmp_path.glob("sweep/*/.hydra")) == []


# What only the data can tell.
DATA = {
    # Class 8 of the digits has 174 - 34 = 140 training examples, the fewest; the power law gives 5 of it to every
    # client u with u mod 10 in (7, 8), 28 clients, so the 29th of them, client 140 + 7, is the first without.
    "clients beyond a power law": (
        ["num_clients=1000000"],
        ["num_clients must be at most 140", "got 1000000", "fewer"],
    ),
    "clients beyond IID": (["partition=iid", "num_clients=1443"], ["num_clients must be at most 1442", "got 1443"]),
    "clients beyond shards": (["partition=shards", "num_clients=722"], ["num_clients must be at most 721", "got 722"]),
    "clients beyond a Dirichlet minimum": (
        ["partition=dirichlet", "num_clients=145"],
        ["num_clients must be at most 144", "got 145", "ask for fewer clients", "lower min_examples=10"],
    ),
    "alpha 0": (
        ["partition=dirichlet", "partition.alpha=0", "num_clients=20"],
        ["alpha must be between 0.01 and 1000", "got 0", "0.1 is strong label skew"],
    ),
    "sizes unknown": (
        ["partition=iid", "partition.sizes=gamma", "num_clients=20"],
        ["sizes must be equal, lognormal or zipf", "got gamma"],
    ),
    "clients beyond a pathological partition": (
        ["partition=pathological", "num_clients=722"],
        ["num_clients must be at most 721", "got 722", "lower classes_per_client"],
    ),
    "classes per client beyond all": (
        ["partition=pathological", "partition.classes_per_client=11", "num_clients=20"],
        ["classes_per_client must be between 1 and 10", "got 11"],
    ),
    "strength of a rotation": (
        ["feature_skew=rotation", "feature_skew.strength=181", "partition=iid", "num_clients=20"],
        ["feature_skew.strength must be between 0 and 180", "got 181", "degrees"],
    ),
    "feature skew without images": (
        ["feature_skew=noise", "dataset=synthetic_1_1"],
        ["feature_skew must be none unless the data are images as uint8", "(60,)", "set feature_skew=none"],
    ),
    "partition of divided data": (
        ["dataset=synthetic_1_1", "partition=iid"],
        ["dataset=synthetic_1_1 comes divided into clients", "leave partition= out"],
    ),
    "natural partition of undivided data": (
        ["partition=natural"],
        ["partition=natural is for data sets that come divided", "partition=power_law, iid or shards"],
    ),
    "convolutions on vectors": (
        ["dataset=synthetic_1_1", "model=cnn"],
        ["model=cnn needs images", "(60,)", "model=logistic"],
    ),
    "per client without their own examples": (
        ["evaluation.per_client=true", "hold_out=0"],
        ["evaluation.per_client=true", "held-out", "dataset=digits", "hold_out=0", "raise hold_out"],
    ),
    "target's argument out of range": (["partition.sigma=-1"], ["sigma must be between 0 and", "got -1"]),
    "strategy that is none": (["strategy._target_=os.getcwd"], ["strategy._target_=os.getcwd"]),
    "dataset that is none": (["dataset._target_=os.getcwd"], ["dataset._target_=os.getcwd"]),
    "protocol that is none": (["protocol._target_=os.getcwd"], ["protocol._target_=os.getcwd"]),
    "small images for the tutorial's CNN": (["model=cnn_tutorial"], ["16 x 16 pixels", "(8, 8)", "model=logistic"]),
    "groups that do not divide": (["model=resnet18_gn", "model.groups=3"], ["model.groups must divide", "got 3"]),
    "batch norm with a batch of one": (
        # 8 x 8 images are one pixel when they reach the last layers.
        ["model=resnet18_bn", "batch_size=1"],
        [
            "batch_size=1 leaves one example",
            "clients, the first of them client 0",
            "choose another batch_size",
            "resnet18_gn",
        ],
    ),
    "model without our arguments": (
        ["model._target_=torch.nn.Linear"],
        ["model._target_=torch.nn.Linear", "with input_shape and num_classes", "in_features", "README"],
    ),
    "model of any arguments that refuses ours": (
        ["model._target_=torch.nn.LSTM"],
        ["model._target_=torch.nn.LSTM", "with input_shape and num_classes", "'input_shape'", "rnn.py, line", "README"],
    ),
    "model that is none": (
        ["model._target_=collections.UserDict"],
        ["model._target_=collections.UserDict", "must make a Module"],
    ),
}


@pytest.mark.parametrize(("arguments", "words"), cases(DATA))
def test_what_does_not_fit_the_data_is_told_in_one_line_before_the_first_round(refused, arguments, words):
    base = [setting for setting in SMALL if setting.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    assert_says(refused(*arguments, *base), words)


# Data and models of the user's own, as a module beside the working directory.
OWN = """
import json
import numpy as np
from fedprox.data.federated import ClientIndex, FederatedData, LabelledData, authors_ids

def make(dtype, client_ids=()):
    x = np.arange(120).reshape(40, 3).astype(dtype)
    data = LabelledData(
        features=x, labels=np.arange(40) % 2, test_features=x[:0], test_labels=np.arange(0),
        num_classes=2, mean=np.zeros((), np.float32), std=np.ones((), np.float32),
    )
    parts = [np.arange(4 * k, 4 * k + 4) for k in range(10)]
    train, held_out = ([part[piece] for part in parts] for piece in (slice(3), slice(3, None)))
    return FederatedData(data, ClientIndex.from_lists(train), ClientIndex.from_lists(held_out), client_ids)

def numbered():
    return make(np.float32)

def unsorted():
    return make(np.float32, authors_ids(10)[::-1])

def named():
    return make(np.float32, authors_ids(10))

def tokens():
    return make(np.int64, authors_ids(10))

def no_engine(side, num_threads):
    return side
"""
LEAF = {
    "users": ["a", "b"],
    "num_samples": [1, 1],
    "user_data": {"a": {"x": [[0.5, 1.5]], "y": [0]}, "b": {"x": [[1.0, 2.0]], "y": [1]}},
}
ON_OWN = ("dataset=custom", "partition=natural", "num_clients=null", "clients_per_round=2", "num_rounds=1")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Make the user's module importable, and put two clients' data in LEAF's format under `two`."""
    (tmp_path / "own_data.py").write_text(OWN)
    for part in ("train", "test"):
        (tmp_path / "two" / part).mkdir(parents=True)
        (tmp_path / "two" / part / "data.json").write_text(json.dumps(LEAF))
    monkeypatch.syspath_prepend(tmp_path)


OWN_DATA = {
    "authors without ids": (
        ["dataset._target_=own_data.numbered", "protocol=authors"],
        ["protocol=authors needs clients in the order of their ids", "client_ids", "use protocol=paper"],
    ),
    "authors with ids in another order": (
        ["dataset._target_=own_data.unsorted", "protocol=authors"],
        ["protocol=authors needs clients in the order of their ids", "sorted client_ids"],
    ),
    "tokens for logistic regression": (
        ["dataset._target_=own_data.tokens"],
        ["int64", "(3,)", "choose another model than fedprox.models.logistic"],
    ),
    "tokens for the reference solver too": (
        ["dataset._target_=own_data.tokens", "solver=reference", "evaluation=clients"],
        ["int64", "(3,)", "choose another model than fedprox.models.logistic"],
    ),
    "more clients a round than there are": (
        ["dataset._target_=own_data.named", "clients_per_round=11"],
        ["clients_per_round must be at most the data set's 10 clients", "got 11", "lower it"],
    ),
    "another number of clients than the files'": (
        ["dataset=leaf", "dataset.path=two", "num_clients=50"],
        ["num_clients must be the data set's own 2", "got 50", "set num_clients=null"],
    ),
    "LEAF's folder not there": (["dataset=leaf", "dataset.path=nowhere"], ["dataset.path", "nowhere", "train"]),
    "LEAF's folder not named": (["dataset=leaf"], ["dataset.path"]),
    "pictures not there": (
        ["dataset=image_folder", "dataset.path=nowhere", "partition=iid", "num_clients=2"],
        ["dataset.path=nowhere is not there", "name a folder of pictures or a .zip file"],
    ),
    "pictures' folder not named": (["dataset=image_folder"], ["dataset.path"]),
    "engine that is none": (
        ["dataset._target_=own_data.named", "engine._target_=own_data.no_engine"],
        ["engine._target_=own_data.no_engine must make a", "Engine", "made a ClientSide"],
    ),
    "FedAdam with a simple mean": (
        [
            "dataset._target_=own_data.named",
            "sampling=proportional",
            "strategy._target_=flwr.serverapp.strategy.FedAdam",
        ],
        ["sampling=proportional goes with a simple mean", "strategy=fedprox", "got FedAdam", "use sampling=uniform"],
    ),
    "FedDANE with the authors' protocol": (
        ["dataset._target_=own_data.named", "protocol=authors", "strategy=feddane"],
        ["strategy=feddane", "protocol=paper or flower"],
    ),
}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("arguments", "words"), cases(OWN_DATA))
def test_what_does_not_fit_the_users_own_data_is_told_in_one_line(refused, arguments, words):
    given = {argument.partition("=")[0] for argument in arguments}
    base = [setting for setting in ON_OWN if setting.partition("=")[0] not in given]
    assert_says(refused(*arguments, "engine=local", *base), words)


@pytest.mark.usefixtures("own")
def test_the_users_own_data_are_otherwise_accepted(fedprox):
    for arguments in (["protocol=paper"], ["protocol=authors"], ["strategy=feddane"], ["sampling=proportional"]):
        assert fedprox("dataset._target_=own_data.named", "engine=local", *ON_OWN, *arguments).status == 0


@pytest.mark.parametrize(
    "data", [("dataset=synthetic_1_1",), ("dataset=digits",), ("dataset=digits", "partition=iid")], ids=" ".join
)
def test_a_number_of_clients_is_needed_where_the_data_have_none_of_their_own(refused, data):
    line = refused(*data, "num_clients=null", "engine=local", "num_rounds=1")
    assert_says(line, ("num_clients must be",))


def test_initial_weights_that_are_not_this_models_are_told(refused, tmp_path):
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"1.weight": torch.zeros(3, 2), "1.bias": torch.zeros(3)}, tmp_path / "other.safetensors")
    remedy = ("name a model.safetensors of the same model", "default or zeros")
    for file, words in {
        "nowhere.safetensors": ("model.init=nowhere.safetensors",),
        "text.safetensors": ("model.init=text.safetensors",),
        "other.safetensors": ("model.init=other.safetensors", "size mismatch for 1.weight"),
        ".": ("model.init=.",),
    }.items():
        assert_says(refused(*SMALL, f"model.init={file}"), (*words, *remedy))


@pytest.mark.parametrize("value", ["5", "null"])
def test_initial_weights_that_are_no_name_are_told(refused, value):
    assert_says(refused(*SMALL, f"model.init={value}"), ("model.init",))


@pytest.mark.parametrize("value", ["0", "-2"])
def test_a_number_of_threads_below_1_is_told(refused, value):
    assert_says(refused(*SMALL, f"engine.num_threads={value}"), ("num_threads", ">= 1", f"got {value}"))


@pytest.mark.parametrize("num_clients", [140, 144, 721, 1442])
def test_the_largest_number_of_clients_that_an_error_names_is_accepted(fedprox, num_clients):
    partition = {140: "power_law", 144: "dirichlet", 721: "shards", 1442: "iid"}[num_clients]
    assert fedprox(*SMALL, f"partition={partition}", f"num_clients={num_clients}").status == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there, so server_device=cuda is no mistake")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none_is_told(refused, device):
    assert_says(refused(f"server_device={device}", *NO_DATA), (f"server_device={device}", "GPU", "server_device=cpu"))


def test_a_cluster_that_does_not_answer_is_told_within_ten_seconds(refused):
    start = time.monotonic()
    line = refused("dataset=digits", "engine.address=127.0.0.1:9", "num_rounds=1")
    assert_says(line, ("engine.address", "'127.0.0.1:9'", "ray start --head", "leave engine.address out"))
    assert time.monotonic() - start < 10


def test_an_address_without_a_port_is_told(refused):
    line = refused("dataset=digits", "engine.address=nonsense", "num_rounds=1")
    assert_says(line, ("engine.address", "'nonsense'"))


@pytest.mark.parametrize(
    ("mode", "setting"),
    [
        ([], "hydra.run.dir"),
        (["--multirun"], "hydra.sweep.dir"),
    ],
)
def test_a_run_directory_that_cannot_be_made_is_told(refused, tmp_path, mode, setting):
    (tmp_path / "file").write_text("a regular file")
    line = refused(*mode, *SMALL, f"{setting}=file/below")
    assert_says(line, ("file", "Not a directory", setting))


@pytest.fixture
def spoilt(data_dir, tmp_path, no_network):
    """Return a function that makes a data_dir of links to MNIST's files, with other content (None: none) for one."""

    def make(name: str, change) -> Path:
        raw = tmp_path / "spoilt" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for source in (data_dir / "MNIST" / "raw").glob("*-ubyte"):
            if source.name != name:
                (raw / source.name).symlink_to(source.resolve())
            elif (content := change(source.read_bytes())) is not None:
                (raw / name).write_bytes(content)
        return tmp_path / "spoilt"

    return make


FILE_CHANGES = {
    "missing": (lambda content: None, ["is not in", "dataset=digits"]),
    "truncated": (lambda content: content[: len(content) // 2], ["truncated or altered", "5,004 bytes", "delete it"]),
    "empty": (lambda content: b"", ["truncated or altered", "0 bytes", "delete it"]),
    "altered": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), ["altered", "10,008 bytes", "delete it"]),
}


@pytest.mark.parametrize(("change", "words"), cases(FILE_CHANGES))
def test_a_data_file_that_is_not_the_original_is_named(refused, spoilt, change, words):
    folder = spoilt("t10k-labels-idx1-ubyte", change)
    line = refused("engine=local", "num_rounds=1", f"data_dir={folder}")
    assert_says(line, ("t10k-labels-idx1-ubyte", str(folder / "MNIST" / "raw"), "data_dir=", *words))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mu=-1", *NO_DATA], ["mu must be finite and >= 0", "got -1"]),
        (["--multirun", "mu=0,-1", *SMALL], ["mu must be finite and >= 0", "got -1"]),
        (["num_clients=1000000", *SMALL], ["num_clients must be at most 140", "got 1000000"]),
    ],
    ids=["setting", "sweep", "data"],
)
def test_as_a_process_too_stderr_is_that_one_line_and_the_status_2(program, tmp_path, arguments, words):
    assert_says(the_line(program(*arguments), tmp_path), words)
