"""Settings that do not fit the data, and invalid data of the user's: one line, exit status 2."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedprox.experiment import data as data_assembly

SMALL = ("dataset=digits", "engine=local", "num_rounds=1")


# Found only when the data are loaded.
DATA = {
    # Class 8 of the digits has 174 - 34 = 140 training examples, the fewest; the power law gives 5 of it to every
    # client u with u mod 10 in (7, 8), 28 clients, so the 29th of them, client 140 + 7, is the first without.
    "clients beyond a power law": (
        ["num_clients=1000000"],
        ["num_clients must be at most 140", "got 1000000", "fewer"],
    ),
    "clients beyond IID": (["partition=iid", "num_clients=1443"], ["num_clients must be at most 1442", "got 1443"]),
    "clients beyond a Dirichlet minimum": (
        ["partition=dirichlet", "num_clients=145"],
        ["num_clients must be at most 144", "got 145", "ask for fewer clients", "lower min_examples=10"],
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
    "not a strategy": (["strategy._target_=os.getcwd"], ["strategy._target_=os.getcwd"]),
    "small images for the tutorial's CNN": (["model=cnn_tutorial"], ["16 x 16 pixels", "(8, 8)", "model=logistic"]),
    "batch norm with a batch of one": (
        # 8 x 8 images are one pixel when they reach the last layers.
        ["model=resnet18_bn", "batch_size=1"],
        [
            "batch_size=1 leaves one example",
            "clients, such as client 0",
            "choose another batch_size",
            "resnet18_gn",
        ],
    ),
    "model without our arguments": (
        ["model._target_=torch.nn.Linear"],
        ["model._target_=torch.nn.Linear needs in_features", "+model.in_features=<value>"],
    ),
    "model of any arguments that refuses ours": (
        ["model._target_=torch.nn.LSTM"],
        [
            "model._target_=torch.nn.LSTM",
            "must accept (input_shape, num_classes)",
            "'input_size'",
            "rnn.py, line",
            "docs/extending.md",
        ],
    ),
    "not a model": (
        ["model._target_=collections.UserDict"],
        ["model._target_=collections.UserDict", "must return Module"],
    ),
}


@pytest.mark.parametrize(("arguments", "words"), DATA.values(), ids=DATA)
def test_settings_that_do_not_fit_the_data_are_refused_before_the_first_round(refused, arguments, words):
    base = [setting for setting in SMALL if setting.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    refused(*arguments, *base, says=words)


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

def named():
    return make(np.float32, authors_ids(10))

def tokens():
    return make(np.int64, authors_ids(10))

def counted_from_one():
    data = make(np.float32).examples
    return LabelledData(data.features, data.labels + 1, data.features[:2], [1, 2], 2, 0, 1)

def beyond():
    data = make(np.float32)
    return FederatedData(data.examples, [[0, 1], [2, 40]], [[3], [4]])

def whole():
    data = make(np.float32).examples
    return LabelledData(data.features.tolist(), data.labels.tolist(), data.features[:2].tolist(), [0, 1], 2, 0.0, 9.0)

def changed_later():
    made = whole()
    made.labels[3] = 7
    return made

class Unchecked(LabelledData):
    def __post_init__(self):
        pass

def of_a_class_of_ones_own():
    x = np.zeros((4, 2), np.float32)
    return Unchecked(x, np.array([0, 1, 0, -1]), x, np.zeros(4, np.int64), 2, np.float32(0), np.float32(1))

def a_pair():
    return np.zeros((4, 2)), np.zeros(4)

def raising():
    raise RuntimeError("first\\nsecond \\x1b[31m <_io.BytesIO object at 0x7f747a5d7c90>")

def raising_nothing():
    raise Exception

def without_end():
    return without_end()

def too_large():
    return np.empty(10**15)

def setting_the_process():
    import os, torch
    torch.set_default_dtype(torch.float64)
    os.chdir("/")
    return whole()

def halves(labels, num_clients, rng):
    labels[:] = 0  # of the function's own copy
    half = len(labels) // 2
    return tuple(range(start, start + half) for start in (0, half))

def overlapping(labels, num_clients, rng):
    return [np.arange(3), np.arange(2, 5)]

def past_the_end(labels, num_clients, rng):
    return [np.arange(3), np.array([40])]

def of_one_client(labels, num_clients, rng):
    return [np.arange(3)]

def of_an_empty_client(labels, num_clients, rng):
    return [np.arange(3), []]

def of_masks(labels, num_clients, rng):
    return [labels == label for label in range(2)]

def of_a_table(labels, num_clients, rng):
    return {0: [1], 1: [2]}

def drawn():
    import random, torch
    x = np.random.normal(size=(40, 3)) + torch.rand(3).numpy() + random.random()
    return LabelledData(x, np.arange(40) % 2, x[:4], [0, 1, 0, 1], 2, 0.0, 1.0)

def at_random(labels, num_clients, rng):
    return np.array_split(np.random.permutation(len(labels)), num_clients)

def noisy(data, seed):
    import torch
    return stretched(data, seed, 1 + torch.rand(1).item())

def stretched(data, seed, factor):
    data.examples.features[:] *= factor  # in place
    return data

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
        ["protocol=authors needs clients that are sorted by id", "client_ids", "use protocol=paper"],
    ),
    "tokens for logistic regression": (
        ["dataset._target_=own_data.tokens"],
        ["int64", "(3,)", "choose another model than fedprox.models.logistic.logistic"],
    ),
    "more clients a round than there are": (
        ["dataset._target_=own_data.named", "clients_per_round=11"],
        ["clients_per_round must be at most the data set's 10 clients", "got 11", "lower it"],
    ),
    "another number of clients than the files'": (
        ["dataset=leaf", "dataset.path=two", "num_clients=50"],
        ["num_clients must be the data set's own 2", "got 50", "set num_clients=null"],
    ),
    "LEAF's folder not named": (["dataset=leaf"], ["dataset.path"]),
    "not an engine": (
        ["dataset._target_=own_data.named", "engine._target_=own_data.no_engine"],
        ["engine._target_=own_data.no_engine must return", "Engine", "got ClientSpec"],
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
@pytest.mark.parametrize(("arguments", "words"), OWN_DATA.values(), ids=OWN_DATA)
def test_settings_that_do_not_fit_the_users_data_are_refused(refused, arguments, words):
    given = {argument.partition("=")[0] for argument in arguments}
    base = [setting for setting in ON_OWN if setting.partition("=")[0] not in given]
    refused(*arguments, "engine=local", *base, says=words)


RAISING = {
    "counted_from_one": ["labels must be between 0 and num_classes - 1 = 1, got 2 in row 1", "subtract 1"],
    "beyond": ["train: client 1 holds example 40, but the examples are 0 to 39"],
    "changed_later": ["labels must be between 0 and num_classes - 1 = 1, got 7 in row 3"],
    "of_a_class_of_ones_own": ["labels must be between 0 and num_classes - 1 = 1, got -1 in row 3"],
    "a_pair": ["dataset._target_=own_data.a_pair must return LabelledData or FederatedData, got tuple"],
    "raising": [
        "own_data.raising failed with RuntimeError: first; second \\x1b[31m <_io.BytesIO object> (own_data.py:"
    ],
    "raising_nothing": ["own_data.raising_nothing failed with Exception (own_data.py:"],
    "without_end": ["own_data.without_end failed with RecursionError"],
    "too_large": ["out of memory"],
}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("function", "words"), RAISING.items(), ids=RAISING)
def test_a_users_function_that_does_not_return_data_is_refused(refused, function, words):
    partition = (
        ["partition=natural", "num_clients=null"] if function == "beyond" else ["partition=iid", "num_clients=2"]
    )
    own = ("dataset=custom", f"dataset._target_=own_data.{function}", "clients_per_round=2", "engine=local")
    refused(*own, *partition, says=words)


PARTITIONS = {
    "overlapping": ["overlapping: each example must belong to one client", "example 2", "client 0 and to client 1"],
    "past_the_end": ["past_the_end: client 1 holds example 40, but the examples are 0 to 39"],
    "of_one_client": ["of_one_client must return 2 arrays, one for each client, got 1"],
    "of_an_empty_client": ["of_an_empty_client must give every client an example, but client 1 has none"],
    "of_masks": ["of_masks: client 0 must be example numbers, got a mask of bool; give numpy.flatnonzero(mask)"],
    "of_a_table": ["of_a_table must be a list with an array of example numbers for each client, got a dict"],
}
BY_OWN = ("dataset=custom", "dataset._target_=own_data.whole", "partition=custom", "num_clients=2")
BY_OWN += ("clients_per_round=2", "engine=local", "num_rounds=1")


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("function", "words"), PARTITIONS.items(), ids=PARTITIONS)
def test_a_users_partition_is_checked(refused, function, words):
    refused(*BY_OWN, f"partition._target_=own_data.{function}", says=words)


@pytest.mark.usefixtures("own")
def test_a_users_partition_may_return_any_sequences_and_cannot_change_labels(fedprox, tmp_path):
    ended = fedprox(*BY_OWN, "partition._target_=own_data.halves", "evaluation.per_class=true")
    assert ended.status == 0, ended.err
    assert "no client has a training example of" not in ended.out  # as if all labels were 0


@pytest.mark.usefixtures("own")
def test_what_a_data_set_changes_for_the_whole_process_is_undone(fedprox, tmp_path):
    plain = ("dataset=custom", "partition=iid", "num_clients=2", "clients_per_round=2", "engine=local", "num_rounds=1")
    assert fedprox(*plain, "dataset._target_=own_data.setting_the_process").status == 0
    first = (tmp_path / "run" / "clients.csv").read_text()
    assert Path.cwd() == tmp_path
    assert fedprox(*plain, "dataset._target_=own_data.whole").status == 0
    assert (tmp_path / "run" / "clients.csv").read_text() == first


def forget_data() -> None:
    data_assembly._load.cache_clear()
    data_assembly._loaded.cache_clear()


@pytest.mark.usefixtures("own")
def test_what_functions_for_data_draw_from_the_global_generators_follows_from_the_seed(fedprox, tmp_path):
    own = ("dataset=custom", "dataset._target_=own_data.drawn", "partition=custom", "num_clients=4")
    own += ("partition._target_=own_data.at_random", "clients_per_round=2", "engine=local", "num_rounds=1")

    def fingerprint(*more: str) -> dict:
        forget_data()
        assert fedprox(*own, *more).status == 0
        return json.loads((tmp_path / "run" / "run.json").read_text())["fingerprint"]

    before = np.random.get_state()[1].tolist()
    first = fingerprint()
    assert fingerprint() == first
    assert np.random.get_state()[1].tolist() == before
    other = fingerprint("seed=1")
    assert (other["data"], other["partition"] != first["partition"]) == (first["data"], True)
    skewed = fingerprint("feature_skew._target_=own_data.noisy")
    assert skewed == fingerprint("feature_skew._target_=own_data.noisy")
    assert skewed != first


@pytest.mark.usefixtures("own")
def test_a_feature_skew_that_changes_arrays_in_place_changes_those_of_its_job_alone(fedprox, tmp_path):
    jobs = (*BY_OWN, "partition=iid", "feature_skew._target_=own_data.stretched")
    swept = fedprox("--multirun", *jobs, "+feature_skew.factor=3,1", "hydra.sweep.dir=sweep")
    assert swept.status == 0, swept.err
    forget_data()
    assert fedprox(*jobs, "+feature_skew.factor=1").status == 0
    tables = [(tmp_path / folder / "clients.csv").read_text() for folder in ("sweep/0", "sweep/1", "run")]
    assert tables[1] == tables[2] != tables[0]


@pytest.mark.usefixtures("own")
def test_jobs_that_share_their_data_log_them_once(fedprox):
    forget_data()
    jobs = ("--multirun", "mu=0,1", "dataset=custom", "dataset._target_=own_data.whole", "partition=iid")
    jobs += ("num_clients=2", "clients_per_round=2", "engine=local", "num_rounds=1")
    assert fedprox(*jobs).out.count("2 clients with 36 training examples") == 1
    others = fedprox(*jobs, "num_clients=2,4", "hydra.sweep.dir=other")
    assert others.out.count("clients with 36 training examples") == 3  # of 2, 4, 2, 4 clients; the last had 2


@pytest.mark.usefixtures("own")
def test_the_users_data_are_otherwise_accepted(fedprox):
    for arguments in (["protocol=paper"], ["protocol=authors"], ["strategy=feddane"], ["sampling=proportional"]):
        assert fedprox("dataset._target_=own_data.named", "engine=local", *ON_OWN, *arguments).status == 0


@pytest.mark.parametrize("data", [("dataset=synthetic_1_1",), ("dataset=digits",)], ids=" ".join)
def test_a_number_of_clients_is_required_unless_the_data_have_their_own(refused, data):
    refused(*data, "num_clients=null", "engine=local", "num_rounds=1", says=("num_clients must be",))


@pytest.mark.parametrize(("partition", "num_clients"), [("power_law", 140), ("iid", 1442)])
def test_the_largest_number_of_clients_that_an_error_names_is_accepted(fedprox, partition, num_clients):
    assert fedprox(*SMALL, f"partition={partition}", f"num_clients={num_clients}").status == 0
