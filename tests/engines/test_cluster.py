"""Starting Ray or joining a cluster: every failure is one line within seconds."""

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
    """Fail if Ray starts here; `no_ray` has ended that of earlier tests, which would abort this process."""
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray itself would wait for minutes"))


@pytest.fixture
def listener() -> Iterator:
    """Return a function that listens on a port, greets every connection, and returns its address."""
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
    "a database": bytes(range(78)),
    "hangs up": None,
}


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
def test_other_servers_are_recognised_without_ray_init(listener, monkeypatch, greeting):
    monkeypatch.setattr(ray_cluster, "_JOIN_S", 0.5)  # otherwise the silent one takes 5 s
    address = listener(greeting)
    with pytest.raises(UserError, match=r"engine\.address: no Ray cluster answers at .*ray start --head") as error:
        ray_cluster.connect(address)
    assert ("no answer within" if greeting == b"" else "not Ray") in str(error.value)


def test_another_grpc_server_is_not_ray():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port(f"{HERE}:0")
    server.start()
    with pytest.raises(UserError, match="the process listening there is not Ray"):
        ray_cluster.connect(f"{HERE}:{port}")
    server.stop(0)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:9", "refused"),
        ("nowhere.invalid:6379", "not found|not known|resolv|failure"),
        ("nonsense", "host:port"),
        ("127.0.0.1", "host:port"),
        ("127.0.0.1:65536", "host:port"),
        ("ray://127.0.0.1:10001", "host:port"),
        ("", "host:port"),
        ("a b:1", "host:port"),
    ],
)
def test_an_invalid_address_or_one_without_a_server_is_one_line(address, why):
    with pytest.raises(
        UserError, match=rf"(?i)engine\.address: no Ray cluster answers at '{address}' .*({why})"
    ) as error:
        ray_cluster.connect(address)
    assert "\n" not in str(error.value)


def test_auto_checks_the_cluster_in_ray_address(listener, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", listener(b"HTTP/1.0 400 Bad Request\r\n\r\n"))
    with pytest.raises(UserError, match=r"no Ray cluster answers at 'auto' \(.*: the process listening there"):
        ray_cluster.connect("auto")


FAILURES = {
    "nowhere to write": OSError(28, "No space left on device", "/tmp/ray"),
    "raylet ended": Exception("The current node timed out during startup.\nThis could happen because"),
    "nothing said": AssertionError(),
}


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
def test_a_ray_that_does_not_start_is_one_line_with_the_remedy(monkeypatch, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(
        UserError, match=r"engine=ray: Ray does not start on this machine \(.+\); .*engine=local"
    ) as error_:
        ray_cluster.connect(None)
    assert "\n" not in str(error_.value)


def test_a_local_ray_starts_whatever_ray_address_says(monkeypatch):
    # Without an address `ray.init` joins the cluster in RAY_ADDRESS; "local" starts a new one.
    asked = {}
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    assert ray_cluster.connect(None)
    assert asked["address"] == "local"
    assert asked["logging_level"] > logging.ERROR  # no log lines of its own
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:9"
