"""Connection to Ray, on this machine or on a cluster, and its health."""

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

from fedprox.engines.tokens import reload_token, token_required
from fedprox.errors import RunStopped, UserError
from fedprox.process import announced, sigterm_held_back

_log = logging.getLogger("fedprox")
_JOIN_S = 5.0
_ANSWER_S = 3.0  # a process that does not answer for this long is lost: normally it takes a millisecond


def connect(address: str | None) -> bool:
    """Start Ray on this machine or join a cluster, once for this process.

    Returns:
        Whether this call connected; nothing of an earlier Ray is left then.

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
    """Start a Ray on this machine for this process only.

    Args:
        options: More arguments of `ray.init`.
    """
    # "local", because Ray would otherwise join a cluster in RAY_ADDRESS or one that it finds on this machine.
    options |= {"address": "local", "include_dashboard": False, "log_to_driver": False}
    try:
        with token_required(), sigterm_held_back(), announced("starting Ray on this machine"):
            ray.init(logging_level=logging.CRITICAL, **options)
    except Exception as error:  # Ray raises plain Exception, too
        ray.shutdown()
        raise UserError(
            f"engine=ray: Ray does not start on this machine ({_text(error)}); free the resources it lacks, set "
            "RAY_TMPDIR to another folder for its files, or use engine=local, which does not need Ray"
        ) from error


def _join(address: str) -> None:
    reload_token()
    try:
        found = _address_of_cluster(address)
        _check_that_ray_answers(found)
        with sigterm_held_back(), announced(f"joining the Ray cluster at {found}", after_s=2.0):
            ray.init(address=found, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:
        raise UserError(
            f"engine.address: no Ray cluster answers at {address!r} ({_text(error)}); "
            "start one with `ray start --head`, or remove engine.address to use this machine"
        ) from error


def _address_of_cluster(address: str) -> str:
    """Return host:port in the form that Ray needs; for "auto", that of the cluster that Ray finds.

    Raises:
        ValueError: If the address is neither "auto" nor host:port.
        ConnectionError: If Ray finds no cluster.
    """
    port = re.fullmatch(r"(?:[^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})", address)
    if address != "auto" and (port is None or not 0 < int(port[1]) < 2**16):
        raise ValueError("the address must be auto or host:port")
    return str(canonicalize_bootstrap_address(address))


def _check_that_ray_answers(address: str) -> None:
    """Check that a cluster's control process answers; `ray.init` would wait for minutes if it does not.

    Raises:
        ConnectionError: If it does not answer within seconds.
    """
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=_JOIN_S)
        except grpc.RpcError as error:
            raise ConnectionError(f"{address}: {_cause(error.code(), error.details() or '')}") from error


def _cause(code: grpc.StatusCode, details: str) -> str:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {_JOIN_S:g} s"
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return "it requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
    if code is grpc.StatusCode.UNAVAILABLE and ("resolv" in details or "refused" in details):
        return details.rpartition(": ")[2].strip("[]")
    return "the process listening there is not Ray"


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def check_room(num_cpus: float, num_gpus: float) -> None:
    """Raise UserError if the cluster lacks the resources of even one actor."""
    available = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for key, kind, asked in (("num_cpus", "CPU", num_cpus), ("num_gpus", "GPU", num_gpus)):
        if asked > available.get(kind, 0):
            raise UserError(
                f"client_resources.{key}={asked:g} is more than the {available.get(kind, 0):g} {kind}s available; "
                f"set client_resources.{key} to at most that, or use engine=local"
            )


class ClusterHealth:
    """Checks that Ray's control process and the process that serves this one are alive.

    Ray itself does not report their loss: without the first it waits for a minute and then aborts this process; without
    the second it silently ends this process when an object is next put or read.
    """

    def __init__(self) -> None:
        """Remember the addresses of both."""
        context = ray.get_runtime_context()
        own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())  # type: ignore[no-untyped-call]
        self._addresses = (context.gcs_address, f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}")

    def check(self) -> None:
        """Check that both answer, which takes a tenth of a millisecond.

        Raises:
            RunStopped: If one does not. Ray is then shut down, so that a later job of this process can start it again.
        """
        until = time.monotonic() + _ANSWER_S
        for address in self._addresses:
            while not _answers(address):
                if time.monotonic() > until:
                    ray.shutdown()
                    raise RunStopped(
                        f"the Ray cluster is lost: nothing answers at {address}; restart it unless this program had "
                        "started it, and continue with resume=<run directory>"
                    )
                time.sleep(0.1)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError:
        return False
    return True
