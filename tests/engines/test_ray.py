"""The engine on Ray actors: the local engine's results, to the bit, whatever happens to an actor."""

import os
import time

import pytest
import ray

from fedprox.engines import ray as engine
from fedprox.engines.balance import balance
from fedprox.engines.local import LocalGrid
from fedprox.engines.ray import RayGrid
from fedprox.errors import UserError
from fedprox.messages import node_id, task_of

# On actors; this one first, because Ray is not running yet


def test_no_cluster_at_an_address_is_an_error_within_seconds(federation):
    stop_ray()  # a process that has joined a cluster keeps it
    start = time.monotonic()
    with pytest.raises(UserError, match=r"engine\.address.*127\.0\.0\.1:1"):
        RayGrid(federation.side, num_cpus=1, max_actors=1, address="127.0.0.1:1")
    assert time.monotonic() - start < 10


def stop_ray() -> None:
    ray.shutdown()
    engine._pools.clear()
    engine._shared.clear()


@pytest.fixture(scope="module")
def two_cpus():
    """Start Ray once for this module, with two CPUs whatever the machine has."""
    stop_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    stop_ray()


def expected(federation, round_num: int = 1) -> list[tuple]:
    return contents(LocalGrid(federation.side).send_and_receive(federation.messages(round_num)))


def contents(replies) -> list[tuple]:
    """Return what replies say, as values that can be compared bit by bit."""
    return [
        (
            {name: (array.dtype, array.numpy().tobytes()) for name, array in reply.content["arrays"].items()},
            dict(reply.content["metrics"]),
        )
        for reply in replies
    ]


def actors(grid: RayGrid) -> list:
    return [actor._actor_id for actor in grid._actors]


@pytest.mark.usefixtures("two_cpus")
class TestOnActors:
    def test_more_than_there_is_is_an_error_at_once_that_says_what_to_set(self, federation):
        start = time.monotonic()
        with pytest.raises(UserError, match=r"client_resources\.num_cpus=3 .*2 CPUs.*num_cpus to at most"):
            RayGrid(federation.side, num_cpus=3, max_actors=4)
        with pytest.raises(UserError, match=r"client_resources\.num_gpus=9999 .*num_gpus to at most"):
            RayGrid(federation.side, num_cpus=1, num_gpus=9999, max_actors=4)
        assert time.monotonic() - start < 5

    @pytest.mark.parametrize(("num_cpus", "num_actors"), [(2, 1), (1, 2)])
    def test_one_and_two_actors_give_the_local_engines_replies_to_the_bit(self, federation, num_cpus, num_actors):
        grid = RayGrid(federation.side, num_cpus=num_cpus, max_actors=6)
        assert len(actors(grid)) == num_actors
        for round_num in (1, 2):
            messages = federation.messages(round_num)
            replies = grid.send_and_receive(messages)
            assert contents(replies) == expected(federation, round_num)
            sources = [reply.metadata.src_node_id for reply in replies]
            assert sources == [node_id(task_of(message).client) for message in messages]
        assert list(grid.get_node_ids()) == [node_id(client) for client in range(6)]
        assert grid.peak_memory_bytes() > num_actors * 2**20

    def test_no_more_actors_than_asked_for_and_fewer_messages_than_actors(self, federation):
        assert len(actors(RayGrid(federation.side, num_cpus=1, max_actors=1))) == 1
        grid = RayGrid(federation.side, num_cpus=1, max_actors=6)
        assert contents(grid.send_and_receive(federation.messages()[:1])) == expected(federation)[:1]
        assert grid.send_and_receive([]) == []

    def test_the_cohort_is_split_by_examples_times_epochs(self, federation, monkeypatch):
        seen = []

        def spy(work, num_shares):
            seen.append((list(work), num_shares))
            return balance(work, num_shares)

        monkeypatch.setattr(engine, "balance", spy)
        messages = federation.messages()
        RayGrid(federation.side, num_cpus=1, max_actors=6).send_and_receive(messages)
        tasks = [task_of(message) for message in messages]
        assert len({task.num_epochs for task in tasks}) > 1
        assert seen == [([int(federation.plan.client_sizes[t.client]) * t.num_epochs for t in tasks], 2)]

    def test_consecutive_grids_share_actors_and_data(self, federation):
        first = RayGrid(federation.side, num_cpus=1, max_actors=6)
        pids = set(ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in first._actors]))
        second = RayGrid(federation.side, num_cpus=1, max_actors=6)
        assert actors(first) == actors(second)
        again = set(ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in second._actors]))
        assert pids == again
        assert first._side[0] == second._side[0]  # the data, which is large, is in the object store once
        assert contents(second.send_and_receive(federation.messages())) == expected(federation)
        assert contents(first.send_and_receive(federation.messages())) == expected(federation)

    def test_an_actor_killed_between_rounds_is_started_anew_with_the_same_result(self, federation):
        grid = RayGrid(federation.side, num_cpus=1, max_actors=6)
        grid.send_and_receive(federation.messages(1))
        ray.kill(grid._actors[0], no_restart=False)
        assert contents(grid.send_and_receive(federation.messages(2))) == expected(federation, 2)

    def test_a_share_whose_actor_dies_at_work_is_redone_with_the_same_result(self, federation, tmp_path):
        grid = RayGrid(federation.side, num_cpus=1, max_actors=6)
        grid.send_and_receive(federation.messages(1))
        died = tmp_path / "died"

        def die_once_at_the_next_share(worker) -> None:
            play = worker._grid.send_and_receive

            def die(messages):
                died.write_text(str(len(messages)))
                os._exit(1)

            worker._grid.send_and_receive = die
            assert play is not die

        ray.get(grid._actors[1].__ray_call__.remote(die_once_at_the_next_share))
        assert contents(grid.send_and_receive(federation.messages(2))) == expected(federation, 2)
        assert int(died.read_text()) >= 1  # it did die while it held a share
