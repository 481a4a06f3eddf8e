"""Assembly of devices and of late clients from the configuration, and how often clients of each speed took part."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedprox.config.schema import Config
from fedprox.errors import UserError
from fedprox.federation.channel import Channel
from fedprox.federation.strategy_state import layers
from fedprox.plan.arrivals import BufferedPlan, TimedPlan, WaitingPlan
from fedprox.plan.authors import AuthorsProtocol
from fedprox.plan.devices import Devices, drawn_speeds, read_speeds
from fedprox.plan.plan import CohortPlan
from fedprox.plan.protocols import ExperimentProtocol
from fedprox.runs.reader import read_rows
from fedprox.strategies.fedprox import FedAvgWithStragglerDrop, FedProx

_log = logging.getLogger("fedprox")
_THIRDS = ("fastest", "middle", "slowest")


def check_arrival(config: Config, strategy: Strategy, protocol: ExperimentProtocol) -> None:
    """Raise UserError for a strategy or a protocol whose rounds cannot be timed, or cannot have late clients."""
    devices, arrival = f"devices={config.devices.name}", f"arrival={config.arrival.name}"
    if config.devices.name != "none" and any(getattr(layer, "corrects_gradients", False) for layer in layers(strategy)):
        raise UserError(
            f"{devices} does not time the second cohort of strategy=feddane; use devices=none or another strategy"
        )
    if config.arrival.name != "synchronous" and isinstance(protocol, AuthorsProtocol):
        raise UserError(
            f"{arrival} does not go with protocol=authors, in which a client's work depends on its earlier rounds; use "
            "protocol=paper or flower"
        )
    if config.arrival.name == "buffered" and type(strategy) not in (FedProx, FedAvgWithStragglerDrop):
        raise UserError(
            f"arrival=buffered takes the step w + (eta / K) sum s(tau) u_k, a simple mean, instead of the strategy's "
            f"own, got strategy={type(strategy).__name__}; use strategy=fedprox or fedavg"
        )


def timed(config: Config, plan: CohortPlan, arrays: ArrayRecord, channel: Channel) -> CohortPlan:
    """Return a plan with a clock and, perhaps, late clients; without devices the plan itself.

    Args:
        config: The configuration.
        plan: The cohorts; of `cohort_size` clients each.
        arrays: The initial model, for its size.
        channel: What happens to updates, for their size.

    Raises:
        UserError: If the table of devices cannot be used, or no client can do a step before the deadline.
    """
    settings, arrival = config.devices, config.arrival
    if settings.name == "none":
        return plan
    devices = devices_of(config, len(plan.client_sizes), channel.bytes_of_a_round_trip(arrays))
    if arrival.name != "buffered":
        _check_deadline(arrival.seconds, devices)
        return WaitingPlan(plan, devices, arrival.seconds)
    return BufferedPlan(plan, devices, **arrival.model_dump(exclude={"name", "seconds"}))


def _check_deadline(seconds: float | None, devices: Devices) -> None:
    """Warn of clients that can never do a step before a deadline; raise UserError if no client can."""
    if seconds is None:
        return
    num_clients = len(devices.seconds_per_step)
    num_late = sum(devices.steps_within(seconds, client) == 0 for client in range(num_clients))
    if num_late == num_clients:
        raise UserError(f"arrival.seconds={seconds:g} is too short for a single step of any client; raise it")
    if num_late:
        _log.warning(
            "arrival.seconds=%g is too short for a single step of %d of the %d clients: they never take part",
            *(seconds, num_late, num_clients),
        )


def devices_of(config: Config, num_clients: int, num_bytes: int) -> Devices:
    """Return the clients' devices, which send and receive so many bytes for each task."""
    settings = config.devices
    if settings.path is not None:
        return read_speeds(Path(settings.path), num_clients).devices(num_bytes)
    drawn = settings.model_dump(exclude={"name", "path"})
    return drawn_speeds(num_clients, seed=config.seed, repetition=config.repeat_num, **drawn).devices(num_bytes)


def devices_fingerprint(config: Config, plan: CohortPlan) -> dict[str, str]:
    """Return an entry of a run's fingerprint: a checksum of devices that a table has, which may change."""
    if config.devices.path is None or not isinstance(plan, TimedPlan):
        return {}
    devices = plan.devices
    return {"devices": hashlib.sha256(devices.seconds_per_step.tobytes() + devices.transfer_s.tobytes()).hexdigest()}


def cohort_size(config: Config, num_clients: int) -> int:
    """Return the clients of each of the plan's cohorts: those that train at the same time, if updates are buffered.

    Raises:
        UserError: If there are fewer clients.
    """
    concurrency = config.arrival.concurrency
    if concurrency is None:
        return config.clients_per_round or num_clients
    if concurrency > num_clients:
        raise UserError(f"arrival.concurrency must be at most the {num_clients} clients, got {concurrency}; lower it")
    return concurrency


def participation(plan: CohortPlan, run_dir: Path) -> dict[str, Any]:
    """Return the share of the updates, and of the steps in them, that came from each third of the clients by speed.

    Returns:
        An entry of run.json, "participation"; nothing without devices, or before any update.
    """
    if not isinstance(plan, TimedPlan):
        return {}
    header, rows = read_rows(run_dir / "clients.csv")
    of_client, of_steps, of_counted = (header.index(name) for name in ("client", "num_steps", "counted"))
    counts = np.zeros((2, len(plan.client_sizes)))
    for row in rows:
        if row[of_counted] == "True":
            counts[:, int(row[of_client])] += 1, int(row[of_steps])
    if not counts[0].any():
        return {}
    thirds = np.array_split(np.argsort(plan.devices.seconds_per_step, kind="stable"), len(_THIRDS))
    shares = [[round(float(each[third].sum() / each.sum()), 4) for third in thirds] for each in counts]
    named = (dict(zip(_THIRDS, each, strict=True)) for each in shares)
    return {"participation": dict(zip(("updates", "steps"), named, strict=True))}


def as_line(shares: Mapping[str, Any]) -> str:
    """Return `participation` in words."""
    updates = shares["participation"]["updates"]
    thirds = (f"{name} third {100 * updates[name]:.0f}%" for name in _THIRDS)
    return f"updates by speed of the clients: {', '.join(thirds)}"
