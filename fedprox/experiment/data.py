"""Data of an experiment, from its configuration: loaded once, divided among clients, described in the log."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprox.channel.attacks import Attack
from fedprox.config.instantiate import build
from fedprox.config.schema import Config, Target
from fedprox.data import checks
from fedprox.data.facts import Facts
from fedprox.data.federated import ClientIndex, FederatedData, Integers, LabelledData, Task, divide
from fedprox.data.partitioners.natural import NUM_CLIENTS
from fedprox.data.sources import image_files
from fedprox.errors import UserError, printable, some_names
from fedprox.experiment.objective import check_task, loss
from fedprox.plan.malicious import malicious_clients
from fedprox.seeds import Stream, generator

_log = logging.getLogger("fedprox")
NATURAL = "fedprox.data.partitioners.natural.natural"
NATURAL_OR_IID = f"{NATURAL}_or_iid"
BY_CLASS = tuple(
    f"fedprox.data.partitioners.{name}.{name}" for name in ("dirichlet", "pathological", "power_law", "shards")
)
OWN = tuple(f"fedprox.data.sources.{name}." for name in ("own_files", "hugging_face"))  # they read the user's
LARGE = 1e4  # model input beyond this is seldom intended


def divided_data(config: Config) -> FederatedData:
    """Return the data divided among clients; jobs of one process with the same data settings share them."""
    dataset, name = config.dataset, data_name(config.dataset)
    task = loss(config).task
    data = _load(dataset, config.partition, config.feature_skew, config.num_clients, config.hold_out, config.seed, task)
    check_task(config, data.examples)
    if config.num_clients not in (None, data.num_clients):
        raise UserError(
            f"num_clients must be the data set's own {data.num_clients}, got {config.num_clients}; set num_clients=null"
        )
    if data.num_clients < (config.clients_per_round or 0):
        raise UserError(
            f"clients_per_round must be at most the data set's {data.num_clients} clients, "
            f"got {config.clients_per_round}; lower it"
        )
    if not len(data.examples.test_labels) and not len(data.held_out.indices):
        raise UserError(
            f"hold_out must be above 0 for dataset={name}, which has no test set of its own, got {config.hold_out}"
        )
    if config.evaluation.per_client and not len(data.held_out.indices):
        raise UserError(
            "evaluation.per_client=true measures every client on its own held-out examples, but no client of "
            f"dataset={name} has any with hold_out={config.hold_out:g}; raise hold_out"
        )
    if not data.train.sizes.all():
        raise UserError(
            f"every client must have training examples, but client {int(data.train.sizes.argmin())} of "
            f"dataset={name} has none; leave such clients out of FederatedData"
        )
    if (attack := attack_of(config)) and attack.changes_data:
        return attack.poison(data, attackers(config, attack, data.num_clients))
    return data


def attack_of(config: Config) -> Attack | None:
    """Return the attack of hostile clients; None if there are none."""
    made: Attack | None = build("attack", config.attack, Attack | None)
    return made


def attackers(config: Config, attack: Attack, num_clients: int) -> NDArray[np.bool_]:
    """Return which clients attack, shape (num_clients,)."""
    return malicious_clients(num_clients, attack.fraction, config.seed, config.repeat_num)


def _log_data(data: FederatedData, name: str) -> None:
    """Log a summary of the data, once for all jobs that share them."""
    _log.info("%s: %s", name, Facts.of(data))
    if data.examples.task != "classification":
        return
    counts = np.bincount(data.examples.classes[data.train.indices], minlength=data.examples.num_classes)
    if names := data.examples.class_names:
        sizes = f"{counts.min()} to {counts.max()} training examples each"
        _log.info("%s: %d classes: %s; %s", name, len(names), some_names(names), sizes)
    for line in _doubts(data, counts):
        _log.warning("%s: %s", name, line)


def _doubts(data: FederatedData, counts: Integers) -> Iterator[str]:
    """Yield warnings of what is allowed but seldom intended, given the number of training examples of each class."""
    labelled = data.examples
    if len(missing := np.flatnonzero(counts == 0)):
        names = labelled.class_names or tuple(map(str, range(labelled.num_classes)))
        yield (
            f"no client has a training example of {len(missing)} of {labelled.num_classes} classes: "
            f"{some_names(tuple(names[label] for label in missing))}; classes are numbered from 0 without gaps"
        )
    if labelled.features.dtype == np.float32:
        ends = np.array([labelled.features.min(), labelled.features.max()], dtype=np.float64)
        largest = np.abs(ends[:, None] - labelled.mean.ravel()).max() / labelled.std.min()
        if largest > LARGE:
            yield f"features reach {largest:.3g} times std from their mean; training may diverge; check mean and std"


@lru_cache(maxsize=1)
def _load(
    dataset: Target,
    partition: Target,
    feature_skew: Target,
    num_clients: int | None,
    hold_out: float,
    seed: int,
    task: Task | None,
) -> FederatedData:
    divided = _divided(dataset, partition, num_clients, hold_out, seed, task)
    if not feature_skew.is_ours:
        divided = copy.deepcopy(divided)  # it may change arrays in place, which later jobs share
    with _seeded(seed, 2):
        built = build("feature_skew", feature_skew, FederatedData, divided, seed)
    data: FederatedData = _rechecked(built, feature_skew)
    _log_data(data, printable(data_name(dataset)))
    return data


def _divided(
    dataset: Target, partition: Target, num_clients: int | None, hold_out: float, seed: int, task: Task | None
) -> FederatedData:
    loaded = _loaded(dataset, task)
    if isinstance(loaded, FederatedData):
        if partition.target not in (NATURAL, NATURAL_OR_IID):
            raise UserError(f"dataset={data_name(dataset)} comes divided into clients; leave partition= out")
        return loaded
    if partition.target == NATURAL_OR_IID:
        num_clients = num_clients or NUM_CLIENTS
        _log.info(
            "%s: no clients in the data: divided at random among %d; choose partition= and num_clients= for another "
            "division",
            *(printable(data_name(dataset)), num_clients),
        )
    if num_clients is None:
        raise UserError(
            f"num_clients must be an integer >= 1, because partition= divides dataset={data_name(dataset)}, "
            "got null; null is for data sets that come divided"
        )
    if loaded.task != "classification" and partition.target in BY_CLASS:
        raise UserError(
            f"partition={partition.name} divides examples by their classes, but the labels of "
            f"dataset={data_name(dataset)} are for {loaded.task}; use partition=iid"
        )
    rng = generator(seed, Stream.PARTITION)
    with _seeded(seed, 1):
        made = build("partition", partition, object, loaded.labels.copy(), num_clients, rng)
    parts = checks.parts(made, len(loaded.labels), num_clients, f"partition._target_={partition.target}")
    return divide(loaded, parts, rng, hold_out=hold_out)


def forget_data() -> None:
    """Free the data that jobs of this process share; functions and arrays of the user's may have changed meanwhile."""
    _load.cache_clear()
    _loaded.cache_clear()


@lru_cache(maxsize=1)
def _loaded(dataset: Target, task: Task | None) -> LabelledData | FederatedData:
    """Return the data set; jobs of one process that only divide it differently share it."""
    offered = {} if task in (None, "classification") else {"task": task}  # for data that can have several
    with _seeded(0, 0):  # not the run's seed: jobs share the data
        built = build("dataset", dataset, LabelledData | FederatedData, **offered)
    data: LabelledData | FederatedData = _rechecked(built, dataset)
    return data


def _rechecked(data: Any, made_by: Target) -> Any:
    """Return the result of a function, checked again: a user's function may have changed it after the first check."""
    if made_by.is_ours:
        return data
    if isinstance(data, LabelledData):
        return _rebuilt(data)
    return FederatedData(*map(_rebuilt, (data.examples, data.train, data.held_out, data.client_ids)))


def _rebuilt(made: Any) -> Any:
    """Return examples or an index as an object of our class: a derived class may have other checks."""
    kind = next((each for each in (LabelledData, ClientIndex) if isinstance(made, each)), None)
    return kind(**{field.name: getattr(made, field.name) for field in fields(kind)}) if kind else made


@contextmanager
def _seeded(seed: int, position: int) -> Iterator[None]:
    """Seed the global generators for a user's function.

    Args:
        seed: The run's, or 0.
        position: Of the function within the random stream.
    """
    from fedprox.solvers.generators import seeded  # here: it imports torch, which --help does not need

    with seeded(int(generator(seed, Stream.OWN_DATA, position).integers(2**32))):
        yield


def data_name(dataset: Target) -> str:
    """Return the data set's name: that of its function, with alpha and beta or the folder's or file's name."""
    name, given = dataset.name, dataset.arguments
    if name == "image_folder":  # a re-encoded copy of a known data set is another data set
        return f"{name}:{image_files.name_of(given['path'])}"
    if dataset.target.startswith(OWN):
        return f"{name}:{printable(Path(given['path']).stem)}"
    if name != "synthetic":
        return name
    return "synthetic_iid" if given.get("iid") else f"synthetic_{given['alpha']:g}_{given['beta']:g}"
