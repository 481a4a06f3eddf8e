"""The parts of an experiment, each from the checked configuration: data, model, plan, engine, evaluation."""

import inspect
import json
import logging
import pkgutil
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedprox.adaptive_mu import AdaptiveMu
from fedprox.arrays import to_params
from fedprox.batch_statistics import LocalStatistics
from fedprox.client_app import ClientSide
from fedprox.config import client_device
from fedprox.data import image_folder
from fedprox.data.augmentation import PadCropFlip
from fedprox.data.federated import FederatedData, LabelledData
from fedprox.data.partition import divide
from fedprox.errors import UserError, one_line
from fedprox.federation_metrics import FederationEvaluator, evaluator_on_test_set
from fedprox.model_checks import check_smallest_batch, check_takes_data
from fedprox.plan import CohortPlan, ExperimentProtocol
from fedprox.rounds import Engine, Evaluate
from fedprox.schedule import learning_rate_factor
from fedprox.seeds import Stream, generator
from fedprox.solvers.problem import SgdSettings

_log = logging.getLogger("fedprox")
NATURAL = "fedprox.data.partition.natural"


def build(config: Mapping[str, Any], group: str, kind: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what a group's `_target_` names, nested ones first, with its other keys and these arguments.

    Raises:
        UserError: If it cannot be called like that, or gives something that is not of the kind expected.
    """
    node = dict(config[group])
    name = f"{group}._target_={node['_target_']}"
    given = {key: value for key, value in node.items() if not key.startswith("_")}
    try:
        inspect.signature(pkgutil.resolve_name(node["_target_"])).bind(*args, **given, **kwargs)
        made = instantiate(node, *args, **kwargs, _convert_="all")
    except TypeError as error:
        raise _not_callable(name, kwargs, str(error)) from None
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, TypeError):  # of one that takes *args and **kwargs, it is found out only inside
            place = traceback.extract_tb(cause.__traceback__)[-1]
            told = f"{one_line(cause)} ({Path(place.filename).name}, line {place.lineno})"
            raise _not_callable(name, kwargs, told) from error
        raise
    if not isinstance(made, kind):
        expected = getattr(kind, "__name__", str(kind))
        article = "an" if expected[0] in "AEIOU" else "a"
        raise UserError(f"{name} must make {article} {expected}, but made a {type(made).__name__}")
    return made


def _not_callable(name: str, kwargs: Mapping[str, Any], why: str) -> UserError:
    asked = f", with {' and '.join(kwargs)}" if kwargs else ""
    return UserError(f"{name} cannot be called as it must be{asked}: {why}; the README shows what is expected")


def divided_data(config: Mapping[str, Any]) -> FederatedData:
    """Return the data divided among clients; jobs of one process that agree on it share it."""
    keys = ("dataset", "partition", "feature_skew", "num_clients", "hold_out", "seed")
    data = _load(json.dumps({key: config[key] for key in keys}, sort_keys=True))
    if config["num_clients"] not in (None, data.num_clients):
        raise UserError(
            f"num_clients must be the data set's own {data.num_clients}, got {config['num_clients']}; "
            "set num_clients=null"
        )
    if data.num_clients < config["clients_per_round"]:
        raise UserError(
            f"clients_per_round must be at most the data set's {data.num_clients} clients, "
            f"got {config['clients_per_round']}; lower it"
        )
    if not len(data.data.test_labels) and not len(data.held_out.indices):
        raise UserError(
            f"hold_out must be above 0 for dataset={data_name(config)}, which has no test set of its own, "
            f"got {config['hold_out']}"
        )
    if not data.train.sizes.all():
        raise UserError(
            f"every client must have training examples, and client {int(data.train.sizes.argmin())} of "
            f"dataset={data_name(config)} has none; leave such clients out of FederatedData"
        )
    _log.info("%s: %s", data_name(config), summary(data))
    return data


@lru_cache(maxsize=1)
def _load(key: str) -> FederatedData:
    config = json.loads(key)
    return build(config, "feature_skew", FederatedData, _divided(config), config["seed"])  # type: ignore[no-any-return]


def _divided(config: Mapping[str, Any]) -> FederatedData:
    loaded = _loaded(json.dumps(config["dataset"], sort_keys=True))
    if isinstance(loaded, FederatedData):
        if config["partition"]["_target_"] != NATURAL:
            raise UserError(f"dataset={data_name(config)} comes divided into clients; leave partition= out")
        return loaded
    if config["num_clients"] is None:
        raise UserError(
            f"num_clients must be an integer >= 1 where partition= divides the data (dataset={data_name(config)}), "
            "got null; null is for data sets that come divided"
        )
    rng = generator(config["seed"], Stream.PARTITION)
    parts = build(config, "partition", list, loaded.labels, config["num_clients"], rng)
    return divide(loaded, parts, rng, hold_out=config["hold_out"])


@lru_cache(maxsize=1)
def _loaded(node: str) -> LabelledData | FederatedData:
    """Return the data set; jobs of one process that only divide it differently share it."""
    return build({"dataset": json.loads(node)}, "dataset", LabelledData | FederatedData)  # type: ignore[no-any-return]


def data_name(config: Mapping[str, Any]) -> str:
    """Return the data set's name: that of the function that makes it, with alpha and beta or the folder's name."""
    node = config["dataset"]
    name = str(node["_target_"].rsplit(".", 1)[-1])
    if name == "image_folder":  # a re-encoded copy of a known data set must not be taken for it
        return f"{name}:{image_folder.name_of(node['path'])}"
    if name != "synthetic":
        return name
    return "synthetic_iid" if node.get("iid") else f"synthetic_{node['alpha']:g}_{node['beta']:g}"


def summary(data: FederatedData) -> str:
    """Return one line on who holds how much, and what nobody holds."""
    sizes = data.train.sizes
    return (
        f"{data.num_clients} clients with {sizes.sum()} training examples "
        f"(min {sizes.min()}, mean {sizes.mean():.1f}, deviation {sizes.std():.1f}, max {sizes.max()}), "
        f"{len(data.held_out.indices)} held out, {data.num_left_over} left over; "
        f"tested on {len(data.data.test_labels) or len(data.held_out.indices)}"
    )


def initial_model(config: Mapping[str, Any], data: FederatedData) -> nn.Module:
    """Return the model with its initial weights; the global generator is left as it was."""
    seed = generator(config["seed"], Stream.INIT, repetition=config.get("repeat_num", 0)).integers(2**31)
    input_shape = data.data.features.shape[1:]
    init = config["model"].get("init", "default")
    node = {key: value for key, value in config["model"].items() if key != "init"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        model: nn.Module = build(
            {"model": node}, "model", nn.Module, input_shape=input_shape, num_classes=data.data.num_classes
        )
    if init == "zeros":
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    elif init != "default":
        _load_weights(model, init)
    check_takes_data(model, config["model"]["_target_"], data.data)
    check_smallest_batch(model, config["batch_size"], data)
    return model


def _load_weights(model: nn.Module, file: str) -> None:
    """Put the weights of a safetensors file into a model.

    Raises:
        UserError: If there is no such file, or it is another model's.
    """
    try:
        model.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"model.init={file} gives this model no weights: {one_line(error)}; "
            "name a model.safetensors of the same model, or use default or zeros"
        ) from error


def plan(config: Mapping[str, Any], data: FederatedData, protocol: ExperimentProtocol) -> CohortPlan:
    """Return who takes part in which round, and with how much work."""
    return protocol.plan(
        client_sizes=data.train.sizes,
        client_ids=data.client_ids,
        clients_per_round=config["clients_per_round"],
        num_epochs=config["num_epochs"],
        batch_size=config["batch_size"],
        stragglers_fraction=config["stragglers_fraction"],
        sampling=config["sampling"],
        seed=config["seed"],
        repetition=config.get("repeat_num", 0),
    )


def local_statistics(config: Mapping[str, Any], arrays: ArrayRecord) -> LocalStatistics | None:
    """Return the clients' own batch statistics, None where they are averaged; a model without any is only told of."""
    if config["batch_statistics"] == "averaged":
        return None
    statistics = LocalStatistics(arrays)
    if not statistics:
        _log.warning("batch_statistics=local changes nothing: this model has no batch norm with running statistics")
    return statistics


def engine(config: Mapping[str, Any], data: FederatedData, model: nn.Module) -> Engine:
    """Return where the clients compute."""
    augmentation = build(config, "augmentation", PadCropFlip | None)
    if augmentation:
        augmentation.check(data.data.features.shape[1:])
    sgd = SgdSettings(
        learning_rate=config["learning_rate"],
        batch_size=config["batch_size"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        mixed_precision=config["mixed_precision"],
    )
    side = ClientSide(data, model, sgd, client_device(config), config["solver"], augmentation)
    return build(config, "engine", Engine, side)  # type: ignore[no-any-return]


def mu(config: Mapping[str, Any]) -> AdaptiveMu | float:
    """Return mu, or what adapts it to the training loss."""
    settings = config["adaptive_mu"]
    if not settings["enabled"]:
        return float(config["mu"])
    initial = config["mu"] if settings["initial"] is None else settings["initial"]
    return AdaptiveMu(initial, settings["step"], settings["patience"])


def schedule(config: Mapping[str, Any]) -> Callable[[int], float]:
    """Return what the learning rate is multiplied by, by round."""
    settings = config["schedule"]
    return lambda round_num: learning_rate_factor(settings["name"], round_num, config["num_rounds"], settings["final"])


def evaluation(config: Mapping[str, Any], data: FederatedData, model: nn.Module) -> Evaluate:
    """Return the function that measures global models, on server_device."""
    device, settings = config["server_device"], config["evaluation"]
    details = {name: settings.get(name, False) for name in ("per_class", "per_client")}
    if details["per_client"] and not len(data.held_out.indices):
        raise UserError(
            "evaluation.per_client=true measures every client on its own held-out examples, and no client of "
            f"dataset={data_name(config)} has any with hold_out={config['hold_out']:g}; raise hold_out"
        )
    measure = evaluator_on_test_set(model, data, device, **details)
    if settings["name"] == "clients":
        measure = FederationEvaluator(model, data, device, test=measure)
    return lambda models: measure(list(map(to_params, models)))
