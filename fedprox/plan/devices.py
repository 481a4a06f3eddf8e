"""The clients' devices: how many virtual seconds their work takes.

A client is as fast in one round as in any other, so those that are late stay late, as in life.
"""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from fedprox.config.schema import Bandwidth, Duration
from fedprox.errors import UserError, one_line
from fedprox.plan.plan import ClientTask
from fedprox.seeds import Stream, generator
from fedprox.storage import read_regular

Numbers = NDArray[np.float64]

_ROUNDING = 1 + 1e-12  # lets 0.3 s hold three steps of 0.1 s
_MAX_BYTES = 2**28  # of a table


@dataclass(frozen=True)
class Devices:
    """How fast each client's device is.

    Attributes:
        seconds_per_step: c_k, virtual seconds for a mini-batch step, shape (num_clients,).
        transfer_s: Virtual seconds to receive a model and to send an update, shape (num_clients,).
    """

    seconds_per_step: Numbers
    transfer_s: Numbers

    def seconds(self, task: ClientTask) -> float:
        """Return the virtual seconds from the message that gives a client its task to its reply."""
        return float(self.transfer_s[task.client] + task.num_steps * self.seconds_per_step[task.client])

    def steps_within(self, seconds: float, client: int) -> int:
        """Return floor((D - transfer) / c_k), how many steps a client can do in D seconds; 0 if it has no time."""
        left_s = (seconds - float(self.transfer_s[client])) * _ROUNDING
        return max(0, math.floor(left_s / float(self.seconds_per_step[client])))


@dataclass(frozen=True)
class Speeds:
    """Speed and bandwidth of each client's device, whatever it computes and sends.

    Attributes:
        seconds_per_step: Shape (num_clients,).
        bandwidth: Bytes per virtual second, shape (num_clients,); None if communication takes no time.
    """

    seconds_per_step: Numbers
    bandwidth: Numbers | None

    def devices(self, num_bytes: int) -> Devices:
        """Return the devices of clients that receive and send so many bytes in all for each task."""
        transfer_s = np.zeros_like(self.seconds_per_step) if self.bandwidth is None else num_bytes / self.bandwidth
        return Devices(self.seconds_per_step, transfer_s)


def drawn_speeds(
    num_clients: int,
    *,
    seconds_per_step: float,
    bandwidth: float | None,
    sigma: float,
    seed: int,
    repetition: int = 0,
) -> Speeds:
    """Return lognormal speeds: median * exp(sigma * z), with z standard normal for each client.

    A pure function of its arguments; more clients leave the speeds of the first ones as they are.

    Args:
        num_clients: Number of clients.
        seconds_per_step: The median.
        bandwidth: The median, in bytes per virtual second; None for communication that takes no time.
        sigma: Standard deviation of the logarithms; 0 for devices that are all alike.
        seed: The run's.
        repetition: See `fedprox.seeds.generator`.

    Examples:
        >>> settings = {"seconds_per_step": 1.0, "bandwidth": None, "sigma": 1.0, "seed": 0}
        >>> drawn_speeds(3, **settings).seconds_per_step.round(2).tolist()
        [0.23, 1.14, 1.38]
    """
    z = generator(seed, Stream.DEVICES, repetition=repetition).standard_normal((num_clients, 2))
    factors = np.exp(sigma * z)
    return Speeds(seconds_per_step * factors[:, 0], None if bandwidth is None else bandwidth * factors[:, 1])


def read_speeds(path: Path, num_clients: int) -> Speeds:
    """Return the speeds in a table, which may have more clients than there are.

    Args:
        path: A .csv with the columns client (from 0), seconds_per_step and perhaps bandwidth (bytes per second).
        num_clients: Number of clients.

    Raises:
        UserError: If it cannot be read, lacks a column or a client, has a client twice, or a value is out of range.
    """
    try:
        text = read_regular(path, _MAX_BYTES).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        numbers = [int(row["client"]) for row in rows]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"client {next(each for each in numbers if numbers.count(each) > 1)} has two rows")
        by_client = dict(zip(numbers, rows, strict=True))
        if missing := [client for client in range(num_clients) if client not in by_client]:
            raise ValueError(f"{len(missing)} of the {num_clients} clients have no row, the first of them {missing[0]}")
        own = [by_client[client] for client in range(num_clients)]
        has_bandwidth = "bandwidth" in rows[0]
        return Speeds(_column(own, "seconds_per_step"), _column(own, "bandwidth") if has_bandwidth else None)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        reason = f"it lacks the column {error.args[0]}" if isinstance(error, KeyError) else one_line(error)
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise UserError(
            f"devices.path={path} cannot be used: {reason}; give a .csv with the columns client, from 0 to "
            f"{num_clients - 1}, seconds_per_step and perhaps bandwidth"
        ) from error


_RULES = {"seconds_per_step": TypeAdapter(Duration), "bandwidth": TypeAdapter(Bandwidth)}


def _column(rows: list[dict[str, str]], name: str) -> Numbers:
    """Return a column as numbers, one per client; ValueError for one that is out of range."""
    values = []
    for client, row in enumerate(rows):
        try:
            values.append(_RULES[name].validate_python(row[name]))
        except ValidationError as error:
            rule = error.errors(include_url=False)[0]["msg"]
            raise ValueError(f"{name} of client {client} must be {rule}, got {row[name]}") from None
    return np.array(values)
