"""The Ray that actors run on: on this machine, or a cluster; and whether it is still there."""

import logging
import os
import socket
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from fedprox.errors import RunStopped, UserError, one_line
from fedprox.signals import sigterm_held_back

_log = logging.getLogger("fedprox")
_ANSWER_S = 3.0  # a process that does not answer for so long is gone: they answer within a millisecond


def connect(address: str | None) -> bool:
    """Start Ray on this machine or join a cluster, once for this process.

    Returns:
        Whether that was to be done now, so that nothing of an earlier Ray is left.

    Raises:
        UserError: If no cluster answers at the address.
    """
    if ray.is_initialized():
        return False
    if address is None:
        _log.info("starting Ray on this machine")
        with sigterm_held_back():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        return True
    try:
        if address != "auto":  # Ray itself would try for over a minute
            _connect_to(address, 5)
        with sigterm_held_back():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"engine.address: no Ray cluster answers at {address!r} ({one_line(error)}); "
            "start one with `ray start --head`, or leave engine.address out to use this machine"
        ) from error
    return True


def check_room(num_cpus: float, num_gpus: float) -> None:
    """Raise UserError if the cluster has not even what one actor needs."""
    available = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for key, kind, asked in (("num_cpus", "CPU", num_cpus), ("num_gpus", "GPU", num_gpus)):
        if asked > available.get(kind, 0):
            raise UserError(
                f"client_resources.{key}={asked:g} is more than the {available.get(kind, 0):g} {kind}s there are; "
                f"set client_resources.{key} to at most that, or use engine=local"
            )


class Lifeline:
    """Tells whether Ray is still there: its control process, and the one that serves this process.

    Ray itself would not tell. Without the first it waits for a minute and then aborts this process; without the
    second it ends this process, without a word, when an object is next put or got.
    """

    def __init__(self) -> None:
        """Note where both are."""
        context = ray.get_runtime_context()
        own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())  # type: ignore[no-untyped-call]
        self._addresses = (context.gcs_address, f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}")

    def check(self) -> None:
        """Return if both answer; it takes a tenth of a millisecond.

        Raises:
            RunStopped: If one does not. Ray is shut down then, so that a later job of this process can start anew.
        """
        until = time.monotonic() + _ANSWER_S
        for address in self._addresses:
            while not _answers(address):
                if time.monotonic() > until:
                    ray.shutdown()
                    raise RunStopped(
                        f"the Ray cluster is lost: nothing answers at {address}; start it again where it was one of "
                        "its own, and go on with resume=<run directory>"
                    )
                time.sleep(0.1)


def _answers(address: str) -> bool:
    try:
        _connect_to(address, _ANSWER_S)
    except OSError:
        return False
    return True


def _connect_to(address: str, timeout_s: float) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=timeout_s).close()
