"""Starting Ray or joining a cluster: whatever goes wrong is one line, within seconds."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import ray

from fedprox.engines import ray_cluster
from fedprox.errors import UserError

HERE = ray.util.get_node_ip_address()  # Ray goes there even when an address says 127.0.0.1


@pytest.fixture(autouse=True)
def _never_started(monkeypatch, no_ray):
    """Fail if Ray is started here. One of earlier tests is over: it would lose its token, and abort this process."""
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray itself would wait for minutes"))


@pytest.fixture
def listener() -> Iterator:
    """Return a function that listens on a port, greets whoever connects, and returns its address."""
    sockets, ended = [], threading.Event()

    def listen(greeting: bytes | None) -> str:
        server = socket.create_server((HERE, 0))
        sockets.append(server)

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                if greeting is None:
                    connection.close()
                    continue
                sockets.append(connection)
                connection.sendall(greeting)

        threading.Thread(target=serve, daemon=True).start()
        return f"{HERE}:{server.getsockname()[1]}"

    yield listen
    ended.set()
    for each in sockets:
        each.close()


GREETINGS = {
    "silent": b"",
    "HTTP": b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/html\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a database": bytes(range(78)),
    "hangs up": None,
}


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
def test_what_listens_and_is_not_ray_is_found_out_without_ray_itself(listener, monkeypatch, greeting):
    monkeypatch.setattr(ray_cluster, "_JOIN_S", 0.5)  # or else the silent one takes 5 s
    address = listener(greeting)
    with pytest.raises(UserError, match=r"engine\.address: no Ray cluster answers at .*ray start --head") as error:
        ray_cluster.connect(address)
    assert ("no answer within" if greeting == b"" else "not Ray") in str(error.value)


def test_a_grpc_server_of_somebody_elses_is_not_ray():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port(f"{HERE}:0")
    server.start()
    with pytest.raises(UserError, match="what listens there is not Ray"):
        ray_cluster.connect(f"{HERE}:{port}")
    server.stop(0)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:9", "refused"),
        ("localhost:9", "refused"),
        ("nowhere.invalid:6379", "not found|not known|resolv|failure"),
        ("nonsense", "host:port"),
        ("127.0.0.1", "host:port"),
        ("127.0.0.1:", "host:port"),
        ("127.0.0.1:port", "host:port"),
        ("127.0.0.1:0", "host:port"),
        ("127.0.0.1:65536", "host:port"),
        ("127.0.0.1:-1", "host:port"),
        ("127.0.0.1:6379:1", "host:port"),
        ("ray://127.0.0.1:10001", "host:port"),
        ("http://127.0.0.1:6379", "host:port"),
        ("local", "host:port"),
        ("unix:/tmp/socket", "host:port"),
        ("", "host:port"),
        ("a b:1", "host:port"),
    ],
)
def test_an_address_where_nothing_is_or_that_is_none_is_one_line(address, why):
    with pytest.raises(
        UserError, match=rf"(?i)engine\.address: no Ray cluster answers at '{address}' .*({why})"
    ) as error:
        ray_cluster.connect(address)
    assert "\n" not in str(error.value)


def test_auto_looks_at_what_ray_address_names_before_ray_waits_for_it(listener, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", listener(b"HTTP/1.0 400 Bad Request\r\n\r\n"))
    with pytest.raises(UserError, match=r"engine\.address: no Ray cluster answers at 'auto' \(.*: what listens there"):
        ray_cluster.connect("auto")


FAILURES = {
    "nowhere to write": OSError(28, "No space left on device", "/tmp/ray"),
    "raylet ended": Exception("The current node timed out during startup.\nThis could happen because"),
    "control process ended": RuntimeError("Timed out waiting for file /tmp/ray/session/gcs_server_port"),
    "little memory": ValueError("Attempting to cap object store memory usage at 1 bytes"),
    "nothing said": AssertionError(),
}


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
def test_a_ray_that_does_not_start_is_one_line_that_names_engine_local(monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(
        UserError, match=r"engine=ray: Ray does not start on this machine \(.+\); .*engine=local"
    ) as told:
        ray_cluster.connect(None)
    assert "\n" not in str(told.value)


def test_a_ray_of_ones_own_is_started_whatever_ray_address_says(monkeypatch):
    # Without an address `ray.init` joins what RAY_ADDRESS names; Ray documents "local" as what starts one.
    asked = {}
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    assert ray_cluster.connect(None)
    assert asked["address"] == "local"
    assert asked["logging_level"] > logging.ERROR  # its own lines would stand beside ours
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:9"
