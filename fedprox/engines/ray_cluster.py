"""The Ray that actors run on: on this machine, or a cluster; and whether it is still there."""

import logging
import os
import re
import socket
import time
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address

from fedprox.engines.tokens import token_demanded, token_of_the_environment
from fedprox.errors import RunStopped, UserError
from fedprox.process import announced, sigterm_held_back

_log = logging.getLogger("fedprox")
_JOIN_S = 5.0
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
        start()
    else:
        _join(address)
    return True


def start(**options: Any) -> None:
    """Start a Ray on this machine that answers this process alone.

    Args:
        options: More arguments of `ray.init`.
    """
    # "local", or else it would join a cluster that RAY_ADDRESS names, or that it finds on this machine.
    options |= {"address": "local", "include_dashboard": False, "log_to_driver": False}
    try:
        with token_demanded(), sigterm_held_back(), announced("starting Ray on this machine"):
            ray.init(logging_level=logging.CRITICAL, **options)
    except Exception as error:  # plain ones among them
        ray.shutdown()
        raise UserError(
            f"engine=ray: Ray does not start on this machine ({_said(error)}); free what it lacks, RAY_TMPDIR names "
            "another folder for its files, or use engine=local, which does without Ray"
        ) from error


def _join(address: str) -> None:
    token_of_the_environment()
    try:
        found = _address_of_cluster(address)
        _check_that_ray_answers(found)
        with sigterm_held_back(), announced(f"joining the Ray cluster at {found}", after_s=2.0):
            ray.init(address=found, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:
        raise UserError(
            f"engine.address: no Ray cluster answers at {address!r} ({_said(error)}); "
            "start one with `ray start --head`, or leave engine.address out to use this machine"
        ) from error


def _address_of_cluster(address: str) -> str:
    """Return host:port, as Ray takes it: that of a cluster which it finds for "auto", and not the loopback.

    Raises:
        ValueError: If the address is neither.
        ConnectionError: If Ray finds none.
    """
    port = re.fullmatch(r"(?:[^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})", address)
    if address != "auto" and (port is None or not 0 < int(port[1]) < 2**16):
        raise ValueError("an address is auto or host:port")
    return str(canonicalize_bootstrap_address(address))


def _check_that_ray_answers(address: str) -> None:
    """Return if a cluster's control process answers: `ray.init` would wait for minutes for one that does not.

    Raises:
        ConnectionError: If it does not within seconds.
    """
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=_JOIN_S)
        except grpc.RpcError as error:
            raise ConnectionError(f"{address}: {_why_not(error.code(), error.details() or '')}") from error


def _why_not(code: grpc.StatusCode, details: str) -> str:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {_JOIN_S:g} s"
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return "it wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
    if code is grpc.StatusCode.UNAVAILABLE and ("resolv" in details or "refused" in details):
        return details.rpartition(": ")[2].strip("[]")
    return "what listens there is not Ray"


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def check_room(num_cpus: float, num_gpus: float) -> None:
    """Raise UserError if the cluster has not even what one actor needs."""
    available = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for key, kind, asked in (("num_cpus", "CPU", num_cpus), ("num_gpus", "GPU", num_gpus)):
        if asked > available.get(kind, 0):
            raise UserError(
                f"client_resources.{key}={asked:g} is more than the {available.get(kind, 0):g} {kind}s there are; "
                f"set client_resources.{key} to at most that, or use engine=local"
            )


class ClusterHealth:
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
