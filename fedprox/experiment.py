"""From the checked configuration to a finished run directory; configuration goes no further down than here."""

import copy
import inspect
import json
import logging
import pkgutil
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedprox import records
from fedprox.adaptive_mu import AdaptiveMu
from fedprox.client_app import ClientSide
from fedprox.config import check
from fedprox.data.federated import FederatedData, LabelledData
from fedprox.data.partition import divide
from fedprox.errors import UserError, one_line
from fedprox.federation_metrics import FederationEvaluator
from fedprox.metrics import Evaluation, evaluate
from fedprox.plan import CohortPlan, ExperimentProtocol
from fedprox.progress import watched
from fedprox.rounds import Engine, Round, run_rounds
from fedprox.seeds import Stream, generator
from fedprox.solvers.problem import SgdSettings
from fedprox.strategy import Planned

_log = logging.getLogger("fedprox")
NATURAL = "fedprox.data.partition.natural"


def run(config: Mapping[str, Any], run_dir: Path) -> Round:
    """Run one experiment and return its last round.

    Args:
        config: The resolved configuration as plain containers.
        run_dir: An existing directory, which receives what `fedprox.records` describes.

    Raises:
        UserError: If a setting or a data file is wrong; nothing is computed then.
    """
    start = time.perf_counter()
    protocol = check_settings(config)
    data = _data(config)
    model = _initial_model(config, data)
    strategy = Planned(build(config, "strategy", Strategy), _plan(config, data, protocol))
    evaluation, adaptive_mu = config["evaluation"], config["adaptive_mu"]
    on_clients = evaluation["name"] == "clients"
    grid = _engine(config, data, model)
    rounds = run_rounds(
        arrays=ArrayRecord(model.state_dict()),
        strategy=strategy,
        grid=grid,
        evaluate=_evaluation(config, data, model),
        mu=_adaptive_mu(config) if adaptive_mu["enabled"] else config["mu"],
        num_rounds=config["num_rounds"],
        evaluate_every=evaluation["every"],
        measure_gamma=on_clients,
    )
    columns = records.METRICS + records.FEDERATION * on_clients + ("mu",) * adaptive_mu["enabled"]
    setup_s = time.perf_counter() - start
    with records.RunRecord(run_dir, _facts(config, data), columns) as record:
        for outcome in watched(rounds, config["num_rounds"], algorithm(config)):
            record.add(outcome)
        timings = {"setup_s": setup_s, "rounds_s": outcome.time_s, "total_s": time.perf_counter() - start}
        record.finish(outcome.arrays.to_torch_state_dict(), timings, grid.peak_memory_bytes())
    _draw_curves(run_dir)
    return outcome


def check_settings(config: Mapping[str, Any]) -> ExperimentProtocol:
    """Return the protocol, after every check that needs no data.

    Raises:
        UserError: If a setting is wrong.
    """
    check(config)
    protocol: ExperimentProtocol = build(config, "protocol", ExperimentProtocol)
    protocol.check(config["num_epochs"], config["stragglers_fraction"], config["sampling"])
    return protocol


def _draw_curves(run_dir: Path) -> None:
    """Write curves.png from what the run directory says."""
    from fedprox.report.figures import curves  # here: matplotlib's import takes as long as a short run
    from fedprox.report.table import read_runs

    curves(read_runs([run_dir])).savefig(run_dir / "curves.png", dpi=100)


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
        raise UserError(f"{name} cannot be called as it must be: {error}; the README shows what is expected") from None
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
    if not isinstance(made, kind):
        raise UserError(f"{name} must make a {getattr(kind, '__name__', kind)}, but made a {type(made).__name__}")
    return made


def algorithm(config: Mapping[str, Any]) -> str:
    """Return what a run is called in tables and figures, such as "FedAvg" or "FedProx (mu = 1)"."""
    name = config["strategy"]["_target_"].rsplit(".", 1)[-1]
    if name == "FedAvgWithStragglerDrop":
        return f"FedAvg (mu = {config['mu']:g})" if config["mu"] else "FedAvg"
    return f"{name} (mu = {config['mu']:g})"


def _data(config: Mapping[str, Any]) -> FederatedData:
    """Return the data divided among clients; jobs of one process that agree on it share it."""
    keys = ("dataset", "partition", "num_clients", "hold_out", "seed")
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
    _log.info("%s: %s", data_name(config), summary(data))
    return data


@lru_cache(maxsize=1)
def _load(key: str) -> FederatedData:
    config = json.loads(key)
    loaded = build(config, "dataset", LabelledData | FederatedData)
    if isinstance(loaded, FederatedData):
        if config["partition"]["_target_"] != NATURAL:
            raise UserError(f"dataset={data_name(config)} comes divided into clients; leave partition= out")
        return loaded
    rng = generator(config["seed"], Stream.PARTITION)
    parts = build(config, "partition", list, loaded.labels, config["num_clients"], rng)
    return divide(loaded, parts, rng, hold_out=config["hold_out"])


def data_name(config: Mapping[str, Any]) -> str:
    """Return the data set's name: that of the function that makes it, with alpha and beta where it has them."""
    node = config["dataset"]
    name = str(node["_target_"].rsplit(".", 1)[-1])
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


def _initial_model(config: Mapping[str, Any], data: FederatedData) -> nn.Module:
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


def _plan(config: Mapping[str, Any], data: FederatedData, protocol: ExperimentProtocol) -> CohortPlan:
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


def _engine(config: Mapping[str, Any], data: FederatedData, model: nn.Module) -> Engine:
    on_ray = "num_gpus" in config["engine"]
    device = ("cuda" if config["engine"]["num_gpus"] else "cpu") if on_ray else config["server_device"]
    sgd = SgdSettings(
        learning_rate=config["learning_rate"],
        batch_size=config["batch_size"],
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
    )
    return build(config, "engine", Engine, ClientSide(data, model, sgd, device, config["solver"]))  # type: ignore[no-any-return]


def _adaptive_mu(config: Mapping[str, Any]) -> AdaptiveMu:
    settings = config["adaptive_mu"]
    initial = config["mu"] if settings["initial"] is None else settings["initial"]
    return AdaptiveMu(initial, settings["step"], settings["patience"])


def _evaluation(
    config: Mapping[str, Any], data: FederatedData, model: nn.Module
) -> Callable[[ArrayRecord], Evaluation]:
    """Return the function that measures a global model, on server_device."""
    device = config["server_device"]
    if config["evaluation"]["name"] == "clients":
        evaluator = FederationEvaluator(model, data, device)

        def evaluate_on_clients(arrays: ArrayRecord) -> Evaluation:
            federation = evaluator(arrays.to_torch_state_dict())
            return Evaluation(federation.test_loss, federation.test_accuracy, federation)

        return evaluate_on_clients
    workspace = copy.deepcopy(model).to(device)
    features, labels = (torch.from_numpy(array).to(device) for array in data.test_examples())

    def evaluate_on_server(arrays: ArrayRecord) -> Evaluation:
        workspace.load_state_dict(arrays.to_torch_state_dict())
        return evaluate(workspace, features, labels)

    return evaluate_on_server


def _facts(config: Mapping[str, Any], data: FederatedData) -> dict[str, Any]:
    """Return what run.json says before the first round."""
    return {
        "algorithm": algorithm(config),
        "name": data_name(config),
        "data": summary(data),
        "seed": config["seed"],
        "repetition": config.get("repeat_num", 0),
        "settings": dict(config),
        **records.environment(),
    }
