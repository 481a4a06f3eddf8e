"""The engine on Ray actors: the local engine's results to the bit, whatever happens to an actor."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import grpc
import psutil
import pytest
import ray
from flwr.app import ArrayRecord
from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.core.generated.node_manager_pb2 import GetNodeStatsRequest
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
from torch import nn

from fedprox.engines import actor_pool, ray_cluster
from fedprox.engines import ray as engine
from fedprox.engines.balance import balance
from fedprox.engines.local import LocalGrid
from fedprox.engines.ray import RayGrid
from fedprox.errors import UserError
from fedprox.federation.client_app import ClientSpec
from fedprox.federation.messages import client_of, is_late, node_id, task_of
from tests.faults.shots import is_actor


@pytest.fixture(scope="module")
def two_cpus(no_ray):
    """Start Ray once for this module, with two CPUs on any machine."""
    ray_cluster.start(num_cpus=2)


def servers() -> list[tuple]:
    """Return the addresses of Ray's control process and this machine's raylet, with a request for each."""
    (node,) = ray.nodes()
    control = ray.get_runtime_context().gcs_address
    return [
        (control, NodeInfoGcsServiceStub, "GetAllNodeInfo", GetAllNodeInfoRequest()),
        (
            f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}",
            *(NodeManagerServiceStub, "GetNodeStats", GetNodeStatsRequest()),
        ),
    ]


def expected(federation, round_num: int = 1) -> list[tuple]:
    return contents(LocalGrid(federation.spec).send_and_receive(federation.messages(round_num)))


def contents(replies) -> list[tuple]:
    """Return the contents of replies as values that can be compared bit by bit."""
    return [
        (
            {name: (array.dtype, array.numpy().tobytes()) for name, array in reply.content["arrays"].items()},
            dict(reply.content["metrics"]),
        )
        for reply in replies
    ]


def actors(grid: RayGrid) -> list:
    return [actor._actor_id for actor in grid._pool.actors]


@pytest.mark.usefixtures("two_cpus")
class TestOnActors:
    @pytest.mark.parametrize("metadata", [(), (("authorization", f"Bearer {'0' * 64}"),)], ids=["none", "wrong"])
    def test_without_the_token_every_server_refuses_a_connection(self, metadata):
        codes = []
        for address, stub, method, request in servers():
            with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as raised:
                getattr(stub(channel), method)(request, metadata=metadata, timeout=20)
            codes.append(raised.value.code())
        assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 2

    def test_the_token_is_in_no_command_line_and_not_in_this_environment(self):
        token = ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).options(num_cpus=0).remote())
        assert len(token) == 64  # 256 bits
        assert "RAY_AUTH_TOKEN" not in os.environ
        lines = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
        assert any("raylet" in line for line in lines)
        assert [line for line in lines if token in line] == []

    def test_too_many_resources_are_an_error_at_once(self, federation, monkeypatch):
        monkeypatch.setattr(engine, "_pool", lambda *_: pytest.fail("actors start"))
        with pytest.raises(UserError, match=r"client_resources\.num_cpus=3 .*2 CPUs.*num_cpus to at most"):
            RayGrid(federation.spec, num_cpus=3, max_actors=4)
        with pytest.raises(UserError, match=r"client_resources\.num_gpus=9999 .*num_gpus to at most"):
            RayGrid(federation.spec, num_cpus=1, num_gpus=9999, max_actors=4)

    @pytest.mark.parametrize(("num_cpus", "num_actors"), [(2, 1), (1, 2)])
    def test_one_and_two_actors_give_the_local_engines_replies_to_the_bit(self, federation, num_cpus, num_actors):
        grid = RayGrid(federation.spec, num_cpus=num_cpus, max_actors=6)
        assert len(actors(grid)) == num_actors
        for round_num in (1, 2):
            messages = federation.messages(round_num)
            replies = grid.send_and_receive(messages)
            assert contents(replies) == expected(federation, round_num)
            sources = [reply.metadata.src_node_id for reply in replies]
            assert sources == [node_id(task_of(message).client) for message in messages]
        drawn = federation.drawn_messages()
        assert contents(grid.send_and_receive(drawn)) == contents(LocalGrid(federation.spec).send_and_receive(drawn))
        assert list(grid.get_node_ids()) == [node_id(client) for client in range(6)]
        assert grid.peak_memory_bytes() > num_actors * 2**20

    def test_there_may_be_fewer_actors_or_messages(self, federation):
        grid = RayGrid(federation.spec, num_cpus=1, max_actors=1)
        assert grid._num_shares == 1
        grid = RayGrid(federation.spec, num_cpus=1, max_actors=6)
        assert contents(grid.send_and_receive(federation.messages()[:1])) == expected(federation)[:1]
        assert grid.send_and_receive([]) == []

    def test_consecutive_grids_share_actors_and_data(self, federation):
        first = RayGrid(federation.spec, num_cpus=1, max_actors=6)
        pids = set(ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in first._pool.actors]))
        second = RayGrid(federation.spec, num_cpus=1, max_actors=6)
        assert set(actors(first)) == set(actors(second))
        again = set(ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in second._pool.actors]))
        assert pids == again
        assert first._shared[0] == second._shared[0]  # the data, which is large, is in the object store once
        assert contents(second.send_and_receive(federation.messages())) == expected(federation)
        assert contents(first.send_and_receive(federation.messages())) == expected(federation)

    def test_actors_killed_between_rounds_are_replaced_with_the_same_result(self, federation):
        grid = RayGrid(federation.spec, num_cpus=1, max_actors=6)
        grid.send_and_receive(federation.messages(1))
        for process in processes(grid):
            os.kill(process, signal.SIGKILL)
        assert contents(grid.send_and_receive(federation.messages(2))) == expected(federation, 2)

    def test_a_share_whose_actor_is_killed_at_work_is_redone_with_the_same_result(self, federation):
        # All of a run's actors are killed at work in tests/experiment/test_faulty_runs.py.
        spec = replace(federation.spec, model=Slow(federation.spec.model))
        grid = RayGrid(spec, num_cpus=1, max_actors=6)
        messages = federation.messages(2, arrays=renamed(federation.start))
        undisturbed = contents(LocalGrid(spec).send_and_receive(messages))
        victim = processes(grid)[0]
        killer = threading.Timer(0.5, lambda: os.kill(victim, signal.SIGKILL))
        killer.start()  # a share has over 20 steps of 0.05 s or more
        start = time.monotonic()
        assert contents(grid.send_and_receive(messages)) == undisturbed
        assert time.monotonic() - start > 1.0
        assert victim not in processes(grid)

    def test_a_client_over_which_actors_die_is_named_and_the_others_reply(self, federation, monkeypatch):
        monkeypatch.setattr(actor_pool, "MAX_DEATHS", 1)  # each costs an actor, and seconds
        spec = marked(replace(federation.spec, model=Deadly()), client=3)
        grid = RayGrid(spec, num_cpus=1, max_actors=6)
        messages = federation.messages(arrays=renamed(federation.start, "linear."))
        replies = grid.send_and_receive(messages)
        assert {client_of(reply) for reply in replies if reply.has_error()} == {3}
        assert all("died" in reply.error.reason for reply in replies if reply.has_error())
        others = [message for message in messages if task_of(message).client != 3]
        alone = LocalGrid(spec).send_and_receive(others)
        assert contents([reply for reply in replies if reply.has_content()]) == contents(alone)

    def test_a_client_whose_model_calls_sys_exit_is_named_and_its_actor_lives(self, federation):
        spec = marked(replace(federation.spec, model=Deadly(_exits)), client=3)
        grid = RayGrid(spec, num_cpus=1, max_actors=6)
        before = set(processes(grid))
        replies = grid.send_and_receive(federation.messages(arrays=renamed(federation.start, "linear.")))
        errors = {client_of(reply): reply.error.reason for reply in replies if reply.has_error()}
        assert list(errors) == [3]
        assert errors[3].startswith("sys.exit(1)")
        assert set(processes(grid)) == before

    def test_late_shares_are_left_out_and_the_next_round_is_on_time(self, federation):
        spec = marked(replace(federation.spec, model=Slow(federation.spec.model, each_s=0.0)), client=3)
        grid = RayGrid(spec, num_cpus=1, max_actors=6)
        messages = federation.messages(1, arrays=renamed(federation.start))
        work = [int(federation.plan.client_sizes[task.client]) * task.num_epochs for task in map(task_of, messages)]
        share = next(share for share in balance(work, 2) if 3 in clients_of(messages, share))
        start = time.monotonic()
        replies = grid.send_and_receive(messages, timeout=5.0)  # the others take some hundredths of a second
        assert 5 <= time.monotonic() - start < 1000
        assert [is_late(reply) for reply in replies] == [at in share for at in range(6)]
        in_time = [message for at, message in enumerate(messages) if at not in share]
        undisturbed = LocalGrid(spec).send_and_receive(in_time)
        assert contents([reply for reply in replies if reply.has_content()]) == contents(undisturbed)
        again = grid.send_and_receive(in_time, timeout=1000)
        assert contents(again) == contents(undisturbed)
        assert time.monotonic() - start < 1000  # the late client's hour delays no other client

    # The last of this Ray: it takes processes that died before they spoke for starting, and starts no others meanwhile.
    def test_an_actor_killed_while_it_starts_is_replaced_too(self, federation, tmp_path):
        hold = tmp_path / "hold"
        spec = replace(federation.spec, model=Held(federation.spec.model, str(hold)))
        grid = RayGrid(spec, num_cpus=1, max_actors=6)
        messages = federation.messages(2, arrays=renamed(federation.start))
        undisturbed = contents(LocalGrid(spec).send_and_receive(messages))
        hold.touch()  # no client finishes before three actors have been killed
        stop, killed, until = threading.Event(), set(), time.monotonic() + 300

        def kill_all_that_start() -> None:  # both, and one of their replacements
            try:
                while len(killed) < 3 and time.monotonic() < until and not stop.wait(0.01):
                    for process in {*workers()} - killed:
                        with suppress(ProcessLookupError):  # it has ended by itself
                            os.kill(process, signal.SIGKILL)
                            killed.add(process)
            finally:
                hold.unlink()

        killer = threading.Thread(target=kill_all_that_start)
        killer.start()
        try:
            assert contents(grid.send_and_receive(messages)) == undisturbed
        finally:
            stop.set()
            killer.join()
        assert len(killed) >= 3


def clients_of(messages, share) -> list[int]:
    return [task_of(messages[at]).client for at in share]


class Slow(nn.Module):
    """A model whose training batches take 0.05 s, or an hour if they contain a marked example."""

    def __init__(self, model: nn.Module, each_s: float = 0.05) -> None:
        super().__init__()
        self.model, self.each_s = model, each_s

    def forward(self, x):
        if self.training:
            time.sleep(3600.0 if (x == MARK).any() else self.each_s)
        return self.model(x)


class Held(nn.Module):
    """A model that trains only while a file is missing."""

    def __init__(self, model: nn.Module, file: str) -> None:
        super().__init__()
        self.model, self.file = model, file

    def forward(self, x):
        while self.training and os.path.exists(self.file):
            time.sleep(0.01)
        return self.model(x)


class Deadly(nn.Module):
    """A model that ends its process if a training batch contains a marked example."""

    def __init__(self, end=os._exit) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.end = end

    def forward(self, x):
        if self.training and (x == MARK).any():
            self.end(1)
        return self.linear(x.flatten(1))


def _exits(code):
    sys.exit(code)  # by name: other libraries replace it


MARK = 123.0
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def marked(spec: ClientSpec, client: int) -> ClientSpec:
    """Return a spec whose client has a marked example."""
    data = spec.data.examples
    features = data.features.copy()
    features[spec.data.train[client].max()] = MARK  # the first few are tried before any training
    return replace(spec, data=replace(spec.data, examples=replace(data, features=features)))


def renamed(arrays: ArrayRecord, prefix: str = "model.") -> ArrayRecord:
    """Return the federation's model with the names that it has inside another."""
    return ArrayRecord(
        {prefix + name.removeprefix("2." if prefix == "linear." else ""): a for name, a in arrays.items()}
    )


def processes(grid: RayGrid) -> list[int]:
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in grid._pool.actors])


def workers() -> list[int]:
    """Return the processes of this Ray's actors, including those that are starting."""
    return [process.pid for process in psutil.Process().children(recursive=True) if is_actor(process.pid)]
