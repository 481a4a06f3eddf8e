"""The data of an experiment, from the checked configuration: loaded once, divided among clients, named."""

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fedprox.building import build
from fedprox.data import image_folder
from fedprox.data.federated import FederatedData, LabelledData
from fedprox.data.partition import divide
from fedprox.errors import UserError
from fedprox.seeds import Stream, generator

_log = logging.getLogger("fedprox")
NATURAL = "fedprox.data.partition.natural"


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
