"""Plans with a clock: how long rounds take, what a deadline leaves, and who arrives when with which model."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprox.plan.arrivals import BufferedPlan, WaitingPlan
from fedprox.plan.authors import AuthorsProtocol
from fedprox.plan.devices import Devices, drawn_speeds
from fedprox.plan.plan import ClientTask, Plan
from fedprox.plan.protocols import PaperProtocol

SIZES = np.array([30, 20, 10, 40])  # 3, 2, 1 and 4 steps an epoch


def plan(clients_per_round: int = 4, stragglers_fraction: float = 0.0, **more) -> Plan:
    of_all = {"num_epochs": 2, "batch_size": 10, "protocol": PaperProtocol(), "seed": 0}
    return Plan(SIZES, clients_per_round, stragglers_fraction=stragglers_fraction, **of_all, **more)


def devices(*seconds_per_step: float, transfer_s: float = 0.0) -> Devices:
    return Devices(np.array(seconds_per_step), np.full(len(seconds_per_step), transfer_s))


def seconds(timed, round_num: int = 1) -> float:
    return timed.seconds(round_num, timed.tasks(round_num))


def test_a_round_takes_as_long_as_its_slowest_client():
    # 6, 4, 2 and 8 steps: 6, 20, 2 and 8 seconds, after one for the transfer
    timed = WaitingPlan(plan(), devices(1, 5, 1, 1, transfer_s=1.0))
    assert seconds(timed) == 21.0
    assert timed.tasks(1) == plan().tasks(1)


def test_a_client_that_was_drawn_twice_works_twice():
    proportional = plan(sampling="proportional", clients_per_round=20)
    timed = WaitingPlan(proportional, devices(1, 1, 1, 1))
    clients = [task.client for task in timed.tasks(1)]
    assert seconds(timed) == max(clients.count(client) * SIZES[client] / 10 * 2 for client in range(4))


def test_a_dropped_straggler_is_not_waited_for():
    waiting = WaitingPlan(plan(stragglers_fraction=0.5), devices(1, 1, 1, 1))
    dropping = replace(waiting, drops_stragglers=True)
    kept = [task for task in dropping.tasks(1) if not task.is_dropped]
    assert len(kept) == 2
    assert seconds(dropping) == max(task.num_steps for task in kept)
    assert seconds(replace(dropping, plan=plan(stragglers_fraction=1.0))) == 0.0  # nobody is asked


def test_the_authors_plan_can_be_timed_and_drops_its_own_stragglers():
    theirs = AuthorsProtocol().plan(
        client_sizes=SIZES,
        client_ids=["a", "b", "c", "d"],
        clients_per_round=4,
        num_epochs=2,
        batch_size=10,
        stragglers_fraction=0.5,
    )
    timed = WaitingPlan(theirs, devices(1, 1, 1, 1), drops_stragglers=True)
    expected = replace(theirs, drops_stragglers=True)
    assert [timed.tasks(round_num) for round_num in (1, 2)] == [expected.tasks(round_num) for round_num in (1, 2)]


@pytest.mark.parametrize("drops_stragglers", [False, True])
def test_a_deadline_leaves_the_steps_for_which_a_client_has_time(drops_stragglers):
    # D = 5, transfer 1: 4 s for 6, 4, 2, 8 steps of 1, 5, 2, 0.5 s, so 4, 0, 2 and 8 of them
    timed = WaitingPlan(plan(), devices(1, 5, 2, 0.5, transfer_s=1.0), 5.0, drops_stragglers)
    tasks = {task.client: task for task in timed.tasks(1)}
    full = {task.client: task for task in plan().tasks(1)}
    assert {client: task.num_steps for client, task in tasks.items()} == {0: 4, 1: 0, 2: 2, 3: 8}
    assert {client: task.num_epochs for client, task in tasks.items()} == {0: 2, 1: 0, 2: 2, 3: 2}  # 4 of 3 an epoch
    assert (tasks[2], tasks[3]) == (full[2], full[3])
    assert tasks[0] == replace(full[0], num_steps=4, num_epochs=2, is_straggler=True, is_dropped=drops_stragglers)
    assert tasks[1].is_dropped  # without a single step, by every strategy
    assert seconds(timed) == 5.0


@dataclass(frozen=True)
class Cohorts:
    """A plan of given cohorts, again and again, in which each task is one step."""

    clients: tuple[tuple[int, ...], ...]
    client_sizes: np.ndarray
    drops_stragglers: bool = False
    sampling: str = "uniform"

    def tasks(self, round_num: int) -> tuple[ClientTask, ...]:
        cohort = self.clients[(round_num - 1) % len(self.clients)]
        return tuple(ClientTask(client, 1, 1, False, (0, 0, round_num, client)) for client in cohort)


def test_who_arrives_when_with_which_model_is_as_derived_by_hand():
    cohorts = Cohorts(((0, 1), (2, 0), (1, 2), (0, 1)), np.ones(3, int))
    buffered = BufferedPlan(cohorts, devices(1, 2, 4), concurrency=2, buffer=2)
    # t = 0: 0 and 1 start at w0. t = 1: 0 arrives, 2 starts at w0. t = 2: 1 arrives, step 1; 0 starts at w1.
    # t = 3: 0 arrives, 1 starts at w1. t = 5: 2 and 1, which started later, arrive; 2 fills the buffer, step 2; then
    # 2 and 0 start at w2. t = 6: 0 arrives, step 3, with 1's update from w1; 2 still trains w2.
    found = [[(task.client, task.staleness, task.draw) for task in buffered.tasks(step)] for step in (1, 2, 3)]
    assert found == [[(0, 0, 0), (1, 0, 0)], [(0, 0, 0), (2, 1, 0)], [(1, 1, 0), (0, 0, 0)]]
    assert [seconds(buffered, step) for step in (1, 2, 3)] == [2.0, 3.0, 1.0]
    assert [buffered.in_flight(step) for step in range(4)] == [frozenset(), {0}, {1}, {2}]
    assert [task.batch_key[2:] for task in buffered.tasks(2)] == [(2, 0), (2, 2)]  # of the cohort they started in


def test_a_fast_client_may_have_several_updates_in_a_step():
    cohorts = Cohorts(((0, 1),), np.ones(2, int))
    buffered = BufferedPlan(cohorts, devices(1, 10), concurrency=2, buffer=3)
    tasks = buffered.tasks(1)
    assert [(task.client, task.draw, task.batch_key[2]) for task in tasks] == [(0, 0, 1), (0, 1, 2), (0, 2, 3)]


def test_equal_times_and_a_buffer_of_all_clients_in_flight_give_the_synchronous_rounds():
    alike = replace(plan(3), client_sizes=np.full(9, 20))
    buffered = BufferedPlan(alike, devices(*[0.3] * 9), concurrency=3, buffer=3)
    waiting = WaitingPlan(alike, devices(*[0.3] * 9))
    for round_num in range(1, 30):
        assert buffered.tasks(round_num) == waiting.tasks(round_num)
        assert seconds(buffered, round_num) == pytest.approx(seconds(waiting, round_num))


@settings(max_examples=40)
@given(st.data())
def test_every_schedule_is_a_prefix_of_a_longer_one_and_has_the_models_that_it_needs(data):
    num_clients, seed = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 2**32 - 1))
    concurrency = data.draw(st.integers(1, num_clients))
    buffer, sigma = data.draw(st.integers(1, concurrency)), data.draw(st.sampled_from([0.0, 0.5, 2.0]))
    sizes = np.random.default_rng(seed).integers(1, 50, num_clients)
    cohorts = Plan(sizes, concurrency, 2, 10, 0.0, PaperProtocol(), seed)
    speeds = drawn_speeds(num_clients, seconds_per_step=1.0, bandwidth=None, sigma=sigma, seed=seed)
    longer, shorter = (BufferedPlan(cohorts, speeds.devices(0), concurrency, buffer) for _ in range(2))
    longer.tasks(20)
    kept: set[int] = set()
    for step in range(1, 11):
        tasks = longer.tasks(step)
        assert tasks == shorter.tasks(step)
        kept.add(step - 1)
        assert {step - 1 - task.staleness for task in tasks} <= kept
        assert len(kept) <= concurrency + 1
        kept &= longer.in_flight(step)
        assert kept == longer.in_flight(step)
        assert seconds(longer, step) >= 0
        assert len({(task.client, task.draw) for task in tasks}) == buffer


def test_no_client_trains_twice_at_the_same_time_and_as_many_as_asked_for_do():
    speeds = drawn_speeds(6, seconds_per_step=1.0, bandwidth=None, sigma=2.0, seed=1).devices(0)
    cohorts = Plan(np.arange(5, 65, 10), 4, 2, 10, 0.0, PaperProtocol(), 0)
    buffered = BufferedPlan(cohorts, speeds, concurrency=4, buffer=1)
    end_s, intervals = 0.0, []
    for step in range(1, 200):
        (task,) = buffered.tasks(step)
        end_s += seconds(buffered, step)
        intervals.append((task.client, end_s - speeds.seconds(task), end_s))
    for client in range(6):
        own = sorted((begin, end) for each, begin, end in intervals if each == client)
        assert all(end <= begin + 1e-9 for (_, end), (begin, _) in pairwise(own))
    times = np.linspace(1, intervals[100][2], 50) + 1e-6  # clients of that time have all arrived
    assert {sum(begin < time < end for _, begin, end in intervals) for time in times} == {4}


def test_the_weight_of_an_update_falls_with_its_staleness():
    buffered = BufferedPlan(plan(), devices(1, 1, 1, 1), 2, 1, discount=0.5)
    late = [replace(plan().tasks(1)[0], staleness=tau) for tau in (0, 1, 3, 8, 15)]
    assert [round(buffered.weight(task), 4) for task in late] == [1.0, 0.7071, 0.5, 0.3333, 0.25]
    assert [replace(buffered, discount=0.0).weight(task) for task in late] == [1.0] * 5
    assert replace(buffered, server_learning_rate=3.0).weight(late[2]) == 1.5
