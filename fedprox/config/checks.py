"""Every check of the configuration that needs no data."""

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from fedprox.config.instantiate import check_target
from fedprox.config.schema import SETTINGS, client_device, unknown
from fedprox.errors import UserError

END_OF_INTEGERS = 2**32  # beyond, arrays' sizes overflow
MAX_EPOCHS = 100_000  # a client's order of examples is drawn for all of its epochs at once


def check(config: Mapping[str, Any]) -> None:
    """Raise UserError at the first setting that is out of its range; nothing is loaded.

    Args:
        config: The resolved configuration, as plain containers.
    """
    for name in config:
        if name not in SETTINGS and name != "repeat_num":
            raise unknown(name)
    for name in SETTINGS:
        if name not in config:
            raise UserError(f"{name} is missing; leave ~{name} out")
    for name in ("num_clients", "num_epochs", "batch_size", "num_rounds", "clients_per_round"):
        _require(config[name] is None or config[name] >= 1, name, "an integer >= 1", config[name])
        _require(config[name] is None or config[name] < END_OF_INTEGERS, name, "below 2^32", config[name])
    _require(config["num_epochs"] <= MAX_EPOCHS, "num_epochs", f"at most {MAX_EPOCHS:,}", config["num_epochs"])
    for name, value in config["checkpoint"].items():
        _require(value is None or value >= 1, f"checkpoint.{name}", "an integer >= 1 or null", value)
    _check_branch(config["branch_from"], config["branch_round"])
    _require_finite(config, "learning_rate", "> 0", lambda value: value > 0)
    _require_finite(config, "mu", ">= 0", lambda value: value >= 0, "; for no proximal term use mu=0")
    _require_finite(config, "momentum", "at least 0 and below 1", lambda value: 0 <= value < 1)
    _require_finite(config, "weight_decay", ">= 0", lambda value: value >= 0)
    _require_finite(config, "stragglers_fraction", "between 0 and 1", lambda value: 0 <= value <= 1)
    _require_finite(config, "hold_out", "at least 0 and below 1", lambda value: 0 <= value < 1)
    for name, value in (("seed", config["seed"]), ("repeat_num", config.get("repeat_num", 0))):
        _require(type(value) is int and 0 <= value < 2**32, name, "an integer >= 0 and below 2^32", value)
    resources = config["client_resources"]
    _require_finite(resources, "num_cpus", "> 0", lambda value: value > 0, "", "client_resources.")
    _require_finite(resources, "num_gpus", ">= 0", lambda value: value >= 0, "", "client_resources.")
    if config["num_clients"] is not None and config["clients_per_round"] > config["num_clients"]:
        raise UserError(
            f"clients_per_round must be at most num_clients={config['num_clients']}, "
            f"got {config['clients_per_round']}; lower it or raise num_clients"
        )
    _require(
        config["sampling"] in ("uniform", "proportional"), "sampling", "uniform or proportional", config["sampling"]
    )
    last_batch = config["last_batch"]
    _require(last_batch in ("keep", "drop", "merge"), "last_batch", "keep, drop or merge", last_batch)
    _check_evaluation(config["evaluation"], config["adaptive_mu"])
    solvers = ("auto", "reference", "cohort")
    _require(config["solver"] in solvers, "solver", "auto, reference or cohort", config["solver"])
    statistics = config["batch_statistics"]
    _require(statistics in ("averaged", "local"), "batch_statistics", "averaged or local", statistics)
    _check_faults(config)
    _check_device(config["server_device"])
    if config["engine"].get("address", "") is None:  # Ray on this machine
        _check_resources(resources)
    init = config["model"].get("init", "default")
    _require(isinstance(init, str), "model.init", "default, zeros or a safetensors file", init)
    schedule = config["schedule"]
    _require(schedule["name"] in ("constant", "cosine"), "schedule.name", "constant or cosine", schedule["name"])
    _require_finite(schedule, "final", "between 0 and 1", lambda value: 0 <= value <= 1, "", "schedule.")
    if config["mixed_precision"] and client_device(config) == "cpu":
        raise UserError(
            "mixed_precision=true needs clients on a GPU, got clients on the CPU; set server_device=cuda with "
            "engine=local, or client_resources.num_gpus with engine=ray"
        )
    for group in ("dataset", "partition", "feature_skew", "model", "strategy", "protocol", "engine", "augmentation"):
        _check_numbers(group, config[group])
        check_target(group, config[group])
    for name, node in config["logger"].items():
        _require(isinstance(node, Mapping), f"logger.{name}", "the settings of a logger", node, "; set logger=<name>")
        check_target(f"logger.{name}", node)


def _check_device(device: str) -> None:
    import torch  # not before the cheaper checks have passed

    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = "unknown"
    if kind not in ("cpu", "cuda"):
        raise UserError(f"server_device must be cpu, cuda or cuda:<number>, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"server_device={device} needs a GPU, and torch finds none here; use server_device=cpu")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise UserError(f"server_device={device} is not there: torch finds {torch.cuda.device_count()} GPUs")


def _check_evaluation(evaluation: Mapping[str, Any], adaptive_mu: Mapping[str, Any]) -> None:
    unknown_keys = set(evaluation) - {"name", "every", "per_class", "per_client"}
    if unknown_keys:
        known = "name, every, per_class and per_client"
        raise UserError(f"evaluation.{min(unknown_keys)} is unknown: evaluation takes {known}")
    name, every = evaluation.get("name"), evaluation.get("every")
    _require(name in ("server", "clients"), "evaluation.name", "server or clients", name)
    _require(type(every) is int and every >= 1, "evaluation.every", "an integer >= 1", every)
    for detail in ("per_class", "per_client"):
        value = evaluation.get(detail, False)
        _require(type(value) is bool, f"evaluation.{detail}", "true or false", value)
    if adaptive_mu["initial"] is not None:
        _require_finite(adaptive_mu, "initial", ">= 0", lambda value: value >= 0, "", "adaptive_mu.")
    _require_finite(adaptive_mu, "step", "> 0", lambda value: value > 0, "", "adaptive_mu.")
    _require(adaptive_mu["patience"] >= 1, "adaptive_mu.patience", "an integer >= 1", adaptive_mu["patience"])
    if adaptive_mu["enabled"] and (name != "clients" or every != 1):
        raise UserError(
            "adaptive_mu.enabled=true follows the training loss of all clients after every round, got "
            f"evaluation={name} with evaluation.every={every}; use evaluation=clients with evaluation.every=1"
        )


def _check_branch(branch_from: str | None, branch_round: int | None) -> None:
    if (branch_from is None) != (branch_round is None):
        raise UserError(
            "branch_from and branch_round go together: the directory of an earlier run, and one of its rounds, got "
            f"branch_from={branch_from} and branch_round={branch_round}"
        )
    _require(branch_round is None or branch_round >= 1, "branch_round", "an integer >= 1", branch_round)


def _check_faults(config: Mapping[str, Any]) -> None:
    for name in ("on_client_error", "on_timeout"):
        _require(config[name] in ("stop", "drop"), name, "stop or drop", config[name])
    on_divergence = config["on_divergence"]
    _require(on_divergence in ("stop", "drop", "continue"), "on_divergence", "stop, drop or continue", on_divergence)
    if config["round_timeout"] is not None:
        _require_finite(config, "round_timeout", "> 0 (seconds)", lambda value: value > 0, "; null for no limit")
    early = config["early_stopping"]
    _require(early["patience"] >= 1, "early_stopping.patience", "an integer >= 1", early["patience"])
    _require_finite(early, "min_delta", ">= 0", lambda value: value >= 0, "", "early_stopping.")


def _check_resources(resources: Mapping[str, float]) -> None:
    import torch

    for name, available in (("num_cpus", os.cpu_count() or 1), ("num_gpus", torch.cuda.device_count())):
        if resources[name] > available:
            raise UserError(
                f"client_resources.{name} must be at most {available}, which is what this machine has, "
                f"got {resources[name]:g}; lower it, or use engine=local"
            )


def _check_numbers(name: str, value: Any) -> None:
    """Raise UserError for the first number of a group that run.json or an array's size could not hold."""
    if isinstance(value, (Mapping, list)):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            _check_numbers(f"{name}.{key}", each)
    elif isinstance(value, int):
        _require(abs(value) < END_OF_INTEGERS, name, "between -2^32 and 2^32", value)
    elif isinstance(value, float):
        _require(math.isfinite(value), name, "finite", value)


def _require_finite(
    config: Mapping[str, Any],
    name: str,
    rule: str,
    holds: Callable[[float], bool],
    remedy: str = "",
    prefix: str = "",
) -> None:
    value = config[name]
    _require(math.isfinite(value) and holds(value), prefix + name, "finite and " + rule, value, remedy)


def _require(holds: bool, name: str, rule: str, value: object, remedy: str = "") -> None:
    if not holds:
        raise UserError(f"{name} must be {rule}, got {value}{remedy}")
